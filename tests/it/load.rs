//! Load that tests put on a swarm: requests without a pause, transfers of numbered bytes, names resolved and used. Each
//! records what failed and when, so that a test can check that no client noticed a change.

pub mod http;
mod http2;
pub mod server;
pub mod upgraded;

use super::swarm::kit::*;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep::datapath::netns;
use skep::lab::Host;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Runs inside a network namespace, on another thread.
pub async fn inside<T: Send + 'static>(namespace: File, f: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(move || netns::run(namespace.as_fd(), f).expect("namespace")).await.expect("no panic")
}

pub fn of_host(host: &Host) -> File {
    File::open(format!("/proc/{}/ns/net", host.pid())).expect("the host's namespace")
}

/// The network namespace of a running task's container.
pub async fn of_task(swarm: &Swarm, task: &Value) -> File {
    File::open(namespace_of(swarm, task).await.1).expect("the container's namespace")
}

/// The host that a task runs on, and its container's network namespace.
pub async fn namespace_of<'a>(swarm: &'a Swarm, task: &Value) -> (&'a Host, PathBuf) {
    // The engine counts processes in its host's own namespace.
    let pid = task["Status"]["ContainerStatus"]["PID"].as_u64().expect("a process");
    let host = host_of(swarm, task).await;
    (host, format!("/proc/{}/root/proc/{pid}/ns/net", host.pid()).into())
}

/// The host that a task runs on.
pub async fn host_of<'a>(swarm: &'a Swarm, task: &Value) -> &'a Host {
    &swarm.hosts[index_of(swarm, task).await]
}

/// Its index among the hosts.
pub async fn index_of(swarm: &Swarm, task: &Value) -> usize {
    for (number, host) in swarm.hosts.iter().enumerate() {
        if task["NodeID"] == json!(swarm.node_id(host).await) {
            return number;
        }
    }
    panic!("no host runs {task:#}");
}

/// One source of requests.
pub struct Target {
    /// The client's namespace.
    pub from: File,
    pub to: SocketAddr,
    /// Name in the output; tests also tell tallies apart by it.
    pub label: String,
}

impl Target {
    pub fn new(from: &File, to: SocketAddr, label: impl Into<String>) -> Self {
        Self { from: from.try_clone().expect("a descriptor"), to, label: label.into() }
    }
}

/// Stops what runs in the background; so does dropping it, so that a failed test ends.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.now();
    }
}

/// SYNs that this thread's namespace has sent again: a client that sends one has waited for a second.
pub fn syns_sent_again() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
    let count = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPSynRetrans");
    Ok(count.and_then(|(_, count)| count.parse().ok()).expect("the kernel counts it"))
}

/// The same of a host.
pub fn syns_sent_again_by(host: &Host) -> u64 {
    netns::briefly(of_host(host).as_fd(), syns_sent_again).expect("counts")
}

/// Requests, one after the other to each target, until stopped.
pub struct Load {
    stop: Stop,
    running: Vec<JoinHandle<Tally>>,
    answers: Vec<Arc<AtomicUsize>>,
}

/// Results of the requests to one target.
#[derive(Debug)]
pub struct Tally {
    pub label: String,
    /// When the first request was made.
    pub begun: Instant,
    /// Number of answers, by the server.
    pub answered: BTreeMap<String, usize>,
    pub failed: Vec<Failed>,
    pub slowest: Duration,
}

/// A request without an answer.
#[derive(Debug)]
pub struct Failed {
    pub from: Instant,
    pub to: Instant,
    pub why: String,
}

impl Tally {
    fn new(label: String) -> Self {
        Self { label, begun: Instant::now(), answered: BTreeMap::new(), failed: Vec::new(), slowest: Duration::ZERO }
    }

    pub fn answers(&self) -> usize {
        self.answered.values().sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (answers, tasks) = (self.answers(), self.answered.len());
        write!(
            f,
            "{}: {answers} answers of {tasks} tasks, slowest {:.2?}, {} failed",
            self.label,
            self.slowest,
            self.failed.len()
        )?;
        self.failed
            .iter()
            .take(5)
            .try_for_each(|one| write!(f, "\n    at {:.2?}, after {:.2?}: {}", one.from - self.begun, one.to - one.from, one.why))
    }
}

