//! `/swarm`.

use super::reply::{empty, ok};
use super::request::{ApiRequest, NOT_IN_SWARM, NOT_YET};
use super::root_ca;
use crate::api::control::{LOCKED, Membership, NOT_MANAGER, NodeControl, SwarmInitRequest, SwarmJoinRequest};
use crate::api::convert;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::schema::{self, CLUSTER_SPEC, INIT, JOIN, Struct, UNLOCK};
use crate::api::validate;
use crate::manager::bounds;
use crate::model::{Cluster, NodeState, Role};
use crate::store::{Action, FieldUpdate, Store};
use crate::trust::UnlockKey;
use axum::response::Response;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

const ALREADY_PART: &str =
    "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
/// How often a leave looks whether the membership has ended.
const LEAVE_POLL: Duration = Duration::from_millis(20);
const LEAVING_LOCKED: &str = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.";
const LEAVING_MANAGER: &str = "You are attempting to leave the swarm on a node that is participating as a manager. ";

/// GET /swarm
pub fn inspect(request: &ApiRequest) -> Result<Response> {
    let store = request.store()?.read();
    let cluster = store.cluster().ok_or_else(|| ApiError::unavailable(NOT_YET))?;
    ok(&convert::swarm::swarm(cluster, true))
}

/// POST /swarm/init
pub async fn init(request: &ApiRequest) -> Result<Response> {
    let posted = request.decode_body(&INIT)?;
    if posted["ForceNewCluster"] == json!(true) && request.api.control.membership() != Membership::Inactive {
        return force_new_cluster(request, text(&posted, "AdvertiseAddr")).await;
    }
    refuse_if_in_swarm(request)?;
    root_ca::refuse_external(&posted["Spec"])?;
    refuse_unsupported(&posted, &INIT)?;
    let data_path_addr = validate::data_path_address(&posted)?;
    let listen_addr = text(&posted, "ListenAddr");
    if listen_addr.is_empty() {
        return Err(ApiError::bad("invalid ListenAddr \"\": invalid empty address"));
    }
    // Before they are compared with each other.
    bounds::spec("a list of address pools", &posted["DefaultAddrPool"], None).map_err(ApiError::invalid_argument)?;
    let (address_pools, subnet_size) = validate::address_pools(&posted)?;
    let mut spec = validate::checked(validate::merge_over_defaults(&posted["Spec"])?)?;
    bounds::spec("a spec of the swarm", &spec, None).map_err(ApiError::invalid_argument)?;
    root_ca::refuse_at_init(&posted["Spec"])?;
    // The CLI posts both.
    spec.encryption_config.auto_lock_managers |= posted["AutoLockManagers"] == json!(true);
    let init = SwarmInitRequest {
        listen_addr,
        advertise_addr: text(&posted, "AdvertiseAddr"),
        data_path_addr,
        data_path_port: validate::data_path_port(&posted)?,
        address_pools,
        subnet_size,
        availability: validate::availability(&text(&posted, "Availability"))?,
        spec,
    };
    request.api.events.set_begins(true);
    let created = request.api.control.init(init).await;
    if created.is_err() {
        request.api.events.set_begins(false);
    }
    ok(&created?)
}

/// `ForceNewCluster` on a node of a swarm. Nothing advises to leave, which would erase what the request is to keep.
async fn force_new_cluster(request: &ApiRequest, advertise_addr: String) -> Result<Response> {
    let control = &request.api.control;
    match control.membership() {
        Membership::Worker(_) => return Err(ApiError::unavailable(NOT_MANAGER)),
        Membership::Locked { .. } => return Err(ApiError::unavailable(LOCKED)),
        // Such a cluster already.
        Membership::Manager(info) if is_only_manager(&**control) && is_own(&advertise_addr, info.node_addr) => {
            return ok(&info.node_id);
        }
        Membership::Manager(_) | Membership::Pending { .. } | Membership::Inactive => {}
    }
    ok(&control.new_cluster(advertise_addr).await?)
}

/// Whether an address is the one that this node has, or none is posted.
fn is_own(posted: &str, own: Option<IpAddr>) -> bool {
    posted.is_empty() || own.is_some_and(|own| posted == own.to_string())
}

/// Whether the swarm has no other manager that could be lost.
fn is_only_manager(control: &dyn NodeControl) -> bool {
    control.store().is_some_and(|store| store.read().nodes().filter(|n| n.manager.is_some()).count() == 1)
}

/// POST /swarm/join
pub async fn join(request: &ApiRequest) -> Result<Response> {
    let posted = request.decode_body(&JOIN)?;
    refuse_if_in_swarm(request)?;
    let data_path_addr = validate::data_path_address(&posted)?;
    let remote_addrs = validate::remote_addresses(&posted)?;
    let listen_addr = text(&posted, "ListenAddr");
    let join = SwarmJoinRequest {
        listen_addr: if listen_addr.is_empty() { "0.0.0.0:2377".to_owned() } else { listen_addr },
        advertise_addr: text(&posted, "AdvertiseAddr"),
        data_path_addr,
        remote_addrs,
        token: text(&posted, "JoinToken").into(),
        availability: validate::availability(&text(&posted, "Availability"))?,
    };
    request.api.control.join(join).await?;
    empty()
}

