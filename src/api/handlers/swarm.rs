//! `/swarm`.

use super::{Call, empty, ok};
use crate::api::control::{InitRequest, JoinRequest, Membership};
use crate::api::convert;
use crate::api::error::{ApiError, Code, Result};
use crate::api::query::quote;
use crate::api::schema::{self, CLUSTER_SPEC, INIT, JOIN, Struct, UNLOCK};
use crate::api::validate::not_carried_out;
use crate::model::{Availability, ClusterSpec, Nanos, Role};
use crate::store::{Action, Store};
use axum::response::Response;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

const ALREADY_PART: &str =
    "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
const LEAVING_MANAGER: &str = "You are attempting to leave the swarm on a node that is participating as a manager. ";
/// Least life-time of a node certificate: an hour.
const MIN_CERT_EXPIRY: Nanos = Nanos(3_600_000_000_000);
/// Longest prefix of a network's subnet.
const MAX_SUBNET_SIZE: u64 = 29;

/// GET /swarm
pub fn inspect(call: &Call) -> Result<Response> {
    let store = call.store()?.read();
    let cluster = store.cluster().ok_or_else(|| ApiError::unavailable(super::NOT_YET))?;
    ok(&convert::swarm::swarm(cluster, true))
}

/// POST /swarm/init
pub async fn init(call: &Call) -> Result<Response> {
    let posted = call.read(&INIT)?;
    outside(call)?;
    built(&posted, &INIT)?;
    let listen_addr = text(&posted, "ListenAddr");
    if listen_addr.is_empty() {
        return Err(ApiError::bad("invalid ListenAddr \"\": invalid empty address"));
    }
    let (address_pools, subnet_size) = pools(&posted)?;
    let request = InitRequest {
        listen_addr,
        advertise_addr: text(&posted, "AdvertiseAddr"),
        data_path_addr: text(&posted, "DataPathAddr"),
        data_path_port: data_path_port(&posted)?,
        address_pools,
        subnet_size,
        availability: availability(&text(&posted, "Availability"))?,
        spec: checked(merged(&posted["Spec"])?)?,
    };
    let id = call.api.control.init(request).await?;
    ok(&id)
}