/// Makes one request and returns the name of the server that answered.
type Request = Box<dyn FnMut() -> anyhow::Result<String>>;

impl Load {
    /// Each request is a new connection.
    pub fn start(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| Box::new(move || request(to)))
    }

    /// HTTP/1.1 with one connection for all requests to a target (`keeps`), or one for each. See [`server`].
    pub fn http(targets: impl IntoIterator<Item = Target>, pause: Duration, keeps: bool) -> Self {
        let make: fn(SocketAddr) -> Request = if keeps {
            |to| {
                let mut client = http::HttpClient::new(to, true);
                Box::new(move || client.ask())
            }
        } else {
            |to| {
                let mut client = http::HttpClient::new(to, false);
                Box::new(move || client.ask())
            }
        };
        Self::run(targets, pause, make)
    }

    /// HTTP/2 without TLS, on one connection until the server announces its end.
    pub fn http2(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| {
            let mut client = http2::Http2Client::new(to);
            Box::new(move || client.ask())
        })
    }

    /// Lines on an upgraded connection, as of WebSocket, until the server says that it ends.
    pub fn upgraded(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| {
            let mut client = upgraded::UpgradedClient::new(to);
            Box::new(move || client.ask())
        })
    }

    /// As [`Self::start`], with a client that waits until TCP has sent again what an interruption of some seconds lost.
    pub fn patient(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| Box::new(move || request_within(to, Duration::from_secs(10))))
    }

    /// All datagrams to a target come from one socket: one flow.
    pub fn flows(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| {
            let mut flow = Flow::new(to).expect("a socket");
            Box::new(move || flow.ask())
        })
    }

    /// As [`Self::flows`], each from one socket that is not connected.
    pub fn datagrams(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| {
            let mut flow = Flow::unconnected(to).expect("a socket");
            Box::new(move || flow.ask())
        })
    }

    /// One connection to each target, kept for all requests: idle but for one line per `pause`. See [`serve_lines`].
    pub fn kept(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::run(targets, pause, |to| {
            let mut line = KeptConnection::new(to);
            Box::new(move || line.ask())
        })
    }

    fn run(targets: impl IntoIterator<Item = Target>, pause: Duration, make: fn(SocketAddr) -> Request) -> Self {
        let stop = Stop::default();
        let (mut running, mut answers) = (Vec::new(), Vec::new());
        for target in targets {
            let (stopped, answered) = (stop.flag(), Arc::new(AtomicUsize::new(0)));
            answers.push(Arc::clone(&answered));
            running.push(tokio::spawn(inside(target.from, move || {
                let mut request = make(target.to);
                let mut tally = Tally::new(target.label);
                while !stopped.load(Ordering::Relaxed) {
                    let from = Instant::now();
                    let answer = request();
                    let to = Instant::now();
                    match answer {
                        Ok(server) => {
                            *tally.answered.entry(server).or_default() += 1;
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => tally.failed.push(Failed { from, to, why: format!("{error:#}") }),
                    }
                    tally.slowest = tally.slowest.max(to - from);
                    let next = Instant::now() + pause;
                    while Instant::now() < next && !stopped.load(Ordering::Relaxed) {
                        std::thread::sleep(pause.min(Duration::from_millis(200)));
                    }
                }
                tally
            })));
        }
        Self { stop, running, answers }
    }

    /// Answers so far, by target.
    pub fn answers(&self) -> Vec<usize> {
        self.answers.iter().map(|n| n.load(Ordering::Relaxed)).collect()
    }

    /// Ends it and prints the results.
    pub async fn stop(self) -> Vec<Tally> {
        self.stop.now();
        let mut all = Vec::new();
        for one in self.running {
            let tally = one.await.expect("no panic");
            eprintln!("{tally}");
            all.push(tally);
        }
        all
    }
}

