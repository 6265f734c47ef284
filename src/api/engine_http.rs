//! Plain HTTP requests to the engine on a client's behalf, and the engine's identity, which every reply of skep repeats.
//! Containers are the agent's business: it has its own client ([`crate::runtime`]).

use super::error::{ApiError, Result};
use crate::clock::Clock;
use crate::http::{HttpReply, ReplyLines, UnixClient};
use crate::model::Timestamp;
use crate::model::docker::{API_NEWEST, API_OLDEST, ApiVersion};
use crate::sync::lock;
use bytes::Bytes;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a fetched identity is reused.
const IDENTITY_TTL: Duration = Duration::from_secs(10);
/// How long the engine counts as unavailable after it did not answer.
const UNAVAILABLE_TTL: Duration = Duration::from_secs(1);
/// Bound on fetching the identity: every reply of skep waits for it.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound on a reply to what skep itself asks.
const REPLY_TIMEOUT: Duration = Duration::from_mins(1);

/// What the engine reports about itself in `/version` and in the header fields of `/_ping`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineIdentity {
    /// Newest API version that skep announces: never above the engine's own.
    pub api: ApiVersion,
    /// Oldest API version that skep's own paths serve.
    pub min_api: ApiVersion,
    /// Oldest API version that the engine serves.
    pub engine_min: ApiVersion,
    /// Header `Server`.
    pub server: String,
    /// Header `Docker-Experimental`.
    pub experimental: String,
    /// Header `Ostype`.
    pub ostype: String,
    /// Header `Builder-Version`, in replies to a ping only.
    pub builder: Option<String>,
}

impl Default for EngineIdentity {
    /// What skep announces until an engine answers.
    fn default() -> Self {
        Self {
            api: API_NEWEST,
            min_api: API_OLDEST,
            engine_min: API_OLDEST,
            server: concat!("skep/", env!("CARGO_PKG_VERSION"), " (linux)").to_owned(),
            experimental: "false".to_owned(),
            ostype: "linux".to_owned(),
            builder: None,
        }
    }
}

/// HTTP client of the local engine.
pub struct EngineHttp {
    socket: PathBuf,
    client: UnixClient,
    clock: Arc<dyn Clock>,
    cache: Mutex<IdentityCache>,
}

#[derive(Clone, Default)]
struct IdentityCache {
    /// Time of the last fetch, and whether the engine answered it.
    fetched: Option<(Timestamp, bool)>,
    /// From the last fetch that was answered.
    identity: Arc<EngineIdentity>,
}

impl EngineHttp {
    /// For the engine that listens on `socket`.
    pub fn new(socket: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self { client: UnixClient::new(&socket), socket, clock, cache: Mutex::default() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The 503 for an engine that does not answer.
    pub fn unavailable(&self, reason: &dyn std::fmt::Display) -> ApiError {
        ApiError::unavailable(format!(
            "the Docker Engine does not answer on {}: {reason} (is it running? systemctl status docker)",
            self.socket.display()
        ))
    }

    /// Sends a request and waits for its reply, however long that takes. An error status is a reply, not an error.
    ///
    /// # Errors
    /// 503 if the engine cannot be reached, or closes the connection.
    pub async fn send_unbounded(&self, method: &str, target: &str, fields: &[(&str, &str)], body: Bytes) -> Result<HttpReply> {
        self.client.send(method, target, fields, body).await.map_err(|e| self.unavailable(&format!("{e:#}")))
    }

    /// As [`Self::send_unbounded`], for what skep itself asks.
    ///
    /// # Errors
    /// 503 if the engine does not answer in time.
    pub async fn send(&self, method: &str, target: &str, fields: &[(&str, &str)], body: Bytes) -> Result<HttpReply> {
        match tokio::time::timeout(REPLY_TIMEOUT, self.send_unbounded(method, target, fields, body)).await {
            Ok(reply) => reply,
            Err(_) => Err(self.unavailable(&format!("no reply to {method} {target} within {} s", REPLY_TIMEOUT.as_secs()))),
        }
    }

    /// Sends a GET without a body.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn get(&self, target: &str) -> Result<HttpReply> {
        self.send("GET", target, &[], Bytes::new()).await
    }

    /// Sends a GET whose reply is lines without an end.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub async fn lines(&self, target: &str) -> anyhow::Result<ReplyLines> {
        self.client.lines(target).await
    }

    /// The engine's identity, cached; while it does not answer, the last one fetched or the default.
    pub async fn identity(&self) -> Arc<EngineIdentity> {
        let now = self.clock.now();
        let cached = lock(&self.cache).clone();
        if let Some((at, answered)) = cached.fetched
            && now.since(at) < if answered { IDENTITY_TTL } else { UNAVAILABLE_TTL }
        {
            return cached.identity;
        }
        let fetched = tokio::time::timeout(IDENTITY_TIMEOUT, self.fetch_identity()).await.ok().flatten().map(Arc::new);
        let cache = IdentityCache { fetched: Some((now, fetched.is_some())), identity: fetched.unwrap_or(cached.identity) };
        lock(&self.cache).clone_from(&cache);
        cache.identity
    }

    async fn fetch_identity(&self) -> Option<EngineIdentity> {
        let version = self.get("/version").await.ok()?;
        let ping = self.get("/_ping").await.ok()?;
        let body: Value = serde_json::from_slice(&version.body).ok()?;
        let api = |key: &str| body.get(key).and_then(Value::as_str).and_then(ApiVersion::parse);
        let header = |name: &str| ping.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let default = EngineIdentity::default();
        let engine_min = api("MinAPIVersion").unwrap_or(API_OLDEST);
        Some(EngineIdentity {
            api: api("ApiVersion")?.negotiate(),
            min_api: engine_min.min(API_OLDEST),
            engine_min,
            server: header("server").unwrap_or(default.server),
            experimental: header("docker-experimental").unwrap_or(default.experimental),
            ostype: header("ostype").unwrap_or(default.ostype),
            builder: header("builder-version"),
        })
    }
}
