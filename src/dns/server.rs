//! The UDP and TCP sockets of one gateway address, and the handling of a packet. Names of the cluster are answered at once
//! in the receiving loop; a query for another name is forwarded in a spawned future, within the bounds of `quota`.

use super::answer::AnswerLimit;
use super::counts::{DnsCounts, QuestionBound, QuestionKind};
use super::forward::Forwarder;
use super::message::{self, DnsQuery, MAX_QUERY, ParsedPacket};
use super::quota::{Quota, QuotaBound, QuotaPermit};
use super::records::{OutsideName, RecordAnswer, Records};
use super::{DnsSettings, PORT};
use crate::datapath::Sockets;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, trace};

/// Concurrent queries on one TCP connection.
const PIPELINE: usize = 8;
/// Pause after the kernel refused to receive or accept (no descriptors or memory left).
const KERNEL_PAUSE: Duration = Duration::from_millis(50);

/// What the servers of all gateways share.
pub struct ServerContext {
    records: watch::Receiver<Arc<Records>>,
    forwarder: Forwarder,
    forwarded: Arc<Quota>,
    connections: Arc<Quota>,
    counts: Arc<DnsCounts>,
    settings: DnsSettings,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DnsTransport {
    Udp,
    Tcp,
}

enum PacketAction {
    Drop,
    Reply(Vec<u8>),
    Forward(Box<ForwardedQuery>),
}

/// A query for a name outside the cluster, until it is answered.
struct ForwardedQuery {
    query: DnsQuery,
    name: OutsideName,
    /// What the client accepts.
    limit: AnswerLimit,
    /// The records at its arrival, which know the gateways that must not be queried.
    records: Arc<Records>,
    _permit: QuotaPermit,
}

impl ServerContext {
    /// `outside` makes the sockets to the host's resolvers.
    pub fn new(
        records: watch::Receiver<Arc<Records>>,
        outside: Arc<dyn Sockets>,
        counts: Arc<DnsCounts>,
        settings: DnsSettings,
    ) -> Self {
        Self {
            records,
            forwarder: Forwarder::new(outside, settings.resolv_conf.clone(), settings.timeout, Arc::clone(&counts)),
            forwarded: Quota::new(settings.max_in_flight, settings.max_per_client),
            connections: Quota::new(settings.max_connections, settings.max_connections_per_client),
            counts,
            settings,
        }
    }

    /// Decides what to do with a packet that `source` sent to `gateway`.
    fn handle(&self, gateway: Ipv4Addr, source: IpAddr, packet: &[u8], transport: DnsTransport) -> PacketAction {
        let query = match message::parse(packet) {
            ParsedPacket::Query(query) => query,
            ParsedPacket::Reply(reply) => {
                self.counts.question(QuestionKind::Malformed);
                return self.reply(reply);
            }
            ParsedPacket::Ignore => {
                self.counts.question(QuestionKind::Malformed);
                return PacketAction::Drop;
            }
        };
        let limit = match (transport, source) {
            (DnsTransport::Udp, IpAddr::V4(source)) => query.udp_limit(u64::from(u32::from(source))),
            (DnsTransport::Udp, IpAddr::V6(_)) => query.udp_limit(0),
            (DnsTransport::Tcp, _) => DnsQuery::tcp_limit(),
        };
        let records = Arc::clone(&self.records.borrow());
        let answer = records.answer(gateway, source, query.name(), query.kind(), &mut rand::rng());
        trace!(%gateway, %source, name = query.name(), kind = %query.kind(), ?answer, "query");
        if let Some(reply) = query.answer(&answer, self.settings.ttl, limit) {
            let stranger = answer == RecordAnswer::Refused;
            self.counts.question(if stranger { QuestionKind::Stranger } else { QuestionKind::Internal });
            return self.reply(reply);
        }
        self.counts.question(QuestionKind::Forwarded);
        let permit = match self.forwarded.take(source) {
            Ok(permit) => permit,
            Err(bound) => {
                debug!(%source, ?bound, "too many forwarded queries, answered SERVFAIL");
                self.counts.refused(match bound {
                    QuotaBound::Client => QuestionBound::ClientQuestions,
                    QuotaBound::Total => QuestionBound::AllQuestions,
                });
                return self.reply(query.servfail());
            }
        };
        let name = if let RecordAnswer::Forward(name) = answer { name } else { OutsideName::default() };
        PacketAction::Forward(Box::new(ForwardedQuery { query, name, limit, records, _permit: permit }))
    }

    fn reply(&self, reply: Vec<u8>) -> PacketAction {
        self.counts.answer(&reply);
        PacketAction::Reply(reply)
    }

