//! Load that tests put on a swarm: requests without a pause, transfers of numbered bytes, names resolved and used. Each
//! keeps a tally of what went wrong and when, so that a test can say "nobody noticed".

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

/// Runs inside a network namespace on a thread of its own.
pub async fn inside<T: Send + 'static>(namespace: File, f: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(move || netns::run(namespace.as_fd(), f).expect("namespace")).await.expect("no panic")
}

pub fn of_host(host: &Host) -> File {
    File::open(format!("/proc/{}/ns/net", host.pid())).expect("the host's namespace")
}

/// The network namespace of a running task's container.
pub async fn of_task(swarm: &Swarm, task: &Value) -> File {
    File::open(place_of(swarm, task).await.1).expect("the container's namespace")
}

/// The host that a task runs on, and its container's network namespace.
pub async fn place_of<'a>(swarm: &'a Swarm, task: &Value) -> (&'a Host, PathBuf) {
    // The engine counts processes in its host's own namespace.
    let pid = task["Status"]["ContainerStatus"]["PID"].as_u64().expect("a process");
    let host = host_of(swarm, task).await;
    (host, format!("/proc/{}/root/proc/{pid}/ns/net", host.pid()).into())
}

/// The host that a task runs on.
pub async fn host_of<'a>(swarm: &'a Swarm, task: &Value) -> &'a Host {
    &swarm.hosts[number_of(swarm, task).await]
}

/// Its place among the hosts.
pub async fn number_of(swarm: &Swarm, task: &Value) -> usize {
    for (number, host) in swarm.hosts.iter().enumerate() {
        if task["NodeID"] == json!(swarm.node_id(host).await) {
            return number;
        }
    }
    panic!("no host runs {task:#}");
}

/// One source of requests.
pub struct Target {
    /// The namespace that they come from.
    pub from: File,
    /// Where they go.
    pub to: SocketAddr,
    /// For people, and to tell tallies apart.
    pub label: String,
}

impl Target {
    pub fn new(from: &File, to: SocketAddr, label: impl Into<String>) -> Self {
        Self { from: from.try_clone().expect("a descriptor"), to, label: label.into() }
    }
}

/// Tells what runs to stop; dropped it does so too, so that a test that fails ends.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn told(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.now();
    }
}

/// Requests without a pause to one address each until told to stop.
pub struct Load {
    stop: Stop,
    running: Vec<JoinHandle<Tally>>,
    answers: Vec<Arc<AtomicUsize>>,
}

/// What became of the requests to one target.
#[derive(Default, Debug)]
pub struct Tally {
    pub label: String,
    /// Answers by who gave them.
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
        self.failed.iter().take(5).try_for_each(|one| write!(f, "\n    after {:.2?}: {}", one.to - one.from, one.why))
    }
}

/// Asks once; says who answered.
type Ask = Box<dyn FnMut() -> anyhow::Result<String>>;

impl Load {
    /// Each request is a connection of its own.
    pub fn start(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::asking(targets, pause, |to| Box::new(move || request(to)))
    }

    /// All datagrams to a target come from one socket: one flow.
    pub fn flows(targets: impl IntoIterator<Item = Target>, pause: Duration) -> Self {
        Self::asking(targets, pause, |to| {
            let mut flow = Flow::new(to).expect("a socket");
            Box::new(move || flow.ask())
        })
    }

    fn asking(targets: impl IntoIterator<Item = Target>, pause: Duration, make: fn(SocketAddr) -> Ask) -> Self {
        let asked_to_stop = Stop::default();
        let (mut running, mut answers) = (Vec::new(), Vec::new());
        for target in targets {
            let (stop, answered) = (asked_to_stop.told(), Arc::new(AtomicUsize::new(0)));
            answers.push(Arc::clone(&answered));
            running.push(tokio::spawn(inside(target.from, move || {
                let mut ask = make(target.to);
                let mut tally = Tally { label: target.label, ..Tally::default() };
                while !stop.load(Ordering::Relaxed) {
                    let from = Instant::now();
                    let answer = ask();
                    let to = Instant::now();
                    match answer {
                        Ok(who) => {
                            *tally.answered.entry(who).or_default() += 1;
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => tally.failed.push(Failed { from, to, why: format!("{error:#}") }),
                    }
                    tally.slowest = tally.slowest.max(to - from);
                    std::thread::sleep(pause);
                }
                tally
            })));
        }
        Self { stop: asked_to_stop, running, answers }
    }

    /// Answers so far, by target.
    pub fn answers(&self) -> Vec<usize> {
        self.answers.iter().map(|n| n.load(Ordering::Relaxed)).collect()
    }

    /// Ends it; prints what became of it.
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

/// A UDP socket that talks to one address, numbered datagrams there and back.
pub struct Flow {
    socket: UdpSocket,
    next: u64,
}

impl Flow {
    pub fn new(to: SocketAddr) -> std::io::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        // Answers from another address than the one asked are not taken.
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self { socket, next: 0 })
    }

