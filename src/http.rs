//! HTTP server and client on unix sockets, for the Docker API, the network driver, the admin socket and their clients. A client of
//! servers with TLS.

pub mod framing;
mod https;

pub use https::{CannotSend, HttpsClient};
pub use hyper::Request;

use crate::accept::{Listener, accept_each};
use crate::durable::ignore_missing;
use axum::Router;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Largest body of a reply that [`UnixClient`] reads, in bytes.
const MAX_REPLY: usize = 64 << 20;

/// Bytes of a [`ReplyStream`] that are read ahead.
const STREAM_BUFFER: usize = 64 << 10;

/// Connections that wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Binds a unix socket, replacing the file of an earlier run; only root and its group may connect.
///
/// # Errors
/// The directory cannot be created, the file cannot be replaced, or the path is too long (108 bytes).
pub fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    use anyhow::Context as _;
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    ignore_missing(std::fs::remove_file(path)).with_context(|| format!("cannot replace {}", path.display()))?;
    let bind = || -> std::io::Result<UnixListener> {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        // Before it listens: with the umask alone, others might connect in between.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket.into())
    };
    bind().with_context(|| format!("cannot listen on {}", path.display()))
}

/// Gives a file to a group, by name or number, so that its members may connect to the socket.
///
/// # Errors
/// There is no such group on this host, or the file cannot be given to it.
pub fn give_to_group(path: &Path, group: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let id = group.parse().ok().or_else(|| group_id(&std::fs::read_to_string("/etc/group").unwrap_or_default(), group));
    let id = id.with_context(|| format!("there is no group {group} in /etc/group: create it, or set socket_group to another"))?;
    std::os::unix::fs::chown(path, None, Some(id)).with_context(|| format!("cannot give {} to group {group}", path.display()))
}

/// The number of a group in the text of `/etc/group`.
fn group_id(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name))?.get(2)?.parse().ok()
}

/// Serves a router on a unix socket until shut down. Open connections are cut then. A client that closes its side ends its request: one that
/// waits for an answer is not seen to leave otherwise, and holds its connection for as long as the answer takes.
pub async fn serve_unix(listener: impl Listener<Stream = UnixStream, From = ()>, router: Router, shutdown: CancellationToken) {
    accept_each(listener, "a unix socket", &shutdown, |stream, ()| {
        let (router, shutdown) = (router.clone(), shutdown.clone());
        tokio::spawn(async move { shutdown.run_until_cancelled(serve_connection(stream, router, true, false)).await });
    })
    .await;
}

/// Serves a router on one connection: one request, or with `keep_alive` until the client closes it. With `half_close` a
/// client may close its side before it has read the reply; without, that ends the reply.
pub async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    keep_alive: bool,
    half_close: bool,
) {
    let service = TowerToHyperService::new(router);
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(keep_alive)
        .half_close(half_close)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP connection ended");
    }
}

/// A connection of any kind.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

/// A connection whose kind does not matter.
pub type BoxedStream = Box<dyn ByteStream>;

/// Sends one request on a connection. What is not read of the reply waits in the server: at most [`STREAM_BUFFER`] here.
///
/// # Errors
/// The connection was lost. An error status is a reply, not an error.
pub async fn exchange(stream: impl ByteStream + 'static, mut request: Request<axum::body::Body>) -> anyhow::Result<ReplyStream> {
    request.headers_mut().entry("host").or_insert(hyper::header::HeaderValue::from_static("localhost"));
    let mut http = hyper::client::conn::http1::Builder::new();
    let (mut sender, connection) = http.max_buf_size(STREAM_BUFFER).handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection).abort_handle();
    let replied = sender.send_request(request).await;
    if replied.is_err() {
        connection.abort();
    }
    let (parts, body) = replied?.into_parts();
    Ok(ReplyStream { status: parts.status, headers: parts.headers, body, connection })
}

/// Client of a server on a unix socket; opens a connection per request.
#[derive(Clone, Debug)]
pub struct UnixClient {
    path: std::path::PathBuf,
}

/// A complete reply.
#[derive(Clone, Debug)]
pub struct HttpReply {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl HttpReply {
    /// Decodes the body; an error status becomes an error with the server's `message`.
    ///
    /// # Errors
    /// The status is an error, or the body has another shape.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        self.ok()?;
        Ok(serde_json::from_slice(&self.body)?)
    }
    /// An error status becomes an error with the server's `message`.
    ///
    /// # Errors
    /// The status is an error.
    pub fn ok(&self) -> anyhow::Result<()> {
        if self.status.is_success() {
            return Ok(());
        }
        let message = serde_json::from_slice::<serde_json::Value>(&self.body)
            .ok()
            .and_then(|v| v.get("message").and_then(|m| m.as_str()).map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        anyhow::bail!("{message} (HTTP {})", self.status.as_u16())
    }
}

/// A reply whose body is read as it arrives. Its connection ends when it is dropped.
#[derive(Debug)]
pub struct ReplyStream {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    body: Incoming,
    connection: tokio::task::AbortHandle,
}

impl ReplyStream {
    /// The next bytes of the body; `None` at its end. May be cancelled.
    ///
    /// # Errors
    /// The connection was lost.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| anyhow::anyhow!("the server has ended the connection: {e}"))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    /// The reply line by line.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn lines(self) -> anyhow::Result<ReplyLines> {
        if self.status.is_success() {
            return Ok(ReplyLines { reply: self, pending: Vec::new() });
        }
        let reply = self.whole().await?;
        reply.ok()?;
        anyhow::bail!("HTTP {}", reply.status.as_u16())
    }

