//! Removes established connections that are over without having said so: nothing else removes them. A bounded number of entries
//! is looked at each time, so that a table of a million is gone through within minutes.

use super::batch::{Batches, value};
use super::load::Loaded;
use super::tuples::client;
use super::vip_packets::is_of_vip_packet;
use anyhow::Context as _;
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use skep_ebpf::{Backend, Config, Flow, Reply, SOURCE_BUCKETS, Tuple, V4, elapsed, is_zero, source_bucket};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::Duration;

/// Batches of each table that are read at a time.
const BATCHES: usize = 4;

/// Seconds without a packet after which a connection to a container that is gone is removed: until then its client is answered.
const GONE: u32 = 120;

/// Where the next look at the tables begins.
pub(super) struct Aging {
    flows: Batches,
    replies: Batches,
    /// Connections by client of the reply entries that were looked at since the first one.
    sources: Vec<u32>,
    /// One of them is of a container that sent a packet to a virtual address.
    vip_packets: bool,
}

impl Default for Aging {
    fn default() -> Self {
        let sizes = |value: usize| Batches::new(size_of::<Tuple>(), value);
        let sources = vec![0; SOURCE_BUCKETS as usize];
        Self { flows: sizes(size_of::<Flow>()), replies: sizes(size_of::<Reply>()), sources, vip_packets: false }
    }
}

/// What entries are compared with.
#[derive(Clone, Copy)]
struct Ages<'a> {
    backends: &'a BTreeMap<V4, Backend>,
    /// Seconds of the kernel's monotonic clock.
    now: u32,
    /// Seconds without a packet after which a connection is over.
    idle: u32,
}

impl Ages<'_> {
    /// Whether the flow of a client that entered by this node is over.
    fn is_flow_over(&self, flow: &Flow) -> bool {
        let silent = elapsed(self.now, flow.seen);
        let known = |backend: &Backend| flow.owner == 0 || flow.owner == backend.owner;
        silent > self.idle || silent > GONE && !self.backends.get(&flow.backend).is_some_and(known)
    }

    /// Whether a reply entry is over: of a client that entered by this node with its flow, of another one by itself.
    fn is_reply_over(&self, container: &Tuple, reply: &Reply, has_flow: impl FnOnce(&Tuple) -> bool) -> bool {
        if is_zero(&reply.entry) {
            return !has_flow(&client(container, reply));
        }
        let silent = elapsed(self.now, reply.seen);
        silent > self.idle || silent > GONE && !self.backends.contains_key(&container.source[3])
    }
}

impl Loaded {
    /// Looks at the next entries of established connections and removes those that are over. `idle`: how long a connection may
    /// be silent, in whole seconds. Returns how many were removed.
    pub(super) fn age(
        &mut self,
        aging: &mut Aging,
        backends: &BTreeMap<V4, Backend>,
        now: Duration,
        idle: Duration,
    ) -> anyhow::Result<usize> {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let ages = Ages { backends, now: seconds(now), idle: seconds(idle).max(1) };
        let flows = self.remove_over::<Flow>("TCP_FLOWS", &mut aging.flows, |_, flow| ages.is_flow_over(flow))?;
        let known: HashMap<&MapData, Tuple, Flow> = table(self.ebpf.map("TCP_FLOWS"))?;
        let (mut over, key, sources) = (Vec::new(), self.hash_key()?, &mut aging.sources);
        let vip_packets = &mut aging.vip_packets;
        let last = scan::<Reply>(self.ebpf.map("TCP_REPLIES"), &mut aging.replies, |container, reply| {
            if ages.is_reply_over(container, reply, |client| known.get(client, 0).is_ok()) {
                over.push(*container);
            } else {
                sources[source_bucket(key, &container.destination) as usize] += 1;
                *vip_packets |= is_of_vip_packet(reply);
            }
        });
        if let Ok(true) = last {
            self.correct_source_counts(sources)?;
            self.forget_vip_packets(ages.now, *vip_packets)?;
        }
        if !matches!(last, Ok(false)) {
            // The next look begins with the first entry.
            sources.fill(0);
            *vip_packets = false;
        }
        last?;
        Ok(flows + self.remove_all::<Reply>("TCP_REPLIES", &over)?)
    }

    fn hash_key(&self) -> anyhow::Result<[u32; 2]> {
        let map = self.ebpf.map("CONFIG").context("the object has no map CONFIG")?;
        Ok(Array::<&MapData, Config>::try_from(map)?.get(&0, 0)?.hash_key)
    }

