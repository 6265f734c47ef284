//! Accepts connections on the API's socket. What a connection carries is [`proxy`]'s business.

use super::access::{AccessPoint, OwnApi, PlacementRules};
use super::context::ApiContext;
use super::control::NodeControl;
use super::encoded::EncodedServices;
use super::engine_http::EngineHttp;
use super::events::EventFeed;
use super::{handlers, proxy};
use crate::accept::{Listener, accept_each};
use crate::clock::Clock;
use crate::http::BoxedStream;
use axum::Router;
use futures_util::future::{BoxFuture, FutureExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Requests for logs that are answered at a time.
const MAX_LOGS: usize = 128;

/// The API server of a node.
#[derive(Clone)]
pub struct Api {
    context: Arc<ApiContext>,
    router: Router,
}

impl Api {
    /// For this node, in front of the engine that listens on `engine_socket`.
    pub fn new(control: Arc<dyn NodeControl>, engine_socket: PathBuf, clock: Arc<dyn Clock>) -> Self {
        let engine = EngineHttp::new(engine_socket, clock.clone());
        let (events, log_slots) = (Arc::new(EventFeed::new()), Arc::new(Semaphore::new(MAX_LOGS)));
        let services = EncodedServices::default();
        let context = Arc::new(ApiContext { control, engine, events, log_slots, services, clock });
        Self { router: handlers::router(context.clone()), context }
    }

    /// The access point of this node, which shares what this API knows of it.
    pub fn access_point(&self, rules: PlacementRules) -> AccessPoint {
        AccessPoint::new(self.context.clone(), OwnApi(Box::new(self.connection())), rules)
    }

    /// Serves a connection of any kind until it is closed.
    pub fn connection(&self) -> impl Fn(BoxedStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static {
        let (context, router) = (self.context.clone(), self.router.clone());
        move |stream| proxy::serve_connection(context.clone(), router.clone(), stream).boxed()
    }

    /// Makes the swarm's events out of what changes in the store, see [`EventFeed::follow`]; each call begins it again.
    pub fn event_follower(&self, shutdown: CancellationToken) -> impl Fn() -> BoxFuture<'static, ()> + Send + 'static {
        let context = self.context.clone();
        move || {
            let ApiContext { control, events, clock, .. } = &*context;
            events.clone().follow(control.clone(), clock.clone(), shutdown.clone()).boxed()
        }
    }

    /// Serves until shut down. Open connections are cut then, the passed-through ones too. Events are those of the
    /// [follower](Self::event_follower).
    pub async fn serve(self, listener: impl Listener<Stream = UnixStream, From = ()>, shutdown: CancellationToken) {
        accept_each(listener, "the Docker API socket", &shutdown, |stream, ()| {
            let (context, router, shutdown) = (self.context.clone(), self.router.clone(), shutdown.clone());
            tokio::spawn(async move { shutdown.run_until_cancelled(proxy::serve_connection(context, router, stream)).await });
        })
        .await;
    }
}
