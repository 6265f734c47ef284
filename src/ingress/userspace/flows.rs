//! Which backend a UDP client uses: a table of flows, bounded per port and in total. When it is full the flow that was idle
//! longest is evicted. Pure: the time is a parameter, and the value of a flow belongs to the caller.

use super::room::source;
use crate::datapath::udp::DatagramPath;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Bounds of the table.
#[derive(Clone, Copy, Debug)]
pub struct FlowLimits {
    /// Flows of all ports together.
    pub total: usize,
    pub per_port: usize,
    /// Flows of one client ([`source`]) on all ports together.
    pub per_source: usize,
    /// A flow ends after so long without a datagram in either direction.
    pub idle: Duration,
}

/// Identifies a flow. A later flow of the same client to the same port has another id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowId {
    /// Published port.
    pub port: u16,
    /// The client's address and the local address that it sent to.
    pub path: DatagramPath,
    serial: u64,
}

struct Flow<V> {
    backend: Ipv4Addr,
    value: V,
    serial: u64,
    last_used: Instant,
    /// Its key in [`PortFlows::by_use`].
    use_order: u64,
}

struct PortFlows<V> {
    flows: BTreeMap<DatagramPath, Flow<V>>,
    /// Least recently used first.
    by_use: BTreeMap<u64, DatagramPath>,
}

impl<V> Default for PortFlows<V> {
    fn default() -> Self {
        Self { flows: BTreeMap::new(), by_use: BTreeMap::new() }
    }
}

impl<V> PortFlows<V> {
    fn remove(&mut self, path: &DatagramPath) -> Option<Flow<V>> {
        let flow = self.flows.remove(path)?;
        self.by_use.remove(&flow.use_order);
        Some(flow)
    }
}

/// All UDP flows of this node.
pub struct Flows<V> {
    ports: BTreeMap<u16, PortFlows<V>>,
    /// Flows of each client, least recently used first.
    sources: BTreeMap<IpAddr, BTreeMap<u64, (u16, DatagramPath)>>,
    limits: FlowLimits,
    total: usize,
    counter: u64,
}

