//! A connection of a client: what comes before its first request, limits that pingora does not have, and the number of connections.

use super::context::{Arrival, RequestContext};
use super::direct::{AnswerTo, Carried, DirectProxy};
use super::held::HeldByClient;
use super::limits::HttpLimits;
use super::plain_client::PlainClient;
use super::plain_head::Beginning;
use super::progress::RequestProgress;
use super::proxy::IngressProxy;
use super::refusals::{HttpRefusal, HttpRefusals};
use super::stream::ClientStream;
use super::tls::is_challenge;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use pingora::apps::HttpServerApp as _;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::{ALPN, Ssl as _, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long idle connections have for one more request once the listener is closed or the process ends: it is answered with `Connection: close`.
pub(super) const LAST_REQUEST: Duration = Duration::from_secs(3);

/// Open connections; further ones are closed.
const MOST_CONNECTIONS: u64 = 32_768;

/// Open connections.
#[derive(Default, Debug)]
pub(super) struct ClientConnections {
    all: AtomicU64,
    by_client: Arc<HeldByClient>,
}

impl ClientConnections {
    pub fn open(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// Waits until there is none, at most for this long; says whether there is none.
    pub async fn end(&self, within: Duration) -> bool {
        let none = async {
            while self.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(within, none).await.is_ok()
    }
}

struct OpenConnection<'a>(&'a AtomicU64);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What listeners give connections to.
pub(super) struct IngressApp {
    pub proxy: Arc<HttpProxy<IngressProxy>>,
    pub connections: ClientConnections,
    pub limits: Arc<ArcSwap<HttpLimits>>,
    pub refusals: Arc<HttpRefusals>,
    pub h2: H2Options,
    pub direct: DirectProxy,
    /// Connections that wait for a request end.
    pub ending: CancellationToken,
}

impl IngressApp {
    /// Serves a connection to its end. `ends`: where it is from, and the port that it is to. `shutdown` is true once its listener is closed.
    pub async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        ends: (SocketAddr, u16),
        tls: Option<Arc<Acceptor>>,
        shutdown: ShutdownWatch,
    ) {
        if let Err(reason) = self.connection(stream, ends, tls, shutdown).await {
            self.refusals.count(reason);
        }
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        (peer, mut port): (SocketAddr, u16),
        tls: Option<Arc<Acceptor>>,
        shutdown: ShutdownWatch,
    ) -> Result<(), HttpRefusal> {
        let open = self.connections.all.fetch_add(1, Ordering::Relaxed);
        let _open = OpenConnection(&self.connections.all);
        if open >= MOST_CONNECTIONS {
            return Err(HttpRefusal::Connections);
        }
        let limits = self.limits.load_full();
        let mut stream = ClientStream::new(stream, peer, tls.is_some());
        let peer = peer.ip().to_canonical();
        let (mut client, mut from) = (Some(peer).filter(|peer| !limits.trusts(*peer)), peer);
        if limits.begins_with_proxy_header(peer) {
            let header = timeout(limits.head(), Box::pin(stream.take_proxy_header())).await;
            let ends = header.ok().and_then(Result::ok).ok_or(HttpRefusal::ProxyHeader)?;
            client = ends.map(|(from, _)| from.ip());
            if let Some((client, to)) = ends {
                (from, port) = (client.ip().to_canonical(), to.port());
            }
        }
        let most = limits.client_connections;
        let held = client.map(|client| self.connections.by_client.hold(client, most).ok_or(HttpRefusal::ClientConnections));
        let _held = held.transpose()?;
        let arrival = Arrival { client: Some(from), port, tls: tls.is_some() };
        let (mut is_http2, mut ahead) = (false, BytesMut::new());
        let progress = RequestProgress::new(limits.head());
        let mut overdue = std::pin::pin!(progress.overdue(&limits));
        let stream: Stream = if let Some(tls) = tls {
            let handshake = timeout(limits.head(), Box::pin(tls.tls_handshake(stream))).await;
            let stream = handshake.ok().and_then(Result::ok).ok_or(HttpRefusal::Handshake)?;
            if is_challenge(stream.selected_alpn_proto().as_ref()) {
                return Ok(());
            }
            progress.wait(limits.head());
            Box::new(stream)
        } else {
            // A client that leaves without a word has done nothing wrong.
            tokio::select! {
                biased;
                begins = stream.begins_with_http2() => match begins {
                    Ok(begins) => is_http2 = begins,
                    Err(_) => return Ok(()),
                },
                reason = &mut overdue => return reason.map_or(Ok(()), Err),
            }
            if !is_http2 {
                ahead = stream.take_ahead();
            }
            Box::new(stream)
        };
        is_http2 |= matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        let connection = Arc::new(ClientConnection { app: self.clone(), arrival, limits: limits.clone() });
        if is_http2 {
            return Box::pin(connection.http2(stream, &shutdown)).await;
        }
        let requests = connection.requests(PlainClient::new(stream, ahead), &shutdown, &progress);
        // A client that sends too slowly gets no answer: it reads none.
        tokio::select! {
            biased;
            () = progress.clone().watch(requests) => Ok(()),
            reason = overdue => reason.map_or(Ok(()), Err),
        }
    }
}

/// A connection on which requests come.
pub(super) struct ClientConnection {
    pub app: Arc<IngressApp>,
    pub arrival: Arrival,
    pub limits: Arc<HttpLimits>,
}

impl ClientConnection {
    /// Serves requests one after the other.
    async fn requests(&self, mut client: PlainClient, shutdown: &ShutdownWatch, progress: &RequestProgress) {
        let mut ending = std::pin::pin!(self.app.ending.cancelled());
        loop {
            let beginning = tokio::select! {
                biased;
                beginning = client.request(|| progress.head_began(self.limits.head())) => beginning,
                () = &mut ending => return,
            };
            let head = match beginning {
                None => return,
                Some(Beginning::Plain { mut request, head, keep }) => {
                    progress.head_alone();
                    client.keep = keep && !self.app.direct.is_draining() && !*shutdown.borrow();
                    let mut context = RequestContext::new(self.arrival);
                    match self.app.direct.carry(&mut request, &mut context, AnswerTo::Plain(&mut client)).await {
                        Carried::Done { whole: true } if client.keep => {
                            progress.restart(self.limits.idle());
                            continue;
                        }
                        Carried::Done { whole } => {
                            // The end of an answer that is cut is not said to be one.
                            if whole && self.arrival.tls {
                                client.close().await;
                            }
                            return;
                        }
                        Carried::Not => head,
                    }
                }
                Some(_) => Bytes::new(),
            };
            // From here on pingora's filters say how far it is.
            progress.head_began(self.limits.head());
            let (stream, bytes) = client.into_parts(&head);
            let mut session = ServerSession::new_http1(stream);
            session.set_keepalive(Some(self.limits.idle().as_secs().max(1)));
            session.set_pipelined_prefix(bytes);
            match self.app.proxy.process_new_http(session, shutdown).await {
                Some(reused) => client = PlainClient::new(reused.consume().0, BytesMut::new()),
                None => return,
            }
            progress.restart(self.limits.idle());
        }
    }

    /// Serves a request of HTTP/2 through pingora.
    pub async fn request(&self, session: ServerSession, shutdown: &ShutdownWatch) -> Result<(), HttpRefusal> {
        let progress = RequestProgress::new(self.limits.head());
        let served = progress.clone().watch(self.app.proxy.process_new_http(session, shutdown));
        tokio::select! {
            biased;
            _ = served => Ok(()),
            reason = progress.overdue(&self.limits) => reason.map_or(Ok(()), Err),
        }
    }
}
