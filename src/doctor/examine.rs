//! All checks, in order.

use super::facts::Facts;
use super::finding::Finding;
use super::{cluster, disk, engine, host, http, network};

/// All findings, in the order of what depends on what: the host first, the swarm last. Each check has at least one line.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let rooms: [fn(&Facts) -> Vec<Finding>; 6] =
        [host::findings, disk::findings, engine::findings, network::findings, cluster::findings, http::findings];
    rooms.iter().flat_map(|findings| findings(facts)).collect()
}