/// A TCP connection that is never made a second time.
struct KeptConnection {
    stream: std::io::Result<TcpStream>,
    next: u64,
}

impl KeptConnection {
    fn new(to: SocketAddr) -> Self {
        Self { stream: TcpStream::connect_timeout(&to, Duration::from_secs(5)), next: 0 }
    }

    /// Sends one numbered line and expects it back.
    fn ask(&mut self) -> anyhow::Result<String> {
        let stream = self.stream.as_mut().map_err(|error| anyhow::anyhow!("connect: {error}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        self.next += 1;
        let line = format!("{}\n", self.next);
        stream.write_all(line.as_bytes()).context("write")?;
        let mut answer = vec![0; line.len()];
        stream.read_exact(&mut answer).context("read")?;
        ensure!(answer == line.as_bytes(), "{:?} instead of {line:?}", String::from_utf8_lossy(&answer));
        Ok("kept".to_owned())
    }
}

/// Sends back what arrives at a port of a namespace, until the process ends.
pub async fn serve_lines(namespace: File, port: u16) {
    let listener =
        inside(namespace, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound in the container")).await;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// A UDP socket that sends numbered datagrams to one address and receives their answers.
pub struct Flow {
    socket: UdpSocket,
    /// Where an unconnected socket sends to.
    to: Option<SocketAddr>,
    next: u64,
}

impl Flow {
    pub fn new(to: SocketAddr) -> std::io::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        // A connected socket receives no answers from another address.
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self { socket, to: None, next: 0 })
    }

    /// From a socket that is not connected: the datapath may give each datagram to another task.
    pub fn unconnected(to: SocketAddr) -> std::io::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self { socket, to: Some(to), next: 0 })
    }

    /// Connects to another address, or to the same one again.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<()> {
        let _pending_error = self.socket.take_error()?;
        self.socket.connect(to)
    }

    /// Sends one datagram to an echo server (see `ports::echo`) and returns the name of the one that answered.
    pub fn ask(&mut self) -> anyhow::Result<String> {
        self.next += 1;
        let payload = self.next.to_string();
        match self.to {
            Some(to) => self.socket.send_to(payload.as_bytes(), to),
            None => self.socket.send(payload.as_bytes()),
        }
        .context("send")?;
        let mut buffer = [0; 512];
        loop {
            let len = self.socket.recv(&mut buffer).with_context(|| format!("answer to {payload}"))?;
            let answer = std::str::from_utf8(&buffer[..len])?;
            let mut parts = answer.split(' ');
            let server = parts.next().unwrap_or_default().to_owned();
            // A late answer to an earlier datagram is skipped.
            if parts.next_back() == Some(&payload) {
                return Ok(server);
            }
        }
    }
}

/// Makes one HTTP request and returns the name of the server that answered.
pub fn request(to: SocketAddr) -> anyhow::Result<String> {
    request_within(to, Duration::from_secs(5))
}

fn request_within(to: SocketAddr, limit: Duration) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, limit).context("connect")?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET / HTTP/1.0\r\n\r\n").context("write")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    body.split_whitespace().next().map(str::to_owned).with_context(|| format!("not an answer: {answer:?}"))
}

/// A container that resolves a name and makes a request to the first address, in a loop.
pub struct ByName {
    host: std::path::PathBuf,
    container: String,
    running: JoinHandle<std::io::Result<std::process::Output>>,
}

impl ByName {
    pub fn start(host: &Host, container: &str, name: &str) -> Self {
        let script = format!(
            r"rm -f /tmp/stop; while [ ! -e /tmp/stop ]; do
                set -- $(nslookup -type=a {name} | /bin/busybox sed -n '/^Name/,$s/^Address[ 0-9]*: *//p')
                timeout 5 wget -q -O - http://$1/ || echo failed to reach $1
            done"
        );
        let mut command = host.engine_cli();
        command.args(["exec", container, "sh", "-c", &script.replace("rm -f", "/bin/busybox rm -f")]);
        let running = tokio::spawn(async move { command.output().await });
        Self { host: host.engine_socket(), container: container.to_owned(), running }
    }

