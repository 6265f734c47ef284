//! Serves one request per connection: reads the head, routes it, and either answers it here or connects the client to
//! the engine, raw bytes both ways, so that hijacked streams (attach, exec, session) work with and without `Upgrade`,
//! half-close included. Knows nothing of what the requests mean.

mod request_head;
mod rewind;
mod route;

use super::context::ApiContext;
use super::error::ApiError;
use crate::http;
use axum::Router;
use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use request_head::RequestHead;
use rewind::Rewind;
use route::Destination;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// How long a new connection may stay silent: clients keep spare ones in their pools.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// A head must be complete within this time after its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long data of the client is still read after the reply has ended: closing earlier would reset the connection, and
/// the client could lose the reply.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one connection until it is closed; `handlers` answer what is not the engine's.
pub(super) async fn serve_connection(api: Arc<ApiContext>, handlers: Router, mut client: UnixStream) {
    if !matches!(tokio::time::timeout(IDLE_TIMEOUT, client.readable()).await, Ok(Ok(()))) {
        return;
    }
    match tokio::time::timeout(HEAD_TIMEOUT, read_head(&mut client)).await {
        Ok(Ok(Some((head, read)))) => match route::destination(&head.method, &head.target) {
            Destination::Skep => match head.for_handlers(read) {
                Ok(read) => {
                    let half_close = !route::is_endless(&head.target);
                    http::serve_connection(Rewind::new(read, client), handlers, false, half_close).await;
                }
                Err(refusal) => refuse(client, refusal).await,
            },
            Destination::Engine => pass_through(&api, client, &head, &read).await,
        },
        Ok(Ok(None)) => {}
        Ok(Err(refusal)) => refuse(client, refusal).await,
        Err(_) => {
            let message = format!("the head of the request was not complete within {} s", HEAD_TIMEOUT.as_secs());
            refuse(client, ApiError::new(StatusCode::REQUEST_TIMEOUT, message)).await;
        }
    }
}

/// Reads up to the end of a head; returns it and all bytes read so far. `None` if the client closed the connection
/// without sending anything.
async fn read_head(client: &mut UnixStream) -> Result<Option<(RequestHead, Bytes)>, ApiError> {
    let mut read = BytesMut::with_capacity(4096);
    loop {
        let n = client.read_buf(&mut read).await.unwrap_or(0);
        if n == 0 {
            return if read.is_empty() { Ok(None) } else { Err(ApiError::bad("the request ended within its head")) };
        }
        if let Some(head) = request_head::parse(&read)? {
            return Ok(Some((head, read.freeze())));
        }
        if read.len() >= MAX_HEAD {
            let message = format!("the head of the request is larger than {} KiB", MAX_HEAD >> 10);
            return Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message));
        }
    }
}

/// Writes an error reply by hand, for a request that the HTTP server cannot read.
async fn refuse(mut client: UnixStream, refusal: ApiError) {
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

async fn pass_through(api: &ApiContext, client: UnixStream, head: &RequestHead, read: &[u8]) {
    let mut engine = match UnixStream::connect(api.engine.socket()).await {
        Ok(engine) => engine,
        Err(error) => return refuse(client, api.engine.unavailable(&error)).await,
    };
    if let Err(error) = engine.write_all(&head.for_engine(read)).await {
        return refuse(client, api.engine.unavailable(&error)).await;
    }
    splice(client, engine).await;
}

/// Copies both ways until the engine has closed its side. The end of one direction is passed on as a half-close.
async fn splice(client: UnixStream, engine: UnixStream) {
    let (client_read, mut client_write) = client.into_split();
    let (mut engine_read, engine_write) = engine.into_split();
    let up = copy_to_end(client_read, engine_write);
    let down = async {
        let _ = tokio::io::copy(&mut engine_read, &mut client_write).await;
        let _ = client_write.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => { let _ = tokio::time::timeout(LINGER, up).await; }
        () = &mut up => down.await,
    }
}

async fn copy_to_end(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}