/// POST /swarm/leave: answers when the node is in no swarm any more; with `wait`, which is skep's own, when its tasks have
/// stopped and everything of the swarm is taken down.
pub async fn leave(request: &ApiRequest) -> Result<Response> {
    let force = request.query.loose_bool("force");
    match request.api.control.membership() {
        Membership::Inactive => return Err(ApiError::unavailable("This node is not part of a swarm")),
        Membership::Manager(_) if !force => {
            let store = request.api.control.store().map(|s| s.read());
            return Err(ApiError::unavailable(format!("{LEAVING_MANAGER}{}", consequence(store.as_deref()))));
        }
        Membership::Locked { .. } if !force => return Err(ApiError::unavailable(LEAVING_LOCKED)),
        Membership::Manager(_) | Membership::Locked { .. } | Membership::Worker(_) | Membership::Pending { .. } => {}
    }
    let wait = request.query.loose_bool("wait");
    let control = request.api.control.clone();
    // Not cut off when the client goes away: half a removal would stay.
    let leaving = tokio::spawn(async move {
        let left = control.leave(force).await;
        if let Err(error) = &left {
            tracing::error!(%error, "leaving the swarm");
        }
        left
    });
    let control = &request.api.control;
    tokio::select! {
        left = leaving => left.map_err(|e| ApiError::failed(format!("leaving the swarm failed: {e}")))??,
        // The membership has ended: what is left is to stop the tasks, each within its grace period.
        () = until_outside(&**control), if !wait => {}
    }
    empty()
}

/// Waits until this node is in no swarm.
async fn until_outside(control: &dyn NodeControl) {
    while control.membership() != Membership::Inactive {
        tokio::time::sleep(LEAVE_POLL).await;
    }
}

const FORCE_NEW_CLUSTER: &str = "The only way to restore a swarm that has lost consensus is to reinitialize it with \
                                 `--force-new-cluster`. Use `--force` to suppress this message.";

/// What the swarm loses if this manager leaves.
fn consequence(store: Option<&Store>) -> String {
    let managers = || store.into_iter().flat_map(Store::nodes).filter(|n| n.manager.is_some());
    let (all, up) = (managers().count(), managers().filter(|n| n.status.state == NodeState::Ready).count());
    let left = up.saturating_sub(1);
    if all <= 1 {
        "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ".to_owned()
    } else if left < all / 2 + 1 {
        format!(
            "Removing this node leaves {left} managers out of {all}. Without a Raft quorum your swarm will be inaccessible. {FORCE_NEW_CLUSTER}"
        )
    } else {
        FORCE_NEW_CLUSTER.to_owned()
    }
}

/// It says nothing, where a real server sets everything to zero.
const EMPTY_SPEC: &str =
    "the posted spec is empty, and nothing was changed: post the Spec that GET /swarm shows, with your changes";

/// POST /swarm/update: the posted settings replace the stored ones.
pub async fn update(request: &ApiRequest) -> Result<Response> {
    let posted = request.decode_body(&CLUSTER_SPEC)?;
    let version = request.query.version("swarm")?;
    let rotate_worker = request.query.strict_bool("rotateWorkerToken")?;
    let rotate_manager = request.query.strict_bool("rotateManagerToken")?;
    let rotate_key = request.query.strict_bool("rotateManagerUnlockKey")?;
    let handle = request.store()?;
    let store = handle.read();
    let cluster = store.cluster().ok_or_else(|| ApiError::unavailable(NOT_YET))?;
    let name = text(&posted, "Name");
    if !name.is_empty() && name != "default" {
        return Err(ApiError::bad("swarm spec must be named \"default\""));
    }
    let mut spec = validate::checked(validate::replacing(&posted, &cluster.spec)?)?;
    bounds::spec("a set of labels of the swarm", &spec.labels, Some(&cluster.spec.labels)).map_err(ApiError::invalid_argument)?;
    let locks = spec.encryption_config.auto_lock_managers;
    // What the swarm has already is no change: clients post all of it back. Old news comes before what skep cannot do.
    let stored = serde_json::to_value(&cluster.spec).unwrap_or_default();
    let is_stale = cluster.meta.version != version;
    if posted.as_object().is_none_or(serde_json::Map::is_empty) {
        return Err(if is_stale { ApiError::out_of_sequence() } else { ApiError::bad(EMPTY_SPEC) });
    }
    root_ca::refuse_external(&posted)
        .and_then(|()| refuse_unsupported(&changes(posted.clone(), &stored), &CLUSTER_SPEC))
        .map_err(|error| if is_stale { ApiError::out_of_sequence() } else { error })?;
    let now = request.api.clock.now();
    let root = root_ca::rotation(cluster, &posted, &mut spec, now)?;
    let id = &cluster.id;
    let mut actions = vec![Action::Set(FieldUpdate::ClusterSpec { id: id.clone(), version, spec: Box::new(spec) })];
    for (rotate, role) in [(rotate_worker, Role::Worker), (rotate_manager, Role::Manager)] {
        if rotate {
            let token = request.api.control.new_token()?;
            actions.push(Action::Set(FieldUpdate::JoinToken { id: id.clone(), role, token }));
        }
    }
    actions.extend(root);
    actions.extend(lock_change(cluster, locks, rotate_key)?);
    handle.write(now, actions).await?;
    empty()
}

