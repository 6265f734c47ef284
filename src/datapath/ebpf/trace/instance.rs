//! The second instance of the object that a trace runs: loads it, runs a program of it once on a packet.

use super::classes::{TraceMapClass, of_class};
use super::frame;
use super::tables::{self, Entries, LiveTables, TraceEntry};
use crate::datapath::ebpf::hook::Hook;
use crate::datapath::ebpf::load::{OBJECT, chain, maps_dir, remove_trace_pins, trace_dir};
use crate::datapath::netns;
use anyhow::Context as _;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use skep_ebpf::packet::{REPLY, REQUEST, TCP, UDP, mapped};
use skep_ebpf::{Config, Counter, Prefix, Tuple, VerdictKind, convert};
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// Offsets of fields of `struct __sk_buff`, and its size.
const IFINDEX: usize = 40;
const CB: usize = 48;
const SK_BUFF: usize = 192;
/// What an encapsulated packet is longer by, at most.
const GROWTH: usize = 256;
/// Room of an own map of flows: more than the kernel keeps aside for each processor.
const ROOM_PER_CPU: u32 = 256;
const LEAST_ROOM: u32 = 4_096;
/// Runs of a program on one packet, at most: it is run again with each live entry that it would have met.
const RUNS: usize = 3;

/// A packet at a hook.
#[derive(Clone, Debug)]
pub(super) struct AtHook {
    pub hook: Hook,
    /// Index of the device, in the hook's namespace.
    pub device: u32,
    /// With an Ethernet header, also on a device that has none.
    pub frame: Vec<u8>,
    /// The node that sent it, if one did.
    pub via: Option<Prefix>,
}

/// What a program made of a packet.
#[derive(Clone, Debug)]
pub(super) struct HookRun {
    pub verdict: VerdictKind,
    /// Index of the device that the verdict names; 0 if it names none.
    pub to: u32,
    pub frame: Vec<u8>,
    /// Counters that it raised.
    pub counters: Vec<Counter>,
    /// Entries that it made or changed.
    pub entries: Vec<TraceEntry>,
}

/// The loaded object. The kernel frees it when it is dropped.
pub(super) struct TraceInstance {
    ebpf: Ebpf,
    live: LiveTables,
    loaded: BTreeSet<&'static str>,
    pub(super) config: Config,
}

impl TraceInstance {
    /// Loads the object beside the live one of the bpf file system at `dir`.
    pub(super) fn load(dir: &Path) -> anyhow::Result<Self> {
        let live_dir = maps_dir(dir);
        let live: Vec<PathBuf> = of_class(TraceMapClass::Live).map(|name| live_dir.join(name)).collect();
        for pin in &live {
            anyhow::ensure!(pin.exists(), "the live map {} does not exist", pin.display());
        }
        // A daemon may have ended in the middle of a load.
        remove_trace_pins(dir)?;
        let own = trace_dir(dir);
        fs::create_dir(&own).with_context(|| format!("cannot create {}", own.display()))?;
        let loaded = load_object(&live, &own);
        remove_trace_pins(dir)?;
        let mut ebpf = loaded?;
        copy_first::<u32>(&live_dir, &mut ebpf)?;
        let config =
            Array::<&MapData, Config>::try_from(ebpf.map("CONFIG").context("the object has no map CONFIG")?)?.get(&0, 0)?;
        Ok(Self { ebpf, live: LiveTables::open(&live_dir)?, loaded: BTreeSet::new(), config })
    }

