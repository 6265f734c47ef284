//! The tables of flows of a trace: read, filled with the live entries of a connection, compared.

use super::classes::{TraceMapClass, of_class};
use crate::datapath::ebpf::dump::{flow_line, reply_line};
use crate::datapath::ebpf::load::chain;
use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};
use skep_ebpf::packet::{container6, mapped};
use skep_ebpf::{Config, Flow, Reply, Tuple};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The value of an entry of a table of flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TupleValue {
    Flow(Flow),
    Reply(Reply),
}

/// Entries by map and tuple.
pub(super) type Entries = BTreeMap<(&'static str, Tuple), TupleValue>;

/// An entry that a program made or changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceEntry {
    pub map: &'static str,
    /// Key and value, as in `/dump`.
    pub text: String,
}

/// Reads or changes the entries of one map, by the type of its values.
macro_rules! typed {
    ($map:expr, $name:expr, $work:ident($($argument:expr),*)) => {
        match value_size($map)? {
            FLOW => $work::<Flow>($map, $($argument,)* TupleValue::Flow),
            REPLY => $work::<Reply>($map, $($argument,)* TupleValue::Reply),
            size => anyhow::bail!("map {} has values of {size} bytes: a trace knows no such table", $name),
        }
    };
}

const FLOW: usize = size_of::<Flow>();
const REPLY: usize = size_of::<Reply>();

fn value_size(map: &Map) -> anyhow::Result<usize> {
    let (Map::HashMap(data) | Map::LruHashMap(data)) = map else { anyhow::bail!("no hash table") };
    Ok(data.info()?.value_size() as usize)
}

fn table<V: Pod>(map: &Map) -> anyhow::Result<HashMap<&MapData, Tuple, V>> {
    HashMap::try_from(map).map_err(|e| anyhow::anyhow!("{}", chain(&e)))
}

fn read_all<V: Pod>(map: &Map, value: fn(V) -> TupleValue) -> anyhow::Result<Vec<(Tuple, TupleValue)>> {
    table::<V>(map)?
        .iter()
        .map(|entry| entry.map(|(key, v)| (key, value(v))).map_err(|e| anyhow::anyhow!("{}", chain(&e))))
        .collect()
}

fn read_one<V: Pod>(map: &Map, key: &Tuple, value: fn(V) -> TupleValue) -> anyhow::Result<Option<TupleValue>> {
    match table::<V>(map)?.get(key, 0) {
        Ok(found) => Ok(Some(value(found))),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(anyhow::anyhow!("{}", chain(&error))),
    }
}

/// All entries of the own tables of a trace.
pub(super) fn read(ebpf: &Ebpf) -> anyhow::Result<Entries> {
    let mut all = Entries::new();
    for name in of_class(TraceMapClass::Tuples) {
        let map = ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        let entries: anyhow::Result<Vec<_>> = typed!(map, name, read_all());
        all.extend(entries.with_context(|| format!("map {name}"))?.into_iter().map(|(key, value)| ((name, key), value)));
    }
    Ok(all)
}

/// Makes the own table hold this value for the key, or none.
pub(super) fn write(ebpf: &mut Ebpf, name: &str, key: &Tuple, value: Option<TupleValue>) -> anyhow::Result<()> {
    fn set<V: Pod>(map: &mut Map, key: &Tuple, value: V) -> Result<(), MapError> {
        HashMap::<&mut MapData, Tuple, V>::try_from(map)?.insert(key, value, 0)
    }
    let map = ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
    let done = match value {
        Some(TupleValue::Flow(flow)) => set(map, key, flow),
        Some(TupleValue::Reply(reply)) => set(map, key, reply),
        None if value_size(map)? == FLOW => {
            HashMap::<&mut MapData, Tuple, Flow>::try_from(map).and_then(|mut map| map.remove(key))
        }
        None => HashMap::<&mut MapData, Tuple, Reply>::try_from(map).and_then(|mut map| map.remove(key)),
    };
    done.map_err(|e| anyhow::anyhow!("map {name}: {}", chain(&e)))
}

/// The live tables of flows. They are only read.
pub(super) struct LiveTables(Vec<(&'static str, Map)>);

impl LiveTables {
    /// Opens the pinned maps in `folder`.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let opened = of_class(TraceMapClass::Tuples).map(|name| {
            let map = MapData::from_pin(folder.join(name)).and_then(Map::from_map_data);
            Ok((name, map.map_err(|e| anyhow::anyhow!("map {name}: {}", chain(&e)))?))
        });
        Ok(Self(opened.collect::<anyhow::Result<_>>()?))
    }

    /// The live entries of these tuples.
    pub(super) fn entries(&self, tuples: &BTreeSet<Tuple>) -> anyhow::Result<Entries> {
        let mut found = Entries::new();
        for (name, map) in &self.0 {
            for tuple in tuples {
                let value: anyhow::Result<Option<TupleValue>> = typed!(map, name, read_one(tuple));
                found.extend(value.with_context(|| format!("map {name}"))?.map(|value| ((*name, *tuple), value)));
            }
        }
        Ok(found)
    }
}

