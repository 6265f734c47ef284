//! Connections for logs: lines arrive whole and in order, only a manager gets in, a slow reader holds the node back, and what a
//! reader leaves is closed. Relays of a node's Docker API come by the same port.

use super::fixture::{SetClock, Trust, eventually};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use skep::clock::{Clock as _, SystemClock};
use skep::datapath::{Sockets as _, sockets::HereSockets};
use skep::model::{LogOptions, LogPiece, LogRequest, LogStream, NodeId, Role, TaskId, TaskLog};
use skep::rpc::{EngineRelay, LogLink, LogReader, LogService};
use skep::trust::{Identity, NodeName};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A task `count-N` has N lines, `flood` any number, `quiet` none and no end.
#[derive(Default)]
struct Reader {
    open: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

struct Counted(Arc<AtomicUsize>);
impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl LogReader for Reader {
    async fn read(&self, request: &LogRequest) -> anyhow::Result<BoxStream<'static, anyhow::Result<LogPiece>>> {
        let lines = match request.task.as_str().split_once('-') {
            Some((_, lines)) => lines.parse()?,
            None => usize::MAX,
        };
        self.open.fetch_add(1, SeqCst);
        let (counted, taken) = (Counted(self.open.clone()), self.taken.clone());
        if request.task.as_str() == "quiet" {
            return Ok(futures_util::stream::pending().map(move |piece| (&counted, piece).1).boxed());
        }
        Ok(futures_util::stream::iter(0..lines)
            .map(move |line| {
                let _counted = &counted;
                taken.fetch_add(1, SeqCst);
                let stream = if line % 2 == 0 { LogStream::Stdout } else { LogStream::Stderr };
                Ok(LogPiece { stream, data: Bytes::from(format!("{line} {}\n", "x".repeat(line % 5000))) })
            })
            .boxed())
    }
}

struct Node {
    id: NodeId,
    address: SocketAddr,
    reader: Arc<Reader>,
    manager: Arc<Mutex<Option<NodeId>>>,
    _stop: DropGuard,
}

/// A node that takes the node with this id for the manager at 127.0.0.1.
fn node(trust: &Trust, manager: &NodeId) -> Node {
    node_with(trust, manager, None)
}

/// As [`node`], with its Docker API for managers.
fn node_with(trust: &Trust, manager: &NodeId, relay: Option<EngineRelay>) -> Node {
    let identity = Arc::new(trust.identity(Role::Worker));
    let (reader, stop) = (Arc::<Reader>::default(), CancellationToken::new());
    let manager = Arc::new(Mutex::new(Some(manager.clone())));
    let known = manager.clone();
    let service = LogService {
        identity: watch::channel(identity.clone()).1,
        clock: Arc::new(SystemClock),
        manager_at: Arc::new(move |_| known.lock().unwrap().clone()),
        reader: reader.clone(),
        relay,
    };
    let listener = HereSockets.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(service.serve(TcpListener::from_std(listener).unwrap(), stop.clone()));
    Node { id: identity.node_id().clone(), address, reader, manager, _stop: stop.drop_guard() }
}

fn link(identity: &Identity) -> LogLink {
    LogLink {
        identity: watch::channel(Arc::new(identity.clone())).1,
        clock: Arc::new(SystemClock),
        sockets: Arc::new(HereSockets),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        connect: Duration::from_secs(5),
    }
}

/// Requests for these tasks, after which nothing more is asked for.
fn requests(tasks: &[&str], follow: bool) -> mpsc::Receiver<LogRequest> {
    let (sender, receiver) = mpsc::channel(tasks.len());
    for task in tasks {
        let options = LogOptions { stdout: true, stderr: true, follow, ..LogOptions::default() };
        sender.try_send(LogRequest { task: TaskId::from(*task), tty: false, options }).unwrap();
    }
    receiver
}

async fn read(link: &LogLink, node: &Node, tasks: &[&str]) -> anyhow::Result<Vec<(TaskId, TaskLog)>> {
    let (sender, mut logs) = mpsc::channel(1 << 16);
    link.read(&node.id, node.address, requests(tasks, false), sender).await?;
    let mut all = Vec::new();
    while let Some(log) = logs.recv().await {
        all.push(log);
    }
    Ok(all)
}

