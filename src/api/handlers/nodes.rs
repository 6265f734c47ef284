//! `/nodes`.

use super::reply::{empty, ok};
use super::request::ApiRequest;
use crate::api::convert;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::lookup;
use crate::api::query::{Filters, quote};
use crate::api::schema::NODE_SPEC;
use crate::api::validate;
use crate::manager::bounds;
use crate::model::cluster::ONE_MANAGER;
use crate::model::{Node, NodeId, NodeSpec, NodeState, Role, Timestamp};
use crate::store::{Action, Condition, FieldUpdate, Kind, ProposeError, Store, StoreError, StoreHandle, Transaction};
use axum::response::Response;
use std::time::Duration;

/// Further attempts to write what depends on the state of nodes that change at the same time.
const ATTEMPTS: usize = 5;
/// How long a removal waits for a demoted node to leave raft.
const DEMOTION: Duration = Duration::from_secs(3);

/// The leader as this node knows it; the only manager of a swarm leads.
fn leader(request: &ApiRequest, store: &Store) -> Option<NodeId> {
    let known = request.api.control.membership().info().and_then(|m| m.leader.clone());
    let only_manager = || {
        let mut managers = store.nodes().filter(|n| n.manager.is_some());
        managers.next().filter(|_| managers.next().is_none()).map(|n| n.id.clone())
    };
    known.or_else(only_manager)
}

/// GET /nodes
pub fn list(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.filters(&["id", "name", "label", "node.label", "membership", "role"])?;
    let store = request.store()?.read();
    check_filters(&filters)?;
    let leader = leader(request, &store);
    let nodes: Vec<_> = store
        .nodes()
        .filter(|node| passes(node, &filters))
        .map(|node| convert::node::node(node, store.cluster(), leader.as_ref()))
        .collect();
    ok(&nodes)
}

fn check_filters(filters: &Filters) -> Result<()> {
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
        // A node is created when it is admitted: none is pending.
        && filters.any("membership", |v| v.eq_ignore_ascii_case("accepted"))
        && filters.swarm_labels("label", &node.description.engine_labels)
        && filters.swarm_labels("node.label", &node.spec.labels)
}

/// GET /nodes/{id}
pub fn inspect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let store = request.store()?.read();
    let node = lookup::node(&store, reference)?;
    ok(&convert::node::node(node, store.cluster(), leader(request, &store).as_ref()))
}

/// POST /nodes/{id}/update: the posted spec replaces the stored one.
pub async fn update(request: &ApiRequest, reference: &str) -> Result<Response> {
    let posted = request.decode_body(&NODE_SPEC)?;
    let version = request.query.version("node")?;
    let handle = request.store()?;
    let store = handle.read();
    // As the real server: an unknown node comes before a wrong body.
    let node = lookup::node(&store, reference)?;
    let text = |key: &str| posted[key].as_str().unwrap_or_default();
    let role = match text("Role").to_ascii_lowercase().as_str() {
        "worker" => Role::Worker,
        "manager" => Role::Manager,
        _ => return Err(ApiError::bad(format!("invalid Role: {}", quote(text("Role"))))),
    };
    let availability = match text("Availability") {
        "" => return Err(ApiError::bad("invalid Availability: \"\"")),
        other => validate::availability(&other.to_ascii_lowercase())?,
    };
    if role != node.spec.role {
        // Old news comes before what skep cannot do.
        if node.meta.version != version {
            return Err(ApiError::out_of_sequence());
        }
    }
    let spec = NodeSpec {
        name: text("Name").to_owned(),
        labels: serde_json::from_value(posted["Labels"].clone()).unwrap_or_default(),
        role,
        availability,
    };
    // Of what may be long alone: a role and an availability have one length or another.
    let stored = (&node.spec.name, &node.spec.labels);
    bounds::spec("a set of labels of a node", &(&spec.name, &spec.labels), Some(&stored)).map_err(ApiError::invalid_argument)?;
    let id = node.id.clone();
    let mut attempts = 0;
    loop {
        let store = handle.read();
        let node = lookup::node(&store, id.as_str())?;
        let mut others = Vec::new();
        if role != node.spec.role {
            check_role_change(&store, node, role)?;
            // Of two demotions at the same time each would leave enough managers, and both too few.
            others.extend(managers(&store, &id).map(|other| Condition::version(Kind::Node, &other.id, other.meta.version)));
        }
        let update = Action::Set(FieldUpdate::NodeSpec { id: id.clone(), version, spec: spec.clone() });
        let transaction = Transaction::new(request.api.clock.now(), vec![update]).require(others);
        match handle.propose(transaction).await {
            // Another manager has changed since it was read.
            Err(ProposeError::Refused(StoreError::OutOfSequence)) if attempts < ATTEMPTS && node.meta.version == version => {
                attempts += 1;
            }
            outcome => {
                outcome?;
                return empty();
            }
        }
    }
}

