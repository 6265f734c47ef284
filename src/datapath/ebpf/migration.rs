//! Carries the flows of a running build of an earlier layout, or of maps of another size, over to this one's maps, so that an
//! upgrade loses none. Everything else in the maps is written again from the view.

use super::clock::monotonic;
use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData};
use aya::{Ebpf, Pod};
use skep_ebpf::packet::TCP;
use skep_ebpf::{Flow, Reply, Tuple};
use std::path::Path;

/// Update an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

/// Folder that maps of another size are moved to until their flows are carried over.
pub(super) const RESIZED: &str = "maps-resized";

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

/// Copies the flows and reply entries that a build of layout 3 or 4 has pinned below `dir`, or this one with another size, if
/// there are any. Flows that begin between this and the replacement of the programs, some milliseconds later, are selected again
/// by the table. Earlier layouts do not say which TCP connections are over: all are taken for established ones, and age.
pub(super) fn migrate_flows(dir: &Path, ebpf: &mut Ebpf) {
    let now = u32::try_from(monotonic().as_secs()).unwrap_or(u32::MAX);
    let earlier = |ebpf: &mut Ebpf, old: &Path, is_v3: bool| {
        let flows = if is_v3 {
            copy(&old.join("FLOWS"), ebpf, flow_tables, |flow: FlowV3| flow.upgrade(now))?
        } else {
            copy(&old.join("FLOWS"), ebpf, flow_tables, |flow: Flow| flow)?
        };
        Ok((flows, copy(&old.join("REPLIES"), ebpf, reply_tables, |reply: ReplyV4| reply.upgrade(now))?))
    };
    for (folder, pin) in [("maps3", "FLOWS"), ("maps4", "FLOWS"), (RESIZED, "TCP_FLOWS")] {
        let old = dir.join(folder);
        if !old.join(pin).exists() {
            continue;
        }
        let copied = if folder == RESIZED {
            let flows = copy(&old.join("TCP_FLOWS"), ebpf, flow_tables, |flow: Flow| flow);
            flows.and_then(|flows| Ok((flows, copy(&old.join("TCP_REPLIES"), ebpf, reply_tables, |reply: Reply| reply)?)))
        } else {
            earlier(ebpf, &old, folder == "maps3")
        };
        match copied {
            Ok((flows, replies)) => tracing::info!(folder, flows, replies, "took the flows of an earlier run over"),
            Err(error) => tracing::warn!(folder, error = format!("{error:#}"), "cannot take the flows of an earlier run over"),
        }
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

/// Copies a pinned map of tuples; returns the number of entries.
fn copy<Old: Pod, New: Pod>(
    pin: &Path,
    ebpf: &mut Ebpf,
    tables: impl Fn(&Tuple, &New) -> &'static [&'static str],
    upgrade: impl Fn(Old) -> New,
) -> anyhow::Result<usize> {
    let old = MapData::from_pin(pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let old = Map::from_map_data(old).context("not a map of a known type")?;
    let old: HashMap<MapData, Tuple, Old> =
        HashMap::try_from(old).with_context(|| format!("{} has other entries", pin.display()))?;
    let mut copied = 0;
    // An entry may end while the map is read: what cannot be read is not copied.
    for (tuple, value) in old.iter().flatten() {
        let value = upgrade(value);
        for name in tables(&tuple, &value) {
            let map = ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
            let mut map: HashMap<&mut MapData, Tuple, New> = HashMap::try_from(map)?;
            if map.insert(tuple, value, BPF_NOEXIST).is_ok() {
                copied += 1;
                break;
            }
        }
    }
    Ok(copied)
}
