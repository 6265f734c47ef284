//! Published ports over loopback: real listeners on every address of this namespace, real backends at addresses of 127/8
//! made from the pid so that runs side by side do not meet.

mod backend;
mod carrying;
mod ports;
mod udp;
mod under_load;

use backend::Backends;
use skep::datapath::{Sockets as _, sockets::HereSockets};
use skep::ingress::userspace::run;
use skep::ingress::{PortState, PortStatus, UserspaceSettings};
use skep::model::Listens;
use skep::model::WgKey;
use skep::model::mesh::MeshPrefix;
use skep::model::view::{Backend, ClusterPart, Networks, Peer, PublishedPort, Tasks};
use skep::model::{NodeView, Protocol, Revision};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
/// Port of the backends.
const TARGET: u16 = 18_080;

/// A /24 of loopback of this test's own.
#[derive(Clone, Copy)]
struct Net([u8; 3]);

impl Net {
    fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let pid = std::process::id();
        Self([
            127,
            16 + u8::try_from(pid % 200).unwrap(),
            NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add((pid / 200 % 251) as u8),
        ])
    }
    fn host(self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last)
    }
    /// What containers see as the source.
    fn ingress(self) -> Ipv4Addr {
        self.host(2)
    }
}

/// A port that is free on all addresses when asked, below those that the kernel gives to clients.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 240).unwrap() * 50;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 700;
        let all: [SocketAddr; 2] = [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
        if all.into_iter().all(|address| HereSockets.listen(address).is_ok()) {
            return port;
        }
    }
}

fn port(net: Net, published: u16, backends: &[u8]) -> PublishedPort {
    let backend = |n: &u8| Backend {
        task_id: format!("t{n}").into(),
        node_id: "n".into(),
        address: net.host(*n),
        listens: Listens::default(),
    };
    PublishedPort {
        protocol: Protocol::Tcp,
        published,
        target: TARGET,
        service_id: "web".into(),
        service_name: "web".to_owned(),
        backends: backends.iter().map(backend).collect(),
        affinity: false,
        allow: Vec::new(),
    }
}

/// The loop under test.
struct Balance {
    net: Net,
    index: u64,
    view: watch::Sender<Option<Arc<NodeView>>>,
    applied: watch::Receiver<Revision>,
    status: watch::Receiver<Vec<PortStatus>>,
    shutdown: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl Balance {
    fn start(net: Net, set: impl FnOnce(&mut UserspaceSettings)) -> Self {
        let mut settings = UserspaceSettings { tick: Duration::from_millis(20), ..UserspaceSettings::default() };
        set(&mut settings);
        let (view, views) = watch::channel(None);
        let (applying, applied) = watch::channel(Revision::default());
        let (telling, status) = watch::channel(Vec::new());
        let shutdown = CancellationToken::new();
        let here = Arc::new(HereSockets);
        let done = tokio::spawn(run(views, "me".into(), here.clone(), here, applying, telling, settings, shutdown.clone()));
        Self { net, index: 0, view, applied, status, shutdown, done }
    }
    /// Shows a view with these ports and waits until it is applied.
    async fn show(&mut self, ports: Vec<PublishedPort>) {
        self.index += 1;
        let revision = Revision { incarnation: 1, index: self.index };
        let peer = Peer {
            node_id: "me".into(),
            hostname: "me".to_owned(),
            manager: true,
            key: WgKey([7; 32]),
            subnet: "fd00::/64".parse().unwrap(),
            ingress_addr: self.net.ingress(),
            endpoints: Vec::new(),
            containers: Vec::new(),
            ebpf: false,
            down: false,
        };
        let mesh = MeshPrefix("fd12:3456:789a::/48".parse().unwrap());
        let cluster =
            ClusterPart { mesh, pools: Vec::new(), nodes: vec![peer], ports: ports.into_iter().map(Arc::new).collect() };
        self.view.send_replace(Some(Arc::new(NodeView {
            revision,
            tasks: Arc::new(Tasks::default()),
            networks: Arc::new(Networks::default()),
            cluster: Arc::new(cluster),
        })));
        tokio::time::timeout(5 * SECOND, self.applied.wait_for(|r| *r == revision)).await.expect("not applied").unwrap();
    }
    /// Waits until the status of a port is as said.
    async fn status(&mut self, port: u16, what: &str, is: impl Fn(&PortStatus) -> bool) -> PortStatus {
        let found = |all: &Vec<PortStatus>| all.iter().any(|s| s.port == port && is(s));
        let seen = tokio::time::timeout(5 * SECOND, self.status.wait_for(found)).await.is_ok();
        assert!(seen, "not within 5 s: {what}; it is {:?}", *self.status.borrow());
        let all = self.status.borrow().clone();
        all.into_iter().find(|s| s.port == port).unwrap()
    }
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(5 * SECOND, self.done).await.expect("does not stop").unwrap();
    }
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap()
}

/// Connects, says a word, closes its side and reads all: (who answered, the word as it came back).
async fn visit(port: u16, word: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    visit_at((Ipv4Addr::LOCALHOST, port).into(), word).await
}

async fn visit_at(address: SocketAddr, word: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    let all = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(word).await?;
        stream.shutdown().await?;
        let who = stream.read_u8().await?;
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).await?;
        Ok((who, echo))
    };
    tokio::time::timeout(10 * SECOND, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
