//! UDP through a published port: each client gets a flow, which is a connected socket in the mesh toward one backend, so
//! that answers of nobody else come through. What a backend refuses before it ever answered goes to the next one.

use super::flows::{FlowId, Flows};
use super::listener::Shared;
use crate::datapath::udp::{DatagramPath, LONGEST, UdpPort};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

/// Datagrams handled before others get their turn.
const TURN: usize = 64;
/// A first datagram is kept for another backend up to this length, in bytes; longer ones are the client's to repeat.
const KEPT: usize = 1500;
/// Longest payload over IPv4, in bytes.
const MOST: usize = 65_507;
/// Pause after the kernel refused to receive (out of memory).
const BACK_OFF: Duration = Duration::from_millis(50);

thread_local! {
    /// One buffer per thread, not per flow: nothing waits while it is in use.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST]);
}

/// What the UDP ports of this node share.
pub(super) struct Node {
    flows: Mutex<Flows<Arc<Upstream>>>,
    own: Mutex<Own>,
}

/// Where datagrams from would be our own, come round in a loop.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Own {
    /// Addresses of nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// Published UDP ports.
    pub ports: BTreeSet<u16>,
}

/// The socket of a flow.
struct Upstream {
    socket: UdpSocket,
    backend: Ipv4Addr,
    /// What was sent before the first answer, once: for the next backend if this one refuses it.
    unanswered: Mutex<Option<Vec<u8>>>,
    /// Its client is elsewhere now; answers that are under way still come through.
    moved: CancellationToken,
    /// It had to make room, or was idle.
    over: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub fn new(flows: super::flows::Limits) -> Arc<Self> {
        Arc::new(Self { flows: Mutex::new(Flows::new(flows)), own: Mutex::default() })
    }

    /// Who is of this swarm.
    pub fn set_own(&self, own: Own) {
        *lock(&self.own) = own;
    }

    /// Ends what was idle for too long.
    pub fn expire(&self) {
        for gone in lock(&self.flows).expire(Instant::now()) {
            gone.over.cancel();
        }
    }

    /// Flows of a port to backends that are not these move with their next datagram.
    pub fn keep(&self, port: u16, backends: &[Ipv4Addr]) {
        for gone in lock(&self.flows).keep(port, backends) {
            gone.moved.cancel();
        }
    }

    /// Number of flows of a port.
    pub fn len(&self, port: u16) -> usize {
        lock(&self.flows).len(port)
    }

    /// Two ports that answer each other would never stop: nothing of what a published port says is a request.
    fn is_own(&self, way: DatagramPath) -> bool {
        let own = lock(&self.own);
        own.ports.contains(&way.peer.port()) && (way.peer.ip() == way.local || own.nodes.contains(&way.peer.ip()))
    }
}

/// A published UDP port on one family.
pub(super) struct Door {
    number: u16,
    port: UdpPort,
    node: Arc<Node>,
    shared: Arc<Shared>,
    closed: CancellationToken,
    carrying: TaskTracker,
}

impl Door {
    pub fn new(number: u16, port: UdpPort, node: Arc<Node>, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { number, port, node, shared, closed: CancellationToken::new(), carrying: TaskTracker::new() })
    }

    /// Ends its flows and waits until nobody has the socket any more. A flow cannot outlive the port as a connection does:
    /// its answers leave through it.
    pub async fn close(self: Arc<Self>) {
        self.closed.cancel();
        self.carrying.close();
        self.carrying.wait().await;
    }
}

