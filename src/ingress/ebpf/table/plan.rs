//! What leads from what is there to what shall be.

use super::Desired;
use super::follow::{Changed, Dirty};
use super::space::{Place, SlotAllocator};
use crate::datapath::ebpf::{EbpfState, EbpfStep, Hook, ProgramLink, Slots, Tables};
use skep_ebpf::{Frontend, Vip};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The steps, for the entries that changed; `space` is where tables lie, and where they will. What is named comes before who
/// names it; what nobody names any more goes last.
#[must_use]
pub fn plan(desired: &Desired, actual: &EbpfState, space: &mut SlotAllocator, changed: &Changed) -> Vec<EbpfStep> {
    let mut steps = Vec::new();
    let tables = &actual.tables;
    if tables.config != desired.config {
        steps.push(EbpfStep::Config(desired.config));
    }
    let touched = changed.touched();
    let backends = keys(touched.map(|t| &t.backends), &desired.backends, &tables.backends);
    for address in &*backends {
        if let Some(backend) = desired.backends.get(address)
            && tables.backends.get(address) != Some(backend)
        {
            steps.push(EbpfStep::SetBackend(*address, *backend));
        }
    }
    steps.extend(desired.locals.difference(&tables.locals).map(|a| EbpfStep::AddLocal(*a)));
    steps.extend(desired.sources.difference(&tables.sources).map(|(length, s)| EbpfStep::AddSource(*length, *s)));
    frontends(desired, tables, space, touched, &mut steps);
    steps.extend(desired.members.difference(&tables.members).map(|m| EbpfStep::AddMember(*m)));
    let place = |link: &&ProgramLink| Hook::ALL.iter().position(|hook| *hook == link.hook);
    let mut missing: Vec<&ProgramLink> = desired.links.difference(&actual.links).collect();
    missing.sort_by_key(place);
    steps.extend(missing.into_iter().cloned().map(EbpfStep::Attach));

    let mut surplus: Vec<&ProgramLink> = actual.links.difference(&desired.links).collect();
    surplus.sort_by_key(place);
    steps.extend(surplus.into_iter().rev().cloned().map(EbpfStep::Detach));
    // Those that this plan replaces in place are not taken away by name.
    let replaced: BTreeSet<String> = desired.links.iter().map(ProgramLink::pin).collect();
    steps.extend(actual.stale.difference(&replaced).cloned().map(EbpfStep::Unpin));
    steps.extend(tables.members.difference(&desired.members).map(|m| EbpfStep::RemoveMember(*m)));
    steps.extend(tables.locals.difference(&desired.locals).map(|a| EbpfStep::RemoveLocal(*a)));
    steps.extend(tables.sources.difference(&desired.sources).map(|(length, s)| EbpfStep::RemoveSource(*length, *s)));
    let gone = backends.iter().filter(|a| tables.backends.contains_key(*a) && !desired.backends.contains_key(*a));
    steps.extend(gone.map(|a| EbpfStep::RemoveBackend(*a)));
    steps
}

/// Virtual addresses and ports, with their slots.
fn frontends(desired: &Desired, tables: &Tables, space: &mut SlotAllocator, touched: Option<&Dirty>, steps: &mut Vec<EbpfStep>) {
    let (mut turned, mut gone) = (Vec::new(), Vec::new());
    let mut put = |place: Place, slots: &Slots| match place {
        Place::Kept(range) => range,
        Place::New(range) => {
            steps.push(EbpfStep::Slots(range.0, slots.clone()));
            range
        }
    };
    for address in &*keys(touched.map(|t| &t.vips), &desired.vips, &tables.vips) {
        let has = tables.vips.get(address);
        let from = has.map(|vip| (vip.base, vip.size));
        let Some((network, mask, slots)) = desired.vips.get(address) else {
            if has.is_some() {
                space.turn(from, None);
                gone.push(EbpfStep::RemoveVip(*address));
            }
            continue;
        };
        let Some(place) = space.place(slots, from) else { continue };
        let (base, size) = put(place, slots);
        let vip = Vip { network: *network, mask: *mask, base, size };
        if has != Some(&vip) {
            space.turn(from, Some((base, size)));
            turned.push(EbpfStep::SetVip(*address, vip));
        }
    }
    for port in &*keys(touched.map(|t| &t.ports), &desired.ports, &tables.ports) {
        let has = tables.ports.get(port);
        let from = has.map(|port| (port.base, port.size));
        let wanted = desired.ports.get(port);
        let place = wanted.and_then(|(.., slots)| space.place(slots, from));
        let (Some((target, flags, slots)), Some(place)) = (wanted, place) else {
            // Nobody's any more; or there is no room for it, and the userspace port serves it.
            if has.is_some() {
                space.turn(from, None);
                let step = EbpfStep::RemovePort(*port);
                if wanted.is_some() { turned.push(step) } else { gone.push(step) }
            }
            continue;
        };
        let (base, size) = put(place, slots);
        let frontend = Frontend { base, size, target: *target, flags: *flags };
        if has != Some(&frontend) {
            space.turn(from, Some((base, size)));
            turned.push(EbpfStep::SetPort(*port, frontend));
        }
    }
    steps.extend(turned);
    steps.extend(gone);
    space.tidy();
}

/// The keys to look at: those that were touched, or all that there are on either side.
fn keys<'a, K: Ord + Copy, A, B>(
    touched: Option<&'a BTreeSet<K>>,
    desired: &BTreeMap<K, A>,
    there: &BTreeMap<K, B>,
) -> Cow<'a, BTreeSet<K>> {
    touched.map_or_else(|| Cow::Owned(desired.keys().chain(there.keys()).copied().collect()), Cow::Borrowed)
}
