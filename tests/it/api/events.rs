//! Events of the swarm merged with the engine's.

use super::fixture::{ApiFixture, FakeNode, SocketDir};
use super::recorded_store;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock as _, SystemClock};
use skep::http::{ReplyLines, bind_unix, serve_unix};
use skep::model::Role;
use skep::store::{Action, Kind};
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bound on every wait.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An engine with one event of a container and one of a hidden network, in the past; a stream without `until` stays open.
async fn engine(request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    if !request.uri().path().ends_with("/events") {
        return axum::http::StatusCode::NOT_FOUND.into_response();
    }
    if query.contains("since=bad") {
        return (axum::http::StatusCode::BAD_REQUEST, axum::Json(json!({"message": "bad time"}))).into_response();
    }
    let event = |kind: &str, driver: &str| {
        let attributes = json!({"name": "x", "type": driver});
        json!({"Type": kind, "Action": "create", "Actor": {"ID": "77", "Attributes": attributes}, "scope": "local", "time": 5, "timeNano": 5_000_000_000_u64})
    };
    let asks_swarm_only = query.contains("swarm");
    let past = [event("network", "skep"), event("container", ""), event("network", "bridge")];
    let text: String = past.iter().filter(|_| !asks_swarm_only).map(|e| format!("{e}\n")).collect();
    let past = futures_util::stream::iter([Ok::<_, Infallible>(text)]);
    if query.contains("until") {
        return Body::from_stream(past).into_response();
    }
    Body::from_stream(futures_util::StreamExt::chain(past, futures_util::stream::pending())).into_response()
}

struct Fixture {
    api: ApiFixture,
    _dir: SocketDir,
    _shutdown: DropGuard,
}

impl Fixture {
    /// A swarm that was just created, with the service web and the network back.
    async fn swarm() -> Self {
        let (dir, shutdown) = (SocketDir::new(), CancellationToken::new());
        let socket = dir.path("engine.sock");
        tokio::spawn(serve_unix(bind_unix(&socket).unwrap(), Router::new().fallback(engine), shutdown.clone()));
        let api = ApiFixture::serve(FakeNode::new(Membership::Inactive), Some(&socket));
        let fixture = Self { api, _dir: dir, _shutdown: shutdown.drop_guard() };
        let init = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.1"});
        fixture.post("/swarm/init", &init).await;
        fixture.post("/networks/create", &json!({"Name": "back", "Driver": "overlay"})).await;
        fixture.post("/services/create", &web(1)).await;
        fixture
    }

    async fn post(&self, target: &str, body: &Value) {
        self.api.client.request("POST", target, Some(body)).await.unwrap().ok().unwrap();
    }

    /// Scales the service.
    async fn scale(&self, replicas: u64) {
        let shown: Value = self.api.client.get("/services/web").await.unwrap().json().unwrap();
        self.post(&format!("/services/web/update?version={}", shown["Version"]["Index"]), &web(replicas)).await;
    }

    /// The events of a finished stream, as `type action name`, once all of `expected` are there.
    async fn past(&self, query: &str, expected: &[&str]) -> Vec<String> {
        let target = format!("/v1.51/events?until=99999999999.0&{query}");
        let all = async {
            loop {
                let reply = self.api.client.get(&target).await.unwrap();
                let text = String::from_utf8_lossy(&reply.body).into_owned();
                let lines: Vec<String> = text.lines().map(|line| short(&serde_json::from_str(line).unwrap())).collect();
                if expected.iter().all(|e| lines.iter().any(|l| l == e)) {
                    return lines;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, all).await.unwrap_or_else(|_| panic!("never saw {expected:?}"))
    }
}

fn web(replicas: u64) -> Value {
    json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}, "Mode": {"Replicated": {"Replicas": replicas}}})
}

fn short(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&event["Actor"]["Attributes"]["name"]);
    format!("{} {} {name}", text(&event["Type"]), text(&event["Action"]))
}

/// The next event of an open stream that is the swarm's.
async fn next(lines: &mut ReplyLines) -> Value {
    loop {
        let line =
            tokio::time::timeout(TIMEOUT, lines.next()).await.expect("an event in time").unwrap().expect("the stream goes on");
        let event: Value = serde_json::from_str(&line).unwrap();
        if event["scope"] == "swarm" {
            return event;
        }
    }
}

#[tokio::test]
async fn the_swarms_events_are_replayed_in_order_among_the_engines_and_hidden_networks_are_not() {
    let fixture = Fixture::swarm().await;
    fixture.scale(2).await;
    let all = fixture.past("since=0", &["service update web"]).await;
    let swarm: Vec<&str> = all.iter().map(String::as_str).filter(|e| e.starts_with("service") || e.ends_with("back")).collect();
    assert_eq!(swarm, ["network create back", "service create web", "service update web"]);
    assert_eq!(all[..2], ["container create x", "network create x"], "older ones first, hidden ones never: {all:?}");
    let filtered =
        fixture.past("since=0&filters=%7B%22type%22%3A%5B%22network%22%5D%2C%22scope%22%3A%5B%22swarm%22%5D%7D", &[]).await;
    assert_eq!(filtered, ["network create back"]);
    let reply = fixture.api.client.get("/v1.51/events?since=bad").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.ok().unwrap_err().to_string().contains("bad time")), (400, true));
}