    /// A map of the instance: a live one where the programs only read it.
    pub(super) fn map(&self, name: &str) -> anyhow::Result<&Map> {
        self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))
    }

    /// Runs a hook's program on a packet, in the network namespace of its device.
    pub(super) fn run(&mut self, at: &AtHook, namespace: BorrowedFd<'_>) -> anyhow::Result<HookRun> {
        let mut seeds = self.seeds(at)?;
        for _ in 0..RUNS {
            let before = self.seed(&seeds)?;
            let counted = self.counted()?;
            let (verdict, to, frame) =
                self.run_once(at, namespace).with_context(|| format!("cannot run {}", at.hook.program()))?;
            let after = tables::read(&self.ebpf)?;
            let new: BTreeSet<Tuple> = after.keys().filter(|key| !before.contains_key(*key)).map(|(_, tuple)| *tuple).collect();
            let missed = self.live.entries(&new)?;
            if missed.keys().all(|key| before.contains_key(key)) {
                let counters = self.counted()?.into_iter().zip(counted).zip(Counter::ALL);
                let counters = counters.filter(|((now, then), _)| now > then).map(|(_, counter)| *counter).collect();
                return Ok(HookRun { verdict, to, frame, counters, entries: tables::made(&before, &after) });
            }
            // It made an entry where a live one is: of another client, whose port the program takes into account.
            self.restore(&before, &after)?;
            seeds.extend(missed);
        }
        anyhow::bail!("the tables change faster than {} can be run on them", at.hook.program())
    }

    /// The live entries of the connection of a packet.
    fn seeds(&self, at: &AtHook) -> anyhow::Result<Entries> {
        let Some(tuple) = tuple_of(&at.frame) else { return Ok(Entries::new()) };
        let mut seeds = self.live.entries(&tables::tuples_of(&tuple, at.via))?;
        seeds.extend(self.live.entries(&tables::answers_of(&seeds, &self.config))?);
        Ok(seeds)
    }

    /// Puts the entries into the own tables, where an earlier program of this trace has made none. Returns what they hold then.
    fn seed(&mut self, seeds: &Entries) -> anyhow::Result<Entries> {
        let mut entries = tables::read(&self.ebpf)?;
        for ((name, key), value) in seeds {
            if let Entry::Vacant(vacant) = entries.entry((name, *key)) {
                tables::write(&mut self.ebpf, name, key, Some(*value))?;
                vacant.insert(*value);
            }
        }
        Ok(entries)
    }

    fn restore(&mut self, before: &Entries, after: &Entries) -> anyhow::Result<()> {
        for (entry @ (name, key), value) in after {
            let old = before.get(entry).copied();
            if old != Some(*value) {
                tables::write(&mut self.ebpf, name, key, old)?;
            }
        }
        Ok(())
    }

    fn counted(&self) -> anyhow::Result<Vec<u64>> {
        let counts: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(self.map("COUNTS")?)?;
        Counter::ALL.iter().map(|counter| Ok(counts.get(&(*counter as u32), 0)?.iter().sum())).collect()
    }

    fn run_once(&mut self, at: &AtHook, namespace: BorrowedFd<'_>) -> anyhow::Result<(VerdictKind, u32, Vec<u8>)> {
        let name = at.hook.program();
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).context("the object has no such program")?.try_into()?;
        if self.loaded.insert(name) {
            program.load().map_err(|e| anyhow::anyhow!("{}", chain(&e)))?;
        }
        let (mut frame, mut context, mut written) = (vec![0; at.frame.len() + GROWTH], [0_u8; SK_BUFF], [0_u8; SK_BUFF]);
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&at.device.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&at.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut written),
            ..TestRunOptions::default()
        };
        let result = netns::run(namespace, || program.test_run(options))?;
        let result = result.map_err(|e| anyhow::anyhow!("device {}: {}", at.device, chain(&e)))?;
        frame.truncate(result.data_size_out as usize);
        let word = |at: usize| u32::from_ne_bytes([written[at], written[at + 1], written[at + 2], written[at + 3]]);
        let verdict = VerdictKind::of_number(word(CB)).context("the program has written no verdict")?;
        Ok((verdict, word(CB + 4), frame))
    }
}

fn load_object(live: &[PathBuf], own: &Path) -> anyhow::Result<Ebpf> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    let room = u32::try_from(cpus).unwrap_or(1).saturating_mul(ROOM_PER_CPU).max(LEAST_ROOM);
    let mut loader = EbpfLoader::new();
    loader.override_global("IS_TEST_RUN", &1_u32, true).default_map_pin_directory(own);
    for (name, pin) in of_class(TraceMapClass::Live).zip(live) {
        loader.map_pin_path(name, pin.as_path());
    }
    for name in of_class(TraceMapClass::Tuples).chain(of_class(TraceMapClass::Small)) {
        loader.map_max_entries(name, room);
    }
    loader.load(OBJECT).map_err(|e| anyhow::anyhow!("cannot load the programs for a trace: {}", chain(&e)))
}

/// Copies the first value of live arrays into the own ones.
fn copy_first<V: Pod>(live: &Path, ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for name in of_class(TraceMapClass::Whole) {
        let map = MapData::from_pin(live.join(name)).and_then(Map::from_map_data);
        let map = map.map_err(|e| anyhow::anyhow!("map {name}: {}", chain(&e)))?;
        let value = Array::<MapData, V>::try_from(map)?.get(&0, 0)?;
        let own = ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        Array::<&mut MapData, V>::try_from(own)?.set(0, value, 0)?;
    }
    Ok(())
}

/// The tuple of a TCP segment or UDP datagram; of a packet between nodes that of the packet that it carries.
fn tuple_of(bytes: &[u8]) -> Option<Tuple> {
    let traced = frame::read(bytes)?;
    let headers = traced.inner.unwrap_or(traced.headers);
    if headers.protocol != TCP && headers.protocol != UDP {
        return None;
    }
    let (mut source, mut destination) = (convert::address(headers.source), convert::address(headers.destination));
    if destination[2] == REQUEST || destination[2] == REPLY {
        (source, destination) = (mapped(source[3]), mapped(destination[3]));
    }
    Some(Tuple {
        source,
        destination,
        source_port: convert::port(headers.source_port),
        destination_port: convert::port(headers.destination_port),
        protocol: headers.protocol,
        ..Tuple::default()
    })
}
