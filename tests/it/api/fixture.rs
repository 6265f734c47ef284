//! The API served over a fake node, in front of a fake engine or another one.

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use skep::api::Api;
use skep::api::control::{
    AttachRefusal, ControlError, KnownNetwork, Membership, MembershipInfo, NodeControl, PreparedNetwork, RequestedAddresses,
    SwarmInitRequest, SwarmJoinRequest,
};
use skep::clock::{Clock, SystemClock};
use skep::http::{UnixClient, bind_unix};
use skep::model::{AttachDenial, LogRequest, NetworkId, NodeId, Role, Secret, TaskId, TaskLog, Timestamp, UnwrittenObject};
use skep::rpc::LogReader;
use skep::store::{Action, LocalProposer, StoreHandle};
use skep::trust::{InvalidUnlockKey, PayloadVault, TunnelKey, UnlockKey};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A directory that is removed when dropped. Its path is short because paths of sockets are limited to 108 bytes.
pub struct SocketDir(PathBuf);

impl SocketDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!("skep-api-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A node whose membership the test sets.
pub struct FakeNode {
    pub membership: Mutex<Membership>,
    pub store: Mutex<Option<StoreHandle>>,
    /// Result of the next joins.
    pub join: Mutex<Result<(), ControlError>>,
    /// The last request that was accepted.
    pub last_init: Mutex<Option<SwarmInitRequest>>,
    pub last_join: Mutex<Option<SwarmJoinRequest>>,
    /// The address of the last request to re-create the cluster.
    pub new_cluster: Mutex<Option<String>>,
    pub leaderless: Mutex<Option<Timestamp>>,
    /// Who reads the logs of a node's tasks.
    pub logs: Mutex<BTreeMap<NodeId, Arc<dyn LogReader>>>,
    /// Networks that were prepared for plain containers, with the addresses that were asked for.
    pub prepared: Mutex<Vec<(String, Option<Ipv4Addr>)>>,
    /// What its view says of networks.
    pub networks: Mutex<BTreeMap<NetworkId, KnownNetwork>>,
    /// A leave has taken everything down when a permit is added.
    pub taken_down: Semaphore,
}

impl FakeNode {
    /// What it opens secrets and configs with.
    pub fn payload_vault() -> PayloadVault {
        PayloadVault::new(Self::lab1().node_id, TunnelKey::new(Secret::new([7; 32])))
    }
    pub fn new(membership: Membership) -> Arc<Self> {
        let store = matches!(membership, Membership::Manager(_)).then(LocalProposer::handle);
        Arc::new(Self {
            membership: Mutex::new(membership),
            store: Mutex::new(store),
            join: Mutex::new(Ok(())),
            last_init: Mutex::new(None),
            last_join: Mutex::new(None),
            new_cluster: Mutex::new(None),
            leaderless: Mutex::new(None),
            logs: Mutex::default(),
            prepared: Mutex::default(),
            networks: Mutex::default(),
            taken_down: Semaphore::new(1),
        })
    }
    /// What it is unlocked with: 32 zeros.
    pub const UNLOCK_KEY: &str = "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    /// lab1 of the recordings, as the leader.
    pub fn lab1() -> MembershipInfo {
        let id = NodeId::from("ej9fe8a4i12wa7r06tdh2hha7");
        MembershipInfo {
            node_id: id.clone(),
            node_addr: Some("10.123.0.1".parse().unwrap()),
            managers: vec![(id.clone(), "10.123.0.1:2377".parse().unwrap())],
            leader: Some(id),
        }
    }
    /// lab2 of the recordings.
    pub fn lab2() -> MembershipInfo {
        MembershipInfo {
            node_id: NodeId::from("drwr0n2tcmgjuamlus2eyenpw"),
            node_addr: Some("10.123.0.2".parse().unwrap()),
            managers: vec![
                (NodeId::from("ej9fe8a4i12wa7r06tdh2hha7"), "10.123.0.1:2377".parse().unwrap()),
                (NodeId::from("ymrqj25p8la8xztehs0leksm4"), "10.123.0.3:2377".parse().unwrap()),
            ],
            leader: None,
        }
    }
}

#[async_trait]
impl NodeControl for FakeNode {
    fn membership(&self) -> Membership {
        self.membership.lock().unwrap().clone()
    }
    fn store(&self) -> Option<StoreHandle> {
        self.store.lock().unwrap().clone()
    }
    fn leaderless_since(&self) -> Option<Timestamp> {
        *self.leaderless.lock().unwrap()
    }
    fn knows_network(&self, name: &str) -> bool {
        self.membership() != Membership::Inactive && ["known", "ingress"].contains(&name)
    }
    fn network(&self, id: &NetworkId) -> Option<KnownNetwork> {
        self.networks.lock().unwrap().get(id).cloned()
    }
    fn left_out(&self) -> Vec<UnwrittenObject> {
        Vec::new()
    }
    /// As the managers of the recordings answer: those of a worker know the network att1 alone.
    async fn prepare_network(&self, reference: &str, requested: RequestedAddresses) -> Result<PreparedNetwork, AttachRefusal> {
        self.prepared.lock().unwrap().push((reference.to_owned(), requested.v4));
        let stored = self.store().and_then(|store| store.read().network(&reference.into()).cloned());
        let known = stored.map(|network| (network.id, network.spec.name));
        let (id, name) = known
            .or_else(|| (reference == "att1").then(|| ("i3g7tzt2887q0qc9ldihxld0j".into(), "att1".to_owned())))
            .ok_or_else(|| AttachRefusal::Managers(AttachDenial::UnknownNetwork(reference.to_owned())))?;
        let resolvers = vec!["192.0.2.53".parse().unwrap()];
        Ok(PreparedNetwork { id, name, gateway: "10.66.0.1".parse().unwrap(), resolvers, belonging: None })
    }
    async fn init(&self, request: SwarmInitRequest) -> Result<NodeId, ControlError> {
        let handle = LocalProposer::handle();
        let mut cluster = super::recorded_store::cluster();
        cluster.spec = request.spec.clone();
        cluster.address_pools.clone_from(&request.address_pools);
        cluster.subnet_size = request.subnet_size;
        cluster.data_path_port = request.data_path_port.unwrap_or(4789);
        let host = if request.advertise_addr == "10.123.0.1" { "lab1" } else { "lab2" };
        let mut node = super::recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", host, Role::Manager);
        node.spec.availability = request.availability;
        let at = SystemClock.now();
        handle.write(at, vec![Action::create(cluster), Action::create(node)]).await.unwrap();
        *self.store.lock().unwrap() = Some(handle);
        *self.membership.lock().unwrap() = Membership::Manager(Self::lab1());
        *self.last_init.lock().unwrap() = Some(request);
        Ok(Self::lab1().node_id)
    }
    async fn new_cluster(&self, advertise_addr: String) -> Result<NodeId, ControlError> {
        if !matches!(self.membership(), Membership::Manager(_)) {
            return Err(ControlError::unavailable("no manager"));
        }
        *self.new_cluster.lock().unwrap() = Some(advertise_addr);
        Ok(Self::lab1().node_id)
    }
    async fn join(&self, request: SwarmJoinRequest) -> Result<(), ControlError> {
        *self.last_join.lock().unwrap() = Some(request);
        self.join.lock().unwrap().clone()
    }
    /// As a manager that was locked with [`Self::UNLOCK_KEY`].
    async fn unlock(&self, key: &Secret<String>) -> Result<(), ControlError> {
        let key: UnlockKey = key.expose().parse().map_err(|e: InvalidUnlockKey| ControlError::invalid(e.to_string()))?;
        if key.to_text().expose() != Self::UNLOCK_KEY {
            return Err(ControlError::wrong_unlock_key());
        }
        *self.membership.lock().unwrap() = Membership::Manager(Self::lab1());
        Ok(())
    }
    async fn leave(&self, _: bool) -> Result<(), ControlError> {
        *self.store.lock().unwrap() = None;
        *self.membership.lock().unwrap() = Membership::Inactive;
        self.taken_down.acquire().await.unwrap().forget();
        Ok(())
    }
    async fn read_logs(
        &self,
        node: &NodeId,
        requests: mpsc::Receiver<LogRequest>,
        logs: mpsc::Sender<(TaskId, TaskLog)>,
    ) -> Result<(), ControlError> {
        let reader = self.logs.lock().unwrap().get(node).cloned();
        let reader = reader.ok_or_else(|| ControlError::unavailable("connection refused"))?;
        skep::rpc::read_here(reader, requests, logs).await;
        Ok(())
    }
    async fn node_api(&self, _: &NodeId) -> Result<skep::http::BoxedStream, ControlError> {
        Err(ControlError::unavailable("connection refused"))
    }
    fn vault(&self) -> Result<Arc<PayloadVault>, ControlError> {
        Ok(Arc::new(Self::payload_vault()))
    }
    fn new_token(&self) -> Result<Secret<String>, ControlError> {
        Ok("a new token".to_owned().into())
    }
}

/// The API of a node, served until dropped.
pub struct ApiFixture {
    pub socket: PathBuf,
    pub client: UnixClient,
    _dir: SocketDir,
    _shutdown: DropGuard,
}

impl ApiFixture {
    /// Serves the API in front of the engine at `engine`, or of a fake one.
    pub fn serve(node: Arc<FakeNode>, engine: Option<&Path>) -> Self {
        let dir = SocketDir::new();
        let role = match &*node.membership.lock().unwrap() {
            Membership::Worker(_) => Some(Role::Worker),
            Membership::Manager(_) => Some(Role::Manager),
            _ => None,
        };
        let shutdown = CancellationToken::new();
        let engine = engine.map_or_else(
            || {
                let socket = dir.path("engine.sock");
                let listener = bind_unix(&socket).unwrap();
                tokio::spawn(skep::http::serve_unix(listener, engine_router(role), shutdown.clone()));
                socket
            },
            Path::to_owned,
        );
        let socket = dir.path("docker.sock");
        let listener = bind_unix(&socket).unwrap();
        let api = Api::new(node, engine, Arc::new(SystemClock));
        tokio::spawn(api.event_follower(shutdown.clone())());
        tokio::spawn(api.serve(listener, shutdown.clone()));
        Self { client: UnixClient::new(&socket), socket, _dir: dir, _shutdown: shutdown.drop_guard() }
    }
}

/// A fake engine 28.5.2 with the few paths that the API uses, on a node with this role.
fn engine_router(role: Option<Role>) -> Router {
    Router::new().fallback(engine).with_state(role)
}

async fn engine(State(role): State<Option<Role>>, request: Request) -> Response {
    let path = without_version(request.uri().path());
    let mut response = match (request.method().as_str(), path.as_str()) {
        // Its stream of events is over at once.
        ("OPTIONS", _) | ("GET", "/events") => hyper::StatusCode::OK.into_response(),
        ("GET", "/version") => axum::Json(json!({
            "Platform": {"Name": ""}, "Version": "28.5.2+dfsg4", "ApiVersion": "1.51", "MinAPIVersion": "1.24",
            "GitCommit": "3ef3c07c883be49a2e8097bcf6d2952fce1d70eb", "GoVersion": "go1.27.1", "Os": "linux", "Arch": "amd64",
            "KernelVersion": "6.18.44", "BuildTime": "2026-09-15T11:02:57.000000000+00:00",
            "Components": [{"Name": "Engine", "Version": "28.5.2+dfsg4", "Details": {
                "ApiVersion": "1.51", "Arch": "amd64", "BuildTime": "2026-09-15T11:02:57.000000000+00:00",
                "Experimental": "false", "GitCommit": "3ef3c07c883be49a2e8097bcf6d2952fce1d70eb", "GoVersion": "go1.27.1",
                "KernelVersion": "6.18.44", "MinAPIVersion": "1.24", "Os": "linux"}}]
        }))
        .into_response(),
        ("GET" | "HEAD", "/_ping") => ([("builder-version", "2")], "OK").into_response(),
        ("GET", "/info") => axum::Json(json!({
            "ID": "02349f86-d0e9-4728-9267-598a0529be25", "Name": "lab1", "ServerVersion": "28.5.2+dfsg4",
            "Swarm": {"NodeID": "", "LocalNodeState": "inactive"}, "Warnings": null,
            "Plugins": {"Network": ["bridge", "host", "null", "overlay"]}
        }))
        .into_response(),
        ("GET", "/networks") => axum::Json(filtered_networks(role, request.uri().query().unwrap_or_default())).into_response(),
        ("GET", "/networks/userbridge") => {
            axum::Json(json!({"Name": "userbridge", "Driver": "bridge", "Id": "b".repeat(64)})).into_response()
        }
        ("POST", "/networks/create") => {
            (hyper::StatusCode::CREATED, axum::Json(json!({"Id": "5".repeat(64), "Warning": ""}))).into_response()
        }
        ("GET" | "DELETE", path) if path.starts_with("/networks/") => {
            let name = path.trim_start_matches("/networks/");
            not_found(&format!("network {name} not found"))
        }
        _ => not_found("page not found"),
    };
    for (name, value) in [
        ("api-version", "1.51"),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("server", "Docker/28.5.2+dfsg4 (linux)"),
    ] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn without_version(path: &str) -> String {
    match path.strip_prefix("/v").and_then(|rest| rest.split_once('/')) {
        Some((version, rest)) if version.starts_with(|c: char| c.is_ascii_digit()) => format!("/{rest}"),
        _ => path.to_owned(),
    }
}

/// The engine's networks that pass the filters of the query.
fn filtered_networks(role: Option<Role>, query: &str) -> Value {
    let text = query.replace("filters=", "");
    let mut bytes = Vec::new();
    for (i, part) in text.split('%').enumerate() {
        let (hex, rest) = if i == 0 { ("", part) } else { part.split_at(2) };
        bytes.extend(u8::from_str_radix(hex, 16));
        bytes.extend_from_slice(rest.as_bytes());
    }
    let filters: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let matches = |network: &Value, name: &str, field: &str| {
        let wanted = filters[name].as_object();
        wanted.is_none_or(|w| w.keys().any(|v| network[field].as_str().unwrap_or_default().contains(v)))
    };
    let passes = |n: &Value| -> bool {
        matches(n, "name", "Name")
            && matches(n, "id", "Id")
            && matches(n, "scope", "Scope")
            && matches(n, "driver", "Driver")
            && filters["type"]["custom"].is_null()
            && filters["label"].is_null()
            && filters["dangling"].is_null()
    };
    local_networks(role).into_iter().filter(passes).collect()
}

fn not_found(message: &str) -> Response {
    (hyper::StatusCode::NOT_FOUND, axum::Json(json!({ "message": message }))).into_response()
}

/// The networks of a fresh engine, as in the recording `nonmember/network-ls`, and those that a swarm adds on a node.
fn local_networks(role: Option<Role>) -> Vec<Value> {
    let network = |name: &str, driver: &str, config: Value, options: Value| {
        json!({"Name": name, "Id": "9".repeat(64), "Created": "2026-11-23T20:32:56.19910774Z", "Scope": "local", "Driver": driver,
            "EnableIPv4": true, "EnableIPv6": false, "IPAM": {"Driver": "default", "Options": null, "Config": config},
            "Internal": false, "Attachable": false, "Ingress": false, "ConfigFrom": {"Network": ""}, "ConfigOnly": false,
            "Containers": {}, "Options": options, "Labels": {}})
    };
    let mut all = vec![
        network(
            "bridge",
            "bridge",
            json!([{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]),
            json!({
            "com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0", "com.docker.network.bridge.name": "docker0",
            "com.docker.network.driver.mtu": "1500"}),
        ),
        network("none", "null", Value::Null, json!({})),
        network("host", "host", Value::Null, json!({})),
    ];
    if role.is_some() {
        all.push(network(
            "docker_gwbridge",
            "bridge",
            json!([{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}]),
            json!({
            "com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.name": "docker_gwbridge"}),
        ));
    }
    if role == Some(Role::Worker) {
        let options = json!({"skep.network": "cznjbon83xpib6n5udkd4hhku", "mtu": "1420"});
        all.push(network("ingress", "skep", json!([{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]), options));
    }
    all
}
