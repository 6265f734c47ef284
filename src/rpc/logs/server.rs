//! The node's side: accepts managers and reads for them. A connection takes nothing from anything else of the node: it is a
//! spawned task, whose engine connections end with it.

use super::super::engine_relay::{self, EngineRelay};
use super::super::frame::{FrameReader, FrameWriter};
use super::super::session::explain;
use super::super::tls;
use super::collect::{LogReader, read_here};
use super::wire::{FromLogs, MAX_FRAME, ToLogs};
use super::{ALIVE, MAX_TASKS, QUEUE, SILENCE};
use crate::accept::{Refusals, accept_each};
use crate::clock::{self, Clock};
use crate::model::NodeId;
use crate::trust::Identity;
use anyhow::{Context as _, ensure};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// Time for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// In the log.
const SERVER: &str = "the server of logs";

/// The manager that has a mesh address, by the node's view of this moment.
pub type ManagerAt = Arc<dyn Fn(IpAddr) -> Option<NodeId> + Send + Sync>;

/// Serves managers that ask for logs.
pub struct LogService {
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The time that certificates are checked against.
    pub clock: Arc<dyn Clock>,
    pub manager_at: ManagerAt,
    pub reader: Arc<dyn LogReader>,
    /// The node's Docker API for managers; `None` if this node refuses that.
    pub relay: Option<EngineRelay>,
}

impl LogService {
    /// Serves a listener in the mesh until stopped; open connections are closed then.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let (service, connections) = (Arc::new(self), TaskTracker::new());
        let (slots, refusals) = (Arc::new(Semaphore::new(CONNECTIONS)), Refusals::default());
        accept_each(listener, SERVER, &stop, |stream, from| {
            let Some(manager) = (service.manager_at)(from.ip()) else {
                return refusals.refused(from, SERVER, "it is not a manager's");
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                return refusals.refused(from, SERVER, format_args!("there are {CONNECTIONS} already"));
            };
            let (service, stop) = (service.clone(), stop.clone());
            connections.spawn(async move {
                let served = stop.run_until_cancelled(service.connection(stream, from, &manager, slot)).await;
                if let Some(Err(error)) = served {
                    tracing::debug!(%manager, error = format!("{error:#}"), "a connection for logs has ended");
                }
            });
        })
        .await;
        connections.close();
        connections.wait().await;
    }

    async fn connection(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        manager: &NodeId,
        slot: OwnedSemaphorePermit,
    ) -> anyhow::Result<()> {
        let _ = stream.set_nodelay(true);
        let identity = self.identity.borrow().clone();
        let config = Arc::new(tls::logs_client_config(&identity, self.clock.clone(), manager.clone())?);
        let handshake = TlsConnector::from(config).connect(tls::server_name()?, stream);
        let stream = tokio::time::timeout(HANDSHAKE, handshake).await.context("no TLS handshake in time")?;
        let stream = stream.map_err(|e| explain(e, &identity, self.clock.now()))?;
        if stream.get_ref().1.alpn_protocol() == Some(tls::ENGINE) {
            // Relays have slots of their own.
            drop(slot);
            let allowed = || (self.manager_at)(from.ip()).as_ref() == Some(manager) && !self.has_expired();
            return engine_relay::serve(self.relay.as_ref(), stream, allowed).await;
        }
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) =
            (FrameReader::new(read, MAX_FRAME, SILENCE), FrameWriter::new(write, MAX_FRAME, Duration::MAX));
        let (requests, requested) = mpsc::channel(QUEUE);
        let (logs, mut ready) = mpsc::channel(QUEUE);
        let receive = async {
            let mut tasks = 0_usize;
            while let Some(frame) = reader.document().await? {
                ensure!((self.manager_at)(from.ip()).as_ref() == Some(manager), "node {manager} is not a manager any more");
                match serde_json::from_slice(&frame).context("a message that is not understood")? {
                    ToLogs::Alive => {}
                    ToLogs::Read(request) => {
                        tasks += 1;
                        ensure!(tasks <= MAX_TASKS, "the logs of more than {MAX_TASKS} tasks are asked for at once");
                        requests.send(request).await.context("nothing reads logs")?;
                    }
                }
            }
            anyhow::Ok(())
        };
        let send = async {
            loop {
                let message = tokio::select! {
                    log = ready.recv() => match log {
                        Some((task, log)) => FromLogs::Log(task, log),
                        None => return anyhow::Ok(()),
                    },
                    () = tokio::time::sleep(ALIVE) => FromLogs::Alive,
                };
                writer.write_document(&message.encode()).await?;
            }
        };
        tokio::select! {
            ended = receive => ended,
            ended = send => ended,
            () = read_here(self.reader.clone(), requested, logs) => Ok(()),
            () = self.expires() => Ok(()),
        }
    }

    /// By the certificate of this moment: it is renewed while connections are open.
    fn has_expired(&self) -> bool {
        self.identity.borrow().validity().is_over(self.clock.now())
    }

    /// Waits until then.
    async fn expires(&self) {
        loop {
            let end = self.identity.borrow().validity().end();
            clock::reached(&*self.clock, end).await;
            if self.has_expired() {
                return;
            }
        }
    }
}
