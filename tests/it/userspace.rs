//! Published ports over loopback: real listeners on every address of this namespace, real backends at addresses of 127/8
//! derived from the pid, so that concurrent runs do not collide.

mod backend;
mod carrying;
mod empty;
mod port_cases;
mod ports;
mod udp;
mod under_load;

use backend::Backends;
use skep::datapath::{Sockets as _, sockets::HereSockets};
use skep::ingress::userspace::{UserspaceChannels, UserspaceSockets, run};
use skep::ingress::{PortState, PortStatus, UserspaceSettings, WaitingRoom};
use skep::model::fixture::{cluster_part, node_view, peer, published_port};
use skep::model::view::{ClusterPart, Peer, PublishedPort};
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
/// Port that the backends listen on.
const TARGET: u16 = 18_080;

/// A /24 of loopback that no other test uses.
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
    /// The source address that backends see.
    fn ingress(self) -> Ipv4Addr {
        self.host(2)
    }
}

/// A port that is free on all addresses at this moment, below the ephemeral ports.
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
    let addresses: Vec<Ipv4Addr> = backends.iter().map(|n| net.host(*n)).collect();
    published_port(published, TARGET, &addresses)
}

/// The loop under test.
struct UserspaceLoop {
    net: Net,
    index: u64,
    view: watch::Sender<Option<Arc<NodeView>>>,
    applied: watch::Receiver<Revision>,
    status: watch::Receiver<Vec<PortStatus>>,
    waiting: Arc<WaitingRoom>,
    shutdown: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl UserspaceLoop {
    fn start(net: Net, set: impl FnOnce(&mut UserspaceSettings)) -> Self {
        let mut settings = UserspaceSettings { tick: Duration::from_millis(20), ..UserspaceSettings::default() };
        set(&mut settings);
        let (view, view_receiver) = watch::channel(None);
        let (applied_sender, applied) = watch::channel(Revision::default());
        let (status_sender, status) = watch::channel(Vec::new());
        let shutdown = CancellationToken::new();
        let waiting = WaitingRoom::new();
        let channels = UserspaceChannels {
            view: view_receiver,
            applied: applied_sender,
            status: status_sender,
            held: watch::channel(None).0,
            waiting: waiting.clone(),
        };
        let sockets = UserspaceSockets { host: Arc::new(HereSockets), mesh: Arc::new(HereSockets) };
        let done = tokio::spawn(run(channels, "me".into(), sockets, settings, shutdown.clone()));
        Self { net, index: 0, view, applied, status, waiting, shutdown, done }
    }
    /// Publishes a view with these ports and waits until it is applied.
    async fn publish(&mut self, ports: Vec<PublishedPort>) {
        self.publish_beside(Vec::new(), ports).await;
    }
    /// The same, with other nodes.
    async fn publish_beside(&mut self, others: Vec<Peer>, ports: Vec<PublishedPort>) {
        self.index += 1;
        let node = Peer { node_id: "me".into(), ingress_addr: self.net.ingress(), ..peer(1) };
        let ports = ports.into_iter().map(Arc::new).collect();
        let view = node_view(self.index, Vec::new(), ClusterPart { ports, ..cluster_part([vec![node], others].concat()) });
        let revision = view.revision;
        self.view.send_replace(Some(Arc::new(view)));
        tokio::time::timeout(5 * SECOND, self.applied.wait_for(|r| *r == revision)).await.expect("not applied").unwrap();
    }
    /// Waits until so many connections wait for a task.
    async fn waiting(&self, count: u64) {
        let mut waiting = self.waiting.subscribe();
        let is_so = waiting.wait_for(|waiting| waiting.values().sum::<u64>() == count);
        tokio::time::timeout(5 * SECOND, is_so)
            .await
            .unwrap_or_else(|_| panic!("not {count}: {:?}", self.waiting.read()))
            .unwrap();
    }
    /// Waits until the status of a port fulfils a condition.
    async fn status(&mut self, port: u16, what: &str, condition: impl Fn(&PortStatus) -> bool) -> PortStatus {
        let found = |all: &Vec<PortStatus>| all.iter().any(|s| s.port == port && condition(s));
        let fulfilled = tokio::time::timeout(5 * SECOND, self.status.wait_for(found)).await.is_ok();
        assert!(fulfilled, "not within 5 s: {what}; it is {:?}", *self.status.borrow());
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

/// Connects, sends, closes its side and reads everything: the backend that answered, and the echo.
async fn visit(port: u16, payload: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    visit_at((Ipv4Addr::LOCALHOST, port).into(), payload).await
}

async fn visit_at(address: SocketAddr, payload: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    let all = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(payload).await?;
        stream.shutdown().await?;
        let backend = stream.read_u8().await?;
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).await?;
        Ok((backend, echo))
    };
    tokio::time::timeout(10 * SECOND, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
