//! Logs of services and tasks: what the stock CLI prints, and what the stream does when nodes are down, clients are slow or go
//! away, and tasks come later.

use super::docker_cli::{docker, docker_refused, run_docker};
use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::http::ReplyStream;
use skep::model::{LogPiece, LogRequest, LogStream, NodeId, NodeState, Role, Task, TaskId, TaskState};
use skep::rpc::LogReader;
use skep::store::{Action, StoreHandle};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;
use tokio::time::timeout;

/// Bound on every wait.
const TIMEOUT: Duration = Duration::from_secs(30);
const LAB1: &str = "ej9fe8a4i12wa7r06tdh2hha7";
const LAB2: &str = "drwr0n2tcmgjuamlus2eyenpw";
const WEB: &str = "j0nilb5t8fflaorlx8rtkjk9a";

/// A node's logs: what was written, and what is written while they are followed. A task named `flood` writes without an end.
struct Logs {
    written: Mutex<BTreeMap<String, Vec<LogPiece>>>,
    live: broadcast::Sender<(String, LogPiece)>,
    requests: Mutex<Vec<LogRequest>>,
    /// Streams that are open now.
    open: Arc<AtomicUsize>,
    /// Pieces that were taken of floods.
    taken: Arc<AtomicUsize>,
    /// Ends every stream that is open.
    broken: broadcast::Sender<()>,
}

/// Counts a stream as long as it lives.
struct Counted(Arc<AtomicUsize>);
impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Logs {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            written: Mutex::default(),
            live: broadcast::Sender::new(64),
            requests: Mutex::default(),
            open: Arc::default(),
            taken: Arc::default(),
            broken: broadcast::Sender::new(4),
        })
    }
    fn write(&self, task: &str, stream: LogStream, text: &str) {
        let piece = LogPiece { stream, data: Bytes::copy_from_slice(text.as_bytes()) };
        self.written.lock().unwrap().entry(task.to_owned()).or_default().push(piece.clone());
        let _ = self.live.send((task.to_owned(), piece));
    }
    fn request(&self, task: &str) -> Option<LogRequest> {
        self.requests.lock().unwrap().iter().rev().find(|r| r.task.as_str() == task).cloned()
    }
}

#[async_trait]
impl LogReader for Logs {
    async fn read(&self, request: &LogRequest) -> anyhow::Result<BoxStream<'static, anyhow::Result<LogPiece>>> {
        self.requests.lock().unwrap().push(request.clone());
        let task = request.task.as_str().to_owned();
        self.open.fetch_add(1, SeqCst);
        let counted = Counted(self.open.clone());
        if task == "flood" {
            let taken = self.taken.clone();
            let line = LogPiece { stream: LogStream::Stdout, data: Bytes::from(vec![b'x'; 16 << 10]) };
            let flood = futures_util::stream::repeat_with(move || {
                let _counted = &counted;
                taken.fetch_add(1, SeqCst);
                Ok(line.clone())
            });
            return Ok(flood.boxed());
        }
        if task == "unreadable" {
            anyhow::bail!("configured logging driver does not support reading");
        }
        // What the engine does with `since`, for the one line that this test asks after.
        let written: Vec<LogPiece> = if request.options.since.is_empty() {
            self.written.lock().unwrap().get(&task).cloned().unwrap_or_default()
        } else {
            Vec::new()
        };
        let (live, broken) = (self.live.subscribe(), self.broken.subscribe());
        let follow = request.options.follow;
        let written = futures_util::stream::iter(written).map(Ok);
        let later = futures_util::stream::unfold(
            (live, broken, counted, task),
            move |(mut live, mut broken, counted, task)| async move {
                loop {
                    if !follow {
                        return None;
                    }
                    tokio::select! {
                        _ = broken.recv() => return None,
                        piece = live.recv() => match piece {
                            Ok((of, piece)) if of == task => return Some((Ok(piece), (live, broken, counted, task))),
                            Ok(_) => {}
                            Err(_) => return None,
                        },
                    }
                }
            },
        );
        Ok(written.chain(later).boxed())
    }
}

