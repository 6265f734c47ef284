//! Events of what the programs drop, refuse or leave to the host: the ring that they write them to, and the switch that they
//! look at. The switch holds a time and is renewed while somebody watches, so that it ends with the daemon.

use super::clock::monotonic;
use super::hook::HookSide;
use super::load::chain;
use anyhow::Context as _;
use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use skep_ebpf::{Counter, HOOKS, RefusalEvent, Watch, WatchedSecond, convert};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::io::unix::AsyncFd;

/// Events per second at most, of all processors together.
const EVENTS_PER_SECOND: u32 = 1_000;
/// Seconds that the switch stays on after it was renewed: the programs read a clock of whole seconds.
const WATCHED_SECONDS: u32 = 3;
/// Events taken at once.
const BATCH: usize = 256;

/// A packet or call that the programs dropped, refused or left to the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub time: SystemTime,
    /// Name of the program.
    pub hook: &'static str,
    pub reason: Counter,
    /// IP protocol number; 0: neither IPv4 nor IPv6.
    pub protocol: u8,
    /// At a socket call unspecified: the caller has no address yet.
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
    /// Index of the device in the namespace that the hook is in; 0 at a socket call.
    pub device: u32,
    /// `skep_ebpf::owner` of the service; 0: not known.
    pub owner: u32,
}

/// Where the device of an event is.
#[must_use]
pub fn hook_side(hook: &str) -> HookSide {
    match hook {
        "from_uplink" | "to_uplink" | "out_uplink" => HookSide::Host,
        "from_host" | "from_mesh" | "from_container" => HookSide::Mesh,
        _ => HookSide::Cgroup,
    }
}

/// Name of an IP protocol in events and traces.
#[must_use]
pub fn protocol_text(number: u8) -> String {
    match number {
        0 => "none".to_owned(),
        1 => "icmp".to_owned(),
        58 => "icmp6".to_owned(),
        other => super::step::protocol_name(other),
    }
}

/// The opened ring. Off again when it is dropped.
pub(super) struct EventRing {
    ring: AsyncFd<RingBuf<MapData>>,
    watch: Array<MapData, Watch>,
    state: PerCpuArray<MapData, WatchedSecond>,
    most: u32,
    /// Clocks at the same moment: the kernel's monotonic one in nanoseconds, and that of the day.
    opened: (u64, SystemTime),
    lost_before: u64,
}

fn open_map(folder: &Path, name: &str) -> anyhow::Result<Map> {
    let opened = MapData::from_pin(folder.join(name)).and_then(Map::from_map_data);
    opened.map_err(|e| anyhow::anyhow!("map {name}: {}", chain(&e)))
}

impl EventRing {
    /// Opens the pinned maps in `folder`. Events of an earlier watcher that are still in the ring are skipped.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let ring = RingBuf::try_from(open_map(folder, "EVENTS")?)?;
        #[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays the same")]
        // SAFETY: the map's descriptor is its own, and is closed with it.
        let ring = unsafe { AsyncFd::register(ring) }.context("the ring of events cannot be waited for")?;
        let nanoseconds = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        #[expect(clippy::disallowed_methods, reason = "the time of day at a moment of the kernel's clock, which events carry")]
        let now = SystemTime::now();
        let mut opened = Self {
            ring,
            watch: Array::try_from(open_map(folder, "WATCH")?)?,
            state: PerCpuArray::try_from(open_map(folder, "WATCHED")?)?,
            most: EVENTS_PER_SECOND.div_ceil(u32::try_from(cpus).unwrap_or(1).max(1)),
            opened: (nanoseconds, now),
            lost_before: 0,
        };
        opened.lost_before = opened.lost_ever()?;
        Ok(opened)
    }

    /// Lets the programs write events for the next seconds; with `left` also of what is left to the host.
    pub(super) fn renew(&mut self, left: bool) -> anyhow::Result<()> {
        let now = u32::try_from(monotonic().as_secs()).unwrap_or(u32::MAX);
        let watch = Watch { until: now.saturating_add(WATCHED_SECONDS), most: self.most, left: left.into() };
        Ok(self.watch.set(0, watch, 0)?)
    }

    /// Waits for events and takes them, [`BATCH`] at most.
    pub(super) async fn next(&mut self) -> anyhow::Result<Vec<Refusal>> {
        let (since, day) = self.opened;
        let mut ready = self.ring.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let mut events = Vec::new();
        while events.len() < BATCH {
            let Some(bytes) = ring.next() else { break };
            if let Some(event) = read(&bytes).filter(|event| event.time >= since) {
                events.extend(refusal(&event, day + Duration::from_nanos(event.time - since)));
            }
        }
        if events.len() < BATCH {
            ready.clear_ready();
        }
        Ok(events)
    }

    /// Events that were not written since it was opened: over the bound, or the ring was full.
    pub(super) fn lost(&self) -> anyhow::Result<u64> {
        Ok(self.lost_ever()?.saturating_sub(self.lost_before))
    }

    fn lost_ever(&self) -> anyhow::Result<u64> {
        Ok(self.state.get(&0, 0)?.iter().map(|cpu| cpu.lost).sum())
    }
}

impl Drop for EventRing {
    fn drop(&mut self) {
        let _ = self.watch.set(0, Watch::default(), 0);
    }
}

/// An event as the programs wrote it; `None` if it has another size: written by programs of another build.
fn read(bytes: &[u8]) -> Option<RefusalEvent> {
    if bytes.len() != size_of::<RefusalEvent>() {
        return None;
    }
    #[expect(unsafe_code, reason = "a value as the kernel has it")]
    // SAFETY: plain numbers, every pattern of bits is one, and the slice has as many bytes.
    let event = unsafe { bytes.as_ptr().cast::<RefusalEvent>().read_unaligned() };
    Some(event)
}

/// `None`: hook or reason is unknown.
fn refusal(event: &RefusalEvent, time: SystemTime) -> Option<Refusal> {
    Some(Refusal {
        time,
        hook: HOOKS.get(usize::from(event.hook))?,
        reason: *Counter::ALL.get(usize::from(event.reason))?,
        protocol: event.protocol,
        source: convert::to_address(event.source),
        source_port: convert::to_port(event.source_port),
        destination: convert::to_address(event.destination),
        destination_port: convert::to_port(event.destination_port),
        device: event.device,
        owner: event.owner,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::ebpf::Hook;

    #[test]
    fn the_numbers_of_the_programs_name_every_hook() {
        for hook in Hook::ALL {
            assert!(HOOKS.contains(&hook.program()), "{}", hook.program());
            assert_eq!(hook_side(hook.program()), hook.side());
        }
        assert_eq!(HOOKS.len(), Hook::ALL.len());
    }

    #[test]
    fn an_event_of_another_build_is_no_event() {
        let event = RefusalEvent { reason: 1_000, ..RefusalEvent::default() };
        assert_eq!(refusal(&event, SystemTime::UNIX_EPOCH), None);
        assert_eq!(refusal(&RefusalEvent { hook: 14, ..RefusalEvent::default() }, SystemTime::UNIX_EPOCH), None);
        assert_eq!(read(&[0; 40]), None);
        assert_eq!(read(&[0; 56]), Some(RefusalEvent::default()));
    }
}
