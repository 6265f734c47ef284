//! A client that speaks HTTP/2 without TLS on one connection, as clients of gRPC do, and follows the server's announcement that the
//! connection ends (GOAWAY) with another one.

use super::http::LIMIT;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use std::net::{SocketAddr, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// A client of one address.
pub struct Http2Client {
    to: SocketAddr,
    runtime: Runtime,
    sender: Option<SendRequest<Bytes>>,
}

impl Http2Client {
    pub fn new(to: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { to, runtime, sender: None }
    }

    /// One request; the name of the server that answered. A request that the server has refused unread, as it ends the connection, is
    /// sent again on another one.
    pub fn ask(&mut self) -> anyhow::Result<String> {
        let to = self.to;
        let mut sender = self.sender.take();
        let (outcome, sender) = self.runtime.block_on(async {
            let mut answer = Err(anyhow::anyhow!("every connection has ended"));
            for _ in 0..3 {
                let ready = match sender.take() {
                    Some(kept) => kept.ready().await.ok(),
                    None => None,
                };
                let mut ready = match ready {
                    Some(ready) => ready,
                    None => match connect(to).await {
                        Ok(made) => made,
                        Err(error) => return (Err(error), None),
                    },
                };
                answer = match timeout(LIMIT, exchange(&mut ready)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(anyhow::anyhow!("no answer within {LIMIT:?}")),
                };
                let unread = answer.as_ref().is_err_and(|error| error.downcast_ref::<h2::Error>().is_some_and(is_unread));
                if !unread {
                    sender = answer.is_ok().then_some(ready);
                    break;
                }
            }
            (answer, sender)
        });
        self.sender = sender;
        outcome
    }
}

/// The server says that it has not looked at the request.
fn is_unread(error: &h2::Error) -> bool {
    let no_error = error.reason() == Some(h2::Reason::NO_ERROR);
    (error.is_go_away() && no_error) || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

async fn connect(to: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let (sender, connection) = h2::client::handshake(tokio::net::TcpStream::from_std(stream)?).await.context("handshake")?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender.ready().await?)
}

async fn exchange(sender: &mut SendRequest<Bytes>) -> anyhow::Result<String> {
    let request = http_request()?;
    let (response, _) = sender.send_request(request, true)?;
    let response = response.await?;
    let status = response.status();
    let mut stream = response.into_body();
    let mut body = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        body.extend(part);
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    ensure!(status.is_success(), "{status}: {body}");
    let (server, note) = body.trim().split_once(' ').with_context(|| format!("not an answer: {body:?}"))?;
    ensure!(note.starts_with("ok"), "{server} says: {note}");
    Ok(server.to_owned())
}

fn http_request() -> anyhow::Result<axum::http::Request<()>> {
    Ok(axum::http::Request::get("http://test/").body(())?)
}