/// A swarm of lab1 and lab2 with the service web: a running task on each.
struct Fixture {
    api: ApiFixture,
    node: Arc<FakeNode>,
    lab1: Arc<Logs>,
    lab2: Arc<Logs>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with_terminal(false).await
    }
    async fn with_terminal(tty: bool) -> Self {
        let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
        let mut spec = recorded_store::spec("web");
        spec["TaskTemplate"]["ContainerSpec"]["TTY"] = tty.into();
        let service = recorded_store::service(WEB, spec).unwrap();
        let nodes = [recorded_store::node(LAB1, "lab1", Role::Manager), recorded_store::node(LAB2, "lab2", Role::Worker)];
        let mut actions = vec![Action::create(recorded_store::cluster()), Action::create(service)];
        actions.extend(nodes.map(Action::create));
        let api = ApiFixture::serve(node.clone(), None);
        let fixture = Self { api, node, lab1: Logs::new(), lab2: Logs::new() };
        fixture.store().write(SystemClock.now(), actions).await.unwrap();
        fixture.task("9efpzjzrk43t781ls6ppi2cu0", 1, LAB1).await;
        fixture.task("hpb5yett2sffbc82ftcjhpfhq", 2, LAB2).await;
        fixture.up(LAB1, &fixture.lab1);
        fixture.up(LAB2, &fixture.lab2);
        fixture
    }
    fn store(&self) -> StoreHandle {
        self.node.store.lock().unwrap().clone().unwrap()
    }
    fn up(&self, node: &str, logs: &Arc<Logs>) {
        let logs: Arc<dyn LogReader> = logs.clone();
        self.node.logs.lock().unwrap().insert(NodeId::from(node), logs);
    }
    /// A running task of web.
    async fn task(&self, id: &str, slot: u64, node: &str) {
        let service = self.store().read().service(&WEB.into()).unwrap().clone();
        let task = Task { id: TaskId::from(id), ..recorded_store::running_task(&service, slot, node) };
        self.store().write(SystemClock.now(), vec![Action::create(task)]).await.unwrap();
    }
    async fn change(&self, id: &str, change: impl FnOnce(&mut Task)) {
        let mut task = self.store().read().task(&id.into()).unwrap().clone();
        change(&mut task);
        self.store().write(SystemClock.now(), vec![Action::update(task)]).await.unwrap();
    }
    async fn node_state(&self, id: &str, state: NodeState) {
        let mut node = self.store().read().node(&id.into()).unwrap().clone();
        node.status.state = state;
        self.store().write(SystemClock.now(), vec![Action::update(node)]).await.unwrap();
    }
    async fn open(&self, target: &str) -> Stream {
        let reply = timeout(TIMEOUT, self.api.client.stream(target)).await.expect("a reply").unwrap();
        assert_eq!(reply.status, 200);
        Stream { reply, text: Vec::new() }
    }
    fn streams(&self) -> usize {
        self.lab1.open.load(SeqCst) + self.lab2.open.load(SeqCst)
    }
}

struct Stream {
    reply: ReplyStream,
    text: Vec<u8>,
}

impl Stream {
    /// Reads until the stream has this text.
    async fn until(&mut self, text: &str) -> String {
        let read = async {
            while !String::from_utf8_lossy(&self.text).contains(text) {
                let chunk = self.reply.chunk().await.unwrap().unwrap_or_else(|| panic!("ended without {text}: {:?}", self.text));
                self.text.extend_from_slice(&chunk);
            }
        };
        timeout(TIMEOUT, read).await.unwrap_or_else(|_| panic!("no {text}"));
        String::from_utf8_lossy(&self.text).into_owned()
    }
    /// Reads to the end.
    async fn rest(mut self) -> String {
        let read = async {
            while let Some(chunk) = self.reply.chunk().await.unwrap() {
                self.text.extend_from_slice(&chunk);
            }
        };
        timeout(TIMEOUT, read).await.expect("an end");
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A line as the engine gives it when it is asked for times and details.
fn stamped(second: u32, text: &str) -> String {
    format!("2026-11-23T20:37:{second:02}.338074499Z  {text}\n")
}

#[tokio::test]
async fn the_stock_cli_prints_the_lines_of_all_nodes_with_their_task_and_node() {
    let fixture = Fixture::new().await;
    fixture.lab1.write("9efpzjzrk43t781ls6ppi2cu0", LogStream::Stdout, &stamped(1, "line 0"));
    fixture.lab2.write("hpb5yett2sffbc82ftcjhpfhq", LogStream::Stderr, &stamped(2, "err 0"));
    let run = async |line: &str| run_docker(&fixture.api, &line.split_whitespace().collect::<Vec<_>>(), "").await;
    let (code, out, err) = run("service logs web").await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), "web.1.9efpzjzrk43t@lab1    | line 0\n", "web.2.hpb5yett2sff@lab2    | err 0\n")
    );
    let (_, out, err) = run("service logs --timestamps --details web").await;
    assert_eq!(
        (out.as_str(), err.as_str()),
        (
            "2026-11-23T20:37:01.338074499Z web.1.9efpzjzrk43t@lab1    |  line 0\n",
            "2026-11-23T20:37:02.338074499Z web.2.hpb5yett2sff@lab2    |  err 0\n"
        )
    );
    let (_, out, err) = run("service logs --no-task-ids --no-resolve web").await;
    assert_eq!((out, err), (format!("{WEB}.1@{LAB1}    | line 0\n"), format!("{WEB}.2@{LAB2}    | err 0\n")));
    // A task alone; without details the engine is not asked for them.
    let (_, out, _) = run("service logs 9efpzjzrk43t781ls6ppi2cu0 --tail 3 --since 2026-11-23T20:00:00Z").await;
    assert_eq!(out, "", "the test's node has nothing since then");
    let asked = fixture.lab1.request("9efpzjzrk43t781ls6ppi2cu0").unwrap().options;
    assert_eq!((asked.tail, asked.since.as_str(), asked.details), (Some(3), "1795464000.000000000", true));
    assert!(docker_refused(&fixture.api, "service logs nosuch").await.contains("no such task or service: nosuch"));
    eventually("every stream has ended", || fixture.streams() == 0).await;
}