#[tokio::test]
async fn every_line_arrives_once_and_in_order_and_the_end_is_reported() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let node = node(&trust, manager.node_id());
    let tasks: Vec<String> = (0..40).map(|n| format!("count-{}", n * 7)).collect();
    let names: Vec<&str> = tasks.iter().map(String::as_str).chain(["count-bad"]).collect();
    let all = read(&link(&manager), &node, &names).await.expect("read");
    for (n, task) in tasks.iter().enumerate() {
        let of: Vec<&TaskLog> = all.iter().filter(|(id, _)| id.as_str() == task).map(|(_, log)| log).collect();
        assert_eq!(of.len(), n * 7 + 1, "{task}");
        assert_eq!(of.last(), Some(&&TaskLog::Ended(None)));
        for (line, log) in of.iter().take(n * 7).enumerate() {
            let TaskLog::Piece(piece) = log else { panic!("{log:?}") };
            assert!(piece.data.starts_with(format!("{line} ").as_bytes()), "{task}");
        }
    }
    let bad = all.iter().find(|(id, _)| id.as_str() == "count-bad").map(|(_, log)| log);
    assert!(matches!(bad, Some(TaskLog::Ended(Some(reason))) if reason.contains("invalid digit")), "{bad:?}");
    eventually("no stream stays", || node.reader.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn only_the_manager_of_that_address_gets_in_and_only_the_dialed_node_is_believed() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let node = node(&trust, manager.node_id());
    read(&link(&manager), &node, &["count-1"]).await.expect("the manager");
    for (who, identity) in [
        ("a worker", trust.identity(Role::Worker)),
        ("another manager, at this one's address", trust.identity(Role::Manager)),
        ("another cluster's manager", Trust::new().identity(Role::Manager)),
    ] {
        read(&link(&identity), &node, &["count-1"]).await.expect_err(who);
    }
    let impostor = Node { id: NodeId::from("someone"), ..self::node(&trust, manager.node_id()) };
    let error = read(&link(&manager), &impostor, &["count-1"]).await.expect_err("not the dialed node");
    assert!(error.to_string().starts_with("it is node "), "{error:#}");
    *node.manager.lock().unwrap() = None;
    read(&link(&manager), &node, &["count-1"]).await.expect_err("no manager has that address");
    assert_eq!(node.reader.taken.load(SeqCst), 1, "no other node has read a line");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_the_node_back_and_leaves_nothing_open() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let node = node(&trust, manager.node_id());
    let (sender, mut logs) = mpsc::channel(1);
    let (link, id, address) = (link(&manager), node.id.clone(), node.address);
    let reading = tokio::spawn(async move { link.read(&id, address, requests(&["flood", "quiet"], true), sender).await });
    let (mut before, mut since) = (0, std::time::Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let taken = node.reader.taken.load(SeqCst);
        if taken != before || taken == 0 {
            (before, since) = (taken, std::time::Instant::now());
        }
    }
    // What the sockets of both sides buffer, and the queues: some megabytes.
    assert!(before < 20_000, "{before} lines are on the way");
    // What is on the way must be taken before the node goes on.
    for _ in 0..before {
        logs.recv().await.expect("it goes on");
    }
    eventually("more is taken", || node.reader.taken.load(SeqCst) > before).await;
    drop(logs);
    reading.await.expect("ends").expect("without an error");
    eventually("no stream stays, the quiet one neither", || node.reader.open.load(SeqCst) == 0).await;
}

/// A Docker API that answers what it was sent, in capitals, once the client has ended its side.
fn docker_api(name: &str) -> (EngineRelay, PathBuf) {
    let path = std::env::temp_dir().join(format!("skep-relay-{}-{name}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut sent = String::new();
                let _ = stream.read_to_string(&mut sent).await;
                let _ = stream.write_all(sent.to_uppercase().as_bytes()).await;
            });
        }
    });
    (EngineRelay::new(path.clone(), watch::channel(true).1), path)
}

