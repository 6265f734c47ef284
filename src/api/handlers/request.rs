//! A request as handlers see it.

use crate::api::body;
use crate::api::context::ApiContext;
use crate::api::control::{LOCKED, NOT_MANAGER, Standing};
use crate::api::engine_http::EngineIdentity;
use crate::api::error::{ApiError, Result};
use crate::api::query::{RequestQuery, split_version};
use crate::api::schema::Struct;
use crate::model::docker::ApiVersion;
use crate::store::StoreHandle;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method};
use serde_json::Value;
use std::sync::Arc;

// Docker's messages for a node that cannot answer because it is not a manager.
pub const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
pub const NOT_YET: &str = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.";

/// Header fields of a client that are forwarded to the engine.
const FORWARDED_HEADERS: [&str; 4] = ["content-type", "x-registry-auth", "x-registry-config", "user-agent"];

pub struct ApiRequest {
    pub api: Arc<ApiContext>,
    pub method: Method,
    /// The version in the path, or the newest announced one if the path has none.
    pub version: ApiVersion,
    pub identity: Arc<EngineIdentity>,
    /// Path and query as sent, with the version.
    pub target: String,
    pub query: RequestQuery,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl ApiRequest {
    /// The handle of the store.
    ///
    /// # Errors
    /// 503 unless this node is a manager.
    pub fn store(&self) -> Result<StoreHandle> {
        match self.api.control.standing() {
            Standing::Manager => self.api.control.store().ok_or_else(|| ApiError::unavailable(NOT_YET)),
            Standing::Worker | Standing::Pending => Err(ApiError::unavailable(NOT_MANAGER)),
            Standing::Locked => Err(ApiError::unavailable(LOCKED)),
            Standing::Inactive => Err(ApiError::unavailable(NOT_IN_SWARM)),
        }
    }

    /// The body, decoded by this schema.
    ///
    /// # Errors
    /// 400 as [`body::decode`].
    pub fn decode_body(&self, schema: &'static Struct) -> Result<Value> {
        body::decode(&self.headers, &self.body, schema)
    }

    /// Sends the request to the engine unchanged and returns its reply. Without a bound on its time, as without skep: a
    /// client waits as long as it likes.
    ///
    /// # Errors
    /// 503 if the engine does not answer.
    pub async fn forward(&self) -> Result<Response> {
        self.forward_to(&self.target).await
    }

    /// As [`Self::forward`], to another path.
    ///
    /// # Errors
    /// 503 if the engine does not answer.
    pub async fn forward_to(&self, target: &str) -> Result<Response> {
        self.forward_body(target, self.body.clone()).await
    }

    /// As [`Self::forward_to`], with another body.
    ///
    /// # Errors
    /// 503 if the engine does not answer.
    pub async fn forward_body(&self, target: &str, body: Bytes) -> Result<Response> {
        let fields: Vec<(&str, &str)> =
            FORWARDED_HEADERS.into_iter().filter_map(|name| Some((name, self.headers.get(name)?.to_str().ok()?))).collect();
        let reply = self.api.engine.send_unbounded(self.method.as_str(), target, &fields, body).await?;
        let mut response = Response::new(Body::from(reply.body));
        *response.status_mut() = reply.status;
        if let Some(kind) = reply.headers.get(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, kind.clone());
        }
        Ok(response)
    }

    /// Target of another path on the engine, in the API version of this request or the oldest one that the engine serves:
    /// skep serves older clients than newer engines do.
    pub fn engine_target(&self, path: &str) -> String {
        let (version, _) = split_version(&self.target);
        version.map_or_else(|| path.to_owned(), |v| format!("/v{}{path}", v.max(self.identity.engine_min)))
    }

    /// The target of this request, with the version of [`Self::engine_target`].
    pub fn lifted_target(&self) -> String {
        let (_, path) = split_version(&self.target);
        self.engine_target(path)
    }
}