#[tokio::test]
async fn the_content_type_and_the_frames_are_those_of_the_version_and_of_a_terminal() {
    let fixture = Fixture::new().await;
    fixture.lab1.write("9efpzjzrk43t781ls6ppi2cu0", LogStream::Stdout, "2026-11-23T20:37:47.338074499Z x\n");
    for (version, kind) in [("1.41", "raw"), ("1.42", "multiplexed"), ("1.51", "multiplexed")] {
        let reply = fixture.api.client.get(&format!("/v{version}/services/web/logs?stdout=1")).await.unwrap();
        assert_eq!(reply.headers["content-type"], format!("application/vnd.docker.{kind}-stream"));
        assert_eq!(&reply.body[..], b"\x01\0\0\0\0\0\0\x02x\n", "{version}");
    }
    let fixture = Fixture::with_terminal(true).await;
    fixture.lab1.write("9efpzjzrk43t781ls6ppi2cu0", LogStream::Stdout, "no time\r\n");
    assert!(docker_refused(&fixture.api, "service logs web").await.contains("tty service logs only supported with --raw"));
    assert_eq!(docker(&fixture.api, "service logs --raw web").await, "no time\r\n");
    let reply = fixture.api.client.get("/v1.51/services/web/logs?stdout=1").await.unwrap();
    assert_eq!(reply.headers["content-type"], "application/vnd.docker.raw-stream");
}

#[tokio::test]
async fn what_is_missing_is_named_at_the_end_as_the_real_server_names_it() {
    let fixture = Fixture::new().await;
    fixture.lab1.write("9efpzjzrk43t781ls6ppi2cu0", LogStream::Stdout, &stamped(1, "here"));
    fixture.node_state(LAB2, NodeState::Down).await;
    let (code, out, err) = run_docker(&fixture.api, &["service", "logs", "web"], "").await;
    assert_eq!((code, out.as_str()), (Some(1), "web.1.9efpzjzrk43t@lab1    | here\n"));
    let reason = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: ";
    assert!(err.contains(&format!("{reason}node {LAB2} is not available")), "{err}");
    // Ready by the store, and does not answer.
    fixture.node_state(LAB2, NodeState::Ready).await;
    fixture.node.logs.lock().unwrap().remove(&NodeId::from(LAB2));
    let text = fixture.open("/services/web/logs?stdout=1").await.rest().await;
    assert!(text.contains(&format!("node {LAB2} is not available (connection refused)")), "{text}");
    // Its log driver cannot be read; one without a node.
    fixture.task("unreadable", 3, LAB1).await;
    let text = fixture.open("/tasks/unreadable/logs?stdout=1").await.rest().await;
    assert!(text.contains("task unreadable: configured logging driver does not support reading"), "{text}");
    fixture
        .change("unreadable", |task| {
            task.node_id = None;
            task.status.state = TaskState::Pending;
        })
        .await;
    let text = fixture.open("/tasks/unreadable/logs?stdout=1").await.rest().await;
    assert!(text.contains("task unreadable has not been scheduled"), "{text}");
}