/// The other nodes that are to be managers.
fn managers<'a>(store: &'a Store, but: &NodeId) -> impl Iterator<Item = &'a Node> {
    store.nodes().filter(move |node| node.spec.role == Role::Manager && node.id != *but)
}

/// Whether the node may get the role: more than half of the managers that remain must be up.
fn check_role_change(store: &Store, node: &Node, to: Role) -> Result<()> {
    if to == Role::Manager {
        let (levels, level) = (node.description.feature_levels(), store.feature_level());
        return if !store.may_have_several_managers() {
            Err(ApiError::not_implemented(ONE_MANAGER))
        } else if levels.contains(level) {
            Ok(())
        } else {
            Err(ProposeError::Refused(StoreError::UnreadableLevel { levels, level }).into())
        };
    }
    let others = || managers(store, &node.id);
    let members = others().filter(|n| n.manager.is_some()).count();
    let up = others().filter(|n| n.manager.is_some() && n.status.state == NodeState::Ready).count();
    if others().next().is_none() {
        Err(ApiError::rpc(GrpcCode::FailedPrecondition, "attempting to demote the last manager of the swarm"))
    } else if node.manager.is_some() && up < members / 2 + 1 {
        let quorum = "can't remove member from the raft: this would result in a loss of quorum";
        Err(ApiError::rpc(GrpcCode::FailedPrecondition, quorum))
    } else {
        Ok(())
    }
}

/// DELETE /nodes/{id}
pub async fn remove(request: &ApiRequest, reference: &str) -> Result<Response> {
    let force = request.query.loose_bool("force");
    let handle = request.store()?;
    until_demoted(&handle, reference).await;
    let mut attempts = 0;
    loop {
        let transaction = removal(&handle.read(), reference, force, request.api.clock.now())?;
        match handle.propose(transaction).await {
            // Its state has changed since it was read: it may be back.
            Err(ProposeError::Refused(StoreError::OutOfSequence)) if attempts < ATTEMPTS => attempts += 1,
            outcome => {
                outcome?;
                return empty();
            }
        }
    }
}

/// Waits for a node that was demoted a moment ago to leave raft: scripts remove it with their next command.
async fn until_demoted(handle: &StoreHandle, reference: &str) {
    let mut store = handle.watch();
    let is_leaving =
        |store: &Store| lookup::node(store, reference).is_ok_and(|node| node.manager.is_some() && node.spec.role == Role::Worker);
    let _ = tokio::time::timeout(DEMOTION, store.wait_for(|store| !is_leaving(store))).await;
}

/// The removal of a node that may be removed in this state.
fn removal(store: &Store, reference: &str, force: bool, now: Timestamp) -> Result<Transaction> {
    let node = lookup::node(store, reference)?;
    let id = &node.id;
    if node.manager.is_some() {
        return Err(ApiError::rpc(
            GrpcCode::FailedPrecondition,
            format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
            ),
        ));
    }
    if !force && node.status.state == NodeState::Ready {
        return Err(ApiError::rpc(GrpcCode::FailedPrecondition, format!("node {id} is not down and can't be removed")));
    }
    let unchanged = Condition::version(Kind::Node, id, node.meta.version);
    let removal = Transaction::new(now, vec![Action::Remove(Kind::Node, id.to_string())]);
    Ok(removal.require((!force).then_some(unchanged)))
}
