//! The words of managers and of nodes that are none, and of `docker service scale`, as data: `words/managers.txt`, `words/scale.txt`.

use super::docker_cli::run_docker;
use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use super::words::{Case, cases, table, without_ids};
use async_trait::async_trait;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::node::ManagerStatus;
use skep::model::{NodeState, Role, Timestamp};
use skep::store::{Action, Propose, ProposeError, StoreHandle, StorePublisher, Transaction};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bound on the wait for an event.
const EVENT: Duration = Duration::from_secs(10);

/// Writes nothing, as on a manager that knows no leader.
struct WithoutLeader;

impl WithoutLeader {
    /// A handle that reads what this one reads.
    fn handle(store: &StoreHandle) -> StoreHandle {
        let mut publisher = StorePublisher::default();
        publisher.publish(&store.read());
        StoreHandle::new(publisher.reader(), Arc::new(Self))
    }
}

#[async_trait]
impl Propose for WithoutLeader {
    async fn propose(&self, _: Transaction) -> Result<u64, ProposeError> {
        Err(ProposeError::NotLeader)
    }
}

pub(super) struct Swarm {
    pub(super) fixture: ApiFixture,
    pub(super) store: Option<StoreHandle>,
}

impl Swarm {
    pub(super) async fn new(state: &str) -> Self {
        let node = FakeNode::new(match state {
            "outside" => Membership::Inactive,
            "worker" => Membership::Worker(FakeNode::lab2()),
            // One that joins has none yet.
            "pending" => {
                Membership::Pending { node_addr: None, remotes: vec!["10.123.0.1:2377".to_owned()], error: String::new() }
            }
            "locked" => Membership::Locked { node_addr: Some("10.123.0.1".parse().unwrap()) },
            "error" => Membership::Pending {
                node_addr: Some("10.123.0.2".parse().unwrap()),
                remotes: Vec::new(),
                error: "this node was removed".to_owned(),
            },
            _ => Membership::Manager(FakeNode::lab1()),
        });
        // A manager that was started again without a majority is one like any other, from the start.
        let state = if ["lost", "restarted"].contains(&state) {
            *node.leaderless.lock().unwrap() = Some(Timestamp(1_700_000_000_000_000_000));
            "3/1"
        } else {
            state
        };
        let store = node.store.lock().unwrap().clone();
        if let (Some(store), Some((all, up))) = (&store, state.split_once('/')) {
            store.write(SystemClock.now(), objects(all.parse().unwrap(), up.parse().unwrap())).await.unwrap();
        }
        let store =
            if node.leaderless.lock().unwrap().is_some() { store.map(|store| WithoutLeader::handle(&store)) } else { store };
        node.store.lock().unwrap().clone_from(&store);
        Self { fixture: ApiFixture::serve(node, None), store }
    }

    /// `STATUS MESSAGE` of the last of these requests.
    async fn request(&self, requests: &str) -> String {
        let mut last = String::new();
        for request in requests.split("; ") {
            last = match request.strip_prefix("write ") {
                Some(change) => self.write(change).await,
                None => match request.strip_prefix("shown ") {
                    Some(what) => self.shown(what).await,
                    None => self.single_request(request).await,
                },
            };
        }
        last
    }

    /// What the leader writes by itself: `node NAME STATE|manager|demoted|joined`, `subnet NETWORK`.
    async fn write(&self, change: &str) -> String {
        let handle = self.store.as_ref().unwrap();
        let store = handle.read();
        let words: Vec<&str> = change.split(' ').collect();
        let action = match words[..] {
            ["node", name, "joined"] => Action::create(recorded_store::node(&format!("node10{:0>19}", 0), name, Role::Worker)),
            ["node", name, what] => {
                let mut node = store.nodes().find(|node| node.description.hostname == name).unwrap().clone();
                match what {
                    "manager" => node.manager = Some(ManagerStatus { raft_id: 77, addr: "10.123.0.9:2377".parse().unwrap() }),
                    "demoted" => node.manager = None,
                    state => node.status.state = serde_json::from_value(json!(state)).unwrap(),
                }
                Action::update(node)
            }
            ["subnet", name] => {
                let mut network = store.networks().find(|network| network.spec.name == name).unwrap().clone();
                network.subnet = Some("10.0.9.0/24".parse().unwrap());
                Action::update(network)
            }
            _ => panic!("{change}"),
        };
        handle.write(SystemClock.now(), vec![action]).await.unwrap();
        "200".to_owned()
    }

    /// `STATUS MESSAGE` of a request; the version of the object in the target where that says VERSION.
    async fn single_request(&self, request: &str) -> String {
        let (method, rest) = request.split_once(' ').unwrap();
        let (target, body) = rest.split_once(' ').unwrap_or((rest, ""));
        let target = target.replace("VERSION", &self.version(target).await);
        let fields: &[(&str, &str)] = if body.is_empty() { &[] } else { &[("Content-Type", "application/json")] };
        let reply = self.fixture.client.send(method, &target, fields, body.to_owned().into()).await.unwrap();
        let message = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
        let message = without_ids(message["message"].as_str().unwrap_or_default());
        format!("{} {message}", reply.status.as_u16()).trim().to_owned()
    }

