//! What is left to the userspace datapath because the kernel did not take a part of it. One object's failure is its own: the
//! others are served, and the revision counts as applied. Pure.

use super::desired::{DesiredDatapath, DesiredPort};
use super::left_objects::LeftObjects;
use crate::datapath::ebpf::{EbpfStep, Slots, StepFailure};
use crate::model::port_labels::MOST_SOURCES;
use skep_ebpf::Port;
use std::collections::{BTreeMap, BTreeSet};

/// What the failed steps of a plan concern.
///
/// # Errors
/// The steps that concern everything, or that were to take something away: until those are done the revision does not count as
/// applied, because the node may still send traffic that it must not send.
pub(super) fn concerned(desired: &DesiredDatapath, steps: &[EbpfStep], failed: &[StepFailure]) -> Result<LeftObjects, String> {
    let (mut left, mut held) = (LeftObjects::default(), Vec::new());
    for failure in failed {
        let why = || failure.reason.clone();
        match &failure.step {
            EbpfStep::AddSource(_, source) => {
                let guarded: Vec<Port> = desired.ports.keys().copied().filter(|port| port.scope() == source.scope).collect();
                if guarded.is_empty() {
                    held.push(failure.to_string());
                }
                left.ports.extend(guarded.into_iter().map(|port| (port, why())));
            }
            EbpfStep::SetPort(port, _) => drop(left.ports.insert(*port, why())),
            EbpfStep::SetVip(vip, _) => drop(left.vips.insert(*vip, why())),
            EbpfStep::Slots(base, _) => {
                for step in steps {
                    match step {
                        EbpfStep::SetPort(port, to) if to.base == *base => drop(left.ports.insert(*port, why())),
                        EbpfStep::SetVip(vip, to) if to.base == *base => drop(left.vips.insert(*vip, why())),
                        _ => {}
                    }
                }
            }
            EbpfStep::SetBackend(address, _) => {
                let has = |slots: &Slots| slots.contains(address);
                let (ports, vips) = (desired.ports.iter(), desired.vips.iter());
                left.ports.extend(ports.filter(|(_, port)| has(&port.slots)).map(|(port, _)| (*port, why())));
                left.vips.extend(vips.filter(|(_, vip)| has(&vip.slots)).map(|(vip, _)| (*vip, why())));
                left.entries.insert(failure.step.to_string(), why());
            }
            EbpfStep::AddMember(..)
            | EbpfStep::AddSubnet6(..)
            | EbpfStep::AddTarget(_)
            | EbpfStep::AddLocal(_)
            | EbpfStep::AddUplink(_) => {
                left.entries.insert(failure.step.to_string(), why());
            }
            // With some of the programs of a path only, packets would be translated one way.
            EbpfStep::Attach(link) => drop(left.hooks.insert(link.hook, format!("{}: {}", link.pin(), why()))),
            EbpfStep::Config(_)
            | EbpfStep::Pair
            | EbpfStep::Detach(_)
            | EbpfStep::Unpin(_)
            | EbpfStep::RemoveVip(_)
            | EbpfStep::FreeBlock(_)
            | EbpfStep::RemovePort(_)
            | EbpfStep::RemoveBackend(_)
            | EbpfStep::RemoveTarget(_)
            | EbpfStep::RemoveLocal(_)
            | EbpfStep::RemoveUplink(_)
            | EbpfStep::RemoveSource(..)
            | EbpfStep::RemoveSubnet6(_)
            | EbpfStep::RemoveMember(_) => held.push(failure.to_string()),
        }
    }
    if held.is_empty() { Ok(left) } else { Err(held.join("; ")) }
}

