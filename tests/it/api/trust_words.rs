//! Locks, the root CA and tokens in the words of a real swarm, and what each change leaves in the store.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use super::words::{cases, patch, table};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::{Value, json};
use skep::api::control::{Membership, NodeControl};
use skep::clock::{Clock, SystemClock};
use skep::model::{ClusterSpec, Role};
use skep::store::Action;
use skep::trust::{RootCa, UnlockKey, leads_to};
use std::process::Command;
use std::sync::Arc;

const SHORT_NAMES: [(&str, &str); 4] = [
    (
        "LOCKED",
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.",
    ),
    ("ALREADY", "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."),
    (
        "WORKER",
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.",
    ),
    (
        "NOT-SWARM",
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    ),
];

/// A root CA that is valid for so many days, as a user makes it.
fn own_root(days: i64) -> (String, String) {
    own_root_of(&PKCS_ECDSA_P256_SHA256, days)
}

/// One with an RSA key, by openssl: the library makes none.
fn rsa_root(bits: u32) -> (String, String) {
    let key = format!("rsa:{bits}");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-newkey", &key, "-keyout", "-", "-days", "400", "-subj", "/CN=own"])
        .output()
        .unwrap();
    let text = String::from_utf8(made.stdout).unwrap();
    let (key, certificate) = text.split_at(text.find("-----BEGIN CERTIFICATE").expect("openssl makes a certificate"));
    (certificate.to_owned(), key.to_owned())
}

fn own_root_of(algorithm: &'static rcgen::SignatureAlgorithm, days: i64) -> (String, String) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now, now + time::Duration::days(days));
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

async fn node(kind: &str) -> Arc<FakeNode> {
    let manager = || Membership::Manager(FakeNode::lab1());
    let node = FakeNode::new(match kind {
        "locked" => Membership::Locked { node_addr: Some("10.123.0.1".parse().unwrap()) },
        "worker" => Membership::Worker(FakeNode::lab2()),
        "outside" => Membership::Inactive,
        "auto" | "plain" => manager(),
        other => panic!("{other}"),
    });
    let store = node.store.lock().unwrap().clone();
    if let Some(store) = store {
        let root = RootCa::generate(&mut rand::rng(), SystemClock.now()).unwrap();
        let mut cluster = recorded_store::cluster();
        (cluster.ca_certificate, cluster.ca_key) = (root.certificate().to_owned(), root.key().into());
        if kind == "auto" {
            cluster.unlock_key = Some(UnlockKey::draw(&mut rand::rng()).to_text());
            cluster.spec = ClusterSpec::default();
            cluster.spec.encryption_config.auto_lock_managers = true;
        }
        let lab1 = recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager);
        store.write(SystemClock.now(), vec![Action::create(cluster), Action::create(lab1)]).await.unwrap();
    }
    node
}

async fn send(fixture: &ApiFixture, method: &str, target: &str, body: &str) -> String {
    let fields = [("Content-Type", "application/json")];
    let reply = fixture.client.send(method, target, &fields, body.to_owned().into()).await.unwrap();
    let value: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let mut message = value["message"].as_str().unwrap_or_default().to_owned();
    for (name, text) in SHORT_NAMES {
        message = message.replace(text, name);
    }
    format!("{} {message}", reply.status.as_u16()).trim().to_owned()
}

/// Posts the swarm's spec with a change.
async fn update(fixture: &ApiFixture, query: &str, change: &Value) -> String {
    let shown: Value = fixture.client.get("/swarm").await.unwrap().json().unwrap();
    let mut spec = shown["Spec"].clone();
    patch(&mut spec, change);
    let more = if query == "-" { String::new() } else { format!("&{query}") };
    let target = format!("/swarm/update?version={}{more}", shown["Version"]["Index"]);
    send(fixture, "POST", &target, &spec.to_string()).await
}

