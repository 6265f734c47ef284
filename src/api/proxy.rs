//! Reads the head of a request, routes it, and either answers it here or connects the client to
//! the engine, raw bytes both ways, so that hijacked streams (attach, exec, session) work with and without `Upgrade`,
//! half-close included: the last request of its connection. Knows nothing of what the requests mean.

mod kept;
mod request_head;
mod rewind;
mod route;

use super::context::ApiContext;
use super::error::ApiError;
use crate::http::{self, ByteStream};
use crate::splice::{LINGER, splice};
use axum::Router;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::StatusCode;
pub use request_head::RequestHead;
pub use rewind::Rewind;
use route::Destination;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// How long a new connection may stay silent: clients keep spare ones in their pools.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// A head must be complete within this time after its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Serves one connection until it is closed; `handlers` answer what is not the engine's.
pub(super) async fn serve_connection(api: Arc<ApiContext>, handlers: Router, mut client: impl ByteStream + 'static) {
    let mut read = BytesMut::with_capacity(4096);
    loop {
        let Some((head, request)) = next_head(&mut client, read).await else { return };
        let head = match head {
            Ok(head) => head,
            Err(refusal) => return refuse(client, refusal).await,
        };
        match (route::destination(&head.method, &head.target), head.length()) {
            (Destination::Engine, _) => return pass_through(&api, client, &head, &request).await,
            (Destination::Skep, Some(length)) if !route::is_endless(&head.target) => {
                let Some(kept) = answer_and_keep(client, &head, request, length, handlers.clone()).await else { return };
                (client, read) = kept;
            }
            (Destination::Skep, _) => {
                let half_close = !route::is_endless(&head.target);
                return answer(client, &head, request, handlers, half_close).await;
            }
        }
    }
}

/// Has handlers answer a request of this length, of which some bytes are read already. The connection may be used for another one, unless there is none any more.
async fn answer_and_keep<S: ByteStream + 'static>(
    client: S,
    head: &RequestHead,
    read: Bytes,
    length: usize,
    handlers: Router,
) -> Option<(S, BytesMut)> {
    let before = read.len();
    match head.for_handlers(read) {
        Ok(read) => {
            let length = length.saturating_add(read.len()).saturating_sub(before);
            kept::answer_one(client, read, length, handlers).await
        }
        Err(refusal) => {
            refuse(client, refusal).await;
            None
        }
    }
}

/// Has handlers answer a request, of which some bytes are read already.
pub async fn answer(client: impl ByteStream + 'static, head: &RequestHead, read: Bytes, handlers: Router, half_close: bool) {
    match head.for_handlers(read) {
        Ok(read) => http::serve_connection(Rewind::new(read, client), handlers, false, half_close).await,
        Err(refusal) => refuse(client, refusal).await,
    }
}

/// The head of the first request of a connection, or why there is none, and the bytes read with it. `None` if the client stays
/// silent or closes the connection.
pub async fn first_head(client: &mut impl ByteStream) -> Option<(Result<RequestHead, ApiError>, Bytes)> {
    next_head(client, BytesMut::with_capacity(4096)).await
}

/// As [`first_head`], of a request that begins with what is read already.
async fn next_head(client: &mut impl ByteStream, mut read: BytesMut) -> Option<(Result<RequestHead, ApiError>, Bytes)> {
    loop {
        // Some clients end a body by an empty line: nothing of a request (RFC 9112, 2.2).
        let empty = read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        read.advance(empty);
        if !read.is_empty() {
            break;
        }
        let first = tokio::time::timeout(IDLE_TIMEOUT, client.read_buf(&mut read)).await;
        if !matches!(first, Ok(Ok(1..))) {
            return None;
        }
    }
    let head = tokio::time::timeout(HEAD_TIMEOUT, read_head(client, &mut read)).await.unwrap_or_else(|_| {
        let message = format!("the head of the request was not complete within {} s", HEAD_TIMEOUT.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
    });
    Some((head, read.freeze()))
}

/// Reads up to the end of a head, of which there are some bytes.
async fn read_head(client: &mut impl ByteStream, read: &mut BytesMut) -> Result<RequestHead, ApiError> {
    loop {
        if let Some(head) = request_head::parse(read)? {
            return Ok(head);
        }
        if read.len() >= MAX_HEAD {
            let message = format!("the head of the request is larger than {} KiB", MAX_HEAD >> 10);
            return Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message));
        }
        if client.read_buf(read).await.unwrap_or(0) == 0 {
            return Err(ApiError::bad("the request ended within its head"));
        }
    }
}

/// Writes an error reply by hand, for a request that the HTTP server cannot read.
pub async fn refuse(mut client: impl ByteStream, refusal: ApiError) {
    let body = serde_json::json!({ "message": refusal.message }).to_string();
    let reply = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        refusal.status.as_u16(),
        refusal.status.canonical_reason().unwrap_or("Error"),
        body.len()
    );
    // The client may have closed the connection, or may still be sending: neither is an error here.
    let _ = client.write_all(reply.as_bytes()).await;
    let _ = client.shutdown().await;
    let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut client, &mut tokio::io::sink())).await;
}

async fn pass_through(api: &ApiContext, client: impl ByteStream, head: &RequestHead, read: &[u8]) {
    let mut engine = match UnixStream::connect(api.engine.socket()).await {
        Ok(engine) => engine,
        Err(error) => return refuse(client, api.engine.unavailable(&error)).await,
    };
    if let Err(error) = engine.write_all(&head.for_engine(read)).await {
        return refuse(client, api.engine.unavailable(&error)).await;
    }
    splice(client, engine).await;
}