/// Runs until aborted.
pub(super) async fn serve(door: Arc<Door>) {
    loop {
        if let Err(error) = door.port.readable().await {
            debug!(port = door.number, %error, "cannot receive");
            tokio::time::sleep(BACK_OFF).await;
            continue;
        }
        for _ in 0..TURN {
            match BUFFER.with_borrow_mut(|buffer| receive(&door, buffer)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    debug!(port = door.number, %error, "cannot receive");
                    tokio::time::sleep(BACK_OFF).await;
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn receive(door: &Arc<Door>, buffer: &mut [u8]) -> io::Result<()> {
    let datagram = door.port.try_recv(buffer)?;
    let way = datagram.path;
    // Every node of a network would answer a broadcast; what is longer than IPv4 can say fits no backend.
    if !datagram.unicast || datagram.len > MOST || way.peer.port() == 0 || door.node.is_own(way) {
        trace!(port = door.number, peer = %way.peer, "not a request");
        return Ok(());
    }
    // Each one, so that a flow ends with the right to it.
    if !door.shared.admits(way.peer.ip()) {
        trace!(port = door.number, peer = %way.peer, "may not use this port");
        return Ok(());
    }
    forward(door, way, &buffer[..datagram.len], Vec::new());
    Ok(())
}

fn forward(door: &Arc<Door>, way: DatagramPath, data: &[u8], mut tried: Vec<Ipv4Addr>) {
    let flow = lock(&door.node.flows).get(door.number, way, Instant::now());
    match flow {
        Some((id, upstream)) => match upstream.socket.try_send(data) {
            Err(error) if is_refusal(&error) => {
                // The refusal is an earlier datagram's; this one was not sent.
                refused(door, id, &upstream, &error);
                tried.push(upstream.backend);
                if let Some(first) = lock(&upstream.unanswered).take() {
                    begin(door, way, &first, &mut tried.clone());
                }
                forward(door, way, data, tried);
            }
            // No room: lost, as datagrams may be.
            _ => {}
        },
        None => begin(door, way, data, &mut tried),
    }
}

/// A new flow, to the first backend that takes the datagram; each is tried once.
fn begin(door: &Arc<Door>, way: DatagramPath, data: &[u8], tried: &mut Vec<Ipv4Addr>) {
    let shared = &door.shared;
    while let Some((source, backend)) = shared.next(way.peer.ip(), tried) {
        let SocketAddr::V4(address) = backend else { return };
        let backend_ip = *address.ip();
        let opened = shared.mesh.udp(source).and_then(|socket| {
            // Before tokio has it, so that the first datagram needs no wait for room.
            socket.connect(backend)?;
            socket.send(data)?;
            UdpSocket::from_std(socket)
        });
        match opened {
            Ok(socket) => {
                let unanswered = (data.len() <= KEPT).then(|| data.to_vec());
                let upstream = Arc::new(Upstream {
                    socket,
                    backend: backend_ip,
                    unanswered: Mutex::new(unanswered),
                    moved: CancellationToken::new(),
                    over: CancellationToken::new(),
                });
                let (id, gone) =
                    lock(&door.node.flows).insert(door.number, way, backend_ip, Arc::clone(&upstream), Instant::now());
                for gone in gone {
                    gone.over.cancel();
                }
                door.carrying.spawn(answers(Arc::clone(door), id, upstream, std::mem::take(tried)));
                return;
            }
            Err(error) => {
                debug!(%backend, %source, %error, "backend does not take a datagram, trying the next");
                shared.failed(backend_ip);
                tried.push(backend_ip);
            }
        }
    }
    shared.counters.errors.fetch_add(1, Ordering::Relaxed);
    debug!(port = door.number, peer = %way.peer, "no backend for a datagram");
}

/// Carries answers until the flow is over. `tried` are the backends that refused its first datagram.
async fn answers(door: Arc<Door>, id: FlowId, upstream: Arc<Upstream>, mut tried: Vec<Ipv4Addr>) {
    let lingering = async {
        upstream.moved.cancelled().await;
        tokio::time::sleep(door.shared.settings.flow_linger).await;
    };
    tokio::pin!(lingering);
    loop {
        let ready = tokio::select! {
            () = upstream.over.cancelled() => break,
            () = door.closed.cancelled() => break,
            () = door.shared.shutdown.cancelled() => break,
            () = &mut lingering => break,
            ready = readable(&upstream.socket) => ready,
        };
        match ready.and_then(|()| BUFFER.with_borrow_mut(|buffer| answer(&door, id, &upstream, buffer))) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                refused(&door, id, &upstream, &error);
                if let Some(first) = lock(&upstream.unanswered).take() {
                    tried.push(upstream.backend);
                    begin(&door, id.way, &first, &mut tried);
                }
                break;
            }
        }
    }
    lock(&door.node.flows).remove(id);
}

/// Waits for an answer. A refusal alone is nothing to read for epoll, so it is asked for by name.
async fn readable(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if ready.is_error() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        // Taken by a send: done with.
        let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(())
}

fn answer(door: &Door, id: FlowId, upstream: &Upstream, buffer: &mut [u8]) -> io::Result<()> {
    let len = upstream.socket.try_recv(buffer)?;
    if lock(&upstream.unanswered).take().is_some() {
        door.shared.accepted(upstream.backend);
    }
    lock(&door.node.flows).touch(id, Instant::now());
    if let Err(error) = door.port.try_send(&buffer[..len], id.way) {
        // No room, or the client's network went: lost, as datagrams may be.
        trace!(port = door.number, peer = %id.way.peer, %error, "answer lost");
    }
    Ok(())
}

/// The backend's port is closed, or there is no way to it: its flow is over.
fn refused(door: &Door, id: FlowId, upstream: &Upstream, error: &io::Error) {
    debug!(port = door.number, backend = %upstream.backend, %error, "backend does not take datagrams");
    door.shared.failed(upstream.backend);
    if let Some(gone) = lock(&door.node.flows).remove(id) {
        gone.over.cancel();
    }
}

fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown)
}
