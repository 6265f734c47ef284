//! Containers with `reschedule:on-node-failure` whose node is lost are made again elsewhere; when the node is back, the older one is
//! removed. [`steps`] decides and is pure.

use super::context::AccessContext;
use super::create::{self, Placed};
use super::engine_node::EngineNode;
use super::nodes::{NodeRequest, WORK};
use super::planner::SWARM_ID_LABEL;
use super::planner::request::is_rescheduled;
use super::seen::{SeenNode, labels_of};
use crate::api::query::encode;
use crate::model::NodeId;
use crate::sync::lock;
use hyper::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What is to be done for containers of lost nodes.
#[derive(Clone, PartialEq, Debug)]
pub enum RescheduleStep {
    /// Make it again elsewhere.
    Recreate { name: String, node: String, body: Value, run: bool },
    /// The newer one of two on nodes that answer stays.
    RemoveOlder { node: NodeId, id: String },
}

/// One container of the kind, by what is the same in its successors.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Lineage {
    swarm_id: String,
    name: String,
}

fn lineage(container: &Value) -> Option<Lineage> {
    let labels = labels_of(container);
    if !is_rescheduled(&labels) {
        return None;
    }
    let name = container["Names"][0].as_str()?.trim_start_matches('/').to_owned();
    Some(Lineage { swarm_id: labels.get(SWARM_ID_LABEL)?.clone(), name })
}

/// The steps that what was seen of the nodes asks for.
pub fn steps(nodes: &[EngineNode], seen: &BTreeMap<NodeId, SeenNode>) -> Vec<RescheduleStep> {
    let of_nodes = nodes.iter().filter_map(|node| Some((node, seen.get(&node.id)?)));
    let (lost, live): (Vec<_>, Vec<_>) = of_nodes.partition(|(node, _)| node.unreachable().is_some());
    let mut alive: BTreeMap<Lineage, Vec<(i64, NodeId, String)>> = BTreeMap::new();
    for (node, seen) in live {
        for container in &seen.containers {
            let (Some(lineage), Some(id)) = (lineage(container), container["Id"].as_str()) else { continue };
            let created = container["Created"].as_i64().unwrap_or_default();
            alive.entry(lineage).or_default().push((created, node.id.clone(), id.to_owned()));
        }
    }
    let mut steps = Vec::new();
    let mut planned = BTreeSet::new();
    for (node, seen) in lost {
        for container in &seen.containers {
            let body = container["Id"].as_str().and_then(|id| seen.bodies.get(id));
            let (Some(lineage), Some(body)) = (lineage(container), body) else { continue };
            if alive.contains_key(&lineage) || !planned.insert(lineage.clone()) {
                continue;
            }
            let run = matches!(container["State"].as_str(), Some("running" | "restarting" | "paused"));
            steps.push(RescheduleStep::Recreate { name: lineage.name, node: node.name.clone(), body: body.clone(), run });
        }
    }
    for mut copies in alive.into_values() {
        copies.sort();
        copies.pop();
        steps.extend(copies.into_iter().map(|(_, node, id)| RescheduleStep::RemoveOlder { node, id }));
    }
    steps
}

/// Carries out the steps of this moment; what fails is tried again in the next round.
pub async fn round(access: &AccessContext, nodes: &[EngineNode], failures: &mut BTreeMap<String, u32>) {
    let seen = lock(&access.seen).clone();
    for step in steps(nodes, &seen) {
        let subject = match &step {
            RescheduleStep::Recreate { name, .. } => name.clone(),
            RescheduleStep::RemoveOlder { id, .. } => id.clone(),
        };
        match execute(access, nodes, step).await {
            Ok(()) => drop(failures.remove(&subject)),
            Err(error) => {
                let count = failures.entry(subject.clone()).or_default();
                *count += 1;
                if count.is_power_of_two() {
                    tracing::warn!(
                        container = subject,
                        error,
                        "a container of a lost node could not be rescheduled, it is tried again"
                    );
                }
            }
        }
    }
}