#[tokio::test]
async fn tasks_that_start_later_join_and_the_stream_ends_with_the_service() {
    let fixture = Fixture::new().await;
    let mut stream = fixture.open("/services/web/logs?stdout=1&follow=1&tail=0").await;
    eventually("both tasks are read", || fixture.streams() == 2).await;
    fixture.lab2.write("hpb5yett2sffbc82ftcjhpfhq", LogStream::Stdout, "2026-11-23T20:37:47.338074499Z second\n");
    stream.until("second\n").await;
    fixture.lab1.write("latecomer", LogStream::Stdout, "2026-11-23T20:37:48.338074499Z its first line\n");
    fixture.task("latecomer", 3, LAB1).await;
    let text = stream.until("its first line\n").await;
    assert!(!text.contains("2026"), "no times unless they are asked for: {text}");
    let asked = |task: &str| fixture.lab1.request(task).unwrap().options.tail;
    assert_eq!(
        (asked("9efpzjzrk43t781ls6ppi2cu0"), asked("latecomer")),
        (Some(0), None),
        "what came later is shown from its start"
    );
    // Everything goes: so does the stream.
    let remove = |kind, id: &str| Action::Remove(kind, id.to_owned());
    let mut actions = vec![remove(skep::store::Kind::Service, WEB)];
    actions.extend(fixture.store().read().tasks().map(|t| remove(skep::store::Kind::Task, t.id.as_str())));
    fixture.store().write(SystemClock.now(), actions).await.unwrap();
    for logs in [&fixture.lab1, &fixture.lab2] {
        let _ = logs.broken.send(());
    }
    stream.rest().await;
}

#[tokio::test]
async fn a_log_that_breaks_off_goes_on_after_its_last_line() {
    let fixture = Fixture::new().await;
    let mut stream = fixture.open("/services/web/logs?stdout=1&follow=1").await;
    eventually("both tasks are read", || fixture.streams() == 2).await;
    fixture.lab2.write("hpb5yett2sffbc82ftcjhpfhq", LogStream::Stdout, "2026-11-23T20:37:47.999999999Z one\n");
    stream.until("one\n").await;
    // The engine of lab2 is restarted.
    let _ = fixture.lab2.broken.send(());
    eventually("asked again", || fixture.lab2.requests.lock().unwrap().len() == 2 && fixture.streams() == 2).await;
    assert_eq!(fixture.lab2.request("hpb5yett2sffbc82ftcjhpfhq").unwrap().options.since, "1795466268.000000000");
    fixture.lab2.write("hpb5yett2sffbc82ftcjhpfhq", LogStream::Stdout, "2026-11-23T20:37:49.000000001Z two\n");
    let text = stream.until("two\n").await;
    assert_eq!(text.matches("one\n").count(), 1, "{text}");
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_stream_behind() {
    let fixture = Fixture::new().await;
    for _ in 0..3 {
        // Nothing is written: the end of the client alone must be noticed.
        let stream = fixture.open("/services/web/logs?stdout=1&follow=1").await;
        eventually("both tasks are read", || fixture.streams() == 2).await;
        drop(stream);
        eventually("both streams are closed", || fixture.streams() == 0).await;
    }
}

#[tokio::test]
async fn a_slow_client_holds_the_nodes_back() {
    let fixture = Fixture::new().await;
    fixture.task("flood", 3, LAB2).await;
    let stream = fixture.open("/tasks/flood/logs?stdout=1").await;
    // The client reads nothing: what is on the way is bounded, and then nothing more is taken of the log.
    let mut before = 0;
    let quiet = Duration::from_millis(300);
    let mut since = Instant::now();
    eventually("the reader waits", || {
        let taken = fixture.lab2.taken.load(SeqCst);
        if taken != before || taken == 0 {
            (before, since) = (taken, Instant::now());
        }
        since.elapsed() > quiet
    })
    .await;
    assert!(before <= 100, "{before} pieces of 16 KiB are on the way");
    // Another log is not delayed by it.
    fixture.lab2.write("hpb5yett2sffbc82ftcjhpfhq", LogStream::Stdout, "2026-11-23T20:37:49.000000001Z quick\n");
    assert!(fixture.open("/tasks/hpb5yett2sffbc82ftcjhpfhq/logs?stdout=1").await.rest().await.contains("quick"));
    drop(stream);
    eventually("the flood is closed", || fixture.streams() == 0).await;
}

#[tokio::test]
async fn more_readers_than_a_manager_serves_are_refused() {
    let fixture = Fixture::new().await;
    let mut streams = Vec::new();
    for _ in 0..128 {
        streams.push(fixture.open("/tasks/9efpzjzrk43t781ls6ppi2cu0/logs?stdout=1&follow=1").await);
    }
    let refused = fixture.api.client.get("/tasks/9efpzjzrk43t781ls6ppi2cu0/logs?stdout=1").await.unwrap();
    assert_eq!(refused.status, 503);
    drop(streams);
    eventually("all are closed", || fixture.streams() == 0).await;
    assert_eq!(fixture.api.client.get("/tasks/9efpzjzrk43t781ls6ppi2cu0/logs?stdout=1").await.unwrap().status, 200);
}
