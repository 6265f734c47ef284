//! From what is to what shall be, as steps in an order that opens nothing on the way. Pure.

use super::plan::Desired;
use crate::datapath::mesh::{MeshState, MeshStep, Route, TUNNEL, address_of};
use std::collections::BTreeSet;

/// The steps; none if all is as desired.
///
/// Order: sysctls; addresses, routes, rules come in that order (a rule leads to a table that is filled), and go in the
/// opposite one (nothing leads to a table that is being emptied); additions before removals, except a rule that has to go
/// because another takes its place, which does no harm: no rule at all means unreachable.
#[must_use]
pub fn mesh_steps(desired: &Desired, actual: &MeshState) -> Vec<MeshStep> {
    let mut steps = Vec::new();
    for (key, value) in &desired.sysctls {
        if actual.sysctls.get(key) != Some(value) {
            steps.push(MeshStep::Sysctl(key.clone(), value.clone()));
        }
    }
    for (link, mtu) in &desired.mtu {
        if actual.links.get(link).is_some_and(|has| has.mtu != *mtu) {
            steps.push(MeshStep::Mtu(link.clone(), *mtu));
        }
    }
    let add = desired.addresses.difference(&actual.addresses);
    steps.extend(add.map(|(link, address)| MeshStep::AddAddress(link.clone(), *address)));
    for link in &desired.up {
        if actual.links.get(link).is_some_and(|has| !has.up) {
            steps.push(MeshStep::Up(link.clone()));
        }
    }
    let set: BTreeSet<&Route> = desired.routes.difference(&actual.routes).collect();
    steps.extend(set.iter().map(|route| MeshStep::SetRoute((*route).clone())));
    steps.extend(desired.rules.difference(&actual.rules).cloned().map(MeshStep::AddRule));

    steps.extend(actual.rules.difference(&desired.rules).cloned().map(MeshStep::RemoveRule));
    let replaced = |gone: &Route| set.iter().any(|new| new.table == gone.table && new.to == gone.to);
    let gone = actual.routes.difference(&desired.routes).filter(|route| !replaced(route));
    steps.extend(gone.cloned().map(MeshStep::RemoveRoute));
    let gone = actual.addresses.difference(&desired.addresses).filter(|(link, _)| ours(link));
    steps.extend(gone.map(|(link, address)| MeshStep::RemoveAddress(link.clone(), *address)));
    steps
}

/// Devices whose addresses are ours to take away; the tunnel's are not.
fn ours(link: &str) -> bool {
    link != TUNNEL && (link == "lo" || address_of(link).is_some())
}
