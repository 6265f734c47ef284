//! `/trace`: what the eBPF hooks of this node would do with a packet.

use super::drops::encoded;
use serde::{Deserialize, Serialize};

/// A packet to trace, as the user has written it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceQuery {
    /// `self`, the host name or the id of this node.
    pub node: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// An address of either family, with a port or without: `192.0.2.9`, `192.0.2.9:40000`, `[2001:db8::9]:40000`.
    pub source: String,
    pub destination: String,
    /// TCP flags: `syn`, `ack`, `fin` or `rst`, several with commas; empty: `syn`.
    pub flags: String,
    /// Device that the packet arrives by, or the name of the container that sends it; empty: that of its source.
    pub device: String,
    /// Host name or id of the node that sends the packet through the tunnel; empty: it does not come from a node.
    pub from_node: String,
    /// Bytes of the packet from its IP header on; 0: as many as its headers take.
    pub length: u16,
    /// Follow the answer too.
    pub reply: bool,
}

impl TraceQuery {
    /// The query of a request.
    #[must_use]
    pub fn query(&self) -> String {
        let texts = [
            ("node", &self.node),
            ("protocol", &self.protocol),
            ("source", &self.source),
            ("destination", &self.destination),
            ("flags", &self.flags),
            ("device", &self.device),
            ("from_node", &self.from_node),
        ];
        let mut pairs: Vec<String> = texts
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(key, text)| format!("{key}={}", encoded(text)))
            .collect();
        pairs.push(format!("length={}", self.length));
        pairs.push(format!("reply={}", self.reply));
        pairs.join("&")
    }
}

/// The path of a packet on this node: the document of `skep trace --json`. Fields are added, never renamed or removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceReport {
    /// Host name of the node.
    pub node: String,
    /// The packet as it came in.
    pub packet: String,
    /// If a socket call of the source would be translated: the virtual address, read from the table and not run.
    pub table: Option<TracedTable>,
    /// The hooks in the order that the packet meets them, then those of its answer.
    pub steps: Vec<TracedHook>,
    /// Why the answer was not followed, if it was asked for.
    pub no_reply: Option<String>,
    pub outcome: TraceOutcome,
}

/// The backends of a virtual address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TracedTable {
    /// The hook that selects a backend when a socket connects.
    pub hook: String,
    pub address: String,
    /// Name of the service; empty if it is gone.
    pub service: String,
    pub backends: Vec<TracedBackend>,
    /// What is true of it beside the table.
    pub note: String,
}

/// A backend of a virtual address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TracedBackend {
    pub address: String,
    /// Name of the container, and host name of its node; empty if this node does not know it.
    pub container: String,
    pub node: String,
    /// Its share of the table.
    pub slots: usize,
}

/// A program that has run on the packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TracedHook {
    /// It is the answer's.
    pub reply: bool,
    /// Name of the program.
    pub hook: String,
    pub device: String,
    /// What came in.
    pub packet: String,
    /// `pass`, `redirect_peer`, `redirect`, `redirect_neighbour` or `drop`.
    pub verdict: String,
    /// Where the packet goes, in words.
    pub next: String,
    /// Why it is dropped or left to the host, as the label `reason` of the metrics; `null`: it is neither.
    pub reason: Option<String>,
    /// Counters that the program raised.
    pub counters: Vec<TracedCounter>,
    /// The packet as the program left it; `null`: unchanged.
    pub rewritten: Option<String>,
    /// Map entries that the program would make or change.
    pub entries: Vec<TracedEntry>,
}

/// A counter that a program raised.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TracedCounter {
    /// Its name in the metrics.
    pub name: String,
    pub meaning: String,
}

/// A map entry that a program would make or change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TracedEntry {
    pub map: String,
    /// Key and value, as in `/dump`.
    pub entry: String,
}

/// What became of a packet; of its answer, if that was followed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceOutcome {
    pub result: TraceResult,
    /// In words.
    pub text: String,
}

/// Kinds of outcomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceResult {
    /// To a container of this node.
    Delivered,
    /// To another node, or out of an uplink.
    Sent,
    /// To the host's stack, or to the routes of the mesh namespace.
    Passed,
    /// The source may not use the port, or the service has no task.
    Refused,
    Dropped,
}

impl TraceResult {
    /// Whether the packet ends here.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Refused | Self::Dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_was_written() {
        let query = TraceQuery {
            node: "a b".to_owned(),
            protocol: "tcp".to_owned(),
            source: "[2001:db8::9]:40000".to_owned(),
            destination: "192.0.2.1:8080".to_owned(),
            flags: "syn,ack".to_owned(),
            device: "eth0.5".to_owned(),
            from_node: "n\u{e9}&2".to_owned(),
            length: 1400,
            reply: true,
        };
        let uri: axum::http::Uri = format!("/trace?{}", query.query()).parse().expect("an address");
        let read = axum::extract::Query::<TraceQuery>::try_from_uri(&uri).expect("a query");
        assert_eq!(read.0, query);
        let uri: axum::http::Uri = "/trace?reply=true&port=7".parse().expect("an address");
        assert!(axum::extract::Query::<TraceQuery>::try_from_uri(&uri).is_err(), "no such field");
    }
}
