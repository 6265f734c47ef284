//! A connection of a client: what comes before its first request, limits that pingora does not have, and the number of connections.

use super::held::HeldByClient;
use super::limits::HttpLimits;
use super::progress::RequestProgress;
use super::proxy::IngressProxy;
use super::refusals::{HttpRefusal, HttpRefusals};
use super::stream::ClientStream;
use super::tls::is_challenge;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
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
use tokio::sync::Notify;
use tokio::time::timeout;

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
}

impl IngressApp {
    /// Serves a connection to its end. `shutdown` is true once its listener is closed.
    pub async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Arc<Acceptor>>,
        shutdown: ShutdownWatch,
    ) {
        if let Err(reason) = self.connection(stream, peer, tls, shutdown).await {
            self.refusals.count(reason);
        }
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Arc<Acceptor>>,
        shutdown: ShutdownWatch,
    ) -> Result<(), HttpRefusal> {
        let open = self.connections.all.fetch_add(1, Ordering::Relaxed);
        let _open = OpenConnection(&self.connections.all);
        if open >= MOST_CONNECTIONS {
            return Err(HttpRefusal::Connections);
        }
        let limits = self.limits.load_full();
        let peer = peer.ip().to_canonical();
        let mut stream = ClientStream::new(stream);
        let mut client = Some(peer).filter(|peer| !limits.trusts(*peer));
        if limits.begins_with_proxy_header(peer) {
            let header = timeout(limits.head(), stream.take_proxy_header()).await;
            let ends = header.ok().and_then(Result::ok).ok_or(HttpRefusal::ProxyHeader)?;
            client = ends.map(|(from, _)| from.ip());
        }
        let most = limits.client_connections;
        let held = client.map(|client| self.connections.by_client.hold(client, most).ok_or(HttpRefusal::ClientConnections));
        let _held = held.transpose()?;
        let mut is_http2 = false;
        let stream: Stream = if let Some(tls) = tls {
            let handshake = timeout(limits.head(), tls.tls_handshake(stream)).await;
            let stream = handshake.ok().and_then(Result::ok).ok_or(HttpRefusal::Handshake)?;
            if is_challenge(stream.selected_alpn_proto().as_ref()) {
                return Ok(());
            }
            Box::new(stream)
        } else {
            // A client that leaves without a word has done nothing wrong.
            match timeout(limits.head(), stream.begins_with_http2()).await {
                Ok(Ok(begins)) => is_http2 = begins,
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(HttpRefusal::SlowHead),
            }
            Box::new(stream)
        };
        is_http2 |= matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(limits.idle());
        let connection = Arc::new(ClientConnection { app: self.clone(), limits, options, first: Notify::new() });
        if is_http2 { connection.http2(stream, &shutdown).await } else { connection.http1(stream, &shutdown).await }
    }
}

/// A connection on which requests come.
struct ClientConnection {
    app: Arc<IngressApp>,
    limits: Arc<HttpLimits>,
    options: HttpServerOptions,
    /// The first request of HTTP/2 has come.
    first: Notify,
}

impl ClientConnection {
    async fn http1(&self, stream: Stream, shutdown: &ShutdownWatch) -> Result<(), HttpRefusal> {
        let (mut next, mut head) = (ReusedHttpStream::new(stream, None), self.limits.head());
        loop {
            let (stream, settings) = next.consume();
            let mut session = ServerSession::new_http1(stream);
            session.set_keepalive(Some(self.limits.idle().as_secs().max(1)));
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            match self.request(session, shutdown, head).await? {
                Some(reused) => next = reused,
                None => return Ok(()),
            }
            head = self.limits.idle() + self.limits.head();
        }
    }

    async fn http2(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Result<(), HttpRefusal> {
        let mut served = std::pin::pin!(ServerApp::process_new(self, stream, shutdown));
        let silent = async {
            if timeout(self.limits.head(), self.first.notified()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            _ = &mut served => Ok(()),
            () = silent => Err(HttpRefusal::SlowHead),
        }
    }

    /// Serves one request; `None` if the connection ends. A client that sends too slowly gets no answer: it reads none.
    async fn request(
        &self,
        session: ServerSession,
        shutdown: &ShutdownWatch,
        head: Duration,
    ) -> Result<Option<ReusedHttpStream>, HttpRefusal> {
        let progress = RequestProgress::new();
        let mut served = Box::pin(progress.clone().watch(self.app.proxy.process_new_http(session, shutdown)));
        tokio::select! {
            biased;
            next = &mut served => Ok(next),
            reason = progress.overdue(head, &self.limits) => Err(reason),
        }
    }
}

/// What pingora calls for each request of HTTP/2.
#[async_trait]
impl HttpServerApp for ClientConnection {
    async fn process_new_http(self: &Arc<Self>, session: ServerSession, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        self.first.notify_one();
        if let Err(reason) = self.request(session, shutdown, self.limits.head()).await {
            self.app.refusals.count(reason);
        }
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.app.h2.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
