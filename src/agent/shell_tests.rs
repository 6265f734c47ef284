//! The whole agent on the fake engine: real time, real channels.

use super::testing::{ME, network, on_network, task, view};
use super::{AgentChannels, AgentConfig, remove_all, run};
use crate::clock::SystemClock;
use crate::model::{NodeId, NodeView, PullAuth, Revision, Task, TaskId, TaskState, TaskStatus};
use crate::runtime::Health;
use crate::runtime::fake::FakeEngine;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

struct AgentFixture {
    engine: Arc<FakeEngine>,
    view: watch::Sender<Option<Arc<NodeView>>>,
    statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    applied: watch::Receiver<Revision>,
    last: BTreeMap<TaskId, TaskStatus>,
    shutdown: CancellationToken,
    index: u64,
}

impl AgentFixture {
    fn new(engine: Arc<FakeEngine>) -> Self {
        let (view, views) = watch::channel(None);
        let (status, statuses) = mpsc::channel(4);
        let (set_applied, applied) = watch::channel(Revision::default());
        let shutdown = CancellationToken::new();
        let mtu = watch::channel(1420).1;
        let files = std::env::temp_dir().join(format!("skep-agent-files-{}", std::process::id()));
        let mut config = AgentConfig::new(NodeId::from(ME), "/run/docker.sock".into(), None, files, mtu);
        config.unassigned_grace = Duration::from_millis(300);
        let (session, engine_answers) = (watch::channel(true).1, watch::channel(true).0);
        let channels = AgentChannels { view: views, status, applied: set_applied, engine_answers, session };
        tokio::spawn(run(config, channels, engine.clone(), Arc::new(SystemClock), shutdown.clone()));
        Self { engine, view, statuses, applied, last: BTreeMap::new(), shutdown, index: 0 }
    }

    fn want(&mut self, tasks: &[Task]) {
        self.index += 1;
        let networks: Vec<_> = tasks
            .iter()
            .flat_map(|t| &t.attachments)
            .map(|a| network(a.network_id.as_str(), a.address.addr().octets()[2]))
            .collect();
        self.view.send_replace(Some(view(self.index, tasks, &networks)));
    }

    async fn until(&mut self, task: &str, state: TaskState) -> TaskStatus {
        let id = TaskId::from(task);
        loop {
            if let Some(status) = self.last.get(&id)
                && status.state == state
            {
                return status.clone();
            }
            let got = tokio::time::timeout(Duration::from_secs(10), self.statuses.recv()).await;
            let (id, status) = got.unwrap_or_else(|_| panic!("{task} is not {state:?}: {:?}", self.last)).expect("agent runs");
            self.last.insert(id, status);
        }
    }

