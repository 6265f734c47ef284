//! Accepts clients of the access point and brings each request where it belongs.

use super::context::{AccessContext, OwnApi};
use super::handlers;
use super::planner::PlacementRules;
use super::relay::relay;
use super::route::{AccessCall, route};
use crate::accept::{Listener, accept_each};
use crate::api::context::ApiContext;
use crate::api::error::ApiError;
use crate::api::proxy::{RequestHead, answer, first_head, refuse};
use crate::http::{BoxedStream, ByteStream};
use axum::Router;
use futures_util::future::{BoxFuture, FutureExt as _};
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// The access point of a node.
#[derive(Clone)]
pub struct AccessPoint {
    access: Arc<AccessContext>,
    router: Router,
}

impl AccessPoint {
    /// `own_api` serves connections as the node's `docker.sock` does.
    pub fn new(api: Arc<ApiContext>, own_api: OwnApi, rules: PlacementRules) -> Self {
        let access = Arc::new(AccessContext::new(api, own_api, rules));
        Self { router: handlers::router(access.clone()), access }
    }

    /// Serves a connection of any kind until it is closed.
    pub fn connection(&self) -> impl Fn(BoxedStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static {
        let (access, router) = (self.access.clone(), self.router.clone());
        move |stream| connection(access.clone(), router.clone(), stream).boxed()
    }

    /// Watches the nodes, see [`AccessContext::watch`]; each call begins it again.
    pub fn watcher(&self, shutdown: CancellationToken) -> impl Fn() -> BoxFuture<'static, ()> + Send + 'static {
        let access = self.access.clone();
        move || access.clone().watch(shutdown.clone()).boxed()
    }

    /// Serves a unix socket until shut down. Open connections are cut then.
    pub async fn serve(self, listener: impl Listener<Stream = UnixStream, From = ()>, shutdown: CancellationToken) {
        let connection = self.connection();
        accept_each(listener, "the access point's socket", &shutdown, |stream, ()| {
            let (connection, shutdown) = (connection.clone(), shutdown.clone());
            tokio::spawn(async move { shutdown.run_until_cancelled(connection(Box::new(stream))).await });
        })
        .await;
    }
}

async fn connection(access: Arc<AccessContext>, router: Router, mut client: impl ByteStream + 'static) {
    let Some((head, read)) = first_head(&mut client).await else { return };
    let head = match head {
        Ok(head) => head,
        Err(refusal) => return refuse(client, refusal).await,
    };
    match route(&head.method, &head.target) {
        AccessCall::Handled => answer(client, &head, read, router, !head.target.contains("/events")).await,
        AccessCall::Here => {
            let api = access.store().map(|_| access.own_api.connect());
            relay(client, &head, &read, api, &head.target).await;
        }
        AccessCall::Object(object) => match access.locate(&object).await {
            Ok(found) => {
                let api = if found.of_swarm { Ok(access.own_api.connect()) } else { access.connect(&found.node).await };
                relay(client, &head, &read, api, &object.target(&found.name)).await;
            }
            Err(refusal) => refuse(client, refusal).await,
        },
        AccessCall::Refused(what) => refuse(client, refusal_of(&head, what)).await,
    }
}

fn refusal_of(head: &RequestHead, what: &str) -> ApiError {
    ApiError::not_implemented(format!(
        "{what} is not served for all engines at once ({} {}): use the docker.sock of the node that it is about",
        head.method, head.target
    ))
}
