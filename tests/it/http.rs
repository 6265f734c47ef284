//! The process `skep http serve` with clients and tasks on loopback: what it does with requests, good and bad. Whole swarms are in
//! `swarm::http`.

mod access_log;
mod bad_input;
mod bounds;
mod direct;
mod forwarding;
mod health;
mod http2_smuggling;
mod protocols;
mod rates;
mod repeats;
mod requests;
mod smuggling;
mod takeover;
mod task;
mod tls;
mod traefik_stacks;
mod upgrades;

use serde_json::{Value, json};
use skep::http::UnixClient;
use skep::ingress::http::{HttpAccessLog, HttpLimits, HttpOptions, HttpPorts, HttpStatus, table};
use skep::lab::eventually;
use skep::model::fixture;
use skep::model::http::{HttpBackend, HttpLabels, HttpService};
use skep::model::payload::PayloadId;
use skep::model::view::{ClusterPart, Tasks};
use skep::model::{Payload, Timestamp};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");

/// A service of the table.
struct Site {
    labels: BTreeMap<String, String>,
    tasks: Vec<(String, Ipv4Addr)>,
    /// Certificate and key in PEM.
    certificate: Option<String>,
}

impl Site {
    /// With these labels, and tasks at these addresses that listen on `skep.http.port`.
    fn new(labels: &[(&str, &str)], tasks: &[Ipv4Addr]) -> Self {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let tasks = tasks.iter().map(|address| (format!("task{address}"), *address)).collect();
        Self { labels, tasks, certificate: None }
    }
}

/// The process, which ends with this.
struct Ingress {
    dir: PathBuf,
    limits: HttpLimits,
    ports: HttpPorts,
    access_log: HttpAccessLog,
    child: Child,
}

impl Drop for Ingress {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A port that is free now, in no range from which the kernel draws others.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() % 8000;
        let port = u16::try_from(port).expect("a port");
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// Starts a process on a control socket. It connects to tasks from this namespace.
fn serve(program: &Path, control: &Path) -> Child {
    serving(program, control).spawn().expect("started")
}

fn serving(program: &Path, control: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["http", "serve", "--log", "warn", "--mesh", "/proc/self/ns/net", "--control"]).arg(control);
    command
}

impl Ingress {
    async fn start(name: &str) -> Self {
        Self::starting(name, Stdio::inherit()).await
    }

    /// With its standard output.
    async fn starting(name: &str, output: Stdio) -> Self {
        let dir = std::env::temp_dir().join(format!("skep-http-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let child = serving(Path::new(SKEP), &dir.join("http.sock")).stdout(output).spawn().expect("started");
        let limits = HttpLimits { head_ms: 1500, ..HttpLimits::default() };
        let ports = HttpPorts { plain: free_port(), tls: free_port() };
        let ingress = Self { dir, limits, ports, access_log: HttpAccessLog::Off, child };
        eventually("the process to answer", Duration::from_secs(15), || async { ingress.control().get("/hello").await?.ok() })
            .await
            .expect("it answers");
        ingress
    }

    fn control(&self) -> UnixClient {
        UnixClient::new(self.dir.join("http.sock"))
    }

    /// With other bounds of clients.
    async fn bounded(name: &str, limits: HttpLimits, sites: Vec<Site>) -> Self {
        let mut ingress = Self::start(name).await;
        ingress.limits = limits;
        ingress.set(sites).await;
        ingress
    }

    /// With a table of these services, in the order of their age.
    async fn with(name: &str, sites: Vec<Site>) -> Self {
        let ingress = Self::start(name).await;
        ingress.set(sites).await;
        ingress
    }

    /// Replaces the table.
    async fn set(&self, sites: Vec<Site>) -> HttpStatus {
        let mut peer = fixture::peer(1);
        peer.ingress_addr = Ipv4Addr::LOCALHOST;
        let me = peer.node_id.clone();
        let mut tasks = Tasks::default();
        let mut http = Vec::new();
        for (number, site) in sites.into_iter().enumerate() {
            let labels = HttpLabels::read(&site.labels).expect("labels");
            let port = labels.routes[0].port;
            let backend = |(task, address): (String, Ipv4Addr)| HttpBackend {
                task_id: task.as_str().into(),
                node_id: me.clone(),
                address,
                ports: vec![port],
            };
            let secret = site.certificate.map(|pem| {
                use base64::{Engine as _, engine::general_purpose::STANDARD};
                let id = skep::model::SecretId::from(format!("secret{number}-{}", pem.len()).as_str());
                let payload = Payload { data: STANDARD.encode(pem).into(), templating: None };
                tasks.payloads.insert(PayloadId::Secret(id.clone()), Arc::new(payload));
                id
            });
            http.push(Arc::new(HttpService {
                service_id: format!("s{number}").as_str().into(),
                service_name: format!("s{number}"),
                created_at: Timestamp(i64::try_from(number).expect("few")),
                routes: labels.routes,
                certificate: secret,
                problems: Vec::new(),
                holds: false,
                backends: site.tasks.into_iter().map(backend).collect(),
            }));
        }
        let cluster = ClusterPart { http, ..fixture::cluster_part(vec![peer]) };
        let mut view = fixture::node_view(1, Vec::new(), cluster);
        view.tasks = Arc::new(tasks);
        let options = HttpOptions { ports: self.ports, limits: self.limits.clone(), access_log: self.access_log };
        let table = table(&view, &me, &options);
        let body = serde_json::to_vec(&table).expect("JSON");
        let reply = self.control().send("PUT", "/table", &[("Content-Type", "application/json")], body.into()).await;
        reply.expect("an answer").json().expect("a status")
    }

    async fn status(&self) -> HttpStatus {
        self.control().get("/state").await.expect("an answer").json().expect("a status")
    }

    fn plain(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.plain).into()
    }

    /// What curl prints with these arguments; `HTTP` and `HTTPS` stand for the addresses of `shop.test`.
    fn curl(&self, arguments: &[&str]) -> String {
        let (plain, tls) = (self.ports.plain, self.ports.tls);
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "-k",
            "--max-time",
            "10",
            "--resolve",
            &format!("*:{plain}:127.0.0.1"),
            "--resolve",
            &format!("*:{tls}:127.0.0.1"),
        ]);
        for argument in arguments {
            let argument = argument.replace("HTTPS", &format!("https://shop.test:{tls}"));
            command.arg(argument.replace("HTTP", &format!("http://shop.test:{plain}")));
        }
        let output = command.output().expect("curl");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

/// The answer of [`task`]s as JSON.
fn shown(answer: &str) -> Value {
    serde_json::from_str(answer.lines().next().unwrap_or_default()).unwrap_or_else(|_| json!({ "not JSON": answer }))
}

/// A certificate for a host with its key, in PEM.
pub fn pem(host: &str) -> String {
    let (certificate, key) = pem_of(&skep::trust::self_signed(vec![host.to_owned()]).expect("a certificate"));
    certificate + &key
}

/// A certificate and its key, each in PEM.
pub fn pem_of(made: &skep::trust::SelfSigned) -> (String, String) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = |label: &str, der: &[u8]| {
        let body = STANDARD.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    (text("CERTIFICATE", &made.certificate), text("PRIVATE KEY", made.key.expose()))
}