#[tokio::test]
async fn locks_and_the_ca_are_answered_as_by_a_real_swarm_or_unlike_it_for_a_reason() {
    let (own, short, ed) = (own_root(400), own_root(300), own_root_of(&PKCS_ED25519, 400));
    let (rsa1024, rsa2048) = (rsa_root(1024), rsa_root(2048));
    let texts = [
        ("OWN", &own.0),
        ("OWN-KEY", &own.1),
        ("SHORT", &short.0),
        ("SHORT-KEY", &short.1),
        ("ED", &ed.0),
        ("ED-KEY", &ed.1),
        ("RSA1024", &rsa1024.0),
        ("RSA1024-KEY", &rsa1024.1),
        ("RSA2048", &rsa2048.0),
        ("RSA2048-KEY", &rsa2048.1),
    ];
    let other = UnlockKey::draw(&mut rand::rng()).to_text();
    let mut wrong = Vec::new();
    let table = table("trust.txt");
    for case in cases(&table) {
        let (kind, requests) = case.request.split_once(' ').unwrap();
        let node = node(kind).await;
        let cluster = || node.store().and_then(|store| store.read().cluster().cloned());
        let fixture = ApiFixture::serve(node.clone(), None);
        let (mut before, mut answer) = (None, String::new());
        let at_first = cluster().and_then(|cluster| cluster.unlock_key);
        for request in requests.split("; ") {
            before = cluster();
            let mut words = request.splitn(3, ' ');
            let [method, target, body] = [(); 3].map(|()| words.next().unwrap_or_default());
            let version = before.as_ref().map_or(1, |cluster| cluster.meta.version);
            let target = &target.replace("VERSION", &version.to_string());
            let body = body.replace("\"KEY\"", &format!("\"{}\"", FakeNode::UNLOCK_KEY)).replace("OTHER", other.expose());
            let mut body: Value = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).expect(case.request) };
            for field in ["SigningCACert", "SigningCAKey"] {
                let text = texts.iter().find(|(name, _)| body["CAConfig"][field] == *name);
                if let Some((_, text)) = text {
                    body["CAConfig"][field] = json!(text);
                }
            }
            answer = match method {
                "rotations" => before.as_ref().map_or(0, |cluster| cluster.ca_history.rotations).to_string(),
                "key" => match cluster().and_then(|cluster| cluster.unlock_key) {
                    None => "none".to_owned(),
                    Some(key) if Some(&key) == at_first.as_ref() => "the same".to_owned(),
                    Some(_) => "another".to_owned(),
                },
                "update" => update(&fixture, target, &body).await,
                _ => send(&fixture, method, target, &if body.is_null() { String::new() } else { body.to_string() }).await,
            };
        }
        let expected = case.unlike.map_or(case.real, |(ours, _)| ours.trim());
        if !case.matches(&answer) {
            wrong.push(format!("line {}: {}\n    is {answer}\n    not {expected}", case.number, case.request));
        }
        if case.unlike.is_some_and(|(ours, _)| ours.trim() == case.real) {
            wrong.push(format!("line {}: not unlike the real one", case.number));
        }
        if answer.starts_with(['4', '5']) && cluster() != before {
            wrong.push(format!("line {}: the store has changed", case.number));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_locked_manager_says_so_and_nothing_of_the_swarm() {
    let fixture = ApiFixture::serve(node("locked").await, None);
    let info: Value = fixture.client.get("/info").await.unwrap().json().unwrap();
    let swarm = &info["Swarm"];
    assert_eq!(
        (&swarm["LocalNodeState"], &swarm["NodeID"], &swarm["NodeAddr"]),
        (&json!("locked"), &json!(""), &json!("10.123.0.1"))
    );
    assert_eq!(
        (&swarm["ControlAvailable"], &swarm["RemoteManagers"], &swarm["Error"]),
        (&json!(false), &Value::Null, &json!(SHORT_NAMES[0].1))
    );
    assert_eq!(swarm["Cluster"], Value::Null);
    let ping = fixture.client.get("/_ping").await.unwrap();
    assert_eq!(ping.headers["swarm"], "locked");
}

#[tokio::test]
async fn the_unlock_key_stays_while_the_swarm_is_locked_and_is_another_one_after_it_was_not() {
    let node = node("plain").await;
    let store = node.store.lock().unwrap().clone().unwrap();
    let fixture = ApiFixture::serve(node, None);
    let key = || async { fixture.client.get("/swarm/unlockkey").await.unwrap().json::<Value>().unwrap()["UnlockKey"].clone() };
    let lock = |locks: bool| json!({ "EncryptionConfig": { "AutoLockManagers": locks } });
    assert_eq!(key().await, "");
    assert_eq!(update(&fixture, "-", &lock(true)).await, "200");
    let first = key().await;
    assert!(first.as_str().unwrap().parse::<UnlockKey>().is_ok(), "{first}");
    assert_eq!(update(&fixture, "-", &lock(true)).await, "200");
    assert_eq!(update(&fixture, "-", &json!({ "Labels": { "a": "b" } })).await, "200");
    assert_eq!(key().await, first, "it is locked already");
    assert_eq!(update(&fixture, "rotateManagerUnlockKey=1", &json!({})).await, "200");
    let second = key().await;
    assert_ne!(second, first);
    assert_eq!(update(&fixture, "-", &lock(false)).await, "200");
    assert_eq!(key().await, "");
    assert_eq!(update(&fixture, "-", &lock(true)).await, "200");
    assert!(![first, second].contains(&key().await));
    // What people read has none of it.
    assert!(!format!("{:?}", store.read().cluster()).contains("SWMKEY"));
    let shown: Value = fixture.client.get("/swarm").await.unwrap().json().unwrap();
    assert!(!shown.to_string().contains("SWMKEY"), "{shown}");
}

#[tokio::test]
async fn a_change_of_the_root_begins_beside_the_old_one_and_another_takes_its_place() {
    let node = node("plain").await;
    let store = node.store.lock().unwrap().clone().unwrap();
    let fixture = ApiFixture::serve(node, None);
    let cluster = || store.read().cluster().unwrap().clone();
    let before = cluster();
    // A part of a spec, and all of it as it is: neither changes the root.
    for change in [json!({}), json!({ "CAConfig": null })] {
        assert_eq!(update(&fixture, "-", &change).await, "200");
        assert!(cluster().ca_history.is_empty());
    }
    assert_eq!(update(&fixture, "-", &json!({ "CAConfig": { "ForceRotate": 1 } })).await, "200");
    let first = cluster().ca_history.rotation.expect("begun");
    assert_eq!((cluster().ca_certificate, cluster().tokens), (before.ca_certificate.clone(), before.tokens), "shown as before");
    let shown: Value = fixture.client.get("/swarm").await.unwrap().json().unwrap();
    assert_eq!((&shown["RootRotationInProgress"], &shown["Spec"]["CAConfig"]["ForceRotate"]), (&json!(true), &json!(1)));
    assert_eq!(shown["TLSInfo"]["TrustRoot"], before.ca_certificate);
    assert!(!shown.to_string().contains("PRIVATE KEY"), "{shown}");
    // The lock is switched meanwhile, by a client that leaves out what it does not know.
    assert_eq!(
        update(&fixture, "-", &json!({ "CAConfig": null, "EncryptionConfig": { "AutoLockManagers": true } })).await,
        "200"
    );
    assert_eq!(cluster().ca_history.rotation.as_ref(), Some(&first));
    // The user's own root instead.
    let (certificate, key) = own_root(400);
    let own = json!({ "CAConfig": { "SigningCACert": certificate, "SigningCAKey": key, "ForceRotate": 2 } });
    assert_eq!(update(&fixture, "-", &own).await, "200");
    let trust = cluster().trust_bundle().expect("changed");
    assert_eq!(trust.trusted, [cluster().issuing_ca().0.to_owned(), before.ca_certificate.clone()]);
    assert_eq!(trust.retired, std::slice::from_ref(&first.ca_certificate), "a node may have a certificate of it");
    for known in [&before.ca_certificate, &first.ca_certificate] {
        assert!(leads_to(known, &trust.chain, &trust.issuer));
    }
    let rotations = cluster().ca_history.rotations;
    assert_eq!(update(&fixture, "-", &json!({ "CAConfig": { "SigningCACert": certificate, "SigningCAKey": key } })).await, "200");
    assert_eq!(cluster().ca_history.rotations, rotations, "the same root again");
    let shown: Value = fixture.client.get("/swarm").await.unwrap().json().unwrap();
    assert!(!shown.to_string().contains("Signing"), "{shown}");
}
