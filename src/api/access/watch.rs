//! What this manager has read of every node's containers: so that those of a lost node are still shown, and can be made again elsewhere.

use super::context::AccessContext;
use super::engine_node::{EngineNode, all};
use super::nodes::{ANSWER, NodeRequest};
use super::planner::request::is_rescheduled;
use super::reschedule;
use super::seen::{EngineProperties, creating_body, labels_of};
use crate::http::HttpReply;
use crate::model::NodeId;
use crate::model::docker::ApiVersion;
use crate::sync::lock;
use futures_util::future::join_all;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two looks at every node.
const ROUND: Duration = Duration::from_secs(2);

impl AccessContext {
    /// Reads every node again and again, until shut down; as the leader, makes containers of lost nodes again.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut failures = BTreeMap::new();
        loop {
            if let Ok(store) = self.store() {
                let nodes = all(&store);
                drop(store);
                self.look(&nodes).await;
                if self.leads() {
                    reschedule::round(&self, &nodes, &mut failures).await;
                }
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self, nodes: &[EngineNode]) {
        let ids: BTreeSet<&NodeId> = nodes.iter().map(|node| &node.id).collect();
        lock(&self.seen).retain(|id, _| ids.contains(id));
        join_all(nodes.iter().filter(|node| node.unreachable().is_none()).map(|node| self.look_at(node))).await;
    }

    async fn look_at(&self, node: &EngineNode) {
        let at = self.api.clock.now();
        let Ok(reply) = self.ask(node, NodeRequest::get("/containers/json?all=1"), ANSWER).await else { return };
        let Ok(containers) = reply.json::<Vec<Value>>() else { return };
        let mut seen = lock(&self.seen).get(&node.id).cloned().unwrap_or_default();
        if seen.facts.as_ref().is_none_or(|facts| facts.server_version != node.engine_version) {
            seen.facts = self.read_facts(node).await;
        }
        let rescheduled: BTreeSet<&str> =
            containers.iter().filter(|c| is_rescheduled(&labels_of(c))).filter_map(|c| c["Id"].as_str()).collect();
        seen.bodies.retain(|id, _| rescheduled.contains(id.as_str()));
        for id in rescheduled {
            if !seen.bodies.contains_key(id)
                && let Ok(reply) = self.ask(node, NodeRequest::get(format!("/containers/{id}/json")), ANSWER).await
                && let Ok(inspected) = reply.json::<Value>()
            {
                seen.bodies.insert(id.to_owned(), creating_body(&inspected));
            }
        }
        (seen.containers, seen.at) = (containers, Some(at));
        lock(&self.seen).insert(node.id.clone(), seen);
    }

    /// What a node's engine says of itself.
    pub async fn read_facts(&self, node: &EngineNode) -> Option<EngineProperties> {
        let read = async |target: &str| {
            let reply: HttpReply = self.ask(node, NodeRequest::get(target), ANSWER).await.ok()?;
            reply.json::<Value>().ok()
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
