//! A service's endpoint as its spec wants it: ports and virtual addresses. What it has is kept where it still fits, so
//! that numbers survive updates.

use super::{distinct, ingress};
use crate::model::service::{Endpoint, EndpointMode, EndpointSpec, Vip};
use crate::model::{NetworkId, PortConfig, Protocol, PublishMode, Service, ServiceId};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Ports drawn when none is named.
const DYNAMIC: RangeInclusive<u16> = 30_000..=32_767;

/// Who has which port on all nodes.
pub struct Ports {
    owner: BTreeMap<(Protocol, u16), ServiceId>,
    named: BTreeSet<(Protocol, u16)>,
}

impl Ports {
    /// Reads what is published and what specs name.
    pub fn of(store: &Store) -> Self {
        let mut owner = BTreeMap::new();
        let mut named = BTreeSet::new();
        for service in store.services() {
            for port in service.ingress_ports().filter(|p| p.published_port != 0) {
                owner.entry((port.protocol, port.published_port)).or_insert_with(|| service.id.clone());
            }
            let spec = service.spec.endpoint_spec.iter().flat_map(|e| &e.ports);
            named.extend(spec.filter(|p| p.publish_mode == PublishMode::Ingress).map(|p| (p.protocol, p.published_port)));
        }
        Self { owner, named }
    }

    fn claim(&mut self, key: (Protocol, u16), service: &ServiceId) -> Result<(), ServiceId> {
        let owner = self.owner.entry(key).or_insert_with(|| service.clone());
        if owner == service { Ok(()) } else { Err(owner.clone()) }
    }

    fn draw(&self, protocol: Protocol) -> Option<u16> {
        DYNAMIC.into_iter().find(|p| !self.owner.contains_key(&(protocol, *p)) && !self.named.contains(&(protocol, *p)))
    }
}

/// What a service gets, and what it could not get.
pub struct Given {
    /// The endpoint as far as it can be had.
    pub endpoint: Endpoint,
    /// What is missing, for people.
    pub problem: Option<String>,
}

/// The endpoint that the spec wants. `address` gives an address on a network; it is told the one that the service has.
pub fn wanted(
    store: &Store,
    service: &Service,
    ports: &mut Ports,
    mut address: impl FnMut(&NetworkId, Option<Ipv4Net>) -> Result<Ipv4Net, String>,
) -> Given {
    let mut problem = None;
    let mut endpoint = Endpoint::default();
    for port in service.spec.endpoint_spec.iter().flat_map(|e| &e.ports) {
        match publish(store, service, port, ports, &endpoint.ports) {
            Ok(port) => endpoint.ports.push(port),
            Err(why) => problem = problem.or(Some(why)),
        }
    }
    if service.spec.endpoint_mode() == EndpointMode::Vip {
        for network in networks(store, service) {
            let kept = service.endpoint.vips.iter().find(|v| v.network_id == network).map(|v| v.addr);
            match address(&network, kept) {
                Ok(addr) => endpoint.vips.push(Vip { network_id: network, addr }),
                Err(why) => problem = problem.or(Some(why)),
            }
        }
    }
    endpoint.spec = service
        .spec
        .endpoint_spec
        .clone()
        .or_else(|| (!endpoint.vips.is_empty()).then(|| EndpointSpec { mode: Some(EndpointMode::Vip), ports: Vec::new() }));
    Given { endpoint, problem }
}

/// Networks that the service has a virtual address on, `ingress` first.
fn networks(store: &Store, service: &Service) -> Vec<NetworkId> {
    let ingress = ingress(store).filter(|_| service.spec.wants_ingress()).map(|n| n.id.clone());
    distinct(ingress.into_iter().chain(service.spec.task_template.networks.iter().map(|n| NetworkId::from(n.target.as_str()))))
}

fn publish(
    store: &Store,
    service: &Service,
    asked: &PortConfig,
    ports: &mut Ports,
    given: &[PortConfig],
) -> Result<PortConfig, String> {
    if asked.publish_mode == PublishMode::Host {
        return Ok(asked.clone());
    }
    let published = if asked.published_port == 0 {
        let same = |p: &&PortConfig| PortConfig { published_port: 0, ..(*p).clone() } == *asked && !given.iter().any(|g| g == *p);
        let kept = service.endpoint.ports.iter().find(same).map(|p| p.published_port).filter(|p| *p != 0);
        kept.or_else(|| ports.draw(asked.protocol)).ok_or_else(|| {
            format!("no free {} port between {} and {}", asked.protocol.as_str(), DYNAMIC.start(), DYNAMIC.end())
        })?
    } else {
        asked.published_port
    };
    ports.claim((asked.protocol, published), &service.id).map_err(|owner| {
        let name = store.service(&owner).map_or_else(|| owner.to_string(), |s| s.spec.name.clone());
        format!("port {published}/{} is already in use by service {name}", asked.protocol.as_str())
    })?;
    Ok(PortConfig { published_port: published, ..asked.clone() })
}