    async fn eventually(&self, what: &str, mut check: impl FnMut(&FakeEngine) -> bool) {
        for _ in 0..500 {
            if check(&self.engine) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s: {what}: {:?}", self.engine.state().calls);
    }
}

fn engine() -> Arc<FakeEngine> {
    let engine = FakeEngine::default();
    engine.state().images.insert("web:1".to_owned());
    Arc::new(engine)
}

fn shut(mut task: Task) -> Task {
    task.desired_state = TaskState::Shutdown;
    task
}

#[tokio::test]
async fn a_task_with_a_network_runs_stops_and_is_removed() {
    let mut agent = AgentFixture::new(engine());
    let t = on_network(task("t1"), "n1", "10.0.1.5/24");
    agent.want(std::slice::from_ref(&t));
    let running = agent.until("t1", TaskState::Running).await;
    assert_eq!(running.message, "started");
    assert!(running.container.is_some_and(|c| c.pid > 0));
    assert_eq!(agent.applied.borrow().index, 1);
    assert_eq!(agent.engine.state().networks.len(), 1);
    agent.want(&[shut(t)]);
    agent.until("t1", TaskState::Shutdown).await;
    assert_eq!(agent.engine.state().containers.len(), 1, "a finished task keeps its container");
    agent.want(&[]);
    agent.eventually("all gone", |e| e.state().containers.is_empty() && e.state().networks.is_empty()).await;
}

#[tokio::test]
async fn a_slow_pull_and_a_slow_stop_do_not_delay_other_tasks() {
    let mut agent = AgentFixture::new(engine());
    {
        let mut state = agent.engine.state();
        state.pull_time = Duration::from_hours(1);
        state.registry.insert("big:1".to_owned());
    }
    let mut slow: Vec<Task> = (0..10).map(|n| task(&format!("slow{n}"))).collect();
    for t in &mut slow {
        std::sync::Arc::make_mut(&mut t.spec).container_spec.image = "big:1".to_owned();
    }
    let stopped = task("stopped");
    agent.want(std::slice::from_ref(&stopped));
    agent.until("stopped", TaskState::Running).await;
    agent.engine.state().stop_time = Duration::from_hours(1);
    let mut all = slow.clone();
    all.extend([shut(stopped), task("t1")]);
    agent.want(&all);
    agent.until("t1", TaskState::Running).await;
    assert_eq!(agent.last[&TaskId::from("slow9")].state, TaskState::Preparing);
    // The pull of a task that is to stop is cancelled at once.
    all[0] = shut(all[0].clone());
    agent.want(&all);
    agent.until("slow0", TaskState::Shutdown).await;
}

#[tokio::test]
async fn the_agent_waits_for_an_engine_that_restarts() {
    let mut agent = AgentFixture::new(engine());
    agent.engine.go_down();
    agent.want(&[task("t1")]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.engine.come_back();
    let id = agent.until("t1", TaskState::Running).await.container.expect("a container").container_id;
    agent.engine.go_down();
    agent.want(&[task("t1"), task("t2")]);
    // The container ends while the engine does not answer.
    agent.engine.exit(&id, 1);
    agent.engine.come_back();
    assert_eq!(agent.until("t1", TaskState::Failed).await.err, "task: non-zero exit (1)");
    agent.until("t2", TaskState::Running).await;
}

#[tokio::test]
async fn a_restarted_agent_adopts_containers_and_removes_those_of_unknown_tasks() {
    let engine = engine();
    let mut agent = AgentFixture::new(engine.clone());
    agent.want(&[task("t1"), task("t2")]);
    agent.until("t1", TaskState::Running).await;
    agent.until("t2", TaskState::Running).await;
    agent.shutdown.cancel();
    engine.state().calls.clear();
    let mut again = AgentFixture::new(engine.clone());
    again.want(&[task("t1")]);
    again.until("t1", TaskState::Running).await;
    again.eventually("t2 gone", |e| e.state().containers.len() == 1).await;
    let calls = engine.state().calls.clone();
    assert!(!calls.iter().any(|c| c.starts_with("start") || c.starts_with("create")), "{calls:?}");
}

#[tokio::test]
async fn health_and_failures_are_reported() {
    let mut agent = AgentFixture::new(engine());
    {
        let mut state = agent.engine.state();
        state.images.extend(["sick:1".to_owned(), "broken:1".to_owned()]);
        state.checked.insert("sick:1".to_owned());
        state.broken.insert("broken:1".to_owned(), "exec: \"nope\": not found".to_owned());
    }
    let image = |id: &str, image: &str| {
        let mut t = task(id);
        std::sync::Arc::make_mut(&mut t.spec).container_spec.image = image.to_owned();
        t
    };
    agent.want(&[image("sick", "sick:1"), image("broken", "broken:1"), image("absent", "absent:1")]);
    assert_eq!(agent.until("absent", TaskState::Rejected).await.err, "No such image: absent:1");
    assert_eq!(agent.until("broken", TaskState::Failed).await.err, "starting container failed: exec: \"nope\": not found");
    let id = agent.until("sick", TaskState::Starting).await.container.expect("made").container_id;
    agent.eventually("it runs", |e| e.state().calls.contains(&format!("start {id}"))).await;
    agent.engine.set_health(&id, Health::Healthy);
    agent.until("sick", TaskState::Running).await;
    agent.engine.set_health(&id, Health::Unhealthy);
    assert!(agent.until("sick", TaskState::Failed).await.err.contains("unhealthy container"));
}

#[tokio::test]
async fn a_private_image_is_pulled_with_the_credentials_of_its_task() {
    let mut agent = AgentFixture::new(engine());
    let auth = PullAuth::new("eyJ1c2VybmFtZSI6ImEifQ==".to_owned());
    {
        let mut state = agent.engine.state();
        state.registry.insert("private:1".to_owned());
        state.private.insert("private:1".to_owned(), auth.clone());
    }
    let with = |id: &str, auth: Option<PullAuth>| {
        let mut t = task(id);
        std::sync::Arc::make_mut(&mut t.spec).container_spec.image = "private:1".to_owned();
        Task { pull_auth: auth, ..t }
    };
    agent.want(&[with("without", None)]);
    agent.until("without", TaskState::Rejected).await;
    agent.want(&[with("with", Some(auth))]);
    agent.until("with", TaskState::Running).await;
}

/// The ledger has no credentials: a task whose image is there starts from it, another one waits for the next session and is not given up.
#[tokio::test]
async fn a_task_whose_credentials_are_not_known_yet_waits_for_them_unless_its_image_is_there() {
    let mut agent = AgentFixture::new(engine());
    let auth = PullAuth::new("eyJ1c2VybmFtZSI6ImEifQ==".to_owned());
    {
        let mut state = agent.engine.state();
        state.registry.insert("private:1".to_owned());
        state.private.insert("private:1".to_owned(), auth.clone());
    }
    let with = |id: &str, image: &str, auth: &PullAuth| {
        let mut t = task(id);
        std::sync::Arc::make_mut(&mut t.spec).container_spec.image = image.to_owned();
        Task { pull_auth: Some(auth.clone()), ..t }
    };
    let tasks = |auth: &PullAuth| [with("there", "web:1", auth), with("missing", "private:1", auth)];
    agent.want(&tasks(&PullAuth::withheld()));
    agent.until("there", TaskState::Running).await;
    agent.until("missing", TaskState::Preparing).await;
    assert!(!agent.engine.state().calls.iter().any(|call| call.starts_with("pull")));
    agent.want(&tasks(&auth));
    agent.until("missing", TaskState::Running).await;
}

/// As in Swarm: a tag may be another image by now, a digest is not.
#[tokio::test]
async fn a_tag_is_pulled_again_and_the_nodes_own_image_is_used_where_that_fails() {
    let mut agent = AgentFixture::new(engine());
    let digest = format!("web@sha256:{}", "a".repeat(64));
    {
        let mut state = agent.engine.state();
        for image in ["moved:1", &digest] {
            state.images.insert(image.to_owned());
            state.registry.insert(image.to_owned());
        }
    }
    let with = |id: &str, image: &str| {
        let mut t = task(id);
        std::sync::Arc::make_mut(&mut t.spec).container_spec.image = image.to_owned();
        t
    };
    // Another task of the template has failed: its successor uses what the node has.
    let mut successor = with("again", "moved:1");
    successor.failures.add(None, TaskState::Failed);
    agent.want(&[with("tag", "moved:1"), with("local", "web:1"), with("digest", &digest), successor]);
    for id in ["tag", "local", "digest", "again"] {
        agent.until(id, TaskState::Running).await;
    }
    let pulls: Vec<String> = agent.engine.state().calls.iter().filter(|call| call.starts_with("pull")).cloned().collect();
    assert_eq!(pulls, ["pull moved:1"], "once, by the first task");
}

#[tokio::test]
async fn leaving_removes_all_containers_and_networks_of_skep() {
    let engine = engine();
    let mut agent = AgentFixture::new(engine.clone());
    agent.want(&[on_network(task("t1"), "n1", "10.0.1.5/24")]);
    agent.until("t1", TaskState::Running).await;
    agent.shutdown.cancel();
    let files = PathBuf::from(format!("/dev/shm/skep-agent-files-{}", std::process::id()));
    std::fs::create_dir_all(files.join("t1")).expect("a directory");
    std::fs::write(files.join("t1/0"), "x").expect("a file");
    remove_all(&NodeId::from(ME), &*engine, &files).await.expect("removes");
    assert!(!files.exists(), "secrets are left");
    assert!(engine.state().containers.is_empty() && engine.state().networks.is_empty());
}

#[tokio::test]
async fn a_container_that_does_not_answer_does_not_stop_the_agent() {
    let mut agent = AgentFixture::new(engine());
    let (silent, other) = (task("silent"), task("other"));
    agent.want(&[silent.clone(), other.clone()]);
    let container = agent.until("silent", TaskState::Running).await.container.expect("a container").container_id;
    agent.until("other", TaskState::Running).await;
    // The daemon restarts while inspections of one container hang.
    agent.shutdown.cancel();
    {
        let mut state = agent.engine.state();
        state.hung.insert(container.clone());
        state.deadlines.inspect = Duration::from_millis(50);
    }
    let mut agent = AgentFixture::new(agent.engine.clone());
    agent.want(&[silent.clone(), other.clone(), task("new")]);
    agent.until("other", TaskState::Running).await;
    agent.until("new", TaskState::Running).await;
    assert!(!agent.last.contains_key(&TaskId::from("silent")), "nothing is known of it: {:?}", agent.last);
    // It answers again, and was not taken for another one or for gone.
    agent.engine.state().hung.clear();
    agent.engine.set_health(&container, Health::Healthy);
    let again = agent.until("silent", TaskState::Running).await;
    assert_eq!(again.container.expect("a container").container_id, container);
}

#[tokio::test]
async fn calls_that_hang_do_not_stop_the_agent_however_many_they_are() {
    let engine = engine();
    {
        let mut state = engine.state();
        state.images.insert("hangs:1".to_owned());
        state.hung_images.insert("hangs:1".to_owned());
        state.deadlines.permit = Duration::from_millis(20);
    }
    let mut agent = AgentFixture::new(engine);
    let hangs = (0..40).map(|n| {
        let mut hangs = task(&format!("a{n}"));
        Arc::make_mut(&mut hangs.spec).container_spec.image = "hangs:1".to_owned();
        hangs
    });
    agent.want(&hangs.chain([task("other")]).collect::<Vec<_>>());
    agent.until("other", TaskState::Running).await;
}

#[tokio::test]
async fn a_list_that_is_not_answered_is_made_again() {
    let engine = engine();
    {
        let mut state = engine.state();
        (state.lists_hang, state.deadlines.list) = (true, Duration::from_millis(50));
    }
    let mut agent = AgentFixture::new(engine.clone());
    agent.want(&[task("t1")]);
    agent.eventually("several lists", |e| e.state().lists >= 3).await;
    engine.state().lists_hang = false;
    agent.until("t1", TaskState::Running).await;
}

#[tokio::test]
async fn a_call_that_panics_fails_its_task_alone_and_is_named() {
    let engine = engine();
    {
        let mut state = engine.state();
        state.images.insert("fault:1".to_owned());
        state.panics.insert("fault:1".to_owned());
        state.list_panics = true;
    }
    let mut agent = AgentFixture::new(engine.clone());
    let mut fault = task("fault");
    Arc::make_mut(&mut fault.spec).container_spec.image = "fault:1".to_owned();
    agent.want(&[fault, task("t1")]);
    let failed = agent.until("fault", TaskState::Rejected).await;
    assert!(failed.err.contains("create panicked: the container of fault:1 is out of bounds"), "{failed:?}");
    agent.until("t1", TaskState::Running).await;
    assert!(engine.state().lists >= 2, "the list that panicked was made again");
}
