//! A connection of a client: limits that pingora does not have, and the number of connections.
//!
//! pingora bounds each read of a head, and nothing bounds the head as a whole or the wait for the next request: a client that
//! sends a byte now and then holds a connection for ever.

use super::context::{HeadSeen, IDLE_S};
use super::proxy::IngressProxy;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// From an answer to the end of the next head. Longer than the clients of common load balancers keep a connection idle.
const NEXT_HEAD: Duration = Duration::from_secs(75);
/// How long idle connections have for one more request once the listener is closed or the process ends: it is answered with `Connection: close`.
pub(super) const LAST_REQUEST: Duration = Duration::from_secs(3);

/// Open connections; further ones are closed.
const MOST_CONNECTIONS: u64 = 32_768;

/// Open connections.
#[derive(Default, Debug)]
pub(super) struct ClientConnections(AtomicU64);

impl ClientConnections {
    pub fn open(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits until there is none, at most for this long; says whether there is none.
    pub async fn end(&self, within: Duration) -> bool {
        let none = async {
            while self.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(within, none).await.is_ok()
    }
}

struct OpenConnection<'a>(&'a AtomicU64);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a listener's connections are given to.
pub(super) struct IngressApp {
    pub proxy: Arc<HttpProxy<IngressProxy>>,
    pub connections: Arc<ClientConnections>,
    /// From the connection to the end of the first head.
    pub first_head: Duration,
}

#[async_trait]
impl ServerApp for IngressApp {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let open = self.connections.0.fetch_add(1, Ordering::Relaxed);
        let _open = OpenConnection(&self.connections.0);
        if open >= MOST_CONNECTIONS {
            return None;
        }
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            return ServerApp::process_new(&self.proxy, stream, shutdown).await;
        }
        let (mut next, mut limit) = (ReusedHttpStream::new(stream, None), self.first_head);
        loop {
            let (stream, settings) = next.consume();
            let mut session = ServerSession::new_http1(stream);
            session.set_keepalive(Some(IDLE_S));
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            next = self.request(session, shutdown, limit).await?;
            limit = NEXT_HEAD;
        }
    }

    /// The listener is closed. Its idle connections are not cut: their clients may be sending a request just now.
    async fn cleanup(&self) {
        self.connections.end(LAST_REQUEST).await;
    }
}

impl IngressApp {
    /// Serves one request; `None` if the connection ends.
    async fn request(&self, mut session: ServerSession, shutdown: &ShutdownWatch, limit: Duration) -> Option<ReusedHttpStream> {
        let seen = HeadSeen::default();
        session.set_connection_user_context(Some(Box::new(seen.clone())));
        let mut served = Box::pin(self.proxy.process_new_http(session, shutdown));
        tokio::select! {
            biased;
            next = &mut served => return next,
            () = tokio::time::sleep(limit) => {}
        }
        // Without an answer: a client that sends so slowly reads none.
        if seen.is_set() { served.await } else { None }
    }
}
