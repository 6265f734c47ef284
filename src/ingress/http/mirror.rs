//! Copies of requests to another service, for routes with `skep.http.mirror`. The client waits for nothing of it: the answer to a copy is
//! dropped, and so is a copy while too many are under way.

use super::connector::MeshConnector;
use super::request_copy::RequestCopy;
use super::routes::ServedRoute;
use super::upstream;
use pingora::Result;
use pingora::connectors::http::Connector;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Copies under way.
const AT_A_TIME: usize = 64;
/// Time for a copy and its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// As of other connections to tasks.
const IDLE: Duration = Duration::from_secs(4);

/// What sends copies.
pub(super) struct Mirror {
    mesh: Arc<MeshConnector>,
    connections: Connector,
    room: Arc<Semaphore>,
    turn: AtomicU64,
}

/// Whether a request is among so many of a hundred, which are spread evenly.
fn is_taken(turn: u64, percent: u8) -> bool {
    turn.wrapping_mul(u64::from(percent)) % 100 < u64::from(percent)
}

impl Mirror {
    pub fn new(mesh: Arc<MeshConnector>) -> Self {
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        Self { mesh, connections: Connector::new(None), room, turn: AtomicU64::new(0) }
    }

    /// Whether it is the turn of a request, of so many in a hundred.
    pub fn takes(&self, percent: u8) -> bool {
        is_taken(self.turn.fetch_add(1, Ordering::Relaxed), percent)
    }

    /// Sends a copy, if there is room.
    pub fn send(self: &Arc<Self>, copy: RequestCopy, to: Arc<ServedRoute>) {
        let Ok(room) = self.room.clone().try_acquire_owned() else { return };
        let mirror = self.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LIMIT, mirror.exchange(copy, &to)).await;
            drop(room);
        });
    }

    async fn exchange(&self, copy: RequestCopy, to: &ServedRoute) -> Result<()> {
        let Some(backend) = to.backend(None, &[]) else { return Ok(()) };
        let (mut head, body) = (copy.head, copy.body.freeze());
        let host = head.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let peer = upstream::peer(&self.mesh, to, backend, &super::path::host(host).unwrap_or_default(), None, false);
        let (mut session, _) = self.connections.get_http_session(&peer).await?;
        head.remove_header("transfer-encoding");
        head.remove_header("content-length");
        if !body.is_empty() {
            head.insert_header("content-length", body.len().to_string())?;
        }
        session.write_request_header(Box::new(head)).await?;
        if !body.is_empty() {
            session.write_request_body(body, true).await?;
        }
        session.finish_request_body().await?;
        session.read_response_header().await?;
        while session.read_response_body().await?.is_some() {}
        self.connections.release_http_session(session, &peer, Some(IDLE)).await;
        Ok(())
    }
}

#[test]
fn the_share_is_even() {
    for percent in [1, 10, 33, 50, 99, 100] {
        let taken = (0..1000).filter(|turn| is_taken(*turn, percent)).count();
        assert_eq!(taken, usize::from(percent) * 10, "{percent}");
    }
}