async fn execute(access: &AccessContext, nodes: &[EngineNode], step: RescheduleStep) -> Result<(), String> {
    match step {
        RescheduleStep::Recreate { name, node: lost, mut body, run } => {
            let further = take_further_networks(&mut body);
            let Placed { node, reply } = create::place(access, body, &name, true).await.map_err(|error| error.message)?;
            let created: Value = reply.json().map_err(|error| format!("{error:#}"))?;
            let id = created["Id"].as_str().unwrap_or_default().to_owned();
            tracing::info!(container = name, id, lost, node = node.name, "a container of a lost node was made again");
            for (network, endpoint) in further {
                let connect = NodeRequest::new(Method::POST, format!("/networks/{}/connect", encode(&network)));
                let connect = connect.json(&json!({ "Container": id, "EndpointConfig": endpoint }));
                let connected = access.ask(&node, connect, WORK).await.map_err(|error| error.message)?;
                connected.ok().map_err(|error| format!("network {network}: {error:#}"))?;
            }
            if run {
                let start = NodeRequest::new(Method::POST, format!("/containers/{id}/start"));
                let started = access.ask(&node, start, WORK).await.map_err(|error| error.message)?;
                started.ok().map_err(|error| format!("{error:#}"))?;
            }
            Ok(())
        }
        RescheduleStep::RemoveOlder { node, id } => {
            let Some(node) = nodes.iter().find(|candidate| candidate.id == node) else { return Ok(()) };
            let remove = NodeRequest::new(Method::DELETE, format!("/containers/{id}?force=1"));
            let removed = access.ask(node, remove, WORK).await.map_err(|error| error.message)?;
            if removed.status != hyper::StatusCode::NOT_FOUND {
                removed.ok().map_err(|error| format!("{error:#}"))?;
            }
            tracing::info!(id, node = node.name, "its node is back: the older one of a container that was made again is removed");
            Ok(())
        }
    }
}

/// The networks besides that of the mode: engines before 25 take one when a container is made.
fn take_further_networks(body: &mut Value) -> Vec<(String, Value)> {
    let mode = body["HostConfig"]["NetworkMode"].as_str().unwrap_or_default().to_owned();
    let Some(endpoints) = body["NetworkingConfig"]["EndpointsConfig"].as_object_mut() else { return Vec::new() };
    let all = std::mem::take(endpoints);
    let (first, further) = all.into_iter().partition::<Vec<_>, _>(|(network, _)| *network == mode);
    endpoints.extend(first);
    further
}

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::engine_node;
    use super::*;
    use crate::model::NodeState;

    fn container(name: &str, id: &str, created: i64, policy: &str) -> Value {
        json!({ "Id": id, "Names": [format!("/{name}")], "Created": created, "State": "running", "Labels": {
            "com.docker.swarm.reschedule-policies": policy, "com.docker.swarm.id": format!("s-{name}") } })
    }

    fn seen(containers: &[Value]) -> SeenNode {
        let bodies = containers.iter().map(|c| (c["Id"].as_str().unwrap().to_owned(), json!({ "Image": "x" }))).collect();
        SeenNode { containers: containers.to_vec(), bodies, ..SeenNode::default() }
    }

    const ON: &str = "[\"on-node-failure\"]";

    #[test]
    fn what_a_lost_node_had_is_made_again_once_and_the_older_one_goes_when_it_is_back() {
        let mut nodes = [engine_node("n1"), engine_node("n2"), engine_node("n3")];
        let of = |n1: &[Value], n2: &[Value]| -> BTreeMap<NodeId, SeenNode> {
            [(nodes[0].id.clone(), seen(n1)), (nodes[1].id.clone(), seen(n2))].into()
        };
        let (web, plain) = (container("web", "c1", 5, ON), container("plain", "c2", 5, "[\"off\"]"));
        let before = of(&[web.clone(), plain.clone()], &[]);
        let again = of(&[web.clone(), plain], &[container("web", "c9", 9, ON)]);
        // The same name without the id of the first one is another container.
        let mut other = container("web", "c8", 9, ON);
        other["Labels"]["com.docker.swarm.id"] = json!("another");
        let foreign = of(&[web], &[other]);
        assert_eq!(steps(&nodes, &before), []);
        assert_eq!(steps(&nodes, &again), [RescheduleStep::RemoveOlder { node: nodes[0].id.clone(), id: "c1".to_owned() }]);
        assert_eq!(steps(&nodes, &foreign), []);
        nodes[0].state = NodeState::Down;
        let recreate =
            RescheduleStep::Recreate { name: "web".to_owned(), node: "n1".to_owned(), body: json!({ "Image": "x" }), run: true };
        assert_eq!(steps(&nodes, &before), std::slice::from_ref(&recreate));
        assert_eq!(steps(&nodes, &again), []);
        assert_eq!(steps(&nodes, &foreign), [recreate]);
    }
}
