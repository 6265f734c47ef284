//! The endpoint that a service's spec requires: ports and virtual addresses. Current assignments that still fit the spec
//! are kept, so that numbers and addresses survive updates.

use super::networks::networks_of_service;
use crate::model::service::{Endpoint, EndpointMode, EndpointSpec, Vip};
use crate::model::{NetworkId, PortConfig, Protocol, PublishMode, Service, ServiceId};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Published ports that are assigned when the spec names none. Swarm's range.
const DYNAMIC: RangeInclusive<u16> = 30_000..=32_767;

/// Published ports and the services that have them: in the store, and those assigned in this round.
pub(super) struct PortRegistry<'a> {
    store: &'a Store,
    assigned: BTreeMap<(Protocol, u16), ServiceId>,
}

impl<'a> PortRegistry<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, assigned: BTreeMap::new() }
    }

    /// The service whose endpoint has the port, the first by id if several have.
    fn stored_owner(&self, (protocol, number): (Protocol, u16)) -> Option<&'a ServiceId> {
        let has =
            |service: &&Service| service.ingress_ports().any(|port| port.protocol == protocol && port.published_port == number);
        let mut services = self.store.services_publishing(PublishMode::Ingress, protocol, number);
        services.find(has).map(|service| &service.id)
    }

    /// Assigns a port to a service, or returns the service that has it.
    fn claim(&mut self, port: (Protocol, u16), service: &ServiceId) -> Result<(), ServiceId> {
        let owner = match self.assigned.get(&port) {
            Some(owner) => owner,
            None => self.stored_owner(port).unwrap_or(service),
        };
        if owner != service {
            return Err(owner.clone());
        }
        self.assigned.insert(port, service.clone());
        Ok(())
    }

    /// A port that no service has, that no spec names, and that is not the tunnel's.
    fn first_free(&self, protocol: Protocol) -> Option<u16> {
        let tunnel = self.store.cluster().map(|cluster| (Protocol::Udp, cluster.data_path_port));
        let is_free = |port: &u16| {
            let mut stored = self.store.services_publishing(PublishMode::Ingress, protocol, *port);
            !self.assigned.contains_key(&(protocol, *port)) && stored.next().is_none() && Some((protocol, *port)) != tunnel
        };
        DYNAMIC.into_iter().find(is_free)
    }
}

/// The result for one service.
pub(super) struct EndpointAllocation {
    /// What could be assigned.
    pub endpoint: Endpoint,
    /// The first thing that could not, for users.
    pub problem: Option<String>,
}

/// Assigns the endpoint of a service. `address` returns an address on a network; its second argument is the one that the
/// service has now.
pub(super) fn allocate(
    store: &Store,
    service: &Service,
    ports: &mut PortRegistry<'_>,
    mut address: impl FnMut(&NetworkId, Option<Ipv4Net>) -> Result<Ipv4Net, String>,
) -> EndpointAllocation {
    let mut problem = None;
    let mut endpoint = Endpoint::default();
    for port in service.spec.endpoint_spec.iter().flat_map(|e| &e.ports) {
        match publish(store, service, port, ports, &endpoint.ports) {
            Ok(port) => endpoint.ports.push(port),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    if service.spec.endpoint_mode() == EndpointMode::Vip {
        for network in networks_of_service(store, service) {
            let current = service.endpoint.vips.iter().find(|v| v.network_id == network).map(|v| v.addr);
            match address(&network, current) {
                Ok(addr) => endpoint.vips.push(Vip { network_id: network, addr }),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
    }
    let default = || EndpointSpec { mode: Some(EndpointMode::Vip), ports: Vec::new() };
    // As in Swarm, none where there was nothing to allocate, whatever mode the spec names.
    let has_any = !endpoint.vips.is_empty() || !endpoint.ports.is_empty();
    endpoint.spec = has_any.then(|| service.spec.endpoint_spec.clone().unwrap_or_else(default));
    EndpointAllocation { endpoint, problem }
}

/// Assigns the published port of one port of the spec. `assigned` are the ports assigned before it.
fn publish(
    store: &Store,
    service: &Service,
    requested: &PortConfig,
    ports: &mut PortRegistry<'_>,
    assigned: &[PortConfig],
) -> Result<PortConfig, String> {
    if requested.publish_mode == PublishMode::Host {
        return Ok(requested.clone());
    }
    let published = if requested.published_port == 0 {
        let is_same_port = |p: &&PortConfig| {
            PortConfig { published_port: 0, ..(*p).clone() } == *requested && !assigned.iter().any(|other| other == *p)
        };
        let current = service.endpoint.ports.iter().find(is_same_port).map(|p| p.published_port).filter(|p| *p != 0);
        current.or_else(|| ports.first_free(requested.protocol)).ok_or_else(|| {
            format!("no free {} port between {} and {}", requested.protocol.as_str(), DYNAMIC.start(), DYNAMIC.end())
        })?
    } else {
        requested.published_port
    };
    ports.claim((requested.protocol, published), &service.id).map_err(|owner| {
        let name = store.service(&owner).map_or_else(|| owner.to_string(), |s| s.spec.name.clone());
        format!("port {published}/{} is already in use by service {name}", requested.protocol.as_str())
    })?;
    Ok(PortConfig { published_port: published, ..requested.clone() })
}
