//! What is secret is in no answer, no dump, no metric and no line of the log, however much is logged.

use super::kit::*;
use serde_json::json;
use skep::http::UnixClient;
use skep::lab::{Host, WHOAMI_IMAGE};
use std::collections::BTreeMap;

/// `{"username":"ci","password":"planted-password"}`, as clients send it.
const PULL_AUTH: &str = "eyJ1c2VybmFtZSI6ImNpIiwicGFzc3dvcmQiOiJwbGFudGVkLXBhc3N3b3JkIn0=";

/// Value of a variable of the tasks: those who may inspect a service see it, as with Docker.
const VARIABLE: &str = "planted-variable";

/// The lines of a PEM file's or a key file's content that nothing else has.
fn lines(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|line| line.len() > 20 && !line.starts_with("-----")).map(str::to_owned)
}

/// The node's own keys.
fn keys(host: &Host) -> Vec<String> {
    let data = host.data_dir();
    let mut keys = Vec::new();
    for file in ["tunnel.key", "certificates/node.key"] {
        let text = std::fs::read_to_string(data.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        keys.extend(lines(&text));
    }
    assert!(keys.len() >= 3, "keys of {}", host.name());
    keys
}

/// Everything that people are shown of a node.
async fn shown(host: &Host) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let admin = UnixClient::new(host.run_dir().join("admin.sock"));
    for path in ["/dump", "/status", "/metrics", "/healthz"] {
        let reply = admin.get(path).await.expect("answers");
        all.insert(format!("admin {path}"), String::from_utf8_lossy(&reply.body).into_owned());
    }
    let api = UnixClient::new(host.skep_socket());
    for path in ["/info", "/nodes", "/services", "/tasks", "/networks", "/services/web", "/containers/json?all=1", "/version"] {
        let reply = api.get(path).await.expect("answers");
        all.insert(path.to_owned(), String::from_utf8_lossy(&reply.body).into_owned());
    }
    all.insert("log".to_owned(), std::fs::read_to_string(host.dir().join("skep.log")).expect("log"));
    all
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let swarm = swarm("secrets", 2, "log = \"trace\"\n").await;
    let manager = &swarm.hosts[0];
    let spec = json!({
        "Name": "web",
        "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "Env": [format!("DB_PASSWORD={VARIABLE}")] } },
        "Mode": { "Replicated": { "Replicas": 2 } },
    });
    let fields = [("Content-Type", "application/json"), ("X-Registry-Auth", PULL_AUTH)];
    let client = UnixClient::new(manager.skep_socket());
    ok(&client.send("POST", "/services/create", &fields, spec.to_string().into()).await.expect("answers"));
    swarm.running("web", 2).await;

    let tokens = get(manager, "/swarm").await["JoinTokens"].take();
    let mut planted: Vec<String> = vec![PULL_AUTH.trim_end_matches('=').to_owned(), "planted-password".to_owned()];
    for role in ["Worker", "Manager"] {
        planted.push(tokens[role].as_str().and_then(|token| token.rsplit('-').next()).expect("token").to_owned());
    }
    for host in &swarm.hosts {
        planted.extend(keys(host));
    }
    for host in &swarm.hosts {
        for (place, text) in shown(host).await {
            assert!(!text.is_empty() || place == "/version", "{place} of {} is empty", host.name());
            for secret in &planted {
                assert!(!text.contains(secret), "{} shows {secret:?} in {place}", host.name());
            }
            // The API shows it.
            let line = text.lines().find(|line| line.contains(VARIABLE) && !place.starts_with('/'));
            assert_eq!(line, None, "{} shows a variable in {place}", host.name());
            assert!(!text.contains("PRIVATE KEY"), "{} shows a private key in {place}", host.name());
        }
    }
    // What is searched does hold the tasks with their credentials, hidden.
    let view = dump(manager).await.expect("dump")["view"].to_string();
    assert!(view.contains(r#""pull_auth":"[secret]""#), "{view}");
    assert!(view.contains(r#""Env":["DB_PASSWORD=[secret]"]"#), "{view}");
    assert!(get(manager, "/services/web").await.to_string().contains(VARIABLE), "the API shows what was posted");
    swarm.stop().await;
}
