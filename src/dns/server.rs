//! The sockets of one gateway address, UDP and TCP, and what happens to a packet. Our own names are answered at once in
//! the receiving loop; a foreign one is spawned, within the bounds of `quota`.

use super::forward::Forwarder;
use super::message::{self, MAX_QUERY, Parsed, Request};
use super::quota::{Quota, Ticket};
use super::records::{Answer, Records};
use super::{DnsSettings, PORT};
use crate::datapath::Sockets;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, trace};

/// Questions under way on one TCP connection.
const PIPELINE: usize = 8;
/// Longest message over TCP, in bytes.
const MAX_TCP: usize = u16::MAX as usize;
/// Pause after the kernel refused to receive or accept (out of descriptors or memory).
const BACK_OFF: Duration = Duration::from_millis(50);

/// What all gateways share.
pub struct Shared {
    records: watch::Receiver<Arc<Records>>,
    forwarder: Forwarder,
    questions: Arc<Quota>,
    connections: Arc<Quota>,
    settings: DnsSettings,
}

impl Shared {
    /// `outside` makes the sockets toward foreign resolvers.
    pub fn new(records: watch::Receiver<Arc<Records>>, outside: Arc<dyn Sockets>, settings: DnsSettings) -> Self {
        Self {
            records,
            forwarder: Forwarder::new(outside, settings.resolv_conf.clone(), settings.timeout),
            questions: Quota::new(settings.max_in_flight, settings.max_per_asker),
            connections: Quota::new(settings.max_connections, settings.max_connections.div_ceil(4)),
            settings,
        }
    }

    /// What to do with a packet that `source` sent to `gateway`.
    fn decide(&self, gateway: Ipv4Addr, source: IpAddr, packet: &[u8], udp: bool) -> Decision {
        let request = match message::parse(packet) {
            Parsed::Request(request) => request,
            Parsed::Reply(reply) => return Decision::Reply(reply),
            Parsed::Ignore => return Decision::Drop,
        };
        let limit = if udp { request.udp_limit() } else { MAX_TCP };
        let records = Arc::clone(&self.records.borrow());
        let query = request.query();
        let answer = records.answer(gateway, source, query.name(), query.query_type(), &mut rand::rng());
        trace!(%gateway, %source, name = %query.name(), kind = %query.query_type(), ?answer, "question");
        if let Some(reply) = request.answer(&answer, self.settings.ttl, limit) {
            return Decision::Reply(reply);
        }
        let Some(ticket) = self.questions.take(source) else {
            debug!(%source, "too many foreign questions under way");
            return Decision::Reply(request.failed());
        };
        let upstreams = if let Answer::Foreign(upstreams) = answer { upstreams } else { Vec::new() };
        Decision::Forward(Errand { request, upstreams, limit, records, _ticket: ticket })
    }

    async fn run_errand(&self, errand: Errand) -> Vec<u8> {
        let skip = |address| errand.records.is_gateway(address);
        self.forwarder.ask(&errand.request, &errand.upstreams, skip, errand.limit).await
    }
}

enum Decision {
    Drop,
    Reply(Vec<u8>),
    Forward(Errand),
}

/// A foreign question under way.
struct Errand {
    request: Box<Request>,
    upstreams: Vec<IpAddr>,
    limit: usize,
    records: Arc<Records>,
    _ticket: Ticket,
}

/// The name server at one gateway address; dropping it ends its loops.
pub struct Gateway {
    loops: JoinSet<()>,
}

impl Gateway {
    /// Binds both sockets, then answers on them.
    ///
    /// # Errors
    /// The kernel's, of whichever socket could not be made; then none is left.
    pub fn open(address: Ipv4Addr, sockets: &dyn Sockets, shared: &Arc<Shared>) -> io::Result<Self> {
        let at = SocketAddr::from((address, PORT));
        let udp = UdpSocket::from_std(sockets.udp(at)?)?;
        let tcp = TcpListener::from_std(sockets.listen(at)?)?;
        let mut loops = JoinSet::new();
        loops.spawn(datagrams(Arc::new(udp), address, Arc::clone(shared)));
        loops.spawn(connections(tcp, address, Arc::clone(shared)));
        Ok(Self { loops })
    }

    /// Ends the loops and waits until the sockets are gone, so that the address can be bound again.
    pub async fn close(mut self) {
        self.loops.shutdown().await;
    }
}

async fn datagrams(socket: Arc<UdpSocket>, gateway: Ipv4Addr, shared: Arc<Shared>) {
    // Owned by this loop: when it ends, so do the errands.
    let mut errands = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        while errands.try_join_next().is_some() {}
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%gateway, %error, "receive failed");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        match shared.decide(gateway, source.ip(), &buffer[..length], true) {
            Decision::Drop => {}
            Decision::Reply(reply) => send(&socket, &reply, source).await,
            Decision::Forward(errand) => {
                let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
                errands.spawn(async move {
                    let reply = shared.run_errand(errand).await;
                    send(&socket, &reply, source).await;
                });
            }
        }
    }
}

/// An answer that cannot be sent is lost, as any datagram may be; the client asks again.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        trace!(%to, %error, "answer not sent");
    }
}

async fn connections(listener: TcpListener, gateway: Ipv4Addr, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => match shared.connections.take(peer.ip()) {
                Some(ticket) => {
                    let shared = Arc::clone(&shared);
                    open.spawn(async move {
                        if let Err(error) = connection(stream, peer.ip(), gateway, &shared).await {
                            trace!(%peer, %error, "connection ended");
                        }
                        drop(ticket);
                    });
                }
                None => drop(stream),
            },
            Err(error) => {
                debug!(%gateway, %error, "accept failed");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// One TCP connection: reads questions as they come, answers them as they are ready, at most [`PIPELINE`] under way.
async fn connection(stream: TcpStream, source: IpAddr, gateway: Ipv4Addr, shared: &Arc<Shared>) -> io::Result<()> {
    let idle = shared.settings.idle;
    let (mut reader, mut writer) = stream.into_split();
    let (ready, mut answers) = mpsc::channel::<Vec<u8>>(PIPELINE);
    let under_way = Arc::new(Semaphore::new(PIPELINE));
    let read = async move {
        let mut errands = JoinSet::new();
        loop {
            while errands.try_join_next().is_some() {}
            let Ok(length) = bounded(idle, reader.read_u16()).await else { break };
            let length = usize::from(length);
            if length > MAX_QUERY {
                break;
            }
            let mut packet = vec![0; length];
            bounded(idle, reader.read_exact(&mut packet)).await?;
            let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { break };
            match shared.decide(gateway, source, &packet, false) {
                Decision::Drop => break,
                Decision::Reply(reply) => {
                    if ready.send(reply).await.is_err() {
                        break;
                    }
                }
                Decision::Forward(errand) => {
                    let (shared, ready) = (Arc::clone(shared), ready.clone());
                    errands.spawn(async move {
                        let reply = shared.run_errand(errand).await;
                        // The writer is gone only when the client is.
                        let _ = ready.send(reply).await;
                        drop(permit);
                    });
                }
            }
        }
        // The client may have closed its side after the last question: what is under way is still answered.
        while errands.join_next().await.is_some() {}
        Ok(())
    };
    let write = async move {
        while let Some(answer) = answers.recv().await {
            let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            bounded(idle, writer.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(|_: ((), ())| ())
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
