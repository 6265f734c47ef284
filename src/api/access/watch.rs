//! What this manager has read of every node's containers: so that those of a lost node are still shown, and can be made
//! again elsewhere. A node has three requests and a time in each round, whatever it lists.

use super::context::AccessContext;
use super::engine_node::{EngineNode, all};
use super::nodes::{ANSWER, NodeRequest};
use super::objects::content;
use super::reschedule::RescheduleRounds;
use super::seen::EngineProperties;
use crate::http::HttpReply;
use crate::model::NodeId;
use crate::model::docker::ApiVersion;
use crate::sync::lock;
use futures_util::future::join_all;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two looks at every node.
const ROUND: Duration = Duration::from_secs(2);
/// Time for one node in a look.
const LOOK: Duration = Duration::from_secs(10);

impl AccessContext {
    /// Reads every node again and again, until shut down; as the leader, makes containers of lost nodes again.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut rounds = RescheduleRounds::default();
        loop {
            let round = async {
                if let Ok(store) = self.store() {
                    let nodes = all(&store);
                    drop(store);
                    let read = self.look(&nodes).await;
                    rounds.round(&self, &nodes, &read).await;
                }
                tokio::time::sleep(ROUND).await;
            };
            if shutdown.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
    }

    /// The nodes that could be read.
    async fn look(&self, nodes: &[EngineNode]) -> BTreeSet<NodeId> {
        let ids: BTreeSet<&NodeId> = nodes.iter().map(|node| &node.id).collect();
        lock(&self.seen).retain(|id, _| ids.contains(id));
        let reachable = nodes.iter().filter(|node| node.unreachable().is_none());
        let read = join_all(reachable.map(async |node| {
            let looked = tokio::time::timeout(LOOK, self.look_at(node)).await;
            matches!(looked, Ok(true)).then(|| node.id.clone())
        }));
        read.await.into_iter().flatten().collect()
    }

    async fn look_at(&self, node: &EngineNode) -> bool {
        let at = self.api.clock.now();
        let Ok(reply) = self.ask(node, NodeRequest::get("/containers/json?all=1"), ANSWER).await else { return false };
        let Ok(containers) = content::<Vec<Value>>(&reply) else { return false };
        let known = {
            let mut all = lock(&self.seen);
            let seen = all.entry(node.id.clone()).or_default();
            (seen.containers, seen.at) = (containers, Some(at));
            seen.facts.as_ref().is_some_and(|facts| facts.server_version == node.engine_version)
        };
        if !known {
            let facts = self.read_facts(node).await;
            lock(&self.seen).entry(node.id.clone()).or_default().facts = facts;
        }
        true
    }

    /// What a node's engine says of itself.
    pub async fn read_facts(&self, node: &EngineNode) -> Option<EngineProperties> {
        let read = async |target: &str| {
            let reply: HttpReply = self.ask(node, NodeRequest::get(target), ANSWER).await.ok()?;
            content::<Value>(&reply).ok()
        };
        let (info, version) = tokio::join!(read("/info"), read("/version"));
        let info = info?;
        let keys = [
            ("storagedriver", "Driver"),
            ("kernelversion", "KernelVersion"),
            ("operatingsystem", "OperatingSystem"),
            ("ostype", "OSType"),
        ];
        let labels = keys.into_iter().filter_map(|(label, key)| Some((label.to_owned(), info[key].as_str()?.to_owned())));
        Some(EngineProperties {
            api: version.and_then(|version| ApiVersion::parse(version["ApiVersion"].as_str()?)),
            labels: labels.collect(),
            server_version: info["ServerVersion"].as_str().unwrap_or_default().to_owned(),
        })
    }
}
