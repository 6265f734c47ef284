//! What services show over the API while the planners work: updates, tasks that wait, jobs. `words/course.txt` says how the lines are
//! read. The planners run over the store of the API; nodes are words, and their agents what a step says.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use super::words::{cases, patch, table};
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::{Availability, NodeState, Role, Task, TaskState, Timestamp};
use skep::store::{Action, StoreHandle};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

struct Course {
    fixture: ApiFixture,
    store: StoreHandle,
    planner: RoundPlanner,
    /// How far the planners' clock is ahead.
    ahead: Duration,
    /// `STATUS MESSAGE` of the last request.
    said: String,
    /// Markers in the stream of events; `None`: it is not followed.
    markers: Option<u32>,
}

/// Bound on the wait for an event.
const EVENT: Duration = Duration::from_secs(10);

impl Course {
    async fn new(nodes: &str) -> Self {
        let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
        let store = node.store.lock().unwrap().clone().unwrap();
        let mut ingress = recorded_store::network("ingressnetworkidaaaaaaaaa", "ingress", Some("10.0.0.0/24"));
        ingress.spec.ingress = true;
        let mut actions = vec![Action::create(recorded_store::cluster()), Action::create(ingress)];
        for (number, word) in (1..).zip(nodes.split(',')) {
            let mut node = recorded_store::node(&format!("node{number:0>21}"), &format!("lab{number}"), Role::Worker);
            match word.trim() {
                "ready" => {}
                "pause" => node.spec.availability = Availability::Pause,
                "drain" => node.spec.availability = Availability::Drain,
                "down" => node.status.state = NodeState::Down,
                "small" => node.description.memory_bytes = 1,
                "zone" => drop(node.spec.labels.insert("zone".to_owned(), "a".to_owned())),
                other => panic!("no node is {other}"),
            }
            actions.push(Action::create(node));
        }
        store.write(SystemClock.now(), actions).await.unwrap();
        let planner = RoundPlanner::new(ManagerSettings::default(), 1);
        Self { fixture: ApiFixture::serve(node, None), store, planner, ahead: Duration::ZERO, said: String::new(), markers: None }
    }

    fn now(&self) -> Timestamp {
        SystemClock.now().plus(self.ahead)
    }

    /// Rounds until there is nothing left to do.
    async fn plan(&mut self) {
        for _ in 0..100 {
            let (store, now) = (self.store.read(), self.now());
            let actions = self.planner.round(&store, Vec::new(), LowestApplied::default(), now);
            if actions.is_empty() {
                return;
            }
            self.store.write(now, actions).await.unwrap();
            self.planner.written();
            self.seen().await;
        }
        panic!("the planners do not settle");
    }

    /// Observes a state of tasks.
    async fn observe(&mut self, next: impl Fn(&Task) -> Option<TaskState>) -> bool {
        let now = self.now();
        let changed = |task: &Task| {
            let state = next(task).filter(|state| *state > task.status.state)?;
            let mut task = task.clone();
            (task.status.state, task.status.timestamp) = (state, now);
            Some(Action::update(task))
        };
        let actions: Vec<Action> = self.store.read().tasks().filter_map(changed).collect();
        let any = !actions.is_empty();
        self.store.write(now, actions).await.unwrap();
        self.seen().await;
        self.plan().await;
        any
    }

    /// Every task gets as far as it is to. What has no port serves once it has run for a second.
    async fn run(&mut self) {
        let next = |task: &Task| {
            task.node_id.as_ref()?;
            Some(match task.desired_state {
                _ if task.status.state.is_final() => return None,
                TaskState::Ready => TaskState::Ready,
                TaskState::Running | TaskState::Complete => TaskState::Running,
                _ => TaskState::Shutdown,
            })
        };
        for _ in 0..40 {
            while self.observe(next).await {}
            self.ahead += Duration::from_secs(1);
            self.plan().await;
            if !self.observe(next).await {
                return;
            }
        }
        panic!("tasks change for ever");
    }

    /// The newest tasks of the service end like this: those of the present template, or of the present run.
    async fn end(&mut self, state: TaskState) {
        let store = self.store.read();
        let service = store.services().next().unwrap().clone();
        let is_newest = move |task: &Task| {
            let lives = task.node_id.is_some() && !task.status.state.is_final() && task.is_wanted();
            let of_run = task.job_iteration == service.job.map(|job| job.iteration);
            lives && of_run && task.spec_version == service.spec_version
        };
        self.observe(|task| is_newest(task).then_some(state)).await;
    }

