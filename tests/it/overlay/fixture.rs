//! Hosts with a mesh namespace, a tunnel and an overlay loop each; containers as the driver attaches them; sockets in any
//! namespace.

use ipnet::Ipv4Net;
use skep::datapath::mesh::Mesh;
use skep::datapath::tunnel::{KernelChoice, TunnelConfig};
use skep::datapath::{Links, netns, tunnel};
use skep::lab::{Host, Lab, eventually, output};
use skep::model::view::{Peer, TaskEndpoint};
use skep::model::{NodeId, NodeView, Revision, WgKey, fixture};
use skep::overlay::Overlay;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(20);
/// Port of every listener.
pub const PORT: u16 = 9999;
pub const MTU: u32 = 1420;
pub const INGRESS: &str = "10.0.0.0/24";
pub const A: &str = "10.0.1.0/24";
pub const B: &str = "10.0.2.0/24";

/// A directory for one test. The pins and tunnel processes that a failed test leaves in it are removed with it.
pub struct TestDir(pub PathBuf);

pub fn test_dir() -> TestDir {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = PathBuf::from(format!("/tmp/skep-mesh-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&dir).expect("directory");
    TestDir(dir)
}

impl Drop for TestDir {
    fn drop(&mut self) {
        for host in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let pid = std::fs::read_to_string(host.path().join("run/tunnel.pid")).unwrap_or_default();
            if let Some(pid) = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            for pin in [host.path(), host.path().join("mesh"), host.path().join("run/mesh")] {
                if pin.is_file() {
                    let _ = netns::unpin(&pin);
                }
            }
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn net(text: &str) -> Ipv4Net {
    text.parse().expect("net")
}

pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("address")
}

/// A network namespace that a test runs sockets and commands in.
pub struct Namespace {
    pub name: String,
    fd: OwnedFd,
    path: PathBuf,
    /// Pinned by the test, so unpinned by it.
    created: bool,
}

impl Namespace {
    pub fn create(dir: &Path, name: &str) -> Self {
        let path = dir.join(format!("ns-{name}"));
        let (fd, _) = netns::make_or_adopt(&path).expect("a namespace (root needed)");
        Self { name: name.to_owned(), fd, path, created: true }
    }
    pub fn open(name: &str, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let fd = std::fs::File::open(&path).expect("namespace").into();
        Self { name: name.to_owned(), fd, path, created: false }
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Runs `f` inside.
    pub fn inside<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        netns::briefly(self.fd.as_fd(), f)
    }
    /// Polls a future on a thread inside; what it spawns runs on the caller's runtime.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let runtime = tokio::runtime::Handle::current();
        netns::run(self.fd.as_fd(), || runtime.block_on(future)).expect("inside")
    }
    /// Runs a command inside, words split at blanks; the error is the command's.
    pub async fn try_run(&self, line: &str) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).args(line.split_whitespace());
        output(&mut command).await
    }
    pub async fn run(&self, line: &str) -> String {
        self.try_run(line).await.unwrap_or_else(|e| panic!("in {}: {e:#}", self.name))
    }
    /// A UDP socket inside.
    pub fn udp(&self, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let address = SocketAddr::new(address.into(), port);
        self.inside(|| UdpSocket::bind(address)).unwrap_or_else(|e| panic!("UDP {address} in {}: {e}", self.name))
    }
    /// A raw IPv4 socket inside that leaves by `device` with the header as given.
    pub fn raw(&self, device: &str) -> socket2::Socket {
        self.inside(|| {
            let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::from(255)))?;
            raw.bind_device(Some(device.as_bytes()))?;
            Ok(raw)
        })
        .unwrap_or_else(|e| panic!("raw socket on {device} in {}: {e}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.created {
            let _ = netns::unpin(&self.path);
        }
    }
}

/// A host with an overlay.
pub struct Node {
    pub host: Host,
    /// Of the host.
    pub namespace: Namespace,
    pub mesh: Arc<Mesh>,
    pub mesh_namespace: Namespace,
    pub config: TunnelConfig,
    pub peer: Peer,
    view: watch::Sender<Option<Arc<NodeView>>>,
    applied: watch::Receiver<Revision>,
    stop: CancellationToken,
    done: Option<tokio::task::JoinHandle<()>>,
}

/// Hosts on one Ethernet segment, with three overlay networks.
pub struct Fixture {
    pub lab: Lab,
    pub nodes: Vec<Node>,
    members: BTreeMap<&'static str, Vec<(usize, Ipv4Addr)>>,
    index: u64,
    /// Last, so that it is dropped last.
    _dir: TestDir,
}

impl Fixture {
    pub async fn new(hosts: u8) -> Self {
        let dir = test_dir();
        let lab = Lab::new(&dir.0).await.expect("lab");
        let mut nodes = Vec::new();
        for number in 1..=hosts {
            nodes.push(node(&lab, number).await);
        }
        Self { lab, nodes, members: BTreeMap::new(), index: 0, _dir: dir }
    }

    /// A container as the driver attaches it: veth from `attach`, /32, gateway on-link, network through the gateway.
    pub async fn container(&mut self, host: usize, network: &'static str, address: &str) -> Namespace {
        self.container_with(host, network, address, MTU).await
    }

    /// A container whose link has this MTU.
    pub async fn container_with(&mut self, host: usize, network: &'static str, address: &str, mtu: u32) -> Namespace {
        let (subnet, address) = (net(network), ip(address));
        let node = &self.nodes[host];
        let end = node.mesh.attach(subnet, address, mtu).await.expect("attach");
        let container = Namespace::create(self.lab.dir(), &format!("c{address}"));
        plug(&node.namespace, &end, &container, "eth0", subnet, address).await;
        self.members.entry(network).or_default().push((host, address));
        container
    }

