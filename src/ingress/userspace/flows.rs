//! Which backend a UDP client talks to: a table of flows, bounded per port and in all, whose longest idle ones go first.
//! Pure: time is passed in; what a flow carries is the caller's affair.

use crate::datapath::udp::DatagramPath;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Bounds of the table.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows of all ports together.
    pub all: usize,
    /// Flows of one port.
    pub per_port: usize,
    /// A flow without a datagram in either direction for so long is over.
    pub idle: Duration,
}

/// A flow: its port, where its client is, and which of the port's flows of that client it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowId {
    /// Published port.
    pub port: u16,
    /// Client and the address that it asked.
    pub way: DatagramPath,
    serial: u64,
}

struct Flow<V> {
    backend: Ipv4Addr,
    value: V,
    serial: u64,
    used: Instant,
    age: u64,
}

struct OfPort<V> {
    flows: BTreeMap<DatagramPath, Flow<V>>,
    /// Longest idle first.
    by_age: BTreeMap<u64, DatagramPath>,
}

impl<V> Default for OfPort<V> {
    fn default() -> Self {
        Self { flows: BTreeMap::new(), by_age: BTreeMap::new() }
    }
}

impl<V> OfPort<V> {
    fn remove(&mut self, way: &DatagramPath) -> Option<V> {
        let flow = self.flows.remove(way)?;
        self.by_age.remove(&flow.age);
        Some(flow.value)
    }
    fn oldest(&mut self) -> Option<V> {
        let (_, way) = self.by_age.pop_first()?;
        self.flows.remove(&way).map(|f| f.value)
    }
}

/// All UDP flows of this node.
pub struct Flows<V> {
    ports: BTreeMap<u16, OfPort<V>>,
    limits: Limits,
    total: usize,
    counter: u64,
}