/// The unlock key that an update writes; `None`: it stays. Locking a swarm that is locked keeps its key.
fn lock_change(cluster: &Cluster, locks: bool, rotate: bool) -> Result<Option<Action>> {
    let set = |key| Some(Action::Set(FieldUpdate::UnlockKey { id: cluster.id.clone(), key }));
    let new = || set(Some(UnlockKey::draw(&mut rand::rng()).to_text()));
    match (cluster.unlock_key.is_some(), locks) {
        (false, false) if rotate => {
            Err(ApiError::rpc(GrpcCode::FailedPrecondition, "cannot rotate because autolock is not turned on"))
        }
        (false, false) => Ok(None),
        (true, false) => Ok(set(None)),
        (false, true) => Ok(new()),
        (true, true) => Ok(if rotate { new() } else { None }),
    }
}

/// GET /swarm/unlockkey: empty if managers are not locked.
pub fn unlock_key(request: &ApiRequest) -> Result<Response> {
    let store = request.store()?.read();
    let cluster = store.cluster().ok_or_else(|| ApiError::unavailable(NOT_YET))?;
    ok(&json!({ "UnlockKey": cluster.unlock_key.as_ref().map_or("", |key| key.expose()) }))
}

/// POST /swarm/unlock
pub async fn unlock(request: &ApiRequest) -> Result<Response> {
    match request.api.control.membership() {
        Membership::Locked { .. } => {
            // Without a body as with an empty key: Docker's words are about the key.
            let posted = if request.body.is_empty() { Value::Null } else { request.decode_body(&UNLOCK)? };
            request.api.control.unlock(&text(&posted, "UnlockKey").into()).await?;
            empty()
        }
        Membership::Inactive => Err(ApiError::unavailable(NOT_IN_SWARM)),
        _ => Err(ApiError::new(hyper::StatusCode::CONFLICT, "swarm is not locked")),
    }
}

fn refuse_if_in_swarm(request: &ApiRequest) -> Result<()> {
    match request.api.control.membership() {
        Membership::Inactive => Ok(()),
        _ => Err(ApiError::unavailable(ALREADY_PART)),
    }
}

/// What of a posted object differs from the stored one.
fn changes(posted: Value, stored: &Value) -> Value {
    let Value::Object(map) = posted else { return posted };
    let differing = map.into_iter().filter(|(key, value)| stored.get(key) != Some(value));
    Value::Object(differing.map(|(key, value)| (key.clone(), changes(value, &stored[key.as_str()]))).collect())
}

/// Refuses fields that skep does not support.
fn refuse_unsupported(posted: &Value, schema: &'static Struct) -> Result<()> {
    schema::unsupported_field(posted, schema).map_or(Ok(()), |path| Err(ApiError::unsupported_field(&path, "")))
}

fn text(posted: &Value, key: &str) -> String {
    posted[key].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::{ManagerStatus, NodeDescription, NodeMesh, NodeStatus};
    use crate::model::{Meta, Node, NodeSpec, Timestamp, fixture};
    use crate::store::Transaction;

    #[test]
    fn a_leave_names_what_is_left_of_the_managers() {
        let text = |all: u8, up: u8| {
            let nodes = (1..=all).map(|number| {
                let peer = fixture::peer(number);
                let state = if number <= up { NodeState::Ready } else { NodeState::Down };
                let addr = "192.168.7.1:2377".parse().unwrap();
                Action::create(Node {
                    id: peer.node_id,
                    meta: Meta::default(),
                    spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
                    description: NodeDescription::default(),
                    status: NodeStatus { state, ..NodeStatus::default() },
                    mesh: NodeMesh {
                        key: peer.key,
                        next: None,
                        subnet: peer.subnet,
                        ingress_addr: peer.ingress_addr,
                        endpoints: Vec::new(),
                    },
                    manager: Some(ManagerStatus { raft_id: number.into(), addr }),
                })
            });
            let mut store = Store::default();
            store.apply(1, &Transaction::new(Timestamp(1), nodes.collect())).unwrap();
            consequence(Some(&store))
        };
        assert_eq!(text(3, 3), FORCE_NEW_CLUSTER);
        for (all, up, left) in [(3, 2, 1), (2, 2, 1), (2, 1, 0), (5, 3, 2)] {
            let begin = format!("Removing this node leaves {left} managers out of {all}. Without a Raft quorum");
            assert!(text(all, up).starts_with(&begin), "{}", text(all, up));
        }
        assert!(text(1, 1).starts_with("Removing the last manager erases all current state"));
    }
}