    async fn post(&mut self, target: &str, body: &Value) {
        let reply = self.fixture.client.request("POST", target, Some(body)).await.unwrap();
        let message = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
        self.said = format!("{} {}", reply.status.as_u16(), message["message"].as_str().unwrap_or_default());
        self.seen().await;
        self.plan().await;
    }

    /// Waits until the stream of events has shown what was written: two changes that it sees as one would be one event. It begins with
    /// the state that it finds, so the first marker may be missed.
    async fn seen(&mut self) {
        let begin = Instant::now();
        while let Some(marker) = &mut self.markers {
            *marker += 1;
            let config = json!({ "Name": format!("marker{marker}"), "Data": "YQ==" });
            self.fixture.client.request("POST", "/configs/create", Some(&config)).await.unwrap().ok().unwrap();
            let is_marker = |event: &Value| event["Actor"]["Attributes"]["name"] == config["Name"];
            for _ in 0..100 {
                if self.events().await.iter().any(is_marker) {
                    return;
                }
            }
            assert!(begin.elapsed() < EVENT, "no event of a marker");
        }
    }

    async fn events(&self) -> Vec<Value> {
        let reply = self.fixture.client.get("/v1.51/events?since=0&until=99999999999.0").await.unwrap();
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["scope"] == "swarm").collect()
    }

    /// What the events of the last step say of changes of the service, each beside its name.
    async fn changes(&self, before: usize) -> String {
        let events = self.events().await;
        let of_service = events.iter().skip(before).filter(|event| event["Type"] == "service");
        let shown = of_service.map(|event| {
            let attributes = event["Actor"]["Attributes"].as_object().unwrap().iter().filter(|(key, _)| *key != "name");
            let attributes = attributes.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
            attributes.collect::<Vec<_>>().join(" ")
        });
        shown.filter(|change| !change.is_empty()).collect::<Vec<_>>().join(" | ")
    }

    async fn get(&self, target: &str) -> Value {
        self.fixture.client.get(target).await.unwrap().json().unwrap()
    }

    async fn step(&mut self, step: &str) {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let change = || -> Value {
            let v2 = r#"{"TaskTemplate":{"ContainerSpec":{"Image":"lab:2"}}}"#;
            serde_json::from_str(if rest == "V2" { v2 } else { rest }).unwrap_or_else(|error| panic!("{step}: {error}"))
        };
        match verb {
            "create" => {
                let mut spec = json!({ "Name": "web", "Mode": { "Replicated": { "Replicas": 2 } } });
                spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("lab:1");
                patch(&mut spec, &change());
                self.post("/services/create", &spec).await;
            }
            "update" | "rollback" => {
                let shown = self.get("/services/web").await;
                let mut spec = shown["Spec"].clone();
                let query = if verb == "update" { "" } else { "&rollback=previous" };
                if verb == "update" {
                    patch(&mut spec, &change());
                }
                self.post(&format!("/services/web/update?version={}{query}", shown["Version"]["Index"]), &spec).await;
            }
            "run" => self.run().await,
            "reject" => self.end(TaskState::Rejected).await,
            "finish" => self.end(TaskState::Complete).await,
            "node" => self.change_node(rest).await,
            "wait" => {
                self.ahead += Duration::from_secs(rest.parse().unwrap());
                self.plan().await;
            }
            other => panic!("no step is {other}"),
        }
    }

    /// `NUMBER WORD`: another availability, or down.
    async fn change_node(&mut self, change: &str) {
        let (number, word) = change.split_once(' ').unwrap();
        let store = self.store.read();
        let mut node = store.nodes().find(|node| node.description.hostname == format!("lab{number}")).unwrap().clone();
        match word {
            "active" => node.spec.availability = Availability::Active,
            "pause" => node.spec.availability = Availability::Pause,
            "drain" => node.spec.availability = Availability::Drain,
            "down" => node.status.state = NodeState::Down,
            "zone" => drop(node.spec.labels.insert("zone".to_owned(), "a".to_owned())),
            other => panic!("no node is {other}"),
        }
        self.store.write(self.now(), vec![Action::update(node)]).await.unwrap();
        self.plan().await;
    }

    /// `before`: how many events there were before the last step.
    async fn shows(&self, what: &str, before: usize) -> String {
        let is_id = |word: &str| word.len() == 25 && word.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        let text = match what {
            "update" => {
                let update = self.get("/services/web").await["UpdateStatus"].take();
                let text = |key: &str| update[key].as_str().unwrap_or_default().to_owned();
                format!("{} {}", text("State"), text("Message"))
            }
            "changes" => self.changes(before).await,
            "pending" | "pending-on-lab1" | "waits" => {
                let of_node = json!({ "node": ["lab1"] }).to_string().replace('"', "%22");
                let query = if what == "pending-on-lab1" { format!("?filters={of_node}") } else { String::new() };
                let tasks = self.get(&format!("/tasks{query}")).await;
                let tasks = tasks.as_array().into_iter().flatten();
                let waiting = tasks.filter(|task| task["Status"]["State"] == "pending" && task["DesiredState"] != "shutdown");
                let texts: BTreeSet<String> = waiting.map(|task| waits(task, what)).collect();
                texts.into_iter().collect::<Vec<_>>().join(" | ")
            }
            "counts" => {
                let shown = self.get("/services?status=true").await[0]["ServiceStatus"].take();
                let count = |key: &str| shown[key].as_u64().unwrap_or(0);
                format!("{} {} {}", count("RunningTasks"), count("DesiredTasks"), count("CompletedTasks"))
            }
            "refused" => self.said.clone(),
            "iterations" => {
                let tasks = self.get("/tasks").await;
                let tasks = tasks.as_array().into_iter().flatten();
                let mut shown: Vec<String> =
                    tasks.map(|task| format!("{} {}", task["Status"]["State"].as_str().unwrap(), task["JobIteration"])).collect();
                shown.sort();
                shown.join(" | ")
            }
            "previous" => {
                let previous = self.get("/services/web").await["PreviousSpec"].take();
                previous["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default().to_owned()
            }
            "times" => {
                let update = self.get("/services/web").await["UpdateStatus"].take();
                let given = [("StartedAt", "started"), ("CompletedAt", "completed")].into_iter();
                given.filter(|(key, _)| update[*key].is_string()).map(|(_, word)| word).collect::<Vec<_>>().join(" ")
            }
            other => panic!("nothing is {other}"),
        };
        let words = text.split(' ').map(|word| match word.strip_suffix(':') {
            Some(id) if is_id(id) => "ID:".to_owned(),
            _ if is_id(word) => "ID".to_owned(),
            _ => word.to_owned(),
        });
        let text = words.collect::<Vec<_>>().join(" ").trim().to_owned();
        if text.is_empty() { "none".to_owned() } else { text }
    }
}

