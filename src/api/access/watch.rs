//! What this manager has read of every node's containers: so that those of a lost node are still shown, and can be made again elsewhere.

use super::context::AccessContext;
use super::nodes::{ANSWER, EngineNode, NodeRequest, all};
use super::planner::request::is_rescheduled;
use super::reschedule;
use crate::api::handlers::field;
use crate::http::HttpReply;
use crate::model::NodeId;
use crate::model::docker::ApiVersion;
use crate::sync::lock;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two looks at every node.
const ROUND: Duration = Duration::from_secs(2);
/// Length of the beginning of an id that is a container's host name unless it has another.
const SHORT_ID: usize = 12;

/// What was last read of a node.
#[derive(Clone, Default)]
pub struct Seen {
    /// As `docker ps --all` lists them.
    pub containers: Vec<Value>,
    /// Bodies that create those again which are made again elsewhere, by id.
    pub bodies: BTreeMap<String, Value>,
    pub facts: Option<EngineFacts>,
}

/// What an engine says of itself and does not change while it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineFacts {
    /// Newest API version of the node.
    pub api: Option<ApiVersion>,
    /// `storagedriver`, `kernelversion`, `operatingsystem`, `ostype`.
    pub labels: BTreeMap<String, String>,
    pub server_version: String,
}

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
        seen.containers = containers;
        lock(&self.seen).insert(node.id.clone(), seen);
    }

    /// What a node's engine says of itself.
    pub async fn read_facts(&self, node: &EngineNode) -> Option<EngineFacts> {
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
        Some(EngineFacts {
            api: version.and_then(|version| ApiVersion::parse(version["ApiVersion"].as_str()?)),
            labels: labels.collect(),
            server_version: info["ServerVersion"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// The labels of a listed container.
pub fn labels_of(container: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(container["Labels"].clone()).unwrap_or_default()
}

/// The body that creates a container like the one that was inspected.
pub fn creating_body(inspected: &Value) -> Value {
    let mut body = inspected["Config"].clone();
    let id = inspected["Id"].as_str().unwrap_or_default();
    if field(&body, "Hostname").as_str().is_some_and(|name| id.get(..SHORT_ID) == Some(name)) {
        body["Hostname"] = json!("");
    }
    body["HostConfig"] = inspected["HostConfig"].clone();
    let endpoints = inspected["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
    let kept = endpoints.into_iter().map(|(name, endpoint)| {
        let aliases: Option<Vec<&str>> = endpoint["Aliases"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_str).filter(|alias| !id.starts_with(*alias)).collect());
        let kept = json!({ "IPAMConfig": endpoint["IPAMConfig"], "Links": endpoint["Links"], "Aliases": aliases,
            "DriverOpts": endpoint["DriverOpts"] });
        (name, kept)
    });
    let mode = inspected["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    let has_own = !mode.starts_with("container:") && mode != "host" && mode != "none";
    let endpoints: serde_json::Map<String, Value> = kept.filter(|_| has_own).collect();
    body["NetworkingConfig"] = json!({ "EndpointsConfig": endpoints });
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_made_again_with_its_networks_but_not_with_names_from_its_id() {
        let id = format!("0123456789ab{}", "c".repeat(52));
        let inspected = json!({
            "Id": id, "Config": { "Image": "x", "Hostname": "0123456789ab", "Env": ["A=1"] }, "HostConfig": { "NetworkMode": "back" },
            "NetworkSettings": { "Networks": { "back": { "Aliases": ["db", "0123456789ab"], "IPAddress": "10.0.0.7" } } },
        });
        let body = creating_body(&inspected);
        assert_eq!((&body["Image"], &body["Hostname"], &body["Env"]), (&json!("x"), &json!(""), &json!(["A=1"])));
        let endpoint = &body["NetworkingConfig"]["EndpointsConfig"]["back"];
        assert_eq!((&endpoint["Aliases"], &endpoint["IPAddress"]), (&json!(["db"]), &Value::Null));
    }
}