    /// The programs count without atomic operations, and do not see what is removed here.
    fn correct_source_counts(&mut self, counts: &[u32]) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("SOURCE_COUNTS").context("the object has no map SOURCE_COUNTS")?;
        let mut map: Array<&mut MapData, u32> = Array::try_from(map)?;
        for (bucket, count) in (0..).zip(counts) {
            if map.get(&bucket, 0)? != *count {
                map.set(bucket, count, 0)?;
            }
        }
        Ok(())
    }

    fn remove_over<V: Pod>(
        &mut self,
        name: &str,
        batches: &mut Batches,
        is_over: impl Fn(&Tuple, &V) -> bool,
    ) -> anyhow::Result<usize> {
        let mut over = Vec::new();
        scan::<V>(self.ebpf.map(name), batches, |tuple, value| {
            if is_over(tuple, value) {
                over.push(*tuple);
            }
        })?;
        self.remove_all::<V>(name, &over)
    }

    fn remove_all<V: Pod>(&mut self, name: &str, tuples: &[Tuple]) -> anyhow::Result<usize> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        let mut map: HashMap<&mut MapData, Tuple, V> = HashMap::try_from(map)?;
        // One that is missing has ended meanwhile.
        Ok(tuples.iter().filter(|tuple| map.remove(tuple).is_ok()).count())
    }
}

fn table<V: Pod>(map: Option<&Map>) -> anyhow::Result<HashMap<&MapData, Tuple, V>> {
    Ok(HashMap::try_from(map.context("the object lacks a table of connections")?)?)
}

/// Calls `visit` with the next entries of a table. Returns whether they were the last ones: the next look begins with the first.
fn scan<V: Pod>(map: Option<&Map>, batches: &mut Batches, mut visit: impl FnMut(&Tuple, &V)) -> anyhow::Result<bool> {
    let Some(Map::HashMap(map)) = map else { anyhow::bail!("the object lacks a table of connections") };
    for _ in 0..BATCHES {
        let batch = batches.read(map.fd().as_fd())?;
        for (tuple, entry) in batches.entries(&batch) {
            visit(&value(tuple), &value(entry));
        }
        if batch.last {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ebpf::packet::mapped;

    fn backends() -> BTreeMap<V4, Backend> {
        [(11, Backend { owner: 7, ..Backend::default() })].into()
    }

    #[test]
    fn an_open_connection_is_kept_however_idle_up_to_the_bound() {
        let backends = backends();
        let ages = Ages { backends: &backends, now: 1_000_000, idle: 432_000 };
        let flow = |backend, owner, silent| Flow { backend, owner, seen: ages.now - silent, ..Flow::default() };
        assert!(!ages.is_flow_over(&flow(11, 7, 432_000)));
        assert!(ages.is_flow_over(&flow(11, 7, 432_001)));
        assert!(!ages.is_flow_over(&flow(11, 0, 432_000)), "of an earlier layout");
        assert!(!ages.is_flow_over(&flow(12, 7, GONE)), "its client may still be answered");
        assert!(ages.is_flow_over(&flow(12, 7, GONE + 1)), "the container is gone");
        assert!(ages.is_flow_over(&flow(11, 8, GONE + 1)), "its address is another one's");
    }

    #[test]
    fn a_reply_entry_ends_with_its_flow_or_by_its_own_age() {
        let backends = backends();
        let ages = Ages { backends: &backends, now: 1_000_000, idle: 432_000 };
        let container =
            Tuple { source: mapped(11), destination: mapped(99), source_port: 80, destination_port: 5, ..Tuple::default() };
        let own = Reply { address: mapped(1), port: 8080, client_port: 6, ..Reply::default() };
        let expected =
            Tuple { source: mapped(99), destination: mapped(1), source_port: 6, destination_port: 8080, ..Tuple::default() };
        assert!(!ages.is_reply_over(&container, &own, |client| *client == expected));
        assert!(ages.is_reply_over(&container, &own, |_| false));
        let of = |silent| Reply { entry: [1, 2], seen: ages.now - silent, ..Reply::default() };
        assert!(!ages.is_reply_over(&container, &of(432_000), |_| false));
        assert!(ages.is_reply_over(&container, &of(432_001), |_| false));
        let gone = Tuple { source: mapped(12), ..container };
        assert!(!ages.is_reply_over(&gone, &of(GONE), |_| false));
        assert!(ages.is_reply_over(&gone, &of(GONE + 1), |_| false));
    }
}