/// Why a task waits; all that is said of it for the WHAT `waits`.
fn waits(task: &Value, what: &str) -> String {
    let text = |key: &str| task["Status"][key].as_str().unwrap_or_default().to_owned();
    if what != "waits" {
        return text("Err");
    }
    let node = if task.get("NodeID").is_some() { "a node" } else { "no node" };
    format!("{}, {}, {node}, {}", text("State"), text("Message"), task["Status"]["PortStatus"])
}

#[tokio::test]
async fn services_show_what_those_of_a_real_swarm_show_or_something_else_for_a_reason() {
    let table = table("course.txt");
    let cases = cases(&table);
    let mut wrong = Vec::new();
    for case in &cases {
        let (what, steps) = case.request.split_once(' ').unwrap();
        let mut steps: Vec<&str> = steps.split("; ").collect();
        let nodes = steps[0].strip_prefix("nodes ").map(str::to_owned);
        if nodes.is_some() {
            steps.remove(0);
        }
        let mut course = Course::new(nodes.as_deref().unwrap_or("ready,ready")).await;
        let (mut last, mut before) = (steps.len(), 0);
        for step in steps {
            last -= 1;
            if what == "changes" && last == 0 {
                course.markers = Some(0);
                course.seen().await;
                before = course.events().await.len();
            }
            assert!(course.said.is_empty() || course.said.starts_with('2'), "line {}: {}", case.number, course.said);
            course.step(step).await;
        }
        assert!(what == "refused" || course.said.starts_with('2'), "line {}: {}", case.number, course.said);
        let (shown, expected) = (course.shows(what, before).await, case.unlike.map_or(case.real, |(ours, _)| ours.trim()));
        if shown != expected {
            wrong.push(format!("line {}: {}\n    is {shown}\n    not {expected}", case.number, case.request));
        }
        if case.unlike.is_some_and(|(ours, _)| ours.trim() == case.real) {
            wrong.push(format!("line {}: not unlike the real one", case.number));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
