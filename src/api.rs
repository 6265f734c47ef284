//! The Docker Engine API on a socket of our own: every swarm path is answered here, everything else goes to the engine
//! byte by byte. Reads the store and writes to it through its handle; whether this node is in a swarm, and how it gets
//! in or out, is asked of [`control::NodeControl`]. Knows nothing of raft, containers or the data plane.
//!
//! The way of a request: [`proxy`] reads the head and decides whose it is; [`handlers`] answers ours; [`body`] and
//! [`schema`] read what was posted in the words of the real server; [`validate`] refuses; [`convert`] and [`wire`] write
//! the replies.

mod body;
pub mod control;
mod convert;
mod engine;
mod error;
mod handlers;
mod lookup;
mod proxy;
mod query;
mod schema;
mod validate;
mod wire;

use crate::clock::Clock;
use control::NodeControl;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// The API server of a node.
pub struct Api {
    control: Arc<dyn NodeControl>,
    engine: engine::Engine,
    clock: Arc<dyn Clock>,
}

impl Api {
    /// For this node, in front of the engine that listens on `engine_socket`.
    pub fn new(control: Arc<dyn NodeControl>, engine_socket: PathBuf, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { control, engine: engine::Engine::new(engine_socket, clock.clone()), clock })
    }

    /// Serves until shut down. Requests that are under way then are cut, the passed-through ones too.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => {
                    let (stream, _) = match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            tracing::warn!(%error, "the Docker API socket cannot accept a connection; trying again");
                            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                            continue;
                        }
                    };
                    let (api, shutdown) = (self.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = proxy::connection(api, stream) => {}
                        }
                    });
                }
            }
        }
    }
}
