//! Plans lead to the desired contents, repair damage, and never change slots that a frontend uses.

use super::desired::{DesiredDatapath, DesiredPort, DesiredVip};
use super::{Changed, SlotAllocator, maglev};
use crate::datapath::ebpf::{EbpfState, EbpfStep, Hook, ProgramLink, Range, Slots, Tables};
use skep_ebpf::{Backend, Port, SLOTS_PER_BLOCK, Source, Target, V4, Vip, convert, packet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// A plan from maps that were read.
fn plan(desired: &DesiredDatapath, actual: &EbpfState) -> Vec<EbpfStep> {
    super::plan(desired, actual, &mut SlotAllocator::from_tables(&actual.tables), &Changed::All)
}

const NETWORK: V4 = convert::v4(Ipv4Addr::new(10, 0, 1, 0));
const MASK: V4 = convert::v4(Ipv4Addr::new(255, 255, 255, 0));

fn backends(n: u8) -> Vec<Ipv4Addr> {
    (1..=n).map(|i| Ipv4Addr::new(10, 0, 0, i)).collect()
}

fn port(number: u16) -> Port {
    Port { protocol: packet::TCP, family: 4, port: convert::port(number) }
}

fn empty() -> EbpfState {
    EbpfState { tables: Tables { room: 1 << 20, ..Tables::default() }, ..EbpfState::default() }
}

fn desired(services: u8, replicas: u8) -> DesiredDatapath {
    let mut desired = DesiredDatapath::default();
    for service in 0..services {
        // No two services share a backend.
        let all: Vec<Ipv4Addr> = (1..=replicas).map(|i| Ipv4Addr::new(10, 0, service, i)).collect();
        let vip = convert::v4(Ipv4Addr::new(10, 0, 1, service));
        let slots = all.iter().copied().map(convert::v4).collect();
        desired.vips.insert(vip, DesiredVip { network: NETWORK, mask: MASK, slots, owner: 7, ..DesiredVip::default() });
        let slots = maglev::table(7, &all).into_iter().map(|backend| convert::v4(all[backend as usize])).collect();
        desired
            .ports
            .insert(port(8000 + u16::from(service)), DesiredPort { target: convert::port(80), flags: 0, slots, owner: 7 });
        desired.sources.insert((120, Source { scope: service.into(), address: [0; 4] }));
    }
    desired.backends = backends(replicas)
        .into_iter()
        .map(|a| (convert::v4(a), Backend { ifindex: 7, serving: 1, prefix: [1; 2], owner: 1, flags: 0 }))
        .collect();
    desired.links.insert(ProgramLink { hook: Hook::Connect4, device: String::new(), index: 0 });
    desired
}

/// The steps without those that give memory back, which the plan before has freed.
pub(super) fn changes(mut steps: Vec<EbpfStep>) -> Vec<EbpfStep> {
    steps.retain(|step| !matches!(step, EbpfStep::FreeBlock(_)));
    steps
}

/// Applies the steps to the maps and to `memory`, the whole slot array. Fails if they write slots that a frontend uses.
pub(super) fn apply(state: &mut EbpfState, memory: &mut BTreeMap<u32, V4>, steps: &[EbpfStep]) {
    for step in steps {
        let tables = &mut state.tables;
        match step.clone() {
            EbpfStep::Config(config) => tables.config = config,
            EbpfStep::Slots(base, slots) => {
                for (first, size) in tables.ranges() {
                    let disjoint = first + size <= base || base + u32::try_from(slots.len()).expect("few") <= first;
                    assert!(size == 0 || disjoint, "slots {base} +{} are in use at {first} +{size}", slots.len());
                }
                memory.extend((base..).zip(slots.iter().copied()));
                tables.blocks.extend(memory.keys().map(|slot| slot / SLOTS_PER_BLOCK));
            }
            EbpfStep::FreeBlock(number) => {
                let block = number * SLOTS_PER_BLOCK..(number + 1) * SLOTS_PER_BLOCK;
                for (first, size) in tables.ranges() {
                    assert!(size == 0 || first + size <= block.start || block.end <= first, "block {number} is in use");
                }
                memory.retain(|slot, _| !block.contains(slot));
                assert!(tables.blocks.remove(&number));
            }
            EbpfStep::SetVip(address, vip) => drop(tables.vips.insert(address, vip)),
            EbpfStep::RemoveVip(address) => drop(tables.vips.remove(&address)),
            EbpfStep::SetPort(port, frontend) => drop(tables.ports.insert(port, frontend)),
            EbpfStep::RemovePort(port) => drop(tables.ports.remove(&port)),
            EbpfStep::SetBackend(address, backend) => drop(tables.backends.insert(address, backend)),
            EbpfStep::RemoveBackend(address) => drop(tables.backends.remove(&address)),
            EbpfStep::AddTarget(target) => assert!(tables.targets.insert(target)),
            EbpfStep::RemoveTarget(target) => assert!(tables.targets.remove(&target)),
            EbpfStep::AddLocal(address) => assert!(tables.locals.insert(address)),
            EbpfStep::RemoveLocal(address) => assert!(tables.locals.remove(&address)),
            EbpfStep::AddUplink(index) => assert!(tables.uplinks.insert(index)),
            EbpfStep::RemoveUplink(index) => assert!(tables.uplinks.remove(&index)),
            EbpfStep::AddSource(length, source) => assert!(tables.sources.insert((length, source))),
            EbpfStep::RemoveSource(length, source) => assert!(tables.sources.remove(&(length, source))),
            EbpfStep::AddMember(member, address) => assert_ne!(tables.members.insert(member, address), Some(address)),
            EbpfStep::RemoveMember(member) => assert!(tables.members.remove(&member).is_some()),
            EbpfStep::AddSubnet6(prefix, subnet) => assert_ne!(tables.subnets6.insert(prefix, subnet), Some(subnet)),
            EbpfStep::RemoveSubnet6(prefix) => assert!(tables.subnets6.remove(&prefix).is_some()),
            EbpfStep::Attach(link) => {
                state.stale.remove(&link.pin());
                state.links.insert(link);
            }
            EbpfStep::Detach(link) => assert!(state.links.remove(&link)),
            EbpfStep::Unpin(pin) => assert!(state.stale.remove(&pin)),
            EbpfStep::Pair => unreachable!("no plan contains it"),
        }
    }
    let tables = &mut state.tables;
    let ranges: Vec<Range> = tables.ranges().collect();
    tables.slots = ranges
        .into_iter()
        .map(|(base, size)| ((base, size), (base..base + size).map(|at| memory.get(&at).copied().unwrap_or_default()).collect()))
        .collect();
}

#[test]
fn after_each_plan_is_applied_the_next_one_is_empty() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    for (services, replicas) in [(1, 1), (3, 2), (3, 3), (40, 5), (2, 1), (2, 0), (0, 0), (5, 4)] {
        let desired = desired(services, replicas);
        let steps = plan(&desired, &state);
        apply(&mut state, &mut memory, &steps);
        assert_eq!(changes(plan(&desired, &state)), [], "{services} services, {replicas} replicas");
    }
}

