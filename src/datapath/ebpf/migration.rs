//! Maps of a build of an earlier layout, or of another size, whose programs may still run: copies their flows, and the virtual
//! addresses that sockets asked for, to this build's maps. Everything else in the maps is written again from the view.

use super::batch::{Batches, value};
use super::resized::RESIZED;
use super::tuples::client;
use anyhow::Context as _;
use aya::maps::{HashMap, MapData};
use aya::{Ebpf, Pod};
use skep_ebpf::packet::TCP;
use skep_ebpf::{Flow, Reply, SocketPeer, Tuple, V4, is_zero};
use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// Update an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

/// A flow entry of layout 3: without owner and age. Layout 4 has those of today, in one table.
#[repr(C)]
#[derive(Clone, Copy)]
struct FlowV3 {
    backend: u32,
    target: u16,
    client_port: u16,
    ifindex: u32,
}

#[expect(unsafe_code, reason = "a map value as the kernel has it")]
// SAFETY: plain old data without padding and without pointers.
unsafe impl Pod for FlowV3 {}

/// A reply entry of layouts 3 and 4: without age and state.
#[repr(C)]
#[derive(Clone, Copy)]
struct ReplyV4 {
    address: [u32; 4],
    entry: [u32; 2],
    port: u16,
    client_port: u16,
    device: u32,
}

#[expect(unsafe_code, reason = "a map value as the kernel has it")]
// SAFETY: plain old data without padding and without pointers.
unsafe impl Pod for ReplyV4 {}

impl FlowV3 {
    /// Owner 0 matches every backend: the flow continues until its client is silent or the backend's address is given up.
    fn upgrade(self, now: u32) -> Flow {
        let Self { backend, target, client_port, ifindex } = self;
        Flow { backend, target, client_port, ifindex, owner: 0, seen: now }
    }
}

impl ReplyV4 {
    fn upgrade(self, now: u32) -> Reply {
        let Self { address, entry, port, client_port, device } = self;
        Reply { address, entry, port, client_port, device, seen: now, expected: 0, flags: 0 }
    }
}

/// Maps of flows, and of what sockets asked for, that may be of another size.
const RESIZED_FLOWS: [&str; 9] =
    ["TCP_FLOWS", "TCP_REPLIES", "SYN_FLOWS", "SYN_REPLIES", "UDP_FLOWS", "UDP_REPLIES", "PEERS", "DATAGRAM_PEERS", "CHOICES"];

/// What the maps in a folder are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EarlierLayout {
    Three,
    Four,
    /// Of this build, but for the number of entries.
    Resized,
}

/// Pinned maps of an earlier layout or another size.
#[derive(Debug)]
pub(super) struct EarlierMaps {
    folder: PathBuf,
    layout: EarlierLayout,
}

/// What becomes of an entry whose tuple this build's maps have already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Existing {
    /// It is replaced: only programs of the earlier maps have run since it was copied.
    Replaced,
    /// It stays: this build's programs may have changed it, or moved it to another table.
    Kept,
}

impl EarlierMaps {
    /// Those below `dir`.
    pub(super) fn find(dir: &Path) -> Vec<Self> {
        let all: [(&str, &[&str], EarlierLayout); 3] = [
            ("maps3", &["FLOWS"], EarlierLayout::Three),
            ("maps4", &["FLOWS"], EarlierLayout::Four),
            (RESIZED, &RESIZED_FLOWS, EarlierLayout::Resized),
        ];
        let found = all.into_iter().map(|(folder, pins, layout)| (dir.join(folder), pins, layout));
        let found = found.filter(|(folder, pins, _)| pins.iter().any(|pin| folder.join(pin).exists()));
        found.map(|(folder, _, layout)| Self { folder, layout }).collect()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies what is in the maps; `now` in seconds of the monotonic clock. Returns the number of entries that were written.
    /// Earlier layouts do not say which TCP connections are over: all are taken for established ones, and age.
    pub(super) fn copy(&self, ebpf: &mut Ebpf, now: u32, existing: Existing) -> anyhow::Result<usize> {
        let mut copy = Copy { folder: &self.folder, ebpf, existing };
        if self.layout == EarlierLayout::Resized {
            return copy.resized();
        }
        let flows = if self.layout == EarlierLayout::Three {
            copy.map("FLOWS", flow_tables, |flow: FlowV3| flow.upgrade(now), always)?
        } else {
            copy.map("FLOWS", flow_tables, |flow: Flow| flow, always)?
        };
        let replies = copy.map("REPLIES", reply_tables, |reply: ReplyV4| reply.upgrade(now), has_its_flow)?;
        copy.peers()?;
        Ok(flows + replies)
    }

    /// Removes the pins. Programs that are still attached keep their maps open.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// The tables that take a flow, the best one first.
fn flow_tables(tuple: &Tuple, flow: &Flow) -> &'static [&'static str] {
    match (tuple.protocol == TCP, flow.backend) {
        (false, _) => &["UDP_FLOWS"],
        (true, 0) => &["SYN_FLOWS"],
        (true, _) => &["TCP_FLOWS", "SYN_FLOWS"],
    }
}

/// The same for a reply entry.
fn reply_tables(tuple: &Tuple, _: &Reply) -> &'static [&'static str] {
    if tuple.protocol == TCP { &["TCP_REPLIES", "SYN_REPLIES"] } else { &["UDP_REPLIES"] }
}

