use super::*;
use crate::datapath::ebpf::{EbpfState, EbpfStep, Range, Tables};
use crate::ingress::ebpf::maglev;
use skep_ebpf::Vip;

/// A plan from maps that were read.
fn plan(desired: &Desired, actual: &EbpfState) -> Vec<EbpfStep> {
    super::plan(desired, actual, &mut SlotAllocator::of(&actual.tables), &Changed::All)
}

const NET: V4 = convert::v4(Ipv4Addr::new(10, 0, 1, 0));
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

fn wanted(services: u8, replicas: u8) -> Desired {
    let mut desired = Desired::default();
    for service in 0..services {
        // Services have backends of their own.
        let all: Vec<Ipv4Addr> = (1..=replicas).map(|i| Ipv4Addr::new(10, 0, service, i)).collect();
        let vip = convert::v4(Ipv4Addr::new(10, 0, 1, service));
        desired.vips.insert(vip, (NET, MASK, all.iter().copied().map(convert::v4).collect()));
        let slots = maglev::table(&all).into_iter().map(|at| convert::v4(all[at as usize])).collect();
        desired.ports.insert(port(8000 + u16::from(service)), (convert::port(80), 0, slots));
        desired.sources.insert((120, Source { scope: service.into(), address: [0; 4] }));
    }
    desired.backends =
        backends(replicas).into_iter().map(|a| (convert::v4(a), Backend { ifindex: 7, serving: 1, prefix: [1; 2] })).collect();
    desired.links.insert(ProgramLink { hook: Hook::Connect4, device: String::new(), index: 0 });
    desired
}