impl<V: Clone> Flows<V> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { ports: BTreeMap::new(), limits, total: 0, counter: 0 }
    }

    /// The client's flow, which counts as used now.
    pub fn get(&mut self, port: u16, way: DatagramPath, now: Instant) -> Option<(FlowId, V)> {
        let of_port = self.ports.get_mut(&port)?;
        let flow = of_port.flows.get_mut(&way)?;
        self.counter += 1;
        of_port.by_age.remove(&flow.age);
        of_port.by_age.insert(self.counter, way);
        (flow.age, flow.used) = (self.counter, now);
        Some((FlowId { port, way, serial: flow.serial }, flow.value.clone()))
    }

    /// A datagram came back.
    pub fn touch(&mut self, id: FlowId, now: Instant) {
        if self.has(id) {
            self.get(id.port, id.way, now);
        }
    }

    /// A new flow; returns those that had to make room: its client's former one, else the longest idle one of its port,
    /// else (the table being full) the longest idle one of the port that has most, its own port if others have no more.
    pub fn insert(&mut self, port: u16, way: DatagramPath, backend: Ipv4Addr, value: V, now: Instant) -> (FlowId, Vec<V>) {
        let mut gone: Vec<V> = self.remove_way(port, way).into_iter().collect();
        while self.len(port) >= self.limits.per_port.max(1) {
            gone.extend(self.drop_oldest(port));
        }
        while self.total >= self.limits.all.max(1) {
            let fullest = self.ports.iter().max_by_key(|(other, p)| (p.flows.len(), **other == port)).map(|(port, _)| *port);
            gone.extend(fullest.and_then(|fullest| self.drop_oldest(fullest)));
        }
        self.counter += 1;
        let serial = self.counter;
        let of_port = self.ports.entry(port).or_default();
        of_port.flows.insert(way, Flow { backend, value, serial, used: now, age: serial });
        of_port.by_age.insert(serial, way);
        self.total += 1;
        (FlowId { port, way, serial }, gone)
    }

    /// Ends a flow, unless its client has another one by now.
    pub fn remove(&mut self, id: FlowId) -> Option<V> {
        self.has(id).then(|| self.remove_way(id.port, id.way)).flatten()
    }

    /// Ends the flows of a port to backends that are not these.
    pub fn keep(&mut self, port: u16, backends: &[Ipv4Addr]) -> Vec<V> {
        let Some(of_port) = self.ports.get(&port) else { return Vec::new() };
        let homeless: Vec<DatagramPath> =
            of_port.flows.iter().filter(|(_, f)| !backends.contains(&f.backend)).map(|(way, _)| *way).collect();
        homeless.into_iter().filter_map(|way| self.remove_way(port, way)).collect()
    }

    /// Ends the flows that were idle for too long.
    pub fn expire(&mut self, now: Instant) -> Vec<V> {
        let mut gone = Vec::new();
        let ports: Vec<u16> = self.ports.keys().copied().collect();
        for port in ports {
            while self.is_idle(port, now) {
                gone.extend(self.drop_oldest(port));
            }
        }
        gone
    }

    /// Number of flows of a port.
    #[must_use]
    pub fn len(&self, port: u16) -> usize {
        self.ports.get(&port).map_or(0, |p| p.flows.len())
    }

    fn is_idle(&self, port: u16, now: Instant) -> bool {
        let Some(of_port) = self.ports.get(&port) else { return false };
        let oldest = of_port.by_age.first_key_value().and_then(|(_, way)| of_port.flows.get(way));
        oldest.is_some_and(|flow| now.saturating_duration_since(flow.used) >= self.limits.idle)
    }

    fn has(&self, id: FlowId) -> bool {
        self.ports.get(&id.port).and_then(|p| p.flows.get(&id.way)).is_some_and(|flow| flow.serial == id.serial)
    }

    fn drop_oldest(&mut self, port: u16) -> Option<V> {
        let gone = self.ports.get_mut(&port).and_then(OfPort::oldest);
        self.count_down(port, gone)
    }

    fn remove_way(&mut self, port: u16, way: DatagramPath) -> Option<V> {
        let gone = self.ports.get_mut(&port).and_then(|p| p.remove(&way));
        self.count_down(port, gone)
    }

    fn count_down(&mut self, port: u16, gone: Option<V>) -> Option<V> {
        if gone.is_some() {
            self.total -= 1;
            if self.len(port) == 0 {
                self.ports.remove(&port);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn way(client: u16) -> DatagramPath {
        DatagramPath { peer: ([192, 0, 2, 1], client).into(), local: [192, 0, 2, 9].into(), interface: 0 }
    }

    fn backend(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    fn limits(all: usize, per_port: usize) -> Limits {
        Limits { all, per_port, idle: Duration::from_mins(1) }
    }

    #[test]
    fn the_longest_idle_flow_of_its_own_port_makes_room() {
        let (mut flows, now) = (Flows::new(limits(10, 2)), Instant::now());
        flows.insert(53, way(1), backend(1), "a", now);
        flows.insert(53, way(2), backend(1), "b", now);
        flows.get(53, way(1), now);
        assert_eq!(flows.insert(53, way(3), backend(1), "c", now).1, ["b"]);
        assert!(flows.get(53, way(1), now).is_some() && flows.get(53, way(2), now).is_none());
    }

    #[test]
    fn one_port_cannot_push_out_another() {
        let (mut flows, now) = (Flows::new(limits(6, 5)), Instant::now());
        flows.insert(53, way(1), backend(1), 0, now);
        for client in 1..100 {
            flows.insert(99, way(client), backend(1), 1, now);
        }
        assert_eq!((flows.len(53), flows.len(99)), (1, 5));
        for client in 2..5 {
            flows.insert(53, way(client), backend(1), 0, now);
        }
        assert_eq!((flows.len(53), flows.len(99)), (3, 3), "the fullest port makes room");
    }

    #[test]
    fn flows_end_when_idle_and_not_while_either_side_speaks() {
        let (mut flows, start) = (Flows::new(limits(10, 10)), Instant::now());
        let (answered, _) = flows.insert(53, way(1), backend(1), "answered", start);
        flows.insert(53, way(2), backend(1), "silent", start);
        let later = start + Duration::from_secs(40);
        flows.touch(answered, later);
        assert_eq!(flows.expire(later), [""; 0]);
        assert_eq!(flows.expire(start + Duration::from_mins(1)), ["silent"]);
        assert_eq!(flows.expire(later + Duration::from_mins(1)), ["answered"]);
    }

    #[test]
    fn flows_of_a_backend_that_goes_end_and_a_late_end_does_not_hit_the_next_one() {
        let (mut flows, now) = (Flows::new(limits(10, 10)), Instant::now());
        let (old, _) = flows.insert(53, way(1), backend(1), "old", now);
        flows.insert(53, way(2), backend(2), "stays", now);
        assert_eq!(flows.keep(53, &[backend(2)]), ["old"]);
        flows.insert(53, way(1), backend(2), "new", now);
        assert_eq!(flows.remove(old), None);
        assert_eq!(flows.get(53, way(1), now).map(|(_, v)| v), Some("new"));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_is_forgotten(
            calls in proptest::collection::vec((0u8..5, 1u16..4, 1u16..12, 1u8..4, 0u64..40), 0..200),
        ) {
            let (mut flows, mut now) = (Flows::new(limits(8, 4)), Instant::now());
            let (mut made, mut ended) = (0_usize, 0_usize);
            for (what, port, client, to, wait) in calls {
                now += Duration::from_secs(wait);
                match what {
                    0 | 1 => {
                        made += 1;
                        ended += flows.insert(port, way(client), backend(to), (), now).1.len();
                    }
                    2 => {
                        if let Some((id, ())) = flows.get(port, way(client), now) {
                            ended += flows.remove(id).into_iter().count();
                        }
                    }
                    3 => ended += flows.keep(port, &[backend(to)]).len(),
                    _ => ended += flows.expire(now).len(),
                }
                let there: usize = (1..4).map(|port| flows.len(port)).sum();
                prop_assert!((1..4).all(|port| flows.len(port) <= 4) && there <= 8);
                prop_assert_eq!(made - ended, there);
                prop_assert_eq!(flows.total, there);
                prop_assert!(flows.ports.values().all(|p| p.flows.len() == p.by_age.len()));
            }
        }
    }
}