    /// Queries the resolvers and returns the answer for the client.
    async fn forward(&self, forwarded: ForwardedQuery) -> Vec<u8> {
        let ForwardedQuery { query, name, limit, records, _permit } = forwarded;
        let outside = self.forwarder.query(&query, &name.resolvers, |address| records.is_gateway(address)).await;
        let own = || name.otherwise.and_then(|answer| query.answer(&answer, self.settings.ttl, limit));
        let reply = match outside {
            Some(response) if super::response::is_negative(&response) => {
                own().unwrap_or_else(|| query.client_answer(response, limit.bytes))
            }
            Some(response) => query.client_answer(response, limit.bytes),
            None => own().unwrap_or_else(|| query.servfail()),
        };
        self.counts.answer(&reply);
        reply
    }
}

/// The name server at one gateway address; dropping it ends its loops.
pub struct GatewayServer {
    loops: JoinSet<()>,
}

impl GatewayServer {
    /// Binds both sockets, then answers on them.
    ///
    /// # Errors
    /// The kernel's, if one of the sockets cannot be bound; then the other one is closed too.
    pub fn open(address: Ipv4Addr, sockets: &dyn Sockets, context: &Arc<ServerContext>) -> io::Result<Self> {
        let local = SocketAddr::from((address, PORT));
        let udp = UdpSocket::from_std(sockets.udp(local)?)?;
        let tcp = TcpListener::from_std(sockets.listen(local)?)?;
        let mut loops = JoinSet::new();
        loops.spawn(serve_udp(Arc::new(udp), address, Arc::clone(context)));
        loops.spawn(serve_tcp(tcp, address, Arc::clone(context)));
        Ok(Self { loops })
    }

    /// For who looks after them.
    pub fn loops(&mut self) -> &mut JoinSet<()> {
        &mut self.loops
    }

    /// Ends the loops and waits until the sockets are closed, so that the address can be bound again.
    pub async fn close(mut self) {
        self.loops.shutdown().await;
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, gateway: Ipv4Addr, context: Arc<ServerContext>) {
    // Owned by this loop: forwarded queries end with it.
    let mut forwarded_queries = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        while forwarded_queries.try_join_next().is_some() {}
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%gateway, %error, "receive failed");
                tokio::time::sleep(KERNEL_PAUSE).await;
                continue;
            }
        };
        match context.handle(gateway, source.ip(), &buffer[..length], DnsTransport::Udp) {
            PacketAction::Drop => {}
            PacketAction::Reply(reply) => send(&socket, &reply, source).await,
            PacketAction::Forward(forwarded) => {
                let (socket, context) = (Arc::clone(&socket), Arc::clone(&context));
                forwarded_queries.spawn(async move {
                    let reply = context.forward(*forwarded).await;
                    send(&socket, &reply, source).await;
                });
            }
        }
    }
}

/// An answer that cannot be sent is lost, as any datagram may be; the client retries.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        trace!(%to, %error, "answer not sent");
    }
}

async fn serve_tcp(listener: TcpListener, gateway: Ipv4Addr, context: Arc<ServerContext>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => match context.connections.take(peer.ip()) {
                Ok(permit) => {
                    let context = Arc::clone(&context);
                    connections.spawn(async move {
                        if let Err(error) = serve_connection(stream, peer.ip(), gateway, context).await {
                            trace!(%peer, %error, "connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(bound) => {
                    context.counts.refused(match bound {
                        QuotaBound::Client => QuestionBound::ClientConnections,
                        QuotaBound::Total => QuestionBound::AllConnections,
                    });
                    drop(stream);
                }
            },
            Err(error) => {
                debug!(%gateway, %error, "accept failed");
                tokio::time::sleep(KERNEL_PAUSE).await;
            }
        }
    }
}

/// Serves one TCP connection: answers are sent in the order in which they are ready, for at most [`PIPELINE`] concurrent
/// queries.
async fn serve_connection(stream: TcpStream, source: IpAddr, gateway: Ipv4Addr, context: Arc<ServerContext>) -> io::Result<()> {
    let idle = context.settings.idle;
    let (reader, writer) = stream.into_split();
    let (replies, ready) = mpsc::channel::<Vec<u8>>(PIPELINE);
    let read = read_queries(reader, source, gateway, context, replies);
    tokio::try_join!(read, write_replies(writer, ready, idle)).map(|_: ((), ())| ())
}

/// Reads queries until the client closes its side, is idle, or sends what is no query. Ends once all are answered.
async fn read_queries(
    mut reader: OwnedReadHalf,
    source: IpAddr,
    gateway: Ipv4Addr,
    context: Arc<ServerContext>,
    replies: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let idle = context.settings.idle;
    let pipeline = Arc::new(Semaphore::new(PIPELINE));
    let mut forwarded_queries = JoinSet::new();
    loop {
        while forwarded_queries.try_join_next().is_some() {}
        let Ok(length) = bounded(idle, reader.read_u16()).await else { break };
        let length = usize::from(length);
        if length > MAX_QUERY {
            break;
        }
        let mut packet = vec![0; length];
        bounded(idle, reader.read_exact(&mut packet)).await?;
        let Ok(permit) = Arc::clone(&pipeline).acquire_owned().await else { break };
        match context.handle(gateway, source, &packet, DnsTransport::Tcp) {
            PacketAction::Drop => break,
            PacketAction::Reply(reply) => {
                if replies.send(reply).await.is_err() {
                    break;
                }
            }
            PacketAction::Forward(forwarded) => {
                let (context, replies) = (Arc::clone(&context), replies.clone());
                forwarded_queries.spawn(async move {
                    let reply = context.forward(*forwarded).await;
                    // An error means that the writer has ended, because the client has closed the connection.
                    let _ = replies.send(reply).await;
                    drop(permit);
                });
            }
        }
    }
    // The client may have closed its side after the last query: those in flight are still answered.
    while forwarded_queries.join_next().await.is_some() {}
    Ok(())
}

async fn write_replies(mut writer: OwnedWriteHalf, mut ready: mpsc::Receiver<Vec<u8>>, idle: Duration) -> io::Result<()> {
    while let Some(reply) = ready.recv().await {
        let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        bounded(idle, writer.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await?;
    }
    Ok(())
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
