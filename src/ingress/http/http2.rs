//! A connection of a client over HTTP/2. Requests that are carried directly are, by the task of the connection itself: what a task of their own
//! would cost each of them is more than the rest of HTTP/2. The others are pingora's, in tasks of their own.

use super::app::ClientConnection;
use super::context::RequestContext;
use super::direct::{AnswerTo, Carried};
use super::plain_head;
use super::refusals::HttpRefusal;
use super::stream_client::StreamClient;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{self, H2Accept, HttpSession};
use pingora::protocols::{Digest, Stream};
use pingora::server::ShutdownWatch;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Requests with a head that HTTP/2 forbids, after which the connection is closed.
const MOST_MALFORMED: usize = 32;

/// Requests of a connection that have no answer yet, and since when there is none.
#[derive(Debug)]
struct OpenStreams {
    began: Instant,
    open: AtomicUsize,
    /// In milliseconds from `began`.
    idle_since: AtomicU64,
}

/// One of them, until this is dropped.
struct OpenStream(Arc<OpenStreams>);

impl OpenStreams {
    fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), open: AtomicUsize::new(0), idle_since: AtomicU64::new(0) })
    }

    fn add(self: &Arc<Self>) -> OpenStream {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenStream(self.clone())
    }

    /// Since when there is none.
    fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.open.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.began + Duration::from_millis(self.idle_since.load(Ordering::Relaxed)))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(since, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ClientConnection {
    /// Serves requests until the connection ends. `shutdown` is true once its listener is closed.
    pub async fn http2(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Result<(), HttpRefusal> {
        let digest = Arc::new(Digest {
            ssl_digest: stream.get_ssl_digest(),
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        });
        let (head, idle) = (self.limits.head(), self.limits.idle());
        let handshake = timeout(head, server::handshake(stream, Some(self.app.h2.clone()))).await;
        let Ok(mut connection) = handshake.map_err(|_| HttpRefusal::SlowHead)? else { return Ok(()) };
        let streams = OpenStreams::new();
        let mut direct = FuturesUnordered::new();
        // For the first request, and for the next one when there is none.
        let mut look = std::pin::pin!(sleep(head));
        let mut watch = shutdown.clone();
        let mut stop = std::pin::pin!(watch.wait_for(|stop| *stop));
        let (mut stopping, mut began, mut malformed) = (false, false, 0);
        loop {
            tokio::select! {
                biased;
                _ = &mut stop, if !stopping => {
                    connection.graceful_shutdown();
                    stopping = true;
                }
                Some(()) = direct.next() => {}
                // This carries the whole connection.
                accepted = HttpSession::from_h2_conn(&mut connection, digest.clone()) => match accepted {
                    Ok(Some(H2Accept::Session(session))) => {
                        if !std::mem::replace(&mut began, true) {
                            look.as_mut().reset(Instant::now() + idle);
                        }
                        let open = streams.add();
                        if session.is_body_empty() && plain_head::is_plain(session.req_header()) {
                            direct.push(self.carried(StreamClient::new(session), open, shutdown));
                        } else {
                            tokio::spawn(self.clone().by_pingora(session, open, shutdown.clone()));
                        }
                    }
                    Ok(Some(H2Accept::Rejected)) => {
                        malformed += 1;
                        if malformed >= MOST_MALFORMED {
                            break;
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                () = &mut look => {
                    if !began {
                        return Err(HttpRefusal::SlowHead);
                    }
                    let now = Instant::now();
                    match streams.idle_since().map(|since| since + idle) {
                        Some(end) if now >= end => return Ok(()),
                        end => look.as_mut().reset(end.unwrap_or(now + idle)),
                    }
                }
            }
        }
        // Those that are left see that their client is gone, and are counted.
        drop(connection);
        while direct.next().await.is_some() {}
        Ok(())
    }

    async fn carried(self: &Arc<Self>, mut client: StreamClient, open: OpenStream, shutdown: &ShutdownWatch) {
        let Ok(placeholder) = RequestHeader::build_no_case("GET", b"/", Some(0)) else { return };
        let mut request = client.take_request(placeholder);
        let mut context = RequestContext::new(self.arrival);
        if let Carried::Not = self.app.direct.carry(&mut request, &mut context, AnswerTo::Stream(&mut client)).await {
            tokio::spawn(self.clone().by_pingora(client.into_session(request), open, shutdown.clone()));
        }
    }

    async fn by_pingora(self: Arc<Self>, session: HttpSession, open: OpenStream, shutdown: ShutdownWatch) {
        if let Err(reason) = self.request(ServerSession::new_http2(session), &shutdown).await {
            self.app.refusals.count(reason);
        }
        drop(open);
    }
}