/// What the maps are after the steps, the slots as a whole; a frontend must never name slots that were changed under it.
pub(super) fn carry_out(state: &mut EbpfState, memory: &mut BTreeMap<u32, V4>, steps: &[EbpfStep]) {
    for step in steps {
        let tables = &mut state.tables;
        match step.clone() {
            EbpfStep::Config(config) => tables.config = config,
            EbpfStep::Slots(base, slots) => {
                for (first, size) in tables.ranges() {
                    let apart = first + size <= base || base + u32::try_from(slots.len()).expect("few") <= first;
                    assert!(size == 0 || apart, "slots {base} +{} are in use at {first} +{size}", slots.len());
                }
                memory.extend((base..).zip(slots.iter().copied()));
            }
            EbpfStep::SetVip(address, vip) => drop(tables.vips.insert(address, vip)),
            EbpfStep::RemoveVip(address) => drop(tables.vips.remove(&address)),
            EbpfStep::SetPort(port, frontend) => drop(tables.ports.insert(port, frontend)),
            EbpfStep::RemovePort(port) => drop(tables.ports.remove(&port)),
            EbpfStep::SetBackend(address, backend) => drop(tables.backends.insert(address, backend)),
            EbpfStep::RemoveBackend(address) => drop(tables.backends.remove(&address)),
            EbpfStep::AddLocal(address) => assert!(tables.locals.insert(address)),
            EbpfStep::RemoveLocal(address) => assert!(tables.locals.remove(&address)),
            EbpfStep::AddSource(length, source) => assert!(tables.sources.insert((length, source))),
            EbpfStep::RemoveSource(length, source) => assert!(tables.sources.remove(&(length, source))),
            EbpfStep::AddMember(member) => assert!(tables.members.insert(member)),
            EbpfStep::RemoveMember(member) => assert!(tables.members.remove(&member)),
            EbpfStep::Attach(link) => {
                state.stale.remove(&link.pin());
                state.links.insert(link);
            }
            EbpfStep::Detach(link) => assert!(state.links.remove(&link)),
            EbpfStep::Unpin(pin) => assert!(state.stale.remove(&pin)),
            EbpfStep::Pair => unreachable!("no plan makes the pair"),
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
fn each_plan_leads_there_and_the_next_one_is_empty() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    for (services, replicas) in [(1, 1), (3, 2), (3, 3), (40, 5), (2, 1), (2, 0), (0, 0), (5, 4)] {
        let desired = wanted(services, replicas);
        let steps = plan(&desired, &state);
        carry_out(&mut state, &mut memory, &steps);
        assert_eq!(plan(&desired, &state), [], "{services} services, {replicas} replicas");
    }
}

#[test]
fn damage_is_mended_and_nothing_else_is_touched() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let desired = wanted(3, 3);
    let steps = plan(&desired, &state);
    carry_out(&mut state, &mut memory, &steps);
    let good = state.clone();

    state.tables.vips.insert(9, Vip::default());
    state.tables.ports.remove(&port(8001));
    state.tables.backends.insert(convert::v4(Ipv4Addr::new(10, 0, 0, 1)), Backend::default());
    state.stale.insert("from_container@vdeadbeef@9".to_owned());
    state.links.clear();
    let steps = plan(&desired, &state);
    assert_eq!(steps.len(), 6, "{steps:#?}");
    carry_out(&mut state, &mut memory, &steps);
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
fn a_port_without_room_is_left_to_user_space() {
    let mut state = empty();
    state.tables.vips.insert(1, Vip { base: 0, size: state.tables.room - 10, ..Vip::default() });
    let steps = plan(&wanted(1, 3), &state);
    assert!(steps.iter().any(|s| matches!(s, EbpfStep::SetVip(..))), "three slots fit");
    assert!(!steps.iter().any(|s| matches!(s, EbpfStep::SetPort(..))), "521 do not");
}

/// What the next plan goes by without reading the maps again is what reading them would give.
#[test]
fn what_is_remembered_is_what_is_there() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let mut known = state.clone();
    let mut space = SlotAllocator::of(&known.tables);
    for (services, replicas) in [(3, 3), (3, 2), (5, 2), (5, 6), (1, 6), (4, 1), (4, 0), (4, 4)] {
        let wanted = wanted(services, replicas);
        let steps = super::plan(&wanted, &known, &mut space, &Changed::All);
        assert_eq!(steps, plan(&wanted, &state), "{services} × {replicas}");
        carry_out(&mut state, &mut memory, &steps);
        for step in &steps {
            known.tables.carry_out(step);
        }
        known.links.clone_from(&state.links);
        for (range, slots) in &state.tables.slots {
            assert!(range.1 == 0 || known.tables.slots.get(range) == Some(slots), "{range:?}");
        }
        let ranges = |state: &EbpfState| (state.tables.vips.clone(), state.tables.ports.clone());
        assert_eq!(ranges(&known), ranges(&state));
        assert_eq!(super::plan(&wanted, &known, &mut space, &Changed::All), []);
    }
}

#[test]
fn tables_are_built_once_and_forgotten_when_nobody_asks() {
    let mut built = maglev::Built::default();
    let (three, two) = (backends(3), backends(2));
    let first = built.slots(&three);
    assert_eq!(first.len(), 521);
    assert!(Slots::ptr_eq(&first, &built.slots(&three)));
    built.begin();
    assert!(Slots::ptr_eq(&first, &built.slots(&three)), "asked for since");
    built.forget();
    assert!(Slots::ptr_eq(&first, &built.slots(&three)));
    built.begin();
    assert_ne!(first, built.slots(&two));
    built.forget();
    assert!(!Slots::ptr_eq(&first, &built.slots(&three)), "built anew");
    assert_eq!(first, built.slots(&three));
}

#[test]
fn an_entry_with_endless_slots_takes_nobodys_room() {
    let (mut state, mut memory) = (empty(), BTreeMap::new());
    let wanted = wanted(3, 3);
    let steps = plan(&wanted, &state);
    carry_out(&mut state, &mut memory, &steps);
    let vips: Vec<V4> = state.tables.vips.keys().copied().collect();
    for vip in vips {
        for (base, size) in [(0, u32::MAX), (u32::MAX, 1), (1 << 20, 1)] {
            let mut damaged = state.clone();
            let entry = damaged.tables.vips.get_mut(&vip).expect("there");
            (entry.base, entry.size) = (base, size);
            damaged.tables.slots.insert((base, size), Slots::default());
            let steps = plan(&wanted, &damaged);
            assert!(steps.iter().any(|s| matches!(s, EbpfStep::SetVip(to, set) if *to == vip && set.size == 3)), "{steps:?}");
        }
    }
}

#[test]
fn what_found_no_room_is_tried_again_with_what_was_freed() {
    let (mut state, mut memory) =
        (EbpfState { tables: Tables { room: 600, ..Tables::default() }, ..EbpfState::default() }, BTreeMap::new());
    let mut space = SlotAllocator::of(&state.tables);
    let mut go = |wanted: &Desired| {
        let steps = super::plan(wanted, &state, &mut space, &Changed::All);
        carry_out(&mut state, &mut memory, &steps);
        (space.was_short(), state.tables.ports.contains_key(&port(8000)))
    };
    assert_eq!(go(&wanted(1, 3)), (false, true));
    assert_eq!(go(&wanted(1, 4)), (true, false), "no room for both: user space meanwhile");
    assert_eq!(go(&wanted(1, 4)), (false, true), "in what the old one left");
    assert_eq!(plan(&wanted(1, 4), &state), []);
}
