//! The steps from the observed to the desired mesh namespace, in an order that never lets a packet through that neither of
//! the two would. Pure.

use super::desired::DesiredMesh;
use crate::datapath::mesh::{MeshRoute, MeshState, MeshStep, TUNNEL, address_of};
use std::collections::BTreeSet;

/// The steps; none if nothing differs.
///
/// Order: sysctls first. Addresses, routes and rules are added in that order, so that a rule refers to a table that is
/// complete, and removed in the opposite one, so that no rule refers to a table that is being emptied. Additions precede
/// removals. A packet that matches no rule in between is answered "unreachable", which is the closed state.
#[must_use]
pub fn mesh_steps(desired: &DesiredMesh, actual: &MeshState) -> Vec<MeshStep> {
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
    let set: BTreeSet<&MeshRoute> = desired.routes.difference(&actual.routes).collect();
    steps.extend(set.iter().map(|route| MeshStep::SetRoute((*route).clone())));
    steps.extend(desired.rules.difference(&actual.rules).cloned().map(MeshStep::AddRule));

    steps.extend(actual.rules.difference(&desired.rules).cloned().map(MeshStep::RemoveRule));
    let replaced = |old: &MeshRoute| set.iter().any(|new| new.table == old.table && new.to == old.to);
    let removed = actual.routes.difference(&desired.routes).filter(|route| !replaced(route));
    steps.extend(removed.cloned().map(MeshStep::RemoveRoute));
    let removed = actual.addresses.difference(&desired.addresses).filter(|(link, _)| is_managed(link));
    steps.extend(removed.map(|(link, address)| MeshStep::RemoveAddress(link.clone(), *address)));
    steps
}

/// Whether addresses that are not desired are removed from the device. Those of the tunnel device are not.
fn is_managed(link: &str) -> bool {
    link != TUNNEL && (link == "lo" || address_of(link).is_some())
}