    pub fn add(&mut self, host: usize, network: &'static str, address: &str) {
        self.members.entry(network).or_default().push((host, ip(address)));
    }

    pub fn forget(&mut self, network: &'static str, address: &str) {
        let address = ip(address);
        self.members.entry(network).or_default().retain(|(_, member)| *member != address);
    }

    pub fn view(&self) -> NodeView {
        let networks = [("ingress", INGRESS), ("a", A), ("b", B)].map(|(name, subnet)| {
            let members = self.members.get(subnet).into_iter().flatten();
            let members = members.map(|(host, address)| member(&self.nodes[*host].peer.node_id, *address)).collect();
            fixture::network_part(name, net(subnet), members)
        });
        let nodes = self.nodes.iter().enumerate().map(|(host, node)| {
            let own = self.members.values().flatten().filter(|(on, _)| *on == host).map(|(_, address)| *address);
            Peer { containers: own.collect(), ..node.peer.clone() }
        });
        fixture::node_view(self.index, networks.into(), fixture::cluster_part(nodes.collect()))
    }

    /// Publishes the view to every node and waits until all have applied it.
    pub async fn publish(&mut self) {
        self.index += 1;
        let view = Arc::new(self.view());
        for node in &self.nodes {
            node.view.send_replace(Some(Arc::clone(&view)));
        }
        for node in &mut self.nodes {
            let wanted = view.revision;
            let applied = tokio::time::timeout(PATIENCE, node.applied.wait_for(|revision| *revision == wanted)).await;
            assert!(matches!(applied, Ok(Ok(_))), "{} did not apply {wanted:?}", node.host.name());
        }
    }

    /// Removes everything; fails the test if something remains.
    pub async fn stop(self) {
        for node in self.nodes {
            node.stop.cancel();
            node.done.expect("running").await.expect("the overlay's loop ends without a panic");
            tunnel::close(&node.config).await.expect("tunnel closes");
            let pin = node.mesh.pin().to_owned();
            node.mesh.remove().expect("mesh removed");
            assert!(!pin.exists());
            node.host.stop().await;
        }
        self.lab.stop().await.expect("lab stops");
    }
}

async fn node(lab: &Lab, number: u8) -> Node {
    let host = lab.host(&format!("m{number}"), number).await.expect("host");
    let namespace = Namespace::open(host.name(), format!("/proc/{}/ns/net", host.pid()));
    std::fs::create_dir_all(host.run_dir()).expect("run dir");
    let pin = host.run_dir().join("mesh");
    let mesh = namespace.block_on(Mesh::open(&pin)).expect("mesh");
    let mesh_namespace = Namespace::open(&format!("mesh of {}", host.name()), &pin);
    let key_file = host.dir().join("key");
    let key = tunnel::generate_key(&key_file).expect("key");
    let config = TunnelConfig {
        mesh_pin: pin,
        run_dir: host.run_dir(),
        private_key_file: key_file,
        listen: "0.0.0.0:2377".parse().expect("address"),
        mtu: MTU,
        keep_mtu: true,
        device: "skep0".to_owned(),
        kernel: KernelChoice::Never,
        program: env!("CARGO_BIN_EXE_skep").into(),
    };
    let opened = namespace.block_on(tunnel::open(config.clone())).expect("tunnel");
    let peer = peer(number, key, SocketAddr::new(host.address().into(), 2377));
    let (view, views) = watch::channel(None);
    let (publish, applied) = watch::channel(Revision::default());
    let stop = CancellationToken::new();
    let overlay = Overlay::new(peer.node_id.clone(), Arc::clone(&mesh), opened).with_tick(Duration::from_millis(300));
    let done = Some(tokio::spawn(overlay.run(views, publish, stop.clone())));
    Node { host, namespace, mesh, mesh_namespace, config, peer, view, applied, stop, done }
}

pub fn peer(number: u8, key: WgKey, endpoint: SocketAddr) -> Peer {
    Peer { key, endpoints: vec![endpoint], ..fixture::peer(number) }
}

pub fn member(node: &NodeId, address: Ipv4Addr) -> TaskEndpoint {
    TaskEndpoint { task_id: format!("task{address}").into(), ..fixture::task_endpoint("service", 1, node.as_str(), address) }
}

/// Configures the container's end as the engine does.
pub async fn plug(host: &Namespace, end: &str, container: &Namespace, name: &str, subnet: Ipv4Net, address: Ipv4Addr) {
    host.run(&format!("ip link set {end} netns {} name {name}", container.path().display())).await;
    container.run("ip link set lo up").await;
    container.run(&format!("ip addr add {address}/32 dev {name}")).await;
    container.run(&format!("ip link set {name} up")).await;
    let gateway = skep::model::mesh::gateway(subnet);
    container.run(&format!("ip route add {gateway} dev {name} scope link")).await;
    container.run(&format!("ip route add {subnet} via {gateway}")).await;
}

/// Sends from `from` to `to` until it arrives at `receiver` with the right source.
pub async fn arrives(sender: &UdpSocket, to: impl Into<IpAddr>, receiver: &UdpSocket) {
    let to = SocketAddr::new(to.into(), receiver.local_addr().expect("bound").port());
    let source = sender.local_addr().expect("bound").ip();
    let mark: [u8; 8] = rand::random();
    receiver.set_nonblocking(true).expect("non-blocking");
    eventually(&format!("a packet {source} -> {to}"), PATIENCE, || async {
        sender.send_to(&mark, to)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut buffer = [0; 64];
        loop {
            let (length, seen) = receiver.recv_from(&mut buffer)?;
            if buffer[..length] == mark {
                anyhow::ensure!(source.is_unspecified() || seen.ip() == source, "arrived from {seen}");
                return Ok(());
            }
        }
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}"));
}
