//! Proxies and their backend in a network namespace.

use super::clients::on_its_processor;
use super::{config, have};
use crate::process::sh;
use skep::http::UnixClient;
use skep::ingress::http::HttpPorts;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const SPACE: &str = "skb-http";
/// The processor of all proxies; of clients and backend.
const PROXIES: usize = 0;
pub const OTHERS: usize = 1;
/// Another build of skep.
pub const BEFORE: &str = "skep-before";

/// Path of that build, to be measured in turn with this one.
pub fn before() -> Option<String> {
    std::env::var("SKEP_BENCH_BEFORE").ok().filter(|path| !path.is_empty())
}

pub struct Proxy {
    pub name: &'static str,
    pub plain: u16,
    pub tls: u16,
    /// Of the files of all.
    pub dir: String,
    child: Child,
}

impl Proxy {
    /// `nsenter` and `taskset` execute the program: the process id is the program's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The processes, which end with this.
pub struct Proxies {
    dir: String,
    backend: Option<Child>,
    all: Vec<Proxy>,
}

impl Proxies {
    /// Starts those that are installed, each with so many routes.
    pub fn start(wanted: &[(&'static str, usize)]) -> Self {
        let dir = format!("/tmp/skb-http-{}", std::process::id());
        std::fs::create_dir_all(&dir).unwrap();
        let mut proxies = Self { dir: dir.clone(), backend: None, all: Vec::new() };
        sh(&format!(
            "ip netns add {SPACE}; ip -n {SPACE} link set lo up; \
             ip netns exec {SPACE} sysctl -qw net.ipv4.ip_local_port_range='10000 65535' net.ipv4.tcp_tw_reuse=1 net.core.somaxconn=4096"
        ));
        std::fs::write(format!("{dir}/hosts"), format!("127.0.0.1 localhost {}\n", config::host(3))).unwrap();
        let pem = config::pem();
        std::fs::write(format!("{dir}/pem"), &pem).unwrap();
        std::fs::write(format!("{dir}/backend.conf"), config::backend(&dir)).unwrap();
        proxies.backend = Some(quiet(on_its_processor(OTHERS).args(["nginx", "-c", &format!("{dir}/backend.conf")])));
        for (number, (name, routes)) in wanted.iter().enumerate() {
            let (plain, tls) = (8100 + 10 * number as u16, 8101 + 10 * number as u16);
            let file = format!("{dir}/{name}.conf");
            let mut command = on_its_processor(PROXIES);
            match *name {
                "haproxy" if !have("haproxy") => continue,
                "haproxy" => {
                    std::fs::write(&file, config::haproxy(*routes, (plain, tls), &dir)).unwrap();
                    command.args(["haproxy", "-db", "-q", "-f", &file]);
                }
                "nginx" => {
                    std::fs::write(&file, config::nginx(*routes, (plain, tls), &dir)).unwrap();
                    command.args(["nginx", "-c", &file]);
                }
                _ => {
                    let control = format!("{dir}/{name}.sock");
                    let program = if *name == BEFORE { before() } else { None };
                    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_skep").to_owned());
                    command.env("TOKIO_WORKER_THREADS", "1");
                    command.args([&program, "http", "serve", "--log", "warn"]);
                    command.args(["--mesh", &format!("/run/netns/{SPACE}"), "--control", &control]);
                }
            }
            proxies.all.push(Proxy { name, plain, tls, dir: dir.clone(), child: quiet(&mut command) });
            if name.starts_with("skep") {
                let table = config::skep(*routes, HttpPorts { plain, tls }, &pem);
                send(&format!("{dir}/{name}.sock"), serde_json::to_vec(&table).unwrap());
            }
        }
        for proxy in &mut proxies.all {
            listens(proxy.name, proxy.plain, &mut proxy.child);
        }
        proxies
    }

    pub fn find(&self, name: &str) -> Option<&Proxy> {
        self.all.iter().find(|proxy| proxy.name == name)
    }

    pub fn get(&self, name: &str) -> &Proxy {
        self.find(name).unwrap()
    }
}

fn quiet(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Replaces the table of a process once it answers.
fn send(control: &str, table: Vec<u8>) {
    let client = UnixClient::new(control);
    crate::on_runtime(async {
        let deadline = Instant::now() + Duration::from_secs(15);
        while client.get("/hello").await.and_then(|reply| reply.ok()).is_err() {
            assert!(Instant::now() < deadline, "{control} does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let sent = client.send("PUT", "/table", &[("Content-Type", "application/json")], table.into()).await;
        sent.unwrap().ok().unwrap();
    });
}

/// Waits until the port answers.
fn listens(name: &str, port: u16, child: &mut Child) {
    let space = std::fs::File::open(format!("/run/netns/{SPACE}")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(15);
    let connect = || skep::datapath::netns::run(space.as_fd(), || TcpStream::connect(("127.0.0.1", port)).is_ok()).unwrap();
    while !connect() {
        assert!(child.try_wait().unwrap().is_none(), "{name} has ended");
        assert!(Instant::now() < deadline, "{name} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for child in self.all.iter_mut().map(|proxy| &mut proxy.child).chain(&mut self.backend) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", SPACE]).status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