    /// `TARGET PATH`: that part of what is shown there; `-` for all of it.
    async fn shown(&self, what: &str) -> String {
        let (target, path) = what.split_once(' ').unwrap();
        let shown: Value = self.fixture.client.get(target).await.unwrap().json().unwrap();
        let path = if path == "-" { String::new() } else { format!("/{}", path.replace('.', "/")) };
        shown.pointer(&path).unwrap_or(&Value::Null).to_string()
    }

    async fn version(&self, target: &str) -> String {
        let path = target.split('?').next().unwrap().trim_end_matches("/update");
        let shown: Value = match self.fixture.client.get(path).await.unwrap().json() {
            Ok(shown) => shown,
            Err(_) => return "1".to_owned(),
        };
        shown["Version"]["Index"].to_string()
    }

    async fn info(&self) -> String {
        let info: Value = self.fixture.client.get("/info").await.unwrap().json().unwrap();
        let swarm = &info["Swarm"];
        let is_set = |value: &Value, word: &str| {
            let set = match value {
                Value::Null => false,
                Value::String(text) => !text.is_empty(),
                _ => true,
            };
            if set { word.to_owned() } else { "-".to_owned() }
        };
        let cluster = match &swarm["Cluster"] {
            Value::Null => "-",
            cluster if cluster["ID"] == "" => "zeros",
            _ => "cluster",
        };
        format!(
            "{} {} {} {} {} {} {cluster}",
            swarm["LocalNodeState"].as_str().unwrap(),
            swarm["ControlAvailable"],
            swarm["Error"],
            is_set(&swarm["NodeID"], "id"),
            is_set(&swarm["NodeAddr"], "addr"),
            is_set(&swarm["RemoteManagers"], "managers"),
        )
    }

    /// The newest event of the swarm, waited for until it is the expected one.
    async fn event(&self, request: &str, expected: &str) -> String {
        // The feed begins with the state that it finds: it follows the store once it shows a change of it.
        let begin = Instant::now();
        let mut markers = 0;
        while !self.newest().await.contains("name=marker") {
            assert!(begin.elapsed() < EVENT, "no event of a marker");
            markers += 1;
            self.create_config(&format!("marker{markers}")).await;
        }
        let is_last = async || self.newest().await.ends_with(&format!("name=marker{markers}"));
        while !is_last().await {
            assert!(begin.elapsed() < EVENT, "no event of the last marker");
        }
        let steps: Vec<&str> = request.split("; ").collect();
        for (at, step) in steps.iter().enumerate() {
            let before = self.events().await.len();
            let answer = self.request(step).await;
            assert!(answer.starts_with('2'), "{step}: {answer}");
            // Two changes that the feed sees as one would be one event.
            while at + 1 < steps.len() && self.events().await.len() == before {
                assert!(begin.elapsed() < EVENT, "no event of {step}");
            }
        }
        if expected == "none" {
            // What comes next shows that nothing came before.
            self.create_config("last").await;
            while !self.newest().await.ends_with("name=last") {
                assert!(begin.elapsed() < EVENT, "no event of the last config");
            }
            let all = self.events().await;
            let between = all.len() - 2 - all.iter().rposition(|event| event.contains("name=marker")).unwrap();
            return if between == 0 { "none".to_owned() } else { all.join(" | ") };
        }
        loop {
            let newest = self.newest().await;
            if newest == expected || begin.elapsed() > EVENT / 5 {
                return newest;
            }
        }
    }

    async fn create_config(&self, name: &str) {
        let config = json!({ "Name": name, "Data": "YQ==" });
        self.fixture.client.request("POST", "/configs/create", Some(&config)).await.unwrap().ok().unwrap();
    }

    async fn newest(&self) -> String {
        self.events().await.pop().unwrap_or_default()
    }

    async fn events(&self) -> Vec<String> {
        let reply = self.fixture.client.get("/v1.51/events?since=0&until=99999999999.0").await.unwrap();
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_swarm = events.filter(|event| event["scope"] == "swarm");
        let shown = of_swarm.map(|event| {
            let attributes = event["Actor"]["Attributes"].as_object().into_iter().flatten();
            let attributes = attributes.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
            let words = [&event["Type"], &event["Action"]].map(|word| word.as_str().unwrap_or_default().to_owned());
            words.into_iter().chain(attributes).collect::<Vec<_>>().join(" ")
        });
        shown.collect()
    }
}

