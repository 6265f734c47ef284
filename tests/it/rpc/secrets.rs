//! Keys, tokens and credentials, planted in every object and message that carries them: neither `Debug` nor the log shows one.

use super::fixture::{Setup, Trust, join, options, side};
use super::session::node;
use serde_json::{Value, json};
use skep::api::control::SwarmJoinRequest;

use skep::model::http::HttpRoute;
use skep::model::node::NodeDescription;
use skep::model::secret::hiding;
use skep::model::{
    Availability, Cluster, ClusterSpec, Meta, PullAuth, Role, Secret, ServiceSpec, fixture as values, mesh::MeshPrefix,
};
use skep::protocol::{FORMATS, FromJoiner, JoinRequest};
use skep::rpc::{JoinParts, ListenerKind};
use skep::store::Action;
use skep::trust::{JoinToken, NodeKey, TunnelKey};
use std::fmt::Debug;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The middle of a PEM file's longest line, or of a token: what nothing else has.
fn needle(secret: &str) -> String {
    let line = secret.lines().max_by_key(|line| line.len()).unwrap();
    line[line.len() - 20..].to_owned()
}

#[tokio::test]
async fn debug_and_dumps_show_no_secret() {
    let trust = Trust::new();
    let (worker, manager) = (trust.tokens.of(Role::Worker), trust.tokens.of(Role::Manager));
    let identity = trust.identity(Role::Worker);
    let node_key = NodeKey::generate().unwrap();
    let tunnel_key = TunnelKey::new(Secret::new([0xa7; 32]));
    let token: Secret<String> = worker.into();
    let mut task = values::task_with_resolvers("t1", "web", "n1", &[]);
    task.pull_auth = Some(PullAuth::new("eyJ1c2VybmFtZSI6ImNpIn0-planted".to_owned()));
    let spec = Arc::make_mut(&mut task.spec);
    spec.container_spec = serde_json::from_value(container_with_credentials()).unwrap();
    spec.log_driver = serde_json::from_value(json!({"Name": "splunk", "Options": {"splunk-token": "planted"}})).unwrap();
    Arc::make_mut(&mut task.service_labels).extend(labels_with_users());
    let route: HttpRoute = serde_json::from_value(json!({
        "request_headers": {"x-key": "planted"}, "auth": [{"name": "ann", "hash": "$2y$05$planted"}]
    }))
    .unwrap();
    let cluster = Cluster {
        id: trust.cluster.clone(),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        incarnation: 1,
        ca_certificate: trust.ca.certificate().to_owned(),
        ca_key: trust.ca.key().into(),
        tokens: trust.tokens.clone(),
        mesh: MeshPrefix::draw(&mut rand::rng()),
        address_pools: vec![],
        reserved_subnets: vec![],
        ca_history: skep::model::CaHistory::default(),
        unlock_key: None,
        incarnations: Vec::new(),
        subnet_size: 24,
        data_path_port: 2377,
        feature_level: 1,
    };
    let request = FromJoiner::Request(Box::new(JoinRequest {
        format: FORMATS.oldest,
        formats: Some(FORMATS),
        token: token.clone(),
        csr: node_key.request().unwrap(),
        key: tunnel_key.public(),
        endpoints: vec![],
        description: NodeDescription::default(),
        availability: Availability::Active,
    }));
    let posted = SwarmJoinRequest {
        data_path_addr: String::new(),
        listen_addr: String::new(),
        advertise_addr: String::new(),
        remote_addrs: vec![],
        token: token.clone(),
        availability: Availability::Active,
    };
    let parts = JoinParts {
        token: &token,
        node_key: &node_key,
        tunnel_key: &tunnel_key,
        endpoints: vec![],
        description: NodeDescription::default(),
        availability: Availability::Active,
    };
    let parsed: JoinToken = worker.parse().unwrap();
    let (stored, action) = (serde_json::to_string(&cluster).unwrap(), Action::create(cluster.clone()));
    let service =
        ServiceSpec { labels: labels_with_users().into(), task_template: (*task.spec).clone(), ..ServiceSpec::default() };
    let all: [&dyn Debug; 17] = [
        &cluster,
        &action,
        &trust.tokens,
        &trust.ca,
        &identity,
        &node_key,
        &tunnel_key,
        &request,
        &posted,
        &parts,
        &parsed,
        &task,
        &service,
        &task.pull_auth,
        &task.spec.log_driver,
        &task.spec.container_spec.mounts,
        &route,
    ];
    let mut shown: Vec<String> = all.iter().map(|one| format!("{one:?} {one:#?}")).collect();
    assert!(stored.contains(&needle(trust.ca.key())) && stored.contains(worker), "they are stored");
    let dumped = hiding(|| serde_json::to_string(&task).unwrap());
    assert!(dumped.contains("DB_PASSWORD=[secret]") && !dumped.contains("variable-of-a-task"), "{dumped}");
    for named in ["splunk-token", "DriverConfig", "\"o\":", "skep.http.auth", "basicauth.users"] {
        assert!(dumped.contains(named), "{named} is no secret: {dumped}");
    }
    shown.push(hiding(|| serde_json::to_string(&(&cluster, &request, &task, &route)).unwrap()));
    let stored = serde_json::to_string(&(&task, &route)).unwrap();
    assert_eq!(stored.matches("planted").count(), 8, "each is stored: {stored}");
    let secrets = [
        needle(worker),
        needle(manager),
        needle(trust.ca.key()),
        needle(identity.key()),
        needle(&node_key.to_pem()),
        "planted".to_owned(),
        "variable-of-a-task".to_owned(),
        "167, 167".to_owned(),
    ];
    for text in shown {
        for secret in &secrets {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

/// Labels that name users with their password hashes: skep's own, and those of other proxies.
fn labels_with_users() -> [(String, String); 2] {
    ["skep.http.auth", "traefik.http.middlewares.m.basicauth.users"].map(|key| (key.to_owned(), "ann:$2y$05$planted".to_owned()))
}

/// The spec of a container with credentials wherever users put them.
fn container_with_credentials() -> Value {
    json!({
        "Env": ["DB_PASSWORD=variable-of-a-task"],
        "Labels": {"caddy.basic_auth.ann": "$2y$05$planted"},
        "Mounts": [{"Type": "volume", "Target": "/v", "VolumeOptions":
            {"DriverConfig": {"Name": "local", "Options": {"type": "cifs", "o": "username=ann,password=planted"}}}}],
    })
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);
impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_of_a_join_and_a_session_shows_no_secret_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    // While only one subscriber exists, tracing asks that of the thread which comes to a log line first: of another test, none.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // Both sides run on this thread.
    let _guard = tracing::subscriber::set_default(subscriber);
    let trust = Trust::new();
    let token = trust.tokens.of(Role::Worker);
    let outer = Setup::new(&trust, ListenerKind::Outer).start();
    let joined = join(outer.address, token, &side(&outer), &options(Duration::from_secs(15))).await.unwrap();
    let wrong = format!("{}{}", &token[..token.len() - 5], "aaaaa");
    join(outer.address, &wrong, &side(&outer), &options(Duration::from_secs(15))).await.unwrap_err();
    let key = joined.identity.key().to_owned();
    node(joined.identity, vec![outer.other_address]).welcome().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("node joined") && text.contains("session open"), "{text}");
    for secret in [needle(token), needle(&wrong), needle(&key), needle(trust.ca.key())] {
        assert!(!text.contains(&secret), "{secret} in {text}");
    }
}
