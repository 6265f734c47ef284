//! The steps from the current contents of the maps and attachments to the desired ones. Pure.

use super::desired::{DesiredDatapath, DesiredPort};
use super::dirty::{Changed, Dirty};
use super::slots::{SlotAllocator, TablePlacement};
use crate::datapath::ebpf::{EbpfState, EbpfStep, Hook, ProgramLink, Slots, Tables};
use skep_ebpf::{Frontend, Port, PortNumber, Target, V4, Vip, convert};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The steps for the entries that changed; `allocator` knows where tables lie in the slot array and places new ones. An entry
/// is added before the entries that refer to it and removed after them.
#[must_use]
pub fn plan(desired: &DesiredDatapath, actual: &EbpfState, allocator: &mut SlotAllocator, changed: &Changed) -> Vec<EbpfStep> {
    let mut steps = Vec::new();
    let tables = &actual.tables;
    if tables.config != desired.config {
        steps.push(EbpfStep::Config(desired.config));
    }
    let dirty = changed.dirty();
    let backends = keys(dirty.map(|d| &d.backends), &desired.backends, &tables.backends);
    for address in &*backends {
        if let Some(backend) = desired.backends.get(address)
            && tables.backends.get(address) != Some(backend)
        {
            steps.push(EbpfStep::SetBackend(*address, *backend));
        }
    }
    steps.extend(desired.locals.difference(&tables.locals).map(|a| EbpfStep::AddLocal(*a)));
    steps.extend(desired.uplinks.difference(&tables.uplinks).map(|index| EbpfStep::AddUplink(*index)));
    steps.extend(desired.sources.difference(&tables.sources).map(|(length, s)| EbpfStep::AddSource(*length, *s)));
    // Before the virtual addresses, which they make reachable over IPv6.
    let new_subnets = desired.subnets6.iter().filter(|(prefix, subnet)| tables.subnets6.get(*prefix) != Some(*subnet));
    steps.extend(new_subnets.map(|(prefix, subnet)| EbpfStep::AddSubnet6(*prefix, *subnet)));
    let (targets, left) = targets(desired, tables, dirty);
    steps.extend(targets.difference(&tables.targets).map(|target| EbpfStep::AddTarget(*target)));
    // Not those that this plan empties: packets use their tables until it is carried out.
    let unused = if dirty.is_none() { allocator.unused_blocks(&tables.blocks) } else { BTreeSet::new() };
    plan_frontends(desired, tables, allocator, dirty, &mut steps);
    steps.extend(allocator.unused_blocks(&unused).into_iter().map(EbpfStep::FreeBlock));
    let new_members = desired.members.iter().filter(|(member, address)| tables.members.get(*member) != Some(*address));
    steps.extend(new_members.map(|(member, address)| EbpfStep::AddMember(*member, *address)));
    let order = |link: &&ProgramLink| Hook::ALL.iter().position(|hook| *hook == link.hook);
    let mut missing: Vec<&ProgramLink> = desired.links.difference(&actual.links).collect();
    missing.sort_by_key(order);
    steps.extend(missing.into_iter().cloned().map(EbpfStep::Attach));

    let mut surplus: Vec<&ProgramLink> = actual.links.difference(&desired.links).collect();
    surplus.sort_by_key(order);
    steps.extend(surplus.into_iter().rev().cloned().map(EbpfStep::Detach));
    // An attachment that this plan replaces in place keeps its pin.
    let replaced: BTreeSet<String> = desired.links.iter().map(ProgramLink::pin).collect();
    steps.extend(actual.stale.difference(&replaced).cloned().map(EbpfStep::Unpin));
    let old_members = tables.members.keys().filter(|member| !desired.members.contains_key(*member));
    steps.extend(old_members.map(|member| EbpfStep::RemoveMember(*member)));
    let old_subnets = tables.subnets6.keys().filter(|prefix| !desired.subnets6.contains_key(*prefix));
    steps.extend(old_subnets.map(|prefix| EbpfStep::RemoveSubnet6(*prefix)));
    steps.extend(tables.locals.difference(&desired.locals).map(|a| EbpfStep::RemoveLocal(*a)));
    steps.extend(tables.uplinks.difference(&desired.uplinks).map(|index| EbpfStep::RemoveUplink(*index)));
    steps.extend(tables.sources.difference(&desired.sources).map(|(length, s)| EbpfStep::RemoveSource(*length, *s)));
    steps.extend(left.into_iter().map(EbpfStep::RemoveTarget));
    let removed = backends.iter().filter(|a| tables.backends.contains_key(*a) && !desired.backends.contains_key(*a));
    steps.extend(removed.map(|a| EbpfStep::RemoveBackend(*a)));
    steps
}

