//! Logs of tasks: what this node reads of its engine for itself and for managers that ask, and how it asks other nodes as a
//! manager.

use super::loops::LoopContext;
use super::state_dir::MembershipFile;
use crate::datapath::Sockets as _;
use crate::http::BoxedStream;
use crate::model::mesh::{LOGS_PORT, node_address};
use crate::model::{LogPiece, LogRequest, NodeId, TaskId, TaskLog};
use crate::rpc::{EngineRelay, LogLink, LogReader, LogService, ManagerAt, read_here};
use crate::runtime::Engine;
use crate::store::Store;
use crate::trust::Identity;
use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::stream::{BoxStream, StreamExt as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Logs that the engine is read for at a time, for all readers together: each is a connection to it.
const ENGINE_STREAMS: usize = 512;
/// Time to reach another node.
const CONNECT: Duration = Duration::from_secs(3);
/// Pause before the listener is tried again: the node's address is assigned by the overlay loop.
const LISTEN_RETRY: Duration = Duration::from_millis(50);

/// Logs of this node's tasks, and of others'.
pub(super) struct TaskLogs {
    me: NodeId,
    reader: Arc<EngineLogs>,
    link: LogLink,
    /// This node's Docker API, unless this node refuses that managers use it.
    api: Option<PathBuf>,
    stop: CancellationToken,
}

impl TaskLogs {
    /// Serves managers that ask for logs until the membership stops.
    pub(super) fn start(context: &LoopContext, membership: &MembershipFile, identity: &watch::Receiver<Arc<Identity>>) -> Self {
        let (env, address) = (&context.env, IpAddr::V6(node_address(membership.subnet)));
        let reader = Arc::new(EngineLogs { engine: env.engine.clone(), slots: Arc::new(Semaphore::new(ENGINE_STREAMS)) });
        let (clock, sockets) = (env.clock.clone(), context.mesh.clone());
        let link = LogLink { identity: identity.clone(), clock, sockets, source: address, connect: CONNECT };
        let api = env.settings.access_point.relay.then(|| env.settings.docker_socket());
        let logs = Self { me: context.me.clone(), reader, link, api: api.clone(), stop: context.stop() };
        let (context, link, reader) = (context.clone(), logs.link.clone(), logs.reader.clone());
        context.supervisor.clone().keep("logs", move || {
            let LogLink { identity, clock, .. } = link.clone();
            let relay = api.clone().map(|socket| EngineRelay::new(socket, context.has_session_view.subscribe()));
            let service = LogService { identity, clock, manager_at: manager_at(&context), reader: reader.clone(), relay };
            serve(service, context.clone(), SocketAddr::new(address, LOGS_PORT), context.stop())
        });
        logs
    }

    /// Reads logs of tasks on a node, see [`crate::api::control::NodeControl::read_logs`].
    pub(super) async fn read(
        &self,
        store: &Store,
        node: &NodeId,
        requests: mpsc::Receiver<LogRequest>,
        logs: mpsc::Sender<(TaskId, TaskLog)>,
    ) -> anyhow::Result<()> {
        let read = async {
            if *node == self.me {
                read_here(self.reader.clone(), requests, logs).await;
                return Ok(());
            }
            let subnet = store.node(node).context("it is no member any more")?.mesh.subnet;
            self.link.read(node, SocketAddr::new(IpAddr::V6(node_address(subnet)), LOGS_PORT), requests, logs).await
        };
        self.stop.run_until_cancelled(read).await.context("this node stops")?
    }

    /// A connection to a node's Docker API, see [`crate::api::control::NodeControl::node_api`].
    pub(super) async fn node_api(&self, store: &Store, node: &NodeId) -> anyhow::Result<BoxedStream> {
        if *node == self.me {
            let socket = self.api.as_ref().context("it refuses (access_point.relay is false in its settings)")?;
            return Ok(Box::new(UnixStream::connect(socket).await.context("its socket cannot be used")?));
        }
        let subnet = store.node(node).context("it is no member any more")?.mesh.subnet;
        let stream = self.link.engine(node, SocketAddr::new(IpAddr::V6(node_address(subnet)), LOGS_PORT)).await?;
        Ok(Box::new(stream))
    }
}

async fn serve(service: LogService, context: LoopContext, address: SocketAddr, stop: CancellationToken) {
    let listener = loop {
        match context.mesh.listen(address).map_err(anyhow::Error::from).and_then(|l| Ok(TcpListener::from_std(l)?)) {
            Ok(listener) => break listener,
            Err(error) => tracing::debug!(error = format!("{error:#}"), "not yet"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(LISTEN_RETRY)).await.is_none() {
            return;
        }
    };
    service.serve(listener, stop).await;
}

/// The manager of a mesh address, from the view of this moment.
fn manager_at(context: &LoopContext) -> ManagerAt {
    let view = context.peers.clone();
    Arc::new(move |address| {
        let view = view.borrow();
        let mut nodes = view.iter().flat_map(|view| view.cluster.nodes.iter());
        nodes.find(|node| node.manager && IpAddr::V6(node.address()) == address).map(|node| node.node_id.clone())
    })
}

/// Reads logs of the engine behind this node.
struct EngineLogs {
    engine: Arc<dyn Engine>,
    slots: Arc<Semaphore>,
}

#[async_trait]
impl LogReader for EngineLogs {
    async fn read(&self, request: &LogRequest) -> anyhow::Result<BoxStream<'static, anyhow::Result<LogPiece>>> {
        let slot = self.slots.clone().try_acquire_owned();
        let slot = slot.ok().with_context(|| format!("{ENGINE_STREAMS} logs of its node are read already"))?;
        let Some(pieces) = self.engine.logs(&request.task, request.tty, &request.options).await? else {
            return Ok(futures_util::stream::empty().boxed());
        };
        let held = move |piece| {
            let _held = &slot;
            piece
        };
        Ok(pieces.map(move |piece| held(piece).map_err(anyhow::Error::from)).boxed())
    }
}