/// A cluster of so many managers, so many of them up, and two workers; the service web1.
fn objects(managers: u64, up: u64) -> Vec<Action> {
    let mut actions = vec![Action::create(recorded_store::cluster())];
    for number in (1..=managers).chain([8, 9]) {
        let id = if number == 1 { "ej9fe8a4i12wa7r06tdh2hha7".to_owned() } else { format!("node{number}{:0>20}", 0) };
        let is_manager = number <= managers;
        let role = if is_manager { Role::Manager } else { Role::Worker };
        let mut node = recorded_store::node(&id, &format!("lab{number}"), role);
        let addr = format!("10.123.0.{number}:2377").parse().unwrap();
        node.manager = is_manager.then_some(ManagerStatus { raft_id: number, addr });
        node.mesh.key = skep::model::WgKey([u8::try_from(number).unwrap(); 32]);
        let is_up = if is_manager { number <= up } else { number == 9 };
        node.status.state = if is_up { NodeState::Ready } else { NodeState::Down };
        actions.push(Action::create(node));
    }
    let spec = json!({
        "Name": "web1", "Mode": { "Replicated": { "Replicas": 1 } }, "TaskTemplate": { "ContainerSpec": { "Image": "lab:1" } },
    });
    let service = skep::model::fixture::service("web1serviceidaaaaaaaaaaaa", serde_json::from_value(spec).unwrap());
    actions.push(Action::create(service));
    actions.push(Action::create(recorded_store::network("backnetworkidaaaaaaaaaaaa", "back", Some("10.0.5.0/24"))));
    actions
}

/// What is said of a case, and whether a refusal changed the store.
async fn answer(case: &Case<'_>) -> (String, bool) {
    let (state, request) = case.request.split_once(' ').unwrap();
    let swarm = Swarm::new(state).await;
    let before = swarm.store.as_ref().map(StoreHandle::read);
    let expected = case.unlike.map_or(case.real, |(ours, _)| ours.trim());
    let answer = match request.split_once(' ').unwrap_or((request, "")) {
        ("info", _) => swarm.info().await,
        ("ping", _) => {
            let reply = swarm.fixture.client.get("/_ping").await.unwrap();
            reply.headers["swarm"].to_str().unwrap().to_owned()
        }
        ("event", request) => swarm.event(request, expected).await,
        _ => swarm.request(request).await,
    };
    // Of several requests all but the last are to change it.
    let refused = answer.starts_with(['4', '5']) && !request.contains("; ");
    let changed = swarm.store.as_ref().zip(before).is_some_and(|(store, before)| {
        let after = store.read();
        !after.nodes().eq(before.nodes()) || !after.services().eq(before.services()) || after.cluster() != before.cluster()
    });
    (answer, refused && changed)
}

#[tokio::test]
async fn managers_and_other_nodes_answer_as_those_of_a_real_swarm_or_unlike_them_for_a_reason() {
    let table = table("managers.txt");
    let cases = cases(&table);
    let mut wrong = Vec::new();
    for case in &cases {
        let (answer, changed) = answer(case).await;
        let expected = case.unlike.map_or(case.real, |(ours, _)| ours.trim());
        if !case.matches(&answer) {
            wrong.push(format!("line {}: {}\n    is {answer}\n    not {expected}", case.number, case.request));
        }
        if case.unlike.is_some_and(|(ours, _)| ours.trim() == case.real) {
            wrong.push(format!("line {}: not unlike the real one", case.number));
        }
        if changed {
            wrong.push(format!("line {}: the store has changed", case.number));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Needs the stock CLI.
#[tokio::test]
async fn service_scale_by_the_stock_cli_says_what_it_says_to_a_real_swarm() {
    let table = table("scale.txt");
    let cases = cases(&table);
    let mut wrong = Vec::new();
    for case in &cases {
        let swarm = Swarm::new("1/1").await;
        for (name, mode) in [
            ("a", json!({ "Replicated": { "Replicas": 1 } })),
            ("b", json!({ "Replicated": { "Replicas": 1 } })),
            ("gl", json!({ "Global": {} })),
            ("job", json!({ "ReplicatedJob": { "MaxConcurrent": 1, "TotalCompletions": 1 } })),
            ("glj", json!({ "GlobalJob": {} })),
        ] {
            let spec = json!({ "Name": name, "Mode": mode, "TaskTemplate": { "ContainerSpec": { "Image": "lab:1" } } });
            swarm.fixture.client.request("POST", "/services/create", Some(&spec)).await.unwrap().ok().unwrap();
        }
        let (said, after) = case.real.split_once("=> ").unwrap();
        let mut arguments = vec!["service"];
        arguments.extend(case.request.split_whitespace());
        let (code, _, error) = run_docker(&swarm.fixture, &arguments, "").await;
        let first = error.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let is = format!("{} {first}", code.unwrap_or(-1));
        let store = swarm.store.as_ref().unwrap().read();
        let mode = |name: &str| store.service_named(name).unwrap().spec.mode.clone();
        let total = mode("job").replicated_job.unwrap().total_completions.unwrap_or(0);
        let scaled = format!("{} {} {total}", mode("a").replicas(), mode("b").replicas());
        if is.trim() != said.trim() || scaled != after {
            wrong.push(format!("line {}: {}\n    is {is} => {scaled}\n    not {}", case.number, case.request, case.real));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