/// Those of containers had them; of the swarm's events no version of the API has.
#[tokio::test]
async fn events_of_the_swarm_never_have_the_old_fields_beside_their_actor() {
    let fixture = Fixture::swarm().await;
    fixture.past("since=0", &["service create web"]).await;
    for version in ["/v1.41", "/v1.51", ""] {
        let reply = fixture.api.client.get(&format!("{version}/events?since=0&until=99999999999.0")).await.unwrap();
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|e| e["scope"] == "swarm");
        let keys: Vec<Vec<String>> = events.map(|e| e.as_object().unwrap().keys().cloned().collect()).collect();
        assert!(keys.len() >= 2, "{text}");
        assert!(keys.iter().all(|keys| *keys == ["Action", "Actor", "Type", "scope", "time", "timeNano"]), "{version}: {keys:?}");
    }
}

#[tokio::test]
async fn changes_are_followed_with_their_old_and_new_values() {
    let fixture = Fixture::swarm().await;
    fixture.past("since=0", &["service create web"]).await;
    let mut lines = fixture.api.client.lines("/events?filters=%7B%22type%22%3A%5B%22service%22%5D%7D").await.unwrap();
    fixture.scale(3).await;
    let event = next(&mut lines).await;
    assert_eq!(short(&event), "service update web");
    let attributes = json!({"name": "web", "replicas.old": "1", "replicas.new": "3"});
    assert_eq!((&event["Actor"]["Attributes"], &event["scope"]), (&attributes, &json!("swarm")));
    assert!(
        event["timeNano"].as_i64().unwrap() / 1_000_000_000 == event["time"].as_i64().unwrap() && event.get("status").is_none()
    );
    fixture.api.client.request("DELETE", "/services/web", None).await.unwrap().ok().unwrap();
    assert_eq!(short(&next(&mut lines).await), "service remove web");
}

#[tokio::test]
async fn the_next_swarm_of_a_node_is_followed_too() {
    let fixture = Fixture::swarm().await;
    fixture.past("since=0", &["service create web"]).await;
    fixture.post("/swarm/leave?force=1", &json!({})).await;
    fixture.post("/swarm/init", &json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.1"})).await;
    fixture.post("/networks/create", &json!({"Name": "front", "Driver": "overlay"})).await;
    let all = fixture.past("since=0", &["network create front"]).await;
    assert!(all.contains(&"service create web".to_owned()), "what was before is kept: {all:?}");
}

/// A node that becomes a manager gets the whole state from the leader, at once.
/// Raft publishes together what it commits together: here the feed does not run in between.
#[tokio::test]
async fn each_of_several_changes_that_are_published_together_is_an_event() {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let lab1 = recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager);
    store.write(SystemClock.now(), vec![Action::create(recorded_store::cluster()), Action::create(lab1)]).await.unwrap();
    let api = ApiFixture::serve(node, None);
    // The feed runs on this thread, and follows the store from now on.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let id = "network000000000000000001";
    for _ in 0..3 {
        let create = Action::create(recorded_store::network(id, "brief", Some("10.0.9.0/24")));
        store.write(SystemClock.now(), vec![create]).await.unwrap();
        store.write(SystemClock.now(), vec![Action::Remove(Kind::Network, id.to_owned())]).await.unwrap();
    }
    let begin = Instant::now();
    loop {
        let reply = api.client.get("/v1.51/events?since=0&until=99999999999.0").await.unwrap();
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let all: Vec<String> = text.lines().map(|line| short(&serde_json::from_str(line).unwrap())).collect();
        if all == ["network create brief", "network remove brief"].repeat(3) {
            break;
        }
        assert!(begin.elapsed() < TIMEOUT, "{all:?}");
    }
}

#[tokio::test]
async fn what_a_further_manager_gets_from_the_leader_is_no_news() {
    let state = || {
        let mut back = vec![
            Action::create(recorded_store::cluster()),
            Action::create(recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager)),
        ];
        back.extend((0..20).map(|n| {
            let (id, subnet) = (format!("network{n:0>18}"), format!("10.0.{n}.0/24"));
            Action::create(recorded_store::network(&id, &format!("old{n}"), Some(&subnet)))
        }));
        back
    };
    for filled_at_first in [true, false] {
        let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
        let store = node.store.lock().unwrap().clone().unwrap();
        if filled_at_first {
            store.write(SystemClock.now(), state()).await.unwrap();
        }
        let api = ApiFixture::serve(node, None);
        if !filled_at_first {
            // It is followed while it is empty: the feed runs on this thread.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            store.write(SystemClock.now(), state()).await.unwrap();
        }
        let events = async || {
            let reply = api.client.get("/v1.51/events?since=0&until=99999999999.0").await.unwrap();
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            text.lines().map(|line| short(&serde_json::from_str(line).unwrap())).collect::<Vec<_>>()
        };
        let begin = Instant::now();
        for n in 0.. {
            assert!(begin.elapsed() < TIMEOUT, "no event of what is new");
            let new = json!({"Name": format!("new{n}"), "Driver": "overlay"});
            api.client.request("POST", "/networks/create", Some(&new)).await.unwrap().ok().unwrap();
            let all = events().await;
            assert!(
                all.iter().all(|event| event.starts_with("network create new")),
                "filled at first: {filled_at_first}: {all:?}"
            );
            if !all.is_empty() {
                break;
            }
        }
    }
}
