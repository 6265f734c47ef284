//! Carries the flows of a running build of layout 3 over to this one's maps, so that an upgrade loses none. Everything else in
//! the maps is written again from the view.

use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData};
use aya::{Ebpf, Pod};
use skep_ebpf::{Flow, Reply, Tuple};
use std::path::Path;

/// Update an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

/// A flow entry of layout 3: without owner and age.
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

impl FlowV3 {
    /// Owner 0 matches every backend: the flow continues until its client is silent or the backend's address is given up.
    fn upgrade(self, now: u32) -> Flow {
        let Self { backend, target, client_port, ifindex } = self;
        Flow { backend, target, client_port, ifindex, owner: 0, seen: now }
    }
}

/// Copies the flows and reverse entries that a build of layout 3 has pinned below `dir`, if there are any. Flows that begin
/// between this and the replacement of the programs, some milliseconds later, are selected again by the table.
pub(super) fn migrate_flows(dir: &Path, ebpf: &mut Ebpf) {
    let old = dir.join("maps3");
    if !old.join("FLOWS").exists() {
        return;
    }
    let now = uptime();
    let copied = copy::<FlowV3, Flow>(&old.join("FLOWS"), ebpf, "FLOWS", |flow| flow.upgrade(now))
        .and_then(|flows| Ok((flows, copy::<Reply, Reply>(&old.join("REPLIES"), ebpf, "REPLIES", |reply| reply)?)));
    match copied {
        Ok((flows, replies)) => tracing::info!(flows, replies, "took the flows of an earlier build over"),
        Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot take the flows of an earlier build over"),
    }
}

/// Seconds since the machine started; 0 if they cannot be read. (The programs' clock does not count time in suspension, so
/// an entry may seem to be from the future: that is as good as now.)
fn uptime() -> u32 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

/// Copies a pinned map of tuples; returns the number of entries.
fn copy<Old: Pod, New: Pod>(pin: &Path, ebpf: &mut Ebpf, name: &str, upgrade: impl Fn(Old) -> New) -> anyhow::Result<usize> {
    let old = MapData::from_pin(pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let old = Map::from_map_data(old).context("not a map of a known type")?;
    let old: HashMap<MapData, Tuple, Old> = HashMap::try_from(old).with_context(|| format!("{name} of layout 3"))?;
    let mut new: HashMap<&mut MapData, Tuple, New> =
        HashMap::try_from(ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?)?;
    let mut copied = 0;
    // An entry may end while the map is read: what cannot be read is not copied.
    for (tuple, value) in old.iter().flatten() {
        copied += usize::from(new.insert(tuple, upgrade(value), BPF_NOEXIST).is_ok());
    }
    Ok(copied)
}