/// The ports in containers that the published ports which changed, or all, lead to; and those that none leads to any more.
fn targets(desired: &DesiredDatapath, tables: &Tables, dirty: Option<&Dirty>) -> (BTreeSet<Target>, BTreeSet<Target>) {
    let wanted = |(key, port): (&Port, &DesiredPort)| target(*key, port.owner, port.target);
    let Some(dirty) = dirty else {
        let all: BTreeSet<Target> = desired.ports.iter().map(wanted).collect();
        let left = tables.targets.difference(&all).copied().collect();
        return (all, left);
    };
    let changed = dirty.ports.iter().filter_map(|key| desired.ports.get_key_value(key)).map(wanted).collect();
    let before =
        dirty.ports.iter().filter_map(|key| Some(target(*key, tables.ports.get(key)?.owner, tables.ports.get(key)?.target)));
    let mut left: BTreeSet<Target> = before.filter(|target| tables.targets.contains(target)).collect();
    if !left.is_empty() {
        // Another port may have the same target.
        for still in desired.ports.iter().map(wanted) {
            left.remove(&still);
        }
    }
    (changed, left)
}

fn target(key: Port, owner: u32, port: PortNumber) -> Target {
    Target { owner, port, protocol: key.protocol, zero: 0 }
}

/// Containers that these steps remove from the backends of a virtual address.
#[must_use]
pub(super) fn drained_backends(desired: &DesiredDatapath, tables: &Tables, steps: &[EbpfStep]) -> BTreeSet<Ipv4Addr> {
    let changed_vips = steps.iter().filter_map(|step| match step {
        EbpfStep::SetVip(address, _) | EbpfStep::RemoveVip(address) => Some(address),
        _ => None,
    });
    let mut drained = BTreeSet::new();
    for address in changed_vips {
        let before = tables.vips.get(address).and_then(|vip| tables.slots.get(&(vip.base, vip.size)));
        let now: BTreeSet<V4> = desired.vips.get(address).into_iter().flat_map(|vip| vip.slots.iter().copied()).collect();
        drained.extend(before.into_iter().flat_map(|slots| slots.iter()).filter(|slot| !now.contains(slot)));
    }
    drained.into_iter().map(convert::to_v4).collect()
}

/// Virtual addresses and published ports with their slots: tables first, then the entries that refer to them, then removals.
fn plan_frontends(
    desired: &DesiredDatapath,
    tables: &Tables,
    allocator: &mut SlotAllocator,
    dirty: Option<&Dirty>,
    steps: &mut Vec<EbpfStep>,
) {
    let (mut set, mut removed) = (Vec::new(), Vec::new());
    let mut write_table = |placement: TablePlacement, slots: &Slots| match placement {
        TablePlacement::Existing(range) => range,
        TablePlacement::New(range) => {
            steps.push(EbpfStep::Slots(range.0, slots.clone()));
            range
        }
    };
    for address in &*keys(dirty.map(|d| &d.vips), &desired.vips, &tables.vips) {
        let current = tables.vips.get(address);
        let current_range = current.map(|vip| (vip.base, vip.size));
        let Some(wanted) = desired.vips.get(address) else {
            if current.is_some() {
                allocator.repoint(current_range, None);
                removed.push(EbpfStep::RemoveVip(*address));
            }
            continue;
        };
        let Some(placement) = allocator.place(&wanted.slots, current_range) else { continue };
        let (base, size) = write_table(placement, &wanted.slots);
        let vip = Vip { network: wanted.network, mask: wanted.mask, base, size, owner: wanted.owner };
        if current != Some(&vip) {
            allocator.repoint(current_range, Some((base, size)));
            set.push(EbpfStep::SetVip(*address, vip));
        }
    }
    for port in &*keys(dirty.map(|d| &d.ports), &desired.ports, &tables.ports) {
        let current = tables.ports.get(port);
        let current_range = current.map(|port| (port.base, port.size));
        let wanted = desired.ports.get(port);
        let placement = wanted.and_then(|wanted| allocator.place(&wanted.slots, current_range));
        let (Some(wanted), Some(placement)) = (wanted, placement) else {
            // No longer published; or its table has no room, and the userspace datapath serves it.
            if current.is_some() {
                allocator.repoint(current_range, None);
                let step = EbpfStep::RemovePort(*port);
                if wanted.is_some() { set.push(step) } else { removed.push(step) }
            }
            continue;
        };
        let (base, size) = write_table(placement, &wanted.slots);
        let frontend = Frontend { base, size, target: wanted.target, flags: wanted.flags, owner: wanted.owner };
        if current != Some(&frontend) {
            allocator.repoint(current_range, Some((base, size)));
            set.push(EbpfStep::SetPort(*port, frontend));
        }
    }
    steps.extend(set);
    steps.extend(removed);
    allocator.release_unused();
}

/// The keys to compare: those that changed, or all of both maps.
fn keys<'a, K: Ord + Copy, A, B>(
    dirty: Option<&'a BTreeSet<K>>,
    desired: &BTreeMap<K, A>,
    actual: &BTreeMap<K, B>,
) -> Cow<'a, BTreeSet<K>> {
    dirty.map_or_else(|| Cow::Owned(desired.keys().chain(actual.keys()).copied().collect()), Cow::Borrowed)
}