    /// Talks to another address from now on, or to the same one anew.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<()> {
        let _told = self.socket.take_error()?;
        self.socket.connect(to)
    }

    /// One datagram to an echo (see `ports::echo`): who answered.
    pub fn ask(&mut self) -> anyhow::Result<String> {
        self.next += 1;
        let word = self.next.to_string();
        self.socket.send(word.as_bytes()).context("send")?;
        let mut buffer = [0; 512];
        loop {
            let len = self.socket.recv(&mut buffer).with_context(|| format!("answer to {word}"))?;
            let said = std::str::from_utf8(&buffer[..len])?;
            let mut parts = said.split(' ');
            let who = parts.next().unwrap_or_default().to_owned();
            // One that came too late is not this one's.
            if parts.next_back() == Some(&word) {
                return Ok(who);
            }
        }
    }
}

/// One HTTP request: who answered.
pub fn request(to: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.0\r\n\r\n").context("write")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    body.split_whitespace().next().map(str::to_owned).with_context(|| format!("not an answer: {answer:?}"))
}

/// A container that resolves a name and asks what it was told, over and over, as programs do.
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

    /// Ends it: the number of answers, and of failures.
    pub async fn stop(self) -> (usize, usize) {
        let mut command = tokio::process::Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.host.display()));
        command.args(["exec", &self.container, "sh", "-c", "echo > /tmp/stop"]).output().await.expect("docker exec");
        let out = self.running.await.expect("no panic").expect("docker exec");
        let said = String::from_utf8_lossy(&out.stdout);
        eprintln!("{}", String::from_utf8_lossy(&out.stderr).lines().take(5).collect::<Vec<_>>().join("\n"));
        let failed = said.lines().filter(|line| line.starts_with("failed")).count();
        let answered = said.lines().count() - failed;
        eprintln!("by name: {answered} answers, {failed} failed");
        (answered, failed)
    }
}

/// What one side of a transfer saw.
#[derive(Clone, Debug, Default)]
pub struct Half {
    /// Bytes received, every one of them the right one.
    pub bytes: u64,
    /// The longest time without any.
    pub silence: Duration,
    /// How it ended, if not well.
    pub error: Option<String>,
}

/// What servers of numbers saw, connection by connection.
pub type Served = Arc<Mutex<Vec<Half>>>;

/// Serves numbers in a namespace (a container's) until the test's process ends.
pub async fn serve_numbers(namespace: File, port: u16) -> Served {
    let listener =
        inside(namespace, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound in the container")).await;
    let served = Served::default();
    let all = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let all = Arc::clone(&all);
            std::thread::spawn(move || {
                let half = both_ways(&stream, &AtomicBool::new(false));
                all.lock().expect("no panic").push(half);
            });
        }
    });
    served
}

/// A connection that carries numbers both ways until told to stop.
pub struct Transfer {
    label: String,
    stop: Stop,
    running: JoinHandle<Half>,
}

impl Transfer {
    pub async fn start(target: Target) -> Self {
        let to = target.to;
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(5));
        let stream = inside(target.from, connect).await.unwrap_or_else(|e| panic!("{}: {e}", target.label));
        let stop = Stop::default();
        let told = stop.told();
        let running = tokio::task::spawn_blocking(move || both_ways(&stream, &told));
        Self { label: target.label, stop, running }
    }

    /// Ends it in good order; says what was seen.
    pub async fn stop(self) -> Half {
        self.stop.now();
        let half = self.running.await.expect("no panic");
        let error = half.error.as_deref().unwrap_or("ended well");
        eprintln!("{}: {} KiB in order, longest silence {:.2?}, {error}", self.label, half.bytes >> 10, half.silence);
        half
    }
}

/// Numbers sent and numbers checked, until `stop` (who is told ends it) or until the other side has ended.
fn both_ways(stream: &TcpStream, stop: &AtomicBool) -> Half {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| send_numbers(stream, || stop.load(Ordering::Relaxed) || over.load(Ordering::Relaxed)));
        let mut half = Half::default();
        let read = check_numbers(stream, &mut half);
        over.store(true, Ordering::Relaxed);
        let written = writing.join().expect("no panic");
        half.error = read.and(written).err().map(|error| format!("{error:#}"));
        half
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

fn check_numbers(mut stream: &TcpStream, half: &mut Half) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut buffer = vec![0; 65_536];
    loop {
        let from = Instant::now();
        let len = stream.read(&mut buffer).context("read")?;
        half.silence = half.silence.max(from.elapsed());
        if len == 0 {
            return Ok(());
        }
        for byte in &buffer[..len] {
            let want = (half.bytes / 8).to_be_bytes()[usize::try_from(half.bytes % 8)?];
            ensure!(*byte == want, "byte {} is {byte}, not {want}", half.bytes);
            half.bytes += 1;
        }
    }
}