#[tokio::test]
async fn a_manager_is_joined_with_the_nodes_docker_api_in_both_directions_until_it_is_a_manager_no_more() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let (relay, path) = docker_api("both");
    let node = node_with(&trust, manager.node_id(), Some(relay));
    let mut stream = link(&manager).engine(&node.id, node.address).await.expect("joined");
    stream.write_all(b"half-closed").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read to the end");
    assert_eq!(answer, "HALF-CLOSED");

    let mut open = link(&manager).engine(&node.id, node.address).await.expect("joined");
    *node.manager.lock().unwrap() = None;
    let ended = tokio::time::timeout(Duration::from_secs(5), open.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "what was a manager's is cut off");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_stream_that_its_manager_has_abandoned_ends_although_the_docker_api_is_silent() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let path = std::env::temp_dir().join(format!("skep-relay-{}-silent.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let node = node_with(&trust, manager.node_id(), Some(EngineRelay::new(path.clone(), watch::channel(true).1)));
    let silent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        // The kernel refuses to write nothing once the other end is closed.
        while stream.write(&[]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut stream = link(&manager).engine(&node.id, node.address).await.expect("joined");
    stream.write_all(b"input").await.unwrap();
    stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // As its kernel does a minute later by itself, when it is asked for a sign of life.
    stream.get_ref().0.set_zero_linger().unwrap();
    drop(stream);
    tokio::time::timeout(Duration::from_secs(10), silent).await.expect("its relay is free again").unwrap();
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_relay_is_for_managers_of_the_view_only_and_a_node_may_refuse_it() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let (relay, path) = docker_api("refused");
    let node = node_with(&trust, manager.node_id(), Some(relay));
    for (who, identity) in [
        ("a worker", trust.identity(Role::Worker)),
        ("another manager, at this one's address", trust.identity(Role::Manager)),
        ("another cluster's manager", Trust::new().identity(Role::Manager)),
    ] {
        assert!(link(&identity).engine(&node.id, node.address).await.is_err(), "{who}");
    }
    link(&manager).engine(&node.id, node.address).await.expect("the manager");
    *node.manager.lock().unwrap() = None;
    assert!(link(&manager).engine(&node.id, node.address).await.is_err(), "no manager has that address");

    let refusing = self::node(&trust, manager.node_id());
    let error = link(&manager).engine(&refusing.id, refusing.address).await.expect_err("refused");
    assert!(format!("{error:#}").contains("access_point.relay is false"), "{error:#}");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_node_that_has_only_the_view_of_before_its_start_relays_nothing() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let (_, path) = docker_api("stale");
    let (delivered, has_view) = watch::channel(false);
    let node = node_with(&trust, manager.node_id(), Some(EngineRelay::new(path.clone(), has_view)));
    // One that the ledger names as a manager, and may be none any more.
    let error = link(&manager).engine(&node.id, node.address).await.expect_err("refused");
    assert!(format!("{error:#}").contains("no manager has sent it a view"), "{error:#}");
    delivered.send_replace(true);
    link(&manager).engine(&node.id, node.address).await.expect("joined");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn what_is_open_goes_on_with_a_renewed_certificate_and_ends_with_the_last_one() {
    let trust = Trust::new();
    let manager = trust.identity(Role::Manager);
    let (relay, path) = docker_api("renewed");
    let name = NodeName { node_id: NodeId::from("n1"), role: Role::Worker, cluster_id: trust.cluster.clone() };
    let issue = |hours| Arc::new(trust.issue(&name, SystemClock.now(), Duration::from_hours(hours)));
    let (identity, identities) = watch::channel(issue(1));
    let (clock, checks, reader) = (Arc::<SetClock>::default(), Arc::<AtomicUsize>::default(), Arc::<Reader>::default());
    let (id, counted) = (manager.node_id().clone(), checks.clone());
    let service = LogService {
        identity: identities,
        clock: clock.clone(),
        manager_at: Arc::new(move |_| {
            counted.fetch_add(1, SeqCst);
            Some(id.clone())
        }),
        reader: reader.clone(),
        relay: Some(relay),
    };
    let listener = HereSockets.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(service.serve(TcpListener::from_std(listener).unwrap(), stop));

    let mut relayed = link(&manager).engine(&name.node_id, address).await.expect("joined");
    let (sender, _logs) = mpsc::channel(1);
    let (from, node) = (link(&manager), name.node_id.clone());
    let reading = tokio::spawn(async move { from.read(&node, address, requests(&["quiet"], true), sender).await });
    eventually("it is read", || reader.open.load(SeqCst) == 1).await;

    identity.send_replace(issue(48));
    clock.set_ahead(2 * 3600);
    // The relay looks once a second, as the reader of logs does.
    let before = checks.load(SeqCst);
    eventually("it was looked at again", || checks.load(SeqCst) >= before + 3).await;
    assert_eq!(reader.open.load(SeqCst), 1, "logs are read on");
    relayed.write_all(b"renewed").await.unwrap();
    relayed.shutdown().await.unwrap();
    let mut answer = String::new();
    relayed.read_to_string(&mut answer).await.expect("read to the end");
    assert_eq!(answer, "RENEWED");

    clock.set_ahead(49 * 3600);
    eventually("nothing outlives the last certificate", || reader.open.load(SeqCst) == 0).await;
    let _ = reading.await;
    std::fs::remove_file(path).unwrap();
}
