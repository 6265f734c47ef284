//! UDP through a published port: each client has a flow, which is a socket in the mesh connected to one backend, so that only
//! that backend's replies are received. A first datagram that a backend refuses is sent to the next one.

use super::allow::AllowReader;
use super::flows::{FlowId, FlowLimits, Flows};
use super::port_state::PortShared;
use crate::datapath::sockets::set_refusing;
use crate::datapath::udp::{DatagramPath, LONGEST, UdpPort};
use crate::sync::lock;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

/// Datagrams handled before the loop yields to others.
const BATCH: usize = 64;
/// Longest first datagram, in bytes, that is retained to send it to another backend; the client must repeat longer ones.
const MAX_RETAINED: usize = 1500;
/// Longest payload over IPv4, in bytes.
const MAX_PAYLOAD: usize = 65_507;
/// Pause after the kernel could not receive (out of memory).
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

thread_local! {
    /// One buffer per thread instead of per flow: it is never in use across an await.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST]);
}

/// What the UDP ports of this node share.
pub(super) struct UdpShared {
    flows: Mutex<Flows<Arc<Upstream>>>,
    own: Mutex<OwnEndpoints>,
}

/// Sources of datagrams that this swarm's published ports sent: from a node's address and a published port. Such a datagram
/// is in a loop.
#[derive(Default, PartialEq, Eq)]
pub(super) struct OwnEndpoints {
    pub nodes: BTreeSet<IpAddr>,
    /// Published UDP ports.
    pub ports: BTreeSet<u16>,
}

/// The socket of a flow.
struct Upstream {
    socket: UdpSocket,
    backend: Ipv4Addr,
    /// The first datagram, until the first reply: for the next backend if this one refuses it.
    unanswered: Mutex<Option<Vec<u8>>>,
    /// The client uses another backend now; replies that are on their way are still forwarded.
    moved: CancellationToken,
    /// The flow was idle for too long, was evicted or refused.
    ended: CancellationToken,
}

impl UdpShared {
    pub fn new(limits: FlowLimits) -> Arc<Self> {
        Arc::new(Self { flows: Mutex::new(Flows::new(limits)), own: Mutex::default() })
    }

    pub fn set_own_endpoints(&self, own: OwnEndpoints) {
        *lock(&self.own) = own;
    }

    /// Ends the flows that were idle for too long.
    pub fn expire(&self) {
        for upstream in lock(&self.flows).expire(Instant::now()) {
            upstream.ended.cancel();
        }
    }

    /// Flows of a port to other backends than these move with their next datagram.
    pub fn retain_flows(&self, port: u16, backends: &[Ipv4Addr]) {
        for upstream in lock(&self.flows).retain(port, backends) {
            upstream.moved.cancel();
        }
    }

    pub fn flow_count(&self, port: u16) -> usize {
        lock(&self.flows).len(port)
    }

    /// Whether a published port sent the datagram. Two ports that reply to each other would never stop, and nothing that a
    /// published port sends is a request.
    fn is_own(&self, path: DatagramPath) -> bool {
        let own = lock(&self.own);
        own.ports.contains(&path.peer.port()) && (path.peer.ip() == path.local || own.nodes.contains(&path.peer.ip()))
    }
}

/// A published UDP port on one address family.
pub(super) struct UdpListener {
    number: u16,
    port: UdpPort,
    udp: Arc<UdpShared>,
    shared: Arc<PortShared>,
    closed: CancellationToken,
    /// The tasks that forward replies.
    flows: TaskTracker,
}

impl UdpListener {
    pub fn new(number: u16, port: UdpPort, udp: Arc<UdpShared>, shared: Arc<PortShared>) -> Arc<Self> {
        Arc::new(Self { number, port, udp, shared, closed: CancellationToken::new(), flows: TaskTracker::new() })
    }

    /// Whether a flow has not ended: its replies leave by the port's socket.
    pub fn has_flows(&self) -> bool {
        !self.flows.is_empty()
    }

    /// Makes the kernel refuse datagrams, or serve them again.
    pub fn set_refusing(&self, refuse: bool) -> io::Result<()> {
        set_refusing(&self.port, refuse)
    }

    /// Ends its flows and waits until none uses the socket. Unlike a TCP connection a flow cannot outlive the port: its
    /// replies are sent from the port's socket.
    pub async fn close(self: Arc<Self>) {
        self.closed.cancel();
        self.flows.close();
        self.flows.wait().await;
    }
}

