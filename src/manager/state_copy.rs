//! What one manager's copy of the state has, so that copies can be compared before the cluster is re-created from one of them. Pure.

use crate::model::{ClusterConfig, ClusterId, ClusterSecret, NodeId, Revision};
use crate::raft::LogSummary;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One manager's copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StateCopy {
    /// Where it was read: a data directory, or that of the daemon.
    pub source: String,
    pub node: NodeId,
    pub hostname: String,
    pub cluster: Option<ClusterId>,
    pub revision: Revision,
    /// Term in which the last entry of the log was written.
    pub term: u64,
    /// Index of that entry.
    pub last: u64,
    /// Index of the last entry that this manager knew to be committed.
    pub committed: u64,
    /// Host names of the managers that it knows.
    pub managers: Vec<String>,
    /// Version of each object that a user has made, by kind and name.
    pub objects: BTreeMap<String, u64>,
}

impl StateCopy {
    pub fn new(source: String, node: &NodeId, store: &Store, log: &LogSummary) -> Self {
        let name = |node: &crate::model::Node| match node.description.hostname.as_str() {
            "" => node.id.to_string(),
            hostname => hostname.to_owned(),
        };
        let mut objects = BTreeMap::new();
        let mut add = |kind: &str, name: &str, version: u64| {
            objects.insert(format!("{kind} {name}"), version);
        };
        store.services().for_each(|service| add("service", &service.spec.name, service.meta.version));
        store.networks().for_each(|network| add("network", &network.spec.name, network.meta.version));
        store.nodes().for_each(|node| add("node", &name(node), 0));
        store.all::<ClusterSecret>().for_each(|secret| add("secret", &secret.spec.name, secret.meta.version));
        store.all::<ClusterConfig>().for_each(|config| add("config", &config.spec.name, config.meta.version));
        Self {
            source,
            node: node.clone(),
            hostname: store.node(node).map(name).unwrap_or_default(),
            cluster: store.cluster().map(|cluster| cluster.id.clone()),
            revision: store.revision(),
            term: log.last_term,
            last: log.last,
            committed: log.committed,
            managers: store.nodes().filter(|node| node.manager.is_some()).map(name).collect(),
            objects,
        }
    }
}

/// Position of the copy with the newest state.
#[must_use]
pub fn newest(copies: &[StateCopy]) -> Option<usize> {
    // Raft's order of logs within an incarnation. A voter that only answered a candidate knows a later term, and has no more entries.
    let at = |copy: &StateCopy| (copy.revision.incarnation, copy.term, copy.last);
    (0..copies.len()).max_by_key(|position| (at(&copies[*position]), std::cmp::Reverse(*position)))
}

/// What a cluster re-created from this copy would not have of the newest one, for people: a line each.
#[must_use]
pub fn lost(copy: &StateCopy, newest: &StateCopy) -> Vec<String> {
    let missing = newest.objects.iter().filter_map(|(name, version)| match copy.objects.get(name) {
        None => Some(format!("{name}: made later")),
        Some(had) if had < version => Some(format!("{name}: changed later")),
        Some(_) => None,
    });
    let removed = copy.objects.keys().filter(|name| !newest.objects.contains_key(*name));
    missing.chain(removed.map(|name| format!("{name}: removed later"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(source: &str, revision: (u64, u64), term: u64, objects: &[(&str, u64)]) -> StateCopy {
        StateCopy {
            source: source.to_owned(),
            node: source.into(),
            hostname: source.to_owned(),
            cluster: Some("c".into()),
            revision: Revision { incarnation: revision.0, index: revision.1 },
            term,
            last: revision.1,
            committed: revision.1,
            managers: Vec::new(),
            objects: objects.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect(),
        }
    }

    #[test]
    fn the_newest_copy_is_of_the_last_incarnation_then_term_then_entry() {
        let copies = [copy("a", (1, 90), 3, &[]), copy("b", (1, 80), 4, &[]), copy("c", (1, 79), 4, &[])];
        assert_eq!(newest(&copies), Some(1));
        assert_eq!(newest(&[copies[0].clone(), copy("d", (2, 5), 1, &[])]), Some(1));
        assert_eq!(newest(&[copies[0].clone(), copies[0].clone()]), Some(0), "of equal ones the first");
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn what_would_be_lost_is_named() {
        let newest = copy("a", (1, 90), 3, &[("service web", 80), ("service new", 85), ("network back", 7)]);
        let old = copy("b", (1, 60), 3, &[("service web", 50), ("network back", 7), ("secret old", 3)]);
        let said = ["service new: made later", "service web: changed later", "secret old: removed later"];
        assert_eq!(lost(&old, &newest), said);
        assert_eq!(lost(&newest, &newest), [""; 0]);
    }
}