/// POST /swarm/join
pub async fn join(call: &Call) -> Result<Response> {
    let posted = call.read(&JOIN)?;
    outside(call)?;
    let remote_addrs: Vec<String> =
        posted["RemoteAddrs"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if remote_addrs.is_empty() {
        return Err(ApiError::bad("at least 1 RemoteAddr is required to join"));
    }
    let listen_addr = text(&posted, "ListenAddr");
    let request = JoinRequest {
        listen_addr: if listen_addr.is_empty() { "0.0.0.0:2377".to_owned() } else { listen_addr },
        advertise_addr: text(&posted, "AdvertiseAddr"),
        data_path_addr: text(&posted, "DataPathAddr"),
        remote_addrs,
        token: text(&posted, "JoinToken"),
        availability: availability(&text(&posted, "Availability"))?,
    };
    call.api.control.join(request).await?;
    empty()
}

/// POST /swarm/leave
pub async fn leave(call: &Call) -> Result<Response> {
    let force = call.query.loose_bool("force");
    match call.api.control.membership() {
        Membership::Inactive => return Err(ApiError::unavailable("This node is not part of a swarm")),
        Membership::Manager(_) if !force => {
            let store = call.api.control.store().map(|s| s.read());
            return Err(ApiError::unavailable(format!("{LEAVING_MANAGER}{}", loss(store.as_deref()))));
        }
        Membership::Manager(_) | Membership::Worker(_) | Membership::Pending { .. } => {}
    }
    call.api.control.leave(force).await?;
    empty()
}

/// What is lost with this manager.
fn loss(store: Option<&Store>) -> String {
    let managers = store.map_or(0, |s| s.nodes().filter(|n| n.manager.is_some()).count());
    match managers {
        0 | 1 => "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ".to_owned(),
        2 => "Removing this node leaves 1 managers out of 2. Without a Raft quorum your swarm will be inaccessible. The only way to \
              restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress \
              this message."
            .to_owned(),
        _ => "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` \
              to suppress this message."
            .to_owned(),
    }
}

/// POST /swarm/update: the posted settings replace the stored ones.
pub async fn update(call: &Call) -> Result<Response> {
    let posted = call.read(&CLUSTER_SPEC)?;
    let version = call.query.version("swarm")?;
    let rotate_worker = call.query.strict_bool("rotateWorkerToken")?;
    let rotate_manager = call.query.strict_bool("rotateManagerToken")?;
    let rotate_key = call.query.strict_bool("rotateManagerUnlockKey")?;
    let handle = call.store()?;
    let store = handle.read();
    let cluster = store.cluster().ok_or_else(|| ApiError::unavailable(super::NOT_YET))?;
    if rotate_key {
        return Err(ApiError::not_built("locked managers are not built into skep yet: there is no unlock key to rotate"));
    }
    let name = text(&posted, "Name");
    if !name.is_empty() && name != "default" {
        return Err(ApiError::bad("swarm spec must be named \"default\""));
    }
    built(&posted, &CLUSTER_SPEC)?;
    let spec = checked(replacing(&posted)?)?;
    let mut cluster = cluster.clone();
    cluster.spec = spec;
    cluster.meta.version = version;
    handle.write(call.api.clock.now(), vec![Action::update(cluster)]).await?;
    for (rotate, role) in [(rotate_worker, Role::Worker), (rotate_manager, Role::Manager)] {
        if rotate {
            call.api.control.rotate_token(role).await?;
        }
    }
    empty()
}

/// GET /swarm/unlockkey: none, because managers are never locked yet.
pub fn unlock_key(call: &Call) -> Result<Response> {
    call.store()?;
    ok(&json!({ "UnlockKey": "" }))
}

/// POST /swarm/unlock
pub fn unlock(call: &Call) -> Result<Response> {
    call.read(&UNLOCK)?;
    match call.api.control.membership() {
        Membership::Inactive => Err(ApiError::unavailable("This node is not part of a swarm")),
        _ => Err(ApiError::new(hyper::StatusCode::CONFLICT, "swarm is not locked")),
    }
}

fn outside(call: &Call) -> Result<()> {
    match call.api.control.membership() {
        Membership::Inactive => Ok(()),
        _ => Err(ApiError::unavailable(ALREADY_PART)),
    }
}

fn built(posted: &Value, of: &'static Struct) -> Result<()> {
    schema::not_built(posted, of).map_or(Ok(()), |path| Err(not_carried_out(&path, "")))
}

fn text(posted: &Value, key: &str) -> String {
    posted[key].as_str().unwrap_or_default().to_owned()
}

/// Reads an availability; empty is active.
pub fn availability(text: &str) -> Result<Availability> {
    match text {
        "" | "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(ApiError::bad(format!("invalid Availability: {}", quote(other)))),
    }
}

fn data_path_port(posted: &Value) -> Result<Option<u16>> {
    match posted["DataPathPort"].as_u64().unwrap_or(0) {
        0 => Ok(None),
        port => match u16::try_from(port) {
            Ok(port @ 1024..=49151) => Ok(Some(port)),
            _ => Err(ApiError::bad(format!("Datapath port number is not in valid range (1024-49151) : {port}"))),
        },
    }
}

fn pools(posted: &Value) -> Result<(Vec<Ipv4Net>, u8)> {
    let size = match posted["SubnetSize"].as_u64().unwrap_or(0) {
        0 => 24,
        size => size,
    };
    if size > MAX_SUBNET_SIZE {
        return Err(ApiError::failed(format!("subnet size is out of range: {size}")));
    }
    let mut pools: Vec<Ipv4Net> = Vec::new();
    for text in posted["DefaultAddrPool"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let pool: Ipv4Net = text.parse().map_err(|_| ApiError::failed(format!("invalid CIDR address: {text}")))?;
        if u64::from(pool.prefix_len()) > size {
            return Err(ApiError::failed(format!("invalid CIDR: {}. Subnet size is too small for pool: {size}", quote(text))));
        }
        if let Some(other) = pools.iter().find(|other| other.contains(&pool) || pool.contains(*other)) {
            return Err(ApiError::failed(format!("list of CIDRs overlap: {other}, {pool}")));
        }
        pools.push(pool.trunc());
    }
    Ok((pools, u8::try_from(size).unwrap_or(24)))
}

/// The defaults with what was posted laid over them.
fn merged(posted: &Value) -> Result<ClusterSpec> {
    let mut merged = serde_json::to_value(ClusterSpec::default()).unwrap_or_default();
    lay_over(&mut merged, posted);
    read_spec(merged)
}

fn lay_over(base: &mut Value, posted: &Value) {
    match (base, posted) {
        (Value::Object(base), Value::Object(posted)) => {
            for (key, value) in posted {
                lay_over(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, Value::Number(n)) if n.as_f64() == Some(0.0) && base.is_number() => {}
        (base, Value::String(s)) if s.is_empty() && base.is_string() => {}
        (base, posted) => *base = posted.clone(),
    }
}

/// What was posted, and zero for the rest.
fn replacing(posted: &Value) -> Result<ClusterSpec> {
    let mut zero = ClusterSpec::default();
    zero.orchestration.task_history_retention_limit = Some(0);
    zero.raft.snapshot_interval = None;
    zero.raft.keep_old_snapshots = Some(0);
    zero.raft.log_entries_for_slow_followers = None;
    zero.raft.election_tick = 0;
    zero.raft.heartbeat_tick = 0;
    zero.dispatcher.heartbeat_period = None;
    zero.ca_config.node_cert_expiry = None;
    let mut merged = serde_json::to_value(zero).unwrap_or_default();
    lay_over(&mut merged, posted);
    read_spec(merged)
}

fn read_spec(value: Value) -> Result<ClusterSpec> {
    let mut spec: ClusterSpec = serde_json::from_value(value).map_err(|e| ApiError::bad(format!("invalid swarm spec: {e}")))?;
    // Zero is not written by the real server here.
    spec.raft.snapshot_interval = spec.raft.snapshot_interval.filter(|n| *n != 0);
    spec.raft.log_entries_for_slow_followers = spec.raft.log_entries_for_slow_followers.filter(|n| *n != 0);
    spec.dispatcher.heartbeat_period = spec.dispatcher.heartbeat_period.filter(|n| n.0 != 0);
    spec.ca_config.node_cert_expiry = spec.ca_config.node_cert_expiry.filter(|n| n.0 != 0);
    Ok(spec)
}

fn checked(spec: ClusterSpec) -> Result<ClusterSpec> {
    if spec.name != "default" {
        return Err(ApiError::bad("swarm spec must be named \"default\""));
    }
    if spec.ca_config.node_cert_expiry.is_some_and(|t| t < MIN_CERT_EXPIRY) {
        return Err(ApiError::rpc(Code::InvalidArgument, "minimum certificate expiry time is: 1h0m0s"));
    }
    if spec.dispatcher.heartbeat_period.is_some_and(|t| t.0 < 0) {
        return Err(ApiError::rpc(Code::InvalidArgument, "heartbeat time period cannot be a negative duration"));
    }
    Ok(spec)
}