/// Takes out of the desired datapath what is left to user space, and the longest allow-lists if all together do not fit the
/// map.
pub(super) fn leave(desired: &mut DesiredDatapath, left: &LeftObjects) {
    desired.left = left.clone();
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    for (_, source) in &desired.sources {
        *sizes.entry(source.scope).or_default() += 1;
    }
    let mut total: usize = desired.sources.len();
    for port in left.ports.keys() {
        total -= sizes.remove(&port.scope()).unwrap_or_default();
    }
    while total > MOST_SOURCES {
        let guarded = desired.ports.keys().filter(|port| !desired.left.ports.contains_key(*port));
        let longest = guarded.filter_map(|port| Some((sizes.get(&port.scope()).copied()?, *port))).max();
        let Some((size, port)) = longest else { break };
        let reason =
            format!("its allow-list has {size} prefixes, and the lists of all ports more than the {MOST_SOURCES} that fit");
        desired.left.ports.insert(port, reason);
        sizes.remove(&port.scope());
        total -= size;
    }
    let scopes: BTreeSet<u32> = desired.left.ports.keys().map(Port::scope).collect();
    if !scopes.is_empty() {
        desired.sources.retain(|(_, source)| !scopes.contains(&source.scope));
    }
    for port in desired.left.ports.keys() {
        if let Some(port) = desired.ports.get_mut(port) {
            *port = DesiredPort { flags: 0, slots: Slots::default(), ..port.clone() };
        }
    }
    for vip in desired.left.vips.keys() {
        desired.vips.remove(vip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ebpf::{Address, Backend, Frontend, GUARDED, NO_CLIENT, Source, V4, convert, packet};

    fn port(number: u16, family: u8) -> Port {
        Port { protocol: packet::TCP, family, port: convert::port(number) }
    }

    fn source(scope: u32, n: u32) -> (u32, Source) {
        let address = std::net::Ipv4Addr::from_bits(0xac10_0000 + n);
        (160, Source { scope, address: convert::address(address.into()) })
    }

    /// Ports with so many prefixes, each with one backend.
    fn desired(ports: &[(u16, u32)]) -> DesiredDatapath {
        let mut desired = DesiredDatapath::default();
        for (number, prefixes) in ports {
            let key = port(*number, 4);
            let slots: Slots = vec![V4::from(u32::from(*number))].into();
            desired.ports.insert(key, DesiredPort { flags: GUARDED, slots, ..DesiredPort::default() });
            desired.sources.extend((0..*prefixes).map(|n| source(key.scope(), n)));
        }
        desired
    }

    fn failure(step: EbpfStep) -> StepFailure {
        StepFailure { step, reason: "no space".to_owned() }
    }

    #[test]
    fn the_longest_lists_are_left_to_user_space_until_the_others_fit() {
        let most = u32::try_from(MOST_SOURCES).unwrap();
        let mut fits = desired(&[(80, most - 10), (81, 10)]);
        let before = fits.clone();
        leave(&mut fits, &LeftObjects::default());
        assert_eq!(fits, before);

        let mut full = desired(&[(80, 3), (81, most - 5), (82, 7)]);
        leave(&mut full, &LeftObjects::default());
        assert_eq!(full.left.ports.keys().copied().collect::<Vec<_>>(), [port(81, 4)]);
        assert!(full.left.ports[&port(81, 4)].contains("prefixes"));
        assert_eq!(full.sources.len(), 10);
        assert!(full.ports[&port(81, 4)].slots.is_empty() && full.ports[&port(81, 4)].flags == 0);
        assert!(!full.ports[&port(80, 4)].slots.is_empty() && full.ports[&port(80, 4)].flags == GUARDED);
    }

    #[test]
    fn a_failed_step_concerns_its_object() {
        let desired = desired(&[(80, 2), (81, 2)]);
        let (first, second) = (port(80, 4), port(81, 4));
        let backend = Backend { ifindex: 0, serving: 1, prefix: convert::prefix("fd00::".parse().unwrap()), owner: 1, flags: 0 };
        let frontend = Frontend { base: 40, size: 1, target: convert::port(8080), flags: 0, owner: 1 };
        let slots = EbpfStep::Slots(40, vec![1].into());
        let set = EbpfStep::SetPort(second, frontend);
        let (length, allowed) = source(first.scope(), 1);
        for (step, port) in [
            (EbpfStep::AddSource(length, allowed), first),
            (set.clone(), second),
            (slots.clone(), second),
            (EbpfStep::SetBackend(V4::from(80_u32), backend), first),
        ] {
            let left = concerned(&desired, &[slots.clone(), set.clone()], &[failure(step.clone())]).unwrap();
            assert_eq!(left.ports.keys().copied().collect::<Vec<_>>(), [port], "{step}");
        }
        let local: Address = convert::address("192.168.1.1".parse().unwrap());
        let left = concerned(&desired, &[], &[failure(EbpfStep::AddLocal(local))]).unwrap();
        assert!(left.ports.is_empty() && left.by_name().len() == 1, "{left:?}");
    }

    #[test]
    fn what_was_to_be_taken_away_and_what_concerns_all_holds_the_revision_back() {
        let desired = desired(&[(80, 2)]);
        let (length, no_client) = source(NO_CLIENT, 1);
        for step in [
            EbpfStep::RemovePort(port(80, 4)),
            EbpfStep::RemoveBackend(V4::from(1_u32)),
            EbpfStep::RemoveSource(length, source(port(80, 4).scope(), 1).1),
            EbpfStep::AddSource(length, no_client),
            EbpfStep::Pair,
        ] {
            let held = concerned(&desired, &[], &[failure(step.clone())]).unwrap_err();
            assert!(held.contains("no space") && held.contains(&step.to_string()), "{held}");
        }
    }

    #[test]
    fn what_is_left_is_left_once() {
        let more = || LeftObjects { ports: [(port(80, 4), "full".to_owned())].into(), ..LeftObjects::default() };
        let mut left = LeftObjects::default();
        assert!(left.is_empty() && left.merge(more()) && !left.merge(more()));
        assert_eq!(left.by_name(), [("port 80/tcp".to_owned(), "full".to_owned())].into());
    }
}
