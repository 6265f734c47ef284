//! `/nodes`.

use super::{Call, empty, ok, swarm};
use crate::api::convert;
use crate::api::error::{ApiError, Code, Result};
use crate::api::lookup;
use crate::api::query::{Filters, quote};
use crate::api::schema::NODE_SPEC;
use crate::model::{Node, NodeId, NodeSpec, NodeState, Role};
use crate::store::{Action, Kind, Store};
use axum::response::Response;

/// The leader as this node knows it; a lone manager leads.
fn leader(call: &Call, store: &Store) -> Option<NodeId> {
    let known = call.api.control.membership().member().and_then(|m| m.leader.clone());
    let lone = || {
        let mut managers = store.nodes().filter(|n| n.manager.is_some());
        managers.next().filter(|_| managers.next().is_none()).map(|n| n.id.clone())
    };
    known.or_else(lone)
}

/// GET /nodes
pub fn list(call: &Call) -> Result<Response> {
    let filters = call.query.filters(&["id", "name", "label", "node.label", "membership", "role"])?;
    let store = call.store()?.read();
    check(&filters)?;
    let leader = leader(call, &store);
    let nodes: Vec<_> = store
        .nodes()
        .filter(|node| passes(node, &filters))
        .map(|node| convert::node::node(node, store.cluster(), leader.as_ref()))
        .collect();
    ok(&nodes)
}

fn check(filters: &Filters) -> Result<()> {
    for (name, known) in [("role", ["worker", "manager"]), ("membership", ["accepted", "pending"])] {
        if let Some(bad) = filters.values(name).find(|v| !known.contains(&v.to_ascii_lowercase().as_str())) {
            return Err(ApiError::failed(format!("Invalid {name} filter: '{bad}'")));
        }
    }
    Ok(())
}

fn passes(node: &Node, filters: &Filters) -> bool {
    filters.any("id", |v| node.id.as_str().starts_with(v))
        && filters.any("name", |v| node.description.hostname.starts_with(v))
        && filters.any("role", |v| v.eq_ignore_ascii_case(node.spec.role.as_str()))
        // A node is in the store once it was let in: there are no pending ones.
        && filters.any("membership", |v| v.eq_ignore_ascii_case("accepted"))
        && filters.labels("label", &node.description.engine_labels)
        && filters.labels("node.label", &node.spec.labels)
}

/// GET /nodes/{id}
pub fn inspect(call: &Call, reference: &str) -> Result<Response> {
    let store = call.store()?.read();
    let node = lookup::node(&store, reference)?;
    ok(&convert::node::node(node, store.cluster(), leader(call, &store).as_ref()))
}

/// POST /nodes/{id}/update: the posted spec replaces the stored one.
pub async fn update(call: &Call, reference: &str) -> Result<Response> {
    let posted = call.read(&NODE_SPEC)?;
    let version = call.query.version("node")?;
    let handle = call.store()?;
    let store = handle.read();
    let text = |key: &str| posted[key].as_str().unwrap_or_default();
    let role = match text("Role").to_ascii_lowercase().as_str() {
        "worker" => Role::Worker,
        "manager" => Role::Manager,
        _ => return Err(ApiError::bad(format!("invalid Role: {}", quote(text("Role"))))),
    };
    let availability = match text("Availability") {
        "" => return Err(ApiError::bad("invalid Availability: \"\"")),
        other => swarm::availability(&other.to_ascii_lowercase())?,
    };
    let mut node = lookup::node(&store, reference)?.clone();
    if role != node.spec.role {
        return Err(role_change(role, store.nodes().filter(|n| n.spec.role == Role::Manager).count()));
    }
    node.spec = NodeSpec {
        name: text("Name").to_owned(),
        labels: serde_json::from_value(posted["Labels"].clone()).unwrap_or_default(),
        role,
        availability,
    };
    node.meta.version = version;
    handle.write(call.api.clock.now(), vec![Action::update(node)]).await?;
    empty()
}

fn role_change(to: Role, managers: usize) -> ApiError {
    match to {
        Role::Worker if managers == 1 => {
            ApiError::rpc(Code::FailedPrecondition, "attempting to demote the last manager of the swarm")
        }
        Role::Worker => ApiError::not_built("demoting a manager is not built into skep yet: the node keeps its role"),
        Role::Manager => ApiError::not_built(
            "promoting a worker is not built into skep yet: to have another manager, let a host join with the manager's token",
        ),
    }
}

/// DELETE /nodes/{id}
pub async fn remove(call: &Call, reference: &str) -> Result<Response> {
    let force = call.query.loose_bool("force");
    let handle = call.store()?;
    let store = handle.read();
    let node = lookup::node(&store, reference)?;
    let id = &node.id;
    if node.manager.is_some() {
        return Err(ApiError::rpc(
            Code::FailedPrecondition,
            format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
            ),
        ));
    }
    if !force && node.status.state == NodeState::Ready {
        return Err(ApiError::rpc(Code::FailedPrecondition, format!("node {id} is not down and can't be removed")));
    }
    handle.write(call.api.clock.now(), vec![Action::Remove(Kind::Node, id.to_string())]).await?;
    empty()
}