/// Receives from clients until aborted.
pub(super) async fn serve(listener: Arc<UdpListener>) {
    let mut allow = AllowReader::new(&listener.shared.allow);
    loop {
        if let Err(error) = listener.port.readable().await {
            debug!(port = listener.number, %error, "cannot receive");
            tokio::time::sleep(RECEIVE_PAUSE).await;
            continue;
        }
        for _ in 0..BATCH {
            match BUFFER.with_borrow_mut(|buffer| receive(&listener, &mut allow, buffer)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    debug!(port = listener.number, %error, "cannot receive");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Receives one datagram and forwards it.
fn receive(listener: &Arc<UdpListener>, allow: &mut AllowReader, buffer: &mut [u8]) -> io::Result<()> {
    let datagram = listener.port.try_recv(buffer)?;
    let path = datagram.path;
    // Every node of a network would answer a broadcast; a longer datagram than IPv4 allows cannot be sent to a backend.
    if !datagram.unicast || datagram.len > MAX_PAYLOAD || path.peer.port() == 0 || listener.udp.is_own(path) {
        trace!(port = listener.number, peer = %path.peer, "not a request");
        return Ok(());
    }
    // Checked for each datagram, so that a change of the allow list also ends flows.
    if !listener.shared.admits(allow, path.peer.ip()) {
        trace!(port = listener.number, peer = %path.peer, "the source is not in the port's allow list");
        return Ok(());
    }
    forward(listener, path, &buffer[..datagram.len], Vec::new());
    Ok(())
}

/// Sends a datagram to the backend of its flow, a new flow if there is none.
fn forward(listener: &Arc<UdpListener>, path: DatagramPath, data: &[u8], mut tried: Vec<Ipv4Addr>) {
    let flow = lock(&listener.udp.flows).get(listener.number, path, Instant::now());
    match flow {
        Some((id, upstream)) => match upstream.socket.try_send(data) {
            Err(error) if is_refusal(&error) => {
                // The kernel reports the refusal of an earlier datagram; this one was not sent.
                end_refused_flow(listener, id, &upstream, &error);
                tried.push(upstream.backend);
                if let Some(first) = lock(&upstream.unanswered).take() {
                    open_flow(listener, path, &first, &mut tried.clone());
                }
                forward(listener, path, data, tried);
            }
            // Other errors mean that there is no room: lost, as datagrams may be.
            _ => {}
        },
        None => open_flow(listener, path, data, &mut tried),
    }
}

/// Opens a flow to the first backend that accepts the datagram; each is tried once.
fn open_flow(listener: &Arc<UdpListener>, path: DatagramPath, data: &[u8], tried: &mut Vec<Ipv4Addr>) {
    let shared = &listener.shared;
    while let Some((source, backend)) = shared.select_backend(path.peer.ip(), tried) {
        let SocketAddr::V4(address) = backend else { return };
        let backend_ip = *address.ip();
        let opened = shared.mesh.udp(source).and_then(|socket| {
            // Before tokio registers the socket, so that the first datagram does not wait for readiness.
            socket.connect(backend)?;
            socket.send(data)?;
            UdpSocket::from_std(socket)
        });
        match opened {
            Ok(socket) => {
                let unanswered = (data.len() <= MAX_RETAINED).then(|| data.to_vec());
                let upstream = Arc::new(Upstream {
                    socket,
                    backend: backend_ip,
                    unanswered: Mutex::new(unanswered),
                    moved: CancellationToken::new(),
                    ended: CancellationToken::new(),
                });
                let (id, evicted) =
                    lock(&listener.udp.flows).insert(listener.number, path, backend_ip, Arc::clone(&upstream), Instant::now());
                for evicted in evicted {
                    evicted.ended.cancel();
                }
                listener.flows.spawn(forward_replies(Arc::clone(listener), id, upstream, std::mem::take(tried)));
                return;
            }
            Err(error) => {
                debug!(%backend, %source, %error, "backend does not accept a datagram, trying the next");
                shared.failed(backend_ip);
                tried.push(backend_ip);
            }
        }
    }
    shared.counters.errors.fetch_add(1, Ordering::Relaxed);
    debug!(port = listener.number, peer = %path.peer, "no backend for a datagram");
}

/// Forwards replies until the flow ends. `tried` are the backends that refused its first datagram.
async fn forward_replies(listener: Arc<UdpListener>, id: FlowId, upstream: Arc<Upstream>, mut tried: Vec<Ipv4Addr>) {
    let lingered = async {
        upstream.moved.cancelled().await;
        tokio::time::sleep(listener.shared.settings.flow_linger).await;
    };
    tokio::pin!(lingered);
    loop {
        let ready = tokio::select! {
            () = upstream.ended.cancelled() => break,
            () = listener.closed.cancelled() => break,
            () = listener.shared.shutdown.cancelled() => break,
            () = &mut lingered => break,
            ready = readable(&upstream.socket) => ready,
        };
        match ready.and_then(|()| BUFFER.with_borrow_mut(|buffer| forward_reply(&listener, id, &upstream, buffer))) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                end_refused_flow(&listener, id, &upstream, &error);
                if let Some(first) = lock(&upstream.unanswered).take() {
                    tried.push(upstream.backend);
                    open_flow(&listener, id.path, &first, &mut tried);
                }
                break;
            }
        }
    }
    lock(&listener.udp.flows).remove(id);
}

/// Waits for a reply or a refusal. epoll does not report a refusal as readable, so the error state is polled as well.
async fn readable(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if ready.is_error() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        // A send has taken the error already: clears the readiness.
        let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(())
}

fn forward_reply(listener: &UdpListener, id: FlowId, upstream: &Upstream, buffer: &mut [u8]) -> io::Result<()> {
    let len = upstream.socket.try_recv(buffer)?;
    if lock(&upstream.unanswered).take().is_some() {
        listener.shared.accepted(upstream.backend);
    }
    lock(&listener.udp.flows).touch(id, Instant::now());
    if let Err(error) = listener.port.try_send(&buffer[..len], id.path) {
        // No room, or the client's network is gone: lost, as datagrams may be.
        trace!(port = listener.number, peer = %id.path.peer, %error, "reply lost");
    }
    Ok(())
}

/// Ends a flow whose backend closed its port or is unreachable.
fn end_refused_flow(listener: &UdpListener, id: FlowId, upstream: &Upstream, error: &io::Error) {
    debug!(port = listener.number, backend = %upstream.backend, %error, "backend does not accept datagrams");
    listener.shared.failed(upstream.backend);
    if let Some(upstream) = lock(&listener.udp.flows).remove(id) {
        upstream.ended.cancel();
    }
}

fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown)
}
