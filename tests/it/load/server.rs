//! A server for containers, as services have them: HTTP/1.1 with kept connections, and UDP. This test binary runs it inside the
//! container: [`template`] is the task that does.
//!
//! It says of each request what a client must never see: one that comes before the health check has passed (`early`). On SIGTERM
//! it takes what has connected already, stops listening, ends each kept connection with its next answer (`Connection: close`),
//! and exits when all have ended. Lines on an upgraded connection come back.

use super::upgraded::BYE;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// UDP port; TCP is 80.
pub const DATAGRAMS: u16 = 5300;
/// Time from the start of the container until it listens.
const START: Duration = Duration::from_millis(300);
/// How long a kept connection is waited for that sends nothing, and the grace of the task is longer.
const IDLE: Duration = Duration::from_secs(3);

/// Task template of the server.
pub fn template(networks: &Value) -> Value {
    let program = std::env::current_exe().expect("this program");
    let bind = |source: &Path, target: &Path| json!({ "Type": "bind", "Source": source, "Target": target, "ReadOnly": true });
    let mut mounts = vec![bind(&program, Path::new("/server"))];
    // The container has a static shell alone: the libraries are the machine's.
    let libraries = ["/lib", "/lib64", "/usr/lib"].map(Path::new).into_iter().filter(|path| path.exists());
    mounts.extend(libraries.map(|path| bind(&path.canonicalize().expect("a directory"), path)));
    let probe = ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"];
    let container = json!({
        "Command": ["/server", "--ignored", "--exact", "--nocapture", "load::server::serve"],
        "Env": ["SKEP_TEST_SERVER=1"], "Mounts": mounts, "StopGracePeriod": 10_000_000_000_u64,
        "Healthcheck": { "Test": probe, "Interval": 1_000_000_000_u64, "Timeout": 5_000_000_000_u64, "Retries": 5 },
    });
    json!({ "Networks": networks, "ContainerSpec": container })
}

/// The same without a health check, for a service that is reached by its name: it listens so long after its start.
pub fn unchecked(networks: &Value, start: Duration) -> Value {
    let mut template = template(networks);
    let container = template["ContainerSpec"].as_object_mut().expect("an object");
    container.remove("Healthcheck");
    container.insert("Env".to_owned(), json!(["SKEP_TEST_SERVER=1", format!("SKEP_TEST_START_MS={}", start.as_millis())]));
    template
}

#[test]
#[ignore = "runs in a container: see the module"]
#[allow(clippy::disallowed_methods, reason = "the container's environment")]
fn serve() {
    if std::env::var_os("SKEP_TEST_SERVER").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let unchecked = std::env::var("SKEP_TEST_START_MS").ok().and_then(|text| text.parse().ok()).map(Duration::from_millis);
        runtime.block_on(run(unchecked)).expect("serves");
        std::process::exit(0);
    }
}

struct Server {
    name: String,
    healthy: AtomicBool,
    /// SIGTERM has come.
    ending: watch::Receiver<bool>,
}

/// `unchecked`: no health check is waited for, and this is the time until it listens.
async fn run(unchecked: Option<Duration>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (end, ending) = watch::channel(false);
    let name = std::fs::read_to_string("/etc/hostname")?.trim().to_owned();
    tokio::time::sleep(unchecked.unwrap_or(START)).await;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).await?;
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DATAGRAMS)).await?;
    let echo = tokio::spawn(answer_datagrams(datagrams, name.clone()));
    let server = Arc::new(Server { name, healthy: AtomicBool::new(unchecked.is_some()), ending });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(accepted.map(|(stream, from)| connections.spawn(Arc::clone(&server).connection(stream, from)))),
            _ = terminate.recv() => break,
            Some(_) = connections.join_next() => {}
        }
    }
    // What has connected before is served.
    while let Ok(Ok((stream, from))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        connections.spawn(Arc::clone(&server).connection(stream, from));
    }
    drop(listener);
    let _ = end.send(true);
    while connections.join_next().await.is_some() {}
    // Datagrams that are under way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    echo.abort();
    Ok(())
}

async fn answer_datagrams(socket: UdpSocket, name: String) {
    let mut buffer = vec![0; 2048];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
        let mut answer = format!("{name} {peer} ").into_bytes();
        answer.extend(&buffer[..len]);
        let _ = socket.send_to(&answer, peer).await;
    }
}

impl Server {
    async fn connection(self: Arc<Self>, mut stream: TcpStream, from: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let mut ending = self.ending.clone();
        let mut received = Vec::new();
        loop {
            let idle = async {
                let _ = ending.wait_for(|ending| *ending).await;
                tokio::time::sleep(IDLE).await;
            };
            let head = tokio::select! {
                head = head(&mut stream, &mut received) => head,
                () = idle => None,
            };
            let Some(head) = head else { return };
            if from.ip().is_loopback() {
                self.healthy.store(true, Ordering::Relaxed);
            }
            if head.to_ascii_lowercase().contains("upgrade: websocket") {
                return self.upgraded(stream, received).await;
            }
            let note = if self.healthy.load(Ordering::Relaxed) { "ok" } else { "early" };
            let body = format!("{} {note} {}\n", self.name, from.ip());
            let closes = head.contains("HTTP/1.0") || head.to_ascii_lowercase().contains("connection: close");
            let closes = closes || *self.ending.borrow();
            let connection = if closes { "close" } else { "keep-alive" };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).await.is_err() || closes {
                let _ = stream.shutdown().await;
                // Until the client has closed too: what it still sends must not reset the answer.
                let mut rest = [0; 512];
                while matches!(tokio::time::timeout(IDLE, stream.read(&mut rest)).await, Ok(Ok(1..))) {}
                return;
            }
        }
    }
}

impl Server {
    /// Sends lines back, until SIGTERM; then says that it ends.
    async fn upgraded(&self, mut stream: TcpStream, mut received: Vec<u8>) {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        if stream.write_all(format!("{head}X-Server: {}\r\n\r\n", self.name).as_bytes()).await.is_err() {
            return;
        }
        let mut ending = self.ending.clone();
        loop {
            if stream.write_all(&std::mem::take(&mut received)).await.is_err() {
                return;
            }
            let mut buffer = [0; 1024];
            let ends = async { drop(ending.wait_for(|ending| *ending).await) };
            let read = tokio::select! {
                read = stream.read(&mut buffer) => Some(read),
                () = ends => None,
            };
            match read {
                Some(Ok(length @ 1..)) => received.extend(&buffer[..length]),
                Some(_) => return,
                None => break,
            }
        }
        let _ = stream.write_all(format!("{BYE}\n").as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut rest = [0; 512];
        while matches!(tokio::time::timeout(IDLE, stream.read(&mut rest)).await, Ok(Ok(1..))) {}
    }
}

/// The next head of a request; `None` at the end of the connection.
async fn head(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = received.split_off(end + 4);
            let head = std::mem::replace(received, rest);
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer).await {
            Ok(len @ 1..) => received.extend(&buffer[..len]),
            _ => return None,
        }
    }
}