    /// Ends it and returns the numbers of answers and of failures.
    pub async fn stop(self) -> (usize, usize) {
        let mut command = tokio::process::Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.host.display()));
        command.args(["exec", &self.container, "sh", "-c", "echo > /tmp/stop"]).output().await.expect("docker exec");
        let out = self.running.await.expect("no panic").expect("docker exec");
        let printed = String::from_utf8_lossy(&out.stdout);
        eprintln!("{}", String::from_utf8_lossy(&out.stderr).lines().take(5).collect::<Vec<_>>().join("\n"));
        let failed = printed.lines().filter(|line| line.starts_with("failed")).count();
        let answered = printed.lines().count() - failed;
        eprintln!("by name: {answered} answers, {failed} failed");
        (answered, failed)
    }
}

/// What one side of a transfer received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Number of bytes, all of them the expected ones.
    pub bytes: u64,
    /// The longest time without a byte.
    pub silence: Duration,
    /// Why it ended early.
    pub error: Option<String>,
}

/// What a server of numbers received, by connection.
pub type ServerRecords = Arc<Mutex<Vec<Received>>>;

/// Serves numbers in a namespace until the process ends.
pub async fn serve_numbers(namespace: File, port: u16) -> ServerRecords {
    let listener =
        inside(namespace, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound in the container")).await;
    let served = ServerRecords::default();
    let all = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let all = Arc::clone(&all);
            std::thread::spawn(move || {
                let received = both_ways(&stream, &AtomicBool::new(false));
                all.lock().expect("no panic").push(received);
            });
        }
    });
    served
}

/// A connection that carries numbers in both directions until it is stopped.
pub struct Transfer {
    label: String,
    stop: Stop,
    running: JoinHandle<Received>,
}

impl Transfer {
    pub async fn start(target: Target) -> Self {
        let to = target.to;
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(5));
        let stream = inside(target.from, connect).await.unwrap_or_else(|e| panic!("{}: {e}", target.label));
        let stop = Stop::default();
        let flag = stop.flag();
        let running = tokio::task::spawn_blocking(move || both_ways(&stream, &flag));
        Self { label: target.label, stop, running }
    }

    /// Closes the connection and returns what this side received.
    pub async fn stop(self) -> Received {
        self.stop.now();
        let received = self.running.await.expect("no panic");
        let error = received.error.as_deref().unwrap_or("complete");
        eprintln!("{}: {} KiB in order, longest silence {:.2?}, {error}", self.label, received.bytes >> 10, received.silence);
        received
    }
}

/// Sends numbers and checks those received, until `stop` is set here or the other side has ended.
fn both_ways(stream: &TcpStream, stop: &AtomicBool) -> Received {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| send_numbers(stream, || stop.load(Ordering::Relaxed) || over.load(Ordering::Relaxed)));
        let mut received = Received::default();
        let read = check_numbers(stream, &mut received);
        over.store(true, Ordering::Relaxed);
        let written = writing.join().expect("no panic");
        received.error = read.and(written).err().map(|error| format!("{error:#}"));
        received
    })
}

fn send_numbers(mut stream: &TcpStream, stop: impl Fn() -> bool) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(Duration::from_mins(1)))?;
    let mut next = 0_u64;
    while !stop() {
        let block: Vec<u8> = (next..next + 256).flat_map(u64::to_be_bytes).collect();
        next += 256;
        stream.write_all(&block).context("write")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.shutdown(Shutdown::Write).context("shutdown")
}

fn check_numbers(mut stream: &TcpStream, received: &mut Received) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut buffer = vec![0; 65_536];
    loop {
        let from = Instant::now();
        let len = stream.read(&mut buffer).context("read")?;
        received.silence = received.silence.max(from.elapsed());
        if len == 0 {
            return Ok(());
        }
        for byte in &buffer[..len] {
            let want = (received.bytes / 8).to_be_bytes()[usize::try_from(received.bytes % 8)?];
            ensure!(*byte == want, "byte {} is {byte}, not {want}", received.bytes);
            received.bytes += 1;
        }
    }
}
