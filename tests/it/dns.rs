//! The name server over loopback: gateways, clients and resolvers are addresses of a [`LoopbackNet`]. Real packets, a fake
//! view, fake resolvers.

mod cluster_names;
mod flood;
mod forwarding;
mod replicas;
mod upstream;
mod upstreams;

use crate::fixture::LoopbackNet;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use ipnet::Ipv4Net;
use skep::datapath::{Sockets, sockets::HereSockets};
use skep::dns::{DnsChannels, DnsCounts, DnsSettings, run};
use skep::model::view::{NetworkPart, TaskEndpoint, Tasks};
use skep::model::{NodeView, Revision, fixture};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ME: &str = "here";
const SECOND: Duration = Duration::from_secs(1);

fn network(net: LoopbackNet, name: &str, members: Vec<TaskEndpoint>) -> NetworkPart {
    fixture::network_part(name, Ipv4Net::new(net.host(0), 24).unwrap(), members)
}

fn member(net: LoopbackNet, service: &str, slot: u64, last: u8) -> TaskEndpoint {
    fixture::task_endpoint(service, slot, ME, net.host(last))
}

fn view(index: u64, networks: Vec<NetworkPart>) -> NodeView {
    fixture::node_view(index, networks, fixture::cluster_part(Vec::new()))
}

/// A running name server.
struct Server {
    view: watch::Sender<Option<Arc<NodeView>>>,
    applied: watch::Receiver<Revision>,
    counts: Arc<DnsCounts>,
    resolv_conf: PathBuf,
    shutdown: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(net: LoopbackNet, set: impl FnOnce(&mut DnsSettings)) -> Self {
        Self::start_with(net, Arc::new(HereSockets), set)
    }
    fn start_with(net: LoopbackNet, sockets: Arc<dyn Sockets>, set: impl FnOnce(&mut DnsSettings)) -> Self {
        let resolv_conf = std::env::temp_dir().join(format!("skep-dns-{}-{}", std::process::id(), net.0[2]));
        let mut settings =
            DnsSettings { resolv_conf: resolv_conf.clone(), retry: Duration::from_millis(10), ..DnsSettings::default() };
        settings.timeout = Duration::from_millis(400);
        set(&mut settings);
        let (view, views) = watch::channel(None);
        let (applying, applied) = watch::channel(Revision::default());
        let shutdown = CancellationToken::new();
        let (_, ready) = watch::channel(skep::datapath::ebpf::VipReadiness::default());
        let counts = Arc::<DnsCounts>::default();
        let channels = DnsChannels { view: views, ready, applied: applying, counts: Arc::clone(&counts) };
        let done = tokio::spawn(run(ME.into(), channels, sockets, settings, shutdown.clone()));
        Self { view, applied, counts, resolv_conf, shutdown, done }
    }
    /// Sends the view and waits until it is applied.
    async fn show(&mut self, view: NodeView) {
        let revision = view.revision;
        self.view.send_replace(Some(Arc::new(view)));
        tokio::time::timeout(5 * SECOND, self.applied.wait_for(|r| *r == revision)).await.expect("not applied").unwrap();
    }
    fn resolvers(&self, addresses: &[Ipv4Addr]) {
        let lines: String = addresses.iter().map(|a| format!("nameserver {a}\n")).collect();
        std::fs::write(&self.resolv_conf, lines).unwrap();
    }
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(5 * SECOND, self.done).await.expect("does not stop").unwrap();
        let _ = std::fs::remove_file(&self.resolv_conf);
    }
}

fn query_bytes(id: u16, name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// A client with an address.
#[derive(Clone, Copy)]
struct Client {
    from: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Client {
    async fn socket(self) -> UdpSocket {
        let socket = UdpSocket::bind((self.from, 0)).await.unwrap();
        socket.connect((self.gateway, 53)).await.unwrap();
        socket
    }
    async fn udp_bytes(self, packet: &[u8]) -> Option<Vec<u8>> {
        let socket = self.socket().await;
        socket.send(packet).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let length = tokio::time::timeout(5 * SECOND, socket.recv(&mut buffer)).await.ok()?.ok()?;
        buffer.truncate(length);
        Some(buffer)
    }
    async fn ask(self, name: &str, kind: RecordType) -> Message {
        let bytes = self.udp_bytes(&query_bytes(77, name, kind, None)).await.expect("no answer");
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, 77);
        message
    }
    async fn addresses(self, name: &str) -> Vec<Ipv4Addr> {
        addresses(&self.ask(name, RecordType::A).await)
    }
    async fn code(self, name: &str) -> ResponseCode {
        self.ask(name, RecordType::A).await.metadata.response_code
    }
    async fn connect(self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        socket.connect(SocketAddr::from((self.gateway, 53))).await.unwrap()
    }
    async fn ask_tcp(self, packet: &[u8]) -> Message {
        let mut stream = self.connect().await;
        send_tcp(&mut stream, packet).await;
        Message::from_vec(&receive_tcp(&mut stream).await.expect("no answer over TCP")).unwrap()
    }
}

async fn send_tcp(stream: &mut TcpStream, packet: &[u8]) {
    stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
    stream.write_all(packet).await.unwrap();
}

async fn receive_tcp(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let read = async {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.ok()?)];
        stream.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    };
    tokio::time::timeout(5 * SECOND, read).await.expect("neither an answer nor the end of the stream")
}

/// The A records, sorted.
fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |data: &RData| if let RData::A(a) = data { Some(a.0) } else { None };
    let mut found: Vec<Ipv4Addr> = message.answers.iter().filter_map(|r| address(&r.data)).collect();
    found.sort();
    found
}

/// Polls until the condition holds.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