impl<V: Clone> Flows<V> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: FlowLimits) -> Self {
        Self { ports: BTreeMap::new(), sources: BTreeMap::new(), limits, total: 0, counter: 0 }
    }

    /// The client's flow; marks it as used.
    pub fn get(&mut self, port: u16, path: DatagramPath, now: Instant) -> Option<(FlowId, V)> {
        let port_flows = self.ports.get_mut(&port)?;
        let flow = port_flows.flows.get_mut(&path)?;
        self.counter += 1;
        port_flows.by_use.remove(&flow.use_order);
        port_flows.by_use.insert(self.counter, path);
        if let Some(of_source) = source(path.peer.ip()).and_then(|source| self.sources.get_mut(&source)) {
            of_source.remove(&flow.use_order);
            of_source.insert(self.counter, (port, path));
        }
        (flow.use_order, flow.last_used) = (self.counter, now);
        Some((FlowId { port, path, serial: flow.serial }, flow.value.clone()))
    }

    /// Marks a flow as used, for a reply.
    pub fn touch(&mut self, id: FlowId, now: Instant) {
        if self.contains(id) {
            self.get(id.port, id.path, now);
        }
    }

    /// Adds a flow. Returns the values of the flows that were removed for it: the client's former one, else the least recently
    /// used one of its client if that has its share, of its port if that is full, else, if the table is full, that of the port with most flows (its own port, if no
    /// other has more).
    pub fn insert(&mut self, port: u16, path: DatagramPath, backend: Ipv4Addr, value: V, now: Instant) -> (FlowId, Vec<V>) {
        let mut removed: Vec<V> = self.remove_by_path(port, path).into_iter().collect();
        while let Some((port, path)) = self.excess_of_source(path.peer.ip()) {
            removed.extend(self.remove_by_path(port, path));
        }
        while self.len(port) >= self.limits.per_port.max(1) {
            removed.extend(self.evict(port));
        }
        while self.total >= self.limits.total.max(1) {
            let fullest = self.ports.iter().max_by_key(|(other, p)| (p.flows.len(), **other == port)).map(|(port, _)| *port);
            removed.extend(fullest.and_then(|fullest| self.evict(fullest)));
        }
        self.counter += 1;
        let serial = self.counter;
        let port_flows = self.ports.entry(port).or_default();
        port_flows.flows.insert(path, Flow { backend, value, serial, last_used: now, use_order: serial });
        port_flows.by_use.insert(serial, path);
        if let Some(source) = source(path.peer.ip()) {
            self.sources.entry(source).or_default().insert(serial, (port, path));
        }
        self.total += 1;
        (FlowId { port, path, serial }, removed)
    }

    /// Removes a flow, unless its client has another one by now.
    pub fn remove(&mut self, id: FlowId) -> Option<V> {
        self.contains(id).then(|| self.remove_by_path(id.port, id.path)).flatten()
    }

    /// Removes the flows of a port to other backends than these.
    pub fn retain(&mut self, port: u16, backends: &[Ipv4Addr]) -> Vec<V> {
        let Some(port_flows) = self.ports.get(&port) else { return Vec::new() };
        let removed: Vec<DatagramPath> =
            port_flows.flows.iter().filter(|(_, f)| !backends.contains(&f.backend)).map(|(path, _)| *path).collect();
        removed.into_iter().filter_map(|path| self.remove_by_path(port, path)).collect()
    }

    /// Removes the flows that were idle for too long.
    pub fn expire(&mut self, now: Instant) -> Vec<V> {
        let mut removed = Vec::new();
        let ports: Vec<u16> = self.ports.keys().copied().collect();
        for port in ports {
            while self.is_idle(port, now) {
                removed.extend(self.evict(port));
            }
        }
        removed
    }

    /// Number of flows of a port.
    #[must_use]
    pub fn len(&self, port: u16) -> usize {
        self.ports.get(&port).map_or(0, |p| p.flows.len())
    }

    fn is_idle(&self, port: u16, now: Instant) -> bool {
        let Some(port_flows) = self.ports.get(&port) else { return false };
        let least_recent = port_flows.by_use.first_key_value().and_then(|(_, path)| port_flows.flows.get(path));
        least_recent.is_some_and(|flow| now.saturating_duration_since(flow.last_used) >= self.limits.idle)
    }

    fn contains(&self, id: FlowId) -> bool {
        self.ports.get(&id.port).and_then(|p| p.flows.get(&id.path)).is_some_and(|flow| flow.serial == id.serial)
    }

    /// The least recently used flow of a client that has its share.
    fn excess_of_source(&self, client: IpAddr) -> Option<(u16, DatagramPath)> {
        let own = self.sources.get(&source(client)?)?;
        (own.len() >= self.limits.per_source.max(1)).then(|| own.first_key_value().map(|(_, flow)| *flow))?
    }

    fn evict(&mut self, port: u16) -> Option<V> {
        let (_, path) = self.ports.get(&port)?.by_use.first_key_value()?;
        self.remove_by_path(port, *path)
    }

    fn remove_by_path(&mut self, port: u16, path: DatagramPath) -> Option<V> {
        let flow = self.ports.get_mut(&port)?.remove(&path)?;
        self.total -= 1;
        if self.len(port) == 0 {
            self.ports.remove(&port);
        }
        if let Some(source) = source(path.peer.ip())
            && let Some(of_source) = self.sources.get_mut(&source)
        {
            of_source.remove(&flow.use_order);
            if of_source.is_empty() {
                self.sources.remove(&source);
            }
        }
        Some(flow.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(client: u16) -> DatagramPath {
        DatagramPath { peer: ([192, 0, 2, 1], client).into(), local: [192, 0, 2, 9].into(), interface: 0 }
    }

    fn backend(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    fn limits(total: usize, per_port: usize) -> FlowLimits {
        FlowLimits { total, per_port, per_source: usize::MAX, idle: Duration::from_mins(1) }
    }

    #[test]
    fn the_least_recently_used_flow_of_a_full_port_is_evicted() {
        let (mut flows, now) = (Flows::new(limits(10, 2)), Instant::now());
        flows.insert(53, path(1), backend(1), "a", now);
        flows.insert(53, path(2), backend(1), "b", now);
        flows.get(53, path(1), now);
        assert_eq!(flows.insert(53, path(3), backend(1), "c", now).1, ["b"]);
        assert!(flows.get(53, path(1), now).is_some() && flows.get(53, path(2), now).is_none());
    }

    #[test]
    fn one_port_cannot_evict_all_flows_of_another() {
        let (mut flows, now) = (Flows::new(limits(6, 5)), Instant::now());
        flows.insert(53, path(1), backend(1), 0, now);
        for client in 1..100 {
            flows.insert(99, path(client), backend(1), 1, now);
        }
        assert_eq!((flows.len(53), flows.len(99)), (1, 5));
        for client in 2..5 {
            flows.insert(53, path(client), backend(1), 0, now);
        }
        assert_eq!((flows.len(53), flows.len(99)), (3, 3), "the port with most flows loses one");
    }

    #[test]
    fn one_client_replaces_its_own_flows_and_no_others() {
        let limits = FlowLimits { per_source: 3, ..limits(10, 10) };
        let (mut flows, now) = (Flows::new(limits), Instant::now());
        let other = DatagramPath { peer: ([192, 0, 2, 7], 1).into(), ..path(1) };
        flows.insert(53, other, backend(1), 0, now);
        for client in 1..=3 {
            assert_eq!(flows.insert(53 + client % 2, path(client), backend(1), client, now).1, [0_u16; 0]);
        }
        flows.get(54, path(1), now);
        assert_eq!(flows.insert(53, path(4), backend(1), 4, now).1, [2], "its least recently used one, whatever the port");
        assert!(flows.get(53, other, now).is_some());
        for client in 5..50 {
            let id = flows.insert(53, path(client), backend(1), client, now).0;
            flows.remove(id);
        }
        assert!(flows.sources.values().all(|own| own.len() <= 3) && flows.get(53, other, now).is_some());
    }

    #[test]
    fn flows_expire_when_neither_side_sends() {
        let (mut flows, start) = (Flows::new(limits(10, 10)), Instant::now());
        let (answered, _) = flows.insert(53, path(1), backend(1), "answered", start);
        flows.insert(53, path(2), backend(1), "silent", start);
        let later = start + Duration::from_secs(40);
        flows.touch(answered, later);
        assert_eq!(flows.expire(later), [""; 0]);
        assert_eq!(flows.expire(start + Duration::from_mins(1)), ["silent"]);
        assert_eq!(flows.expire(later + Duration::from_mins(1)), ["answered"]);
    }

    #[test]
    fn flows_of_a_removed_backend_end_and_a_late_removal_does_not_affect_the_next_flow() {
        let (mut flows, now) = (Flows::new(limits(10, 10)), Instant::now());
        let (old, _) = flows.insert(53, path(1), backend(1), "old", now);
        flows.insert(53, path(2), backend(2), "stays", now);
        assert_eq!(flows.retain(53, &[backend(2)]), ["old"]);
        flows.insert(53, path(1), backend(2), "new", now);
        assert_eq!(flows.remove(old), None);
        assert_eq!(flows.get(53, path(1), now).map(|(_, v)| v), Some("new"));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_every_flow_is_accounted_for(
            calls in proptest::collection::vec((0u8..5, 1u16..4, 1u16..12, 1u8..4, 0u64..40), 0..200),
        ) {
            let limits = FlowLimits { per_source: 5, ..limits(8, 4) };
            let (mut flows, mut now) = (Flows::new(limits), Instant::now());
            let (mut made, mut ended) = (0_usize, 0_usize);
            for (what, port, client, to, wait) in calls {
                now += Duration::from_secs(wait);
                match what {
                    0 | 1 => {
                        made += 1;
                        ended += flows.insert(port, path(client), backend(to), (), now).1.len();
                    }
                    2 => {
                        if let Some((id, ())) = flows.get(port, path(client), now) {
                            ended += flows.remove(id).into_iter().count();
                        }
                    }
                    3 => ended += flows.retain(port, &[backend(to)]).len(),
                    _ => ended += flows.expire(now).len(),
                }
                let count: usize = (1..4).map(|port| flows.len(port)).sum();
                prop_assert!((1..4).all(|port| flows.len(port) <= 4) && count <= 5);
                prop_assert_eq!(flows.sources.values().map(BTreeMap::len).sum::<usize>(), count);
                prop_assert_eq!(made - ended, count);
                prop_assert_eq!(flows.total, count);
                prop_assert!(flows.ports.values().all(|p| p.flows.len() == p.by_use.len()));
            }
        }
    }
}