    /// The whole reply, for a body that ends.
    ///
    /// # Errors
    /// The connection was lost, or the body is larger than [`UnixClient`] reads.
    pub async fn whole(mut self) -> anyhow::Result<HttpReply> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            anyhow::ensure!(body.len() + chunk.len() <= MAX_REPLY, "the reply is too long");
            body.extend_from_slice(&chunk);
        }
        Ok(HttpReply { status: self.status, headers: std::mem::take(&mut self.headers), body: body.into() })
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A reply that is read line by line.
#[derive(Debug)]
pub struct ReplyLines {
    reply: ReplyStream,
    pending: Vec<u8>,
}

impl ReplyLines {
    /// The next line, without its end; `None` at the end of the reply. May be cancelled.
    ///
    /// # Errors
    /// The connection was lost, or a line is longer than [`UnixClient`] reads.
    pub async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            anyhow::ensure!(self.pending.len() < MAX_REPLY, "a line of the reply is too long");
            let Some(chunk) = self.reply.chunk().await? else {
                let rest = std::mem::take(&mut self.pending);
                return Ok((!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned()));
            };
            self.pending.extend_from_slice(&chunk);
        }
    }
}

impl UnixClient {
    /// For the socket at this path.
    pub fn new(path: impl Into<std::path::PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Sends a request with a JSON body.
    ///
    /// # Errors
    /// No server listens on the socket, or the connection was lost. An error status is a reply, not an error.
    pub async fn request(&self, method: &str, target: &str, body: Option<&serde_json::Value>) -> anyhow::Result<HttpReply> {
        let fields: &[(&str, &str)] = if body.is_some() { &[("Content-Type", "application/json")] } else { &[] };
        let bytes = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
        self.send(method, target, fields, bytes).await
    }

    /// Sends a request with these header fields (besides `Host` and `Connection`) and this body.
    ///
    /// # Errors
    /// As [`UnixClient::request`].
    pub async fn send(&self, method: &str, target: &str, fields: &[(&str, &str)], body: Bytes) -> anyhow::Result<HttpReply> {
        use anyhow::Context as _;
        let stream =
            UnixStream::connect(&self.path).await.with_context(|| format!("no server answers on {}", self.path.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(target).header("Host", "localhost").header("Connection", "close");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let response: hyper::Response<Incoming> = sender.send_request(request.body(Full::new(body))?).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_REPLY)
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!("the reply is incomplete: {e}"))?
            .to_bytes();
        connection.abort();
        Ok(HttpReply { status: parts.status, headers: parts.headers, body })
    }

    /// Sends a GET whose reply is read as it arrives. What is not read waits in the server: at most [`STREAM_BUFFER`] here.
    ///
    /// # Errors
    /// As [`UnixClient::request`].
    pub async fn stream(&self, target: &str) -> anyhow::Result<ReplyStream> {
        self.stream_of("GET", target, &[]).await
    }

    /// Sends a request without a body and with these header fields (besides `Host`), whose reply is read as it arrives, as that of
    /// [`UnixClient::stream`].
    ///
    /// # Errors
    /// As [`UnixClient::request`].
    pub async fn stream_of(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> anyhow::Result<ReplyStream> {
        use anyhow::Context as _;
        let stream =
            UnixStream::connect(&self.path).await.with_context(|| format!("no server answers on {}", self.path.display()))?;
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        exchange(stream, request.body(axum::body::Body::empty())?).await
    }

    /// Sends a GET whose reply is lines of text without an end.
    ///
    /// # Errors
    /// As [`UnixClient::request`], or the server refuses.
    pub async fn lines(&self, target: &str) -> anyhow::Result<ReplyLines> {
        self.stream(target).await?.lines().await
    }

    /// Sends a GET without a body.
    ///
    /// # Errors
    /// As [`UnixClient::request`].
    pub async fn get(&self, target: &str) -> anyhow::Result<HttpReply> {
        self.request("GET", target, None).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\ndocker2:x:7:\ndocker:x:998:ann,bob\nbroken\n";
        assert_eq!((group_id(text, "docker"), group_id(text, "dock"), group_id(text, "broken")), (Some(998), None, None));
    }

    #[tokio::test]
    async fn a_socket_belongs_to_the_group_that_is_set_and_an_unknown_one_is_named() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let dir = std::env::temp_dir().join(format!("skep-group-{}", std::process::id()));
        let path = dir.join("docker.sock");
        let _listener = bind_unix(&path).unwrap();
        give_to_group(&path, "4242").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.gid(), metadata.permissions().mode() & 0o777), (4242, 0o660));
        let error = give_to_group(&path, "no-such-group").unwrap_err().to_string();
        assert!(error.contains("no-such-group") && error.contains("socket_group"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
