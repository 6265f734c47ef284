//! The page of `skep dashboard`, of the program itself, before a daemon that is replaced by sockets with fixed answers. That it shows a
//! real swarm is in `swarm::http`.

mod browser;
mod page;
mod requests;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use skep::http::{bind_unix, serve_unix};
use skep::ingress::ebpf::{EbpfStatus, RefusalCount};
use skep::ingress::http::{HttpListenerStatus, HttpRouteStatus, HttpStatus, RouteCounts, RouteRates};
use skep::model::{Role, Timestamp};
use skep::status::{NodeSummary, Status};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a user may write where names come from, and what a browser would run if it were not shown as text.
const EVIL: &str = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>";
/// What is in specs, and must not leave the machine.
const PASSWORD: &str = "planted-password";

/// The page, and the sockets that it asks. Both end with this.
struct Dashboard {
    dir: PathBuf,
    child: Child,
    /// With the token.
    address: String,
    at: SocketAddr,
    end: CancellationToken,
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.end.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn status() -> Status {
    let node = |id: &str, here: bool, hostname: &str, handshake_seconds| NodeSummary {
        id: id.into(),
        hostname: hostname.to_owned(),
        manager: here,
        here,
        mesh: String::new(),
        path: if here { "self" } else { "direct" }.to_owned(),
        endpoint: None,
        handshake_seconds,
        rx_bytes: 1 << 20,
        tx_bytes: 1 << 30,
        containers: 1,
        feature_levels: None,
        path_mtu: None,
    };
    let route = |host: &str, service: &str, certificate_end: Option<Timestamp>| HttpRouteStatus {
        host: host.to_owned(),
        prefix: "/".to_owned(),
        service: service.to_owned(),
        ready: 1,
        tasks: 2,
        left_out: Vec::new(),
        in_flight: 0,
        certificate: if certificate_end.is_some() { "secret" } else { "self-signed" }.to_owned(),
        certificate_end,
        exemplars: Vec::new(),
        counts: RouteCounts { by_class: [0, 900, 0, 0, 100], ..RouteCounts::default() },
        rates: RouteRates { window_ms: 8000, requests: 400, errors: 40, p50_us: 2500, p90_us: 9000, p99_us: 48_000 },
    };
    let refusal =
        RefusalCount { reason: "unknown_flow".to_owned(), hook: "from_mesh".to_owned(), count: 7, ..RefusalCount::default() };
    Status {
        version: "0.1.0".to_owned(),
        state: "active".to_owned(),
        node: Some("n1".into()),
        role: Some(Role::Manager),
        leader: Some("first".to_owned()),
        warnings: vec![format!("a warning with {EVIL}")],
        nodes: vec![node("n1", true, "first", None), node("n2", false, EVIL, Some(20)), node("n3", false, "third", Some(900))],
        ebpf: EbpfStatus { refusals: vec![refusal], ..EbpfStatus::default() },
        http: HttpStatus {
            pid: Some(7),
            listeners: vec![HttpListenerStatus { address: "0.0.0.0:80".to_owned(), tls: false, error: None }],
            routes: vec![
                route("shop.example.com", "web", Some(Timestamp(4_102_444_800_000_000_000))),
                route("*.example.com", EVIL, None),
            ],
            connections: 12,
            ..HttpStatus::default()
        },
        ..Status::default()
    }
}

fn docker() -> Router {
    let service = |id: &str, name: &str, running: u64| {
        json!({
            "ID": id,
            "Spec": { "Name": name, "Labels": { "note": PASSWORD }, "Mode": { "Replicated": { "Replicas": 2 } },
                "TaskTemplate": { "ContainerSpec": { "Image": "shop/web:1@sha256:00", "Env": [format!("KEY={PASSWORD}")] } } },
            "ServiceStatus": { "RunningTasks": running, "DesiredTasks": 2 },
        })
    };
    let task = |id: &str, slot: u64, node: &str| json!({ "ID": id, "ServiceID": "s1", "Slot": slot, "NodeID": node, "Status": { "State": "running" }, "Spec": { "x": PASSWORD } });
    let ready = |id: &str| json!({ "ID": id, "Status": { "State": "ready" }, "Spec": { "Availability": "active" } });
    let answers: [(&str, Value); 4] = [
        ("/nodes", json!([ready("n1"), ready("n2"), ready("n3")])),
        ("/services", json!([service("s1", "web", 2), service("s2", EVIL, 0)])),
        ("/tasks", json!([task("t1", 1, "n1"), task("t2", 2, "n2")])),
        (
            "/services/s1/history",
            json!([{ "At": "2026-11-23T20:33:18.221420123Z", "Event": "created", "Name": "", "Task": "", "Node": "", "Why": EVIL }]),
        ),
    ];
    answers.into_iter().fold(Router::new(), |router, (path, answer)| router.route(path, get(async move || Json(answer))))
}

async fn start(name: &str) -> Dashboard {
    let dir = std::env::temp_dir().join(format!("skep-dashboard-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let end = CancellationToken::new();
    let admin = Router::new().route("/status", get(async || Json(status()))).route("/healthz", get(async || "ok\n"));
    for (socket, router) in [("admin.sock", admin), ("docker.sock", docker())] {
        tokio::spawn(serve_unix(bind_unix(&dir.join(socket)).expect("a socket"), router, end.clone()));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    command.args(["dashboard", "--json", "--listen", "127.0.0.1:0", "--run-dir"]).arg(&dir).stdout(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut line = String::new();
    let output = child.stdout.take().expect("piped");
    let line = tokio::task::spawn_blocking(move || BufReader::new(output).read_line(&mut line).map(|_| line)).await;
    let printed: Value = serde_json::from_str(&line.expect("read").expect("a line")).expect("JSON");
    let address = printed["address"].as_str().expect("an address").to_owned();
    let at = address.strip_prefix("http://").and_then(|rest| rest.split('/').next()?.parse().ok()).expect("a socket's address");
    Dashboard { dir, child, address, at, end }
}

/// An answer: status, head in lower case, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Dashboard {
    fn token(&self) -> &str {
        self.address.rsplit('=').next().expect("a token")
    }

    fn header(&self) -> String {
        format!("Skep-Dashboard-Token: {}", self.token())
    }

    /// Sends a request with these header lines; `Host` only if it is among them.
    fn send(&self, method: &str, target: &str, lines: &[&str]) -> Answer {
        let mut stream = TcpStream::connect(self.at).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let head: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        write!(stream, "{method} {target} HTTP/1.1\r\nConnection: close\r\n{head}\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// As the page itself asks.
    fn ask(&self, target: &str) -> Answer {
        self.send("GET", target, &["Host: localhost", &self.header(), "Sec-Fetch-Site: same-origin"])
    }
}