#[test]
fn damage_is_repaired_and_nothing_else_is_changed() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let desired = desired(3, 3);
    let steps = plan(&desired, &state);
    apply(&mut state, &mut memory, &steps);
    let good = state.clone();

    state.tables.vips.insert(9, Vip::default());
    state.tables.ports.remove(&port(8001));
    state.tables.backends.insert(convert::v4(Ipv4Addr::new(10, 0, 0, 1)), Backend::default());
    state.stale.insert("from_container@vdeadbeef@9".to_owned());
    state.links.clear();
    let steps = plan(&desired, &state);
    assert_eq!(steps.len(), 6, "{steps:#?}");
    apply(&mut state, &mut memory, &steps);
    assert_eq!(state.tables.vips, good.tables.vips);
    assert_eq!((state.links, state.stale), (good.links.clone(), good.stale.clone()));
    assert_eq!(state.tables.backends, good.tables.backends);

    let (base, size) = (good.tables.ports[&port(8000)].base, good.tables.ports[&port(8000)].size);
    let mut state = good;
    state.tables.slots.insert((base, size), vec![0; size as usize].into());
    let steps = plan(&desired, &state);
    assert!(matches!(steps[..], [EbpfStep::Slots(..), EbpfStep::SetPort(..)]), "{steps:?}");
}

#[test]
fn a_port_without_room_is_not_served() {
    let mut state = empty();
    state.tables.vips.insert(1, Vip { base: 0, size: state.tables.room - 10, ..Vip::default() });
    let steps = plan(&desired(1, 3), &state);
    assert!(steps.iter().any(|s| matches!(s, EbpfStep::SetVip(..))), "three slots fit");
    assert!(!steps.iter().any(|s| matches!(s, EbpfStep::SetPort(..))), "521 do not");
}

#[test]
fn plans_from_remembered_contents_equal_plans_from_read_maps() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let mut known = state.clone();
    let mut allocator = SlotAllocator::from_tables(&known.tables);
    for (services, replicas) in [(3, 3), (3, 2), (5, 2), (5, 6), (1, 6), (4, 1), (4, 0), (4, 4)] {
        let desired = desired(services, replicas);
        let steps = super::plan(&desired, &known, &mut allocator, &Changed::All);
        assert_eq!(steps, plan(&desired, &state), "{services} × {replicas}");
        apply(&mut state, &mut memory, &steps);
        for step in &steps {
            known.tables.carry_out(step);
        }
        known.links.clone_from(&state.links);
        for (range, slots) in &state.tables.slots {
            assert!(range.1 == 0 || known.tables.slots.get(range) == Some(slots), "{range:?}");
        }
        let ranges = |state: &EbpfState| (state.tables.vips.clone(), state.tables.ports.clone());
        assert_eq!(ranges(&known), ranges(&state));
        assert_eq!(changes(super::plan(&desired, &known, &mut allocator, &Changed::All)), []);
    }
}