/// The tuple of the answers of a connection.
fn reverse(tuple: &Tuple) -> Tuple {
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        via: [0; 2],
        ..*tuple
    }
}

/// The tuples that concern a packet: its own, that of its answers, and both by way of the node that sent it.
pub(super) fn tuples_of(tuple: &Tuple, via: Option<skep_ebpf::Prefix>) -> BTreeSet<Tuple> {
    let plain = Tuple { via: [0; 2], ..*tuple };
    let mut all = BTreeSet::from([plain, reverse(&plain)]);
    if let Some(via) = via {
        all.extend([Tuple { via, ..plain }, Tuple { via, ..reverse(&plain) }]);
    }
    all
}

/// The tuples by which the answers to known flows are translated back.
pub(super) fn answers_of(entries: &Entries, config: &Config) -> BTreeSet<Tuple> {
    let flows = entries.iter().filter_map(|((_, tuple), value)| match value {
        TupleValue::Flow(flow) if flow.backend != 0 => Some((tuple, flow)),
        TupleValue::Flow(_) | TupleValue::Reply(_) => None,
    });
    flows
        .map(|(tuple, flow)| {
            let v4 = tuple.source[..3] == mapped(0)[..3];
            let container = if v4 { mapped(flow.backend) } else { container6(config.containers, flow.backend) };
            Tuple { source: container, source_port: flow.target, destination_port: flow.client_port, ..reverse(tuple) }
        })
        .collect()
}

/// Entries that were made or changed, apart from the time of the last packet.
pub(super) fn made(before: &Entries, after: &Entries) -> Vec<TraceEntry> {
    let timeless = |value: TupleValue| match value {
        TupleValue::Flow(flow) => TupleValue::Flow(Flow { seen: 0, ..flow }),
        TupleValue::Reply(reply) => TupleValue::Reply(Reply { seen: 0, ..reply }),
    };
    let changed = after.iter().filter(|(key, value)| before.get(key).copied().map(timeless) != Some(timeless(**value)));
    changed
        .map(|((map, tuple), value)| {
            let text = match value {
                TupleValue::Flow(flow) => flow_line(tuple, flow),
                TupleValue::Reply(reply) => reply_line(tuple, reply),
            };
            TraceEntry { map, text }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: u32, source_port: u16, destination: u32, destination_port: u16) -> Tuple {
        Tuple {
            source: mapped(source),
            destination: mapped(destination),
            source_port,
            destination_port,
            protocol: 6,
            ..Tuple::default()
        }
    }

    #[test]
    fn tuples_of_a_packet_are_both_directions_and_those_by_way_of_its_node() {
        let own = tuple(1, 10, 2, 20);
        assert_eq!(tuples_of(&own, None), [own, tuple(2, 20, 1, 10)].into());
        let by = tuples_of(&own, Some([7, 8]));
        assert!(by.len() == 4 && by.contains(&Tuple { via: [7, 8], ..own }), "{by:?}");
    }

    #[test]
    fn the_answer_of_a_flow_comes_from_its_backend_to_the_client_s_port_there() {
        let flow = Flow { backend: 9, target: 80, client_port: 11, ifindex: 1, owner: 1, seen: 5 };
        let known: Entries = [(("TCP_FLOWS", tuple(1, 10, 2, 20)), TupleValue::Flow(flow))].into();
        assert_eq!(answers_of(&known, &Config::default()), [tuple(9, 80, 1, 11)].into());
        let of_host: Entries = [(("TCP_FLOWS", tuple(1, 10, 2, 20)), TupleValue::Flow(Flow { backend: 0, ..flow }))].into();
        assert_eq!(answers_of(&of_host, &Config::default()), BTreeSet::new());
        let six = Tuple { source: [1, 2, 3, 4], ..tuple(1, 10, 2, 20) };
        let known: Entries = [(("TCP_FLOWS", six), TupleValue::Flow(flow))].into();
        let config = Config { containers: [5, 6], ..Config::default() };
        assert_eq!(answers_of(&known, &config).first().map(|tuple| tuple.source), Some([5, 6, 0, 9]));
    }

    #[test]
    fn an_entry_is_made_when_it_is_new_or_other_than_in_its_time() {
        let flow = Flow { backend: 9, target: 80, client_port: 11, ifindex: 1, owner: 1, seen: 5 };
        let key = ("TCP_FLOWS", tuple(1, 10, 2, 20));
        let before: Entries = [(key, TupleValue::Flow(flow))].into();
        assert_eq!(made(&before, &before), []);
        assert_eq!(made(&before, &[(key, TupleValue::Flow(Flow { seen: 6, ..flow }))].into()), []);
        assert_eq!(made(&before, &[(key, TupleValue::Flow(Flow { ifindex: 2, ..flow }))].into()).len(), 1);
        assert_eq!(made(&Entries::new(), &before).len(), 1);
    }
}