/// The table of the same name.
fn only<K, V>(table: &'static [&'static str; 1]) -> impl Fn(&K, &V) -> &'static [&'static str] {
    move |_, _| table
}

/// Whether a connection that is not established was not established meanwhile, by programs that have the table in common.
fn is_in_no<V: Pod>(table: &'static str) -> impl Fn(&Ebpf, &Tuple, &V) -> bool {
    move |ebpf, tuple, _| {
        let map = ebpf.map(table).and_then(|map| HashMap::<&MapData, Tuple, V>::try_from(map).ok());
        map.is_none_or(|map| map.get(tuple, 0).is_err())
    }
}

fn always<K, V>(_: &Ebpf, _: &K, _: &V) -> bool {
    true
}

/// Whether the flow of a reply entry has its container, or is not known here. A client that sent its SYN again has another
/// container in the new tables: the answer of the first one would make a connection that the second does not know.
fn has_its_flow(ebpf: &Ebpf, container: &Tuple, reply: &Reply) -> bool {
    if container.protocol != TCP || !is_zero(&reply.entry) {
        return true;
    }
    let client = client(container, reply);
    let flow = |name| HashMap::<&MapData, Tuple, Flow>::try_from(ebpf.map(name)?).ok()?.get(&client, 0).ok();
    flow("TCP_FLOWS").or_else(|| flow("SYN_FLOWS")).is_none_or(|flow: Flow| flow.backend == container.source[3])
}

struct Copy<'a> {
    folder: &'a Path,
    ebpf: &'a mut Ebpf,
    existing: Existing,
}

impl Copy<'_> {
    /// Flows and peers of this build's layout.
    fn resized(&mut self) -> anyhow::Result<usize> {
        fn same<T>(entry: T) -> T {
            entry
        }
        let copied = self.map("TCP_FLOWS", flow_tables, same::<Flow>, always)?
            + self.map("TCP_REPLIES", reply_tables, same::<Reply>, has_its_flow)?
            + self.map("SYN_FLOWS", only(&["SYN_FLOWS"]), same::<Flow>, is_in_no("TCP_FLOWS"))?
            + self.map("SYN_REPLIES", only(&["SYN_REPLIES"]), same::<Reply>, is_in_no("TCP_REPLIES"))?
            + self.map::<Tuple, _, _>("UDP_FLOWS", only(&["UDP_FLOWS"]), same::<Flow>, always)?
            + self.map::<Tuple, _, _>("UDP_REPLIES", only(&["UDP_REPLIES"]), same::<Reply>, always)?;
        self.peers()?;
        Ok(copied)
    }

    /// What sockets asked for, and what was selected for them.
    fn peers(&mut self) -> anyhow::Result<()> {
        for table in [&["PEERS"], &["DATAGRAM_PEERS"], &["CHOICES"]] {
            self.map::<SocketPeer, _, _>(table[0], only(table), |address: V4| address, always)?;
        }
        Ok(())
    }

    /// Copies the wanted entries of a pinned map to the first of their tables that has room; returns the number of entries
    /// written. A missing map has none.
    fn map<K: Pod, Old: Pod, New: Pod>(
        &mut self,
        name: &str,
        tables: impl Fn(&K, &New) -> &'static [&'static str],
        upgrade: impl Fn(Old) -> New,
        is_wanted: impl Fn(&Ebpf, &K, &New) -> bool,
    ) -> anyhow::Result<usize> {
        let pin = self.folder.join(name);
        if !pin.exists() {
            return Ok(0);
        }
        let named = || format!("cannot read {}", pin.display());
        let old = MapData::from_pin(&pin).with_context(named)?;
        let info = old.info().with_context(named)?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        anyhow::ensure!(sizes == (size_of::<K>(), size_of::<Old>()), "{} has entries of {sizes:?} bytes", pin.display());
        let mut batches = Batches::new(sizes.0, sizes.1);
        let mut copied = 0;
        loop {
            let batch = batches.read(old.fd().as_fd()).with_context(named)?;
            for (key, entry) in batches.entries(&batch) {
                let (key, entry) = (value::<K>(key), upgrade(value::<Old>(entry)));
                if is_wanted(&*self.ebpf, &key, &entry) {
                    copied += usize::from(self.write(&key, &entry, tables(&key, &entry))?);
                }
            }
            if batch.last {
                return Ok(copied);
            }
        }
    }

    /// Writes an entry to the first table that takes it. `false`: none does, or one has it.
    fn write<K: Pod, V: Pod>(&mut self, key: &K, entry: &V, tables: &[&str]) -> anyhow::Result<bool> {
        if self.existing == Existing::Kept {
            for name in tables {
                let map = self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
                if HashMap::<&MapData, K, V>::try_from(map)?.get(key, 0).is_ok() {
                    return Ok(false);
                }
            }
        }
        let flags = if self.existing == Existing::Kept { BPF_NOEXIST } else { 0 };
        for name in tables {
            let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
            if HashMap::<&mut MapData, K, V>::try_from(map)?.insert(key, entry, flags).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