#[test]
fn tables_are_computed_once_and_dropped_when_unused() {
    let mut cache = maglev::TableCache::default();
    let (three, two): (BTreeSet<_>, BTreeSet<_>) = (backends(3).into_iter().collect(), backends(2).into_iter().collect());
    let first = cache.slots(&three);
    assert_eq!(first.len(), 521);
    assert!(Slots::ptr_eq(&first, &cache.slots(&three)));
    cache.start_generation(0);
    assert!(Slots::ptr_eq(&first, &cache.slots(&three)), "used since");
    cache.drop_unused();
    assert!(Slots::ptr_eq(&first, &cache.slots(&three)));
    cache.start_generation(0);
    assert_ne!(first, cache.slots(&two));
    cache.drop_unused();
    assert!(!Slots::ptr_eq(&first, &cache.slots(&three)), "computed again");
    assert_eq!(first, cache.slots(&three));
    cache.start_generation(1);
    assert_ne!(first, cache.slots(&three), "of another cluster");
}

#[test]
fn a_damaged_entry_with_slots_outside_the_array_takes_no_room() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let desired = desired(3, 3);
    let steps = plan(&desired, &state);
    apply(&mut state, &mut memory, &steps);
    let vips: Vec<V4> = state.tables.vips.keys().copied().collect();
    for vip in vips {
        for (base, size) in [(0, u32::MAX), (u32::MAX, 1), (1 << 20, 1)] {
            let mut damaged = state.clone();
            let entry = damaged.tables.vips.get_mut(&vip).expect("a virtual address");
            (entry.base, entry.size) = (base, size);
            damaged.tables.slots.insert((base, size), Slots::default());
            let steps = plan(&desired, &damaged);
            assert!(steps.iter().any(|s| matches!(s, EbpfStep::SetVip(to, set) if *to == vip && set.size == 3)), "{steps:?}");
        }
    }
}

#[test]
fn a_table_that_found_no_room_is_placed_in_freed_slots_later() {
    let (mut state, mut memory) =
        (EbpfState { tables: Tables { room: 600, ..Tables::default() }, ..EbpfState::default() }, BTreeMap::new());
    let mut allocator = SlotAllocator::from_tables(&state.tables);
    let mut pass = |desired: &DesiredDatapath| {
        let steps = super::plan(desired, &state, &mut allocator, &Changed::All);
        apply(&mut state, &mut memory, &steps);
        (allocator.take_exhausted(), state.tables.ports.contains_key(&port(8000)))
    };
    assert_eq!(pass(&desired(1, 3)), (false, true));
    assert_eq!(pass(&desired(1, 4)), (true, false), "no room for both tables");
    assert_eq!(pass(&desired(1, 4)), (false, true), "in the slots of the old table");
    assert_eq!(plan(&desired(1, 4), &state), []);
}

#[test]
fn a_block_of_slots_is_given_back_one_plan_after_its_last_table() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let mut pass = |services: u8| {
        let steps = plan(&desired(services, 3), &state);
        apply(&mut state, &mut memory, &steps);
        (state.tables.blocks.len(), memory.len())
    };
    let (many, slots) = pass(20);
    assert!(many > 10, "{many}");
    assert_eq!(pass(2), (many, slots), "packets on their way may still be in a table of the last plan");
    let (few, left) = pass(2);
    assert!(few < many && left < slots, "{few} of {many} blocks, {left} of {slots} slots");
    assert_eq!(pass(2), (few, left), "nothing is left to give back");
    assert_eq!(pass(0).0, few);
    assert_eq!(pass(0), (0, 0));
    assert_eq!(pass(20).0, many, "and they come back");
}

#[test]
fn a_target_is_removed_when_no_port_leads_to_it_any_more() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let mut desired = DesiredDatapath::default();
    let to = |target| DesiredPort { target: convert::port(target), owner: 7, ..DesiredPort::default() };
    desired.ports = [(port(80), to(8080)), (port(81), to(8080)), (port(82), to(9090))].into();
    let steps = plan(&desired, &state);
    apply(&mut state, &mut memory, &steps);
    let target = |number| Target { owner: 7, port: convert::port(number), protocol: packet::TCP, zero: 0 };
    assert_eq!(state.tables.targets, [target(8080), target(9090)].into());
    desired.ports.remove(&port(80));
    desired.ports.remove(&port(82));
    desired.ports.insert(port(83), to(7070));
    let ports = [port(80), port(82), port(83)].into();
    let changed = Changed::Only(super::dirty::Dirty { ports, ..Default::default() });
    let steps = super::plan(&desired, &state, &mut SlotAllocator::from_tables(&state.tables), &changed);
    apply(&mut state, &mut memory, &steps);
    assert_eq!(state.tables.targets, [target(7070), target(8080)].into(), "port 81 still leads to 8080");
    assert_eq!(plan(&desired, &state), []);
}
