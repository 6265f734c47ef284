//! The engine behind us: who it is (remembered for a while) and what it answers to what we ask on a client's behalf.

use super::error::{ApiError, Result};
use super::query::ApiVersion;
use crate::clock::Clock;
use crate::http::{Reply, UnixClient};
use crate::model::Timestamp;
use crate::model::docker;
use bytes::Bytes;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Newest API version that our replies follow.
const NEWEST: ApiVersion = ApiVersion { major: docker::API_NEWEST.0, minor: docker::API_NEWEST.1 };
/// Oldest API version that we serve, whatever the engine refuses.
const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 24 };
/// How long the engine's identity is believed, and that it does not answer.
const REMEMBER: Duration = Duration::from_secs(10);
const REMEMBER_ABSENCE: Duration = Duration::from_secs(1);
/// How long the engine has to say who it is: every reply of ours waits for it.
const LOOK: Duration = Duration::from_secs(2);
/// How long the engine has to answer what we ask on a client's behalf (removing a network is the slowest of it).
const ANSWER: Duration = Duration::from_mins(1);

/// Name of our network driver, as the engine knows it.
pub const DRIVER: &str = "skep";

/// What an engine says of itself in the head of every reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Newest API version that we announce: never more than the engine's own.
    pub api: ApiVersion,
    /// Oldest API version that our paths serve.
    pub min_api: ApiVersion,
    /// `Server` header.
    pub server: String,
    /// `Docker-Experimental` header.
    pub experimental: String,
    /// `Ostype` header.
    pub ostype: String,
    /// `Builder-Version` header of a ping.
    pub builder: Option<String>,
}

impl Default for Identity {
    /// While no engine answers.
    fn default() -> Self {
        Self {
            api: NEWEST,
            min_api: OLDEST,
            server: concat!("skep/", env!("CARGO_PKG_VERSION"), " (linux)").to_owned(),
            experimental: "false".to_owned(),
            ostype: "linux".to_owned(),
            builder: None,
        }
    }
}

/// The engine.
pub struct Engine {
    socket: PathBuf,
    client: UnixClient,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
}

/// What was last seen of the engine.
#[derive(Clone, Default)]
struct Known {
    /// When it was looked at, and whether it answered.
    looked: Option<(Timestamp, bool)>,
    identity: Identity,
}

impl Engine {
    /// The one that listens there.
    pub fn new(socket: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self { client: UnixClient::new(&socket), socket, clock, known: Mutex::default() }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The answer while it does not answer.
    pub fn down(&self, reason: &dyn std::fmt::Display) -> ApiError {
        ApiError::unavailable(format!(
            "the Docker Engine does not answer on {}: {reason} (is it running? systemctl status docker)",
            self.socket.display()
        ))
    }

    /// Asks it. A refusal is a reply.
    ///
    /// # Errors
    /// 503 if it does not answer.
    pub async fn ask(&self, method: &str, target: &str, fields: &[(&str, &str)], body: Bytes) -> Result<Reply> {
        match tokio::time::timeout(ANSWER, self.client.send(method, target, fields, body)).await {
            Ok(reply) => reply.map_err(|e| self.down(&format!("{e:#}"))),
            Err(_) => Err(self.down(&format!("no reply to {method} {target} within {} s", ANSWER.as_secs()))),
        }
    }

    /// GET.
    ///
    /// # Errors
    /// 503 if it does not answer.
    pub async fn get(&self, target: &str) -> Result<Reply> {
        self.ask("GET", target, &[], Bytes::new()).await
    }

    /// Who it is; the last known, or what we announce on our own, while it does not answer.
    pub async fn identity(&self) -> Identity {
        let now = self.clock.now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, answered)) = known.looked
            && now.since(at) < if answered { REMEMBER } else { REMEMBER_ABSENCE }
        {
            return known.identity;
        }
        let seen = tokio::time::timeout(LOOK, self.look()).await.ok().flatten();
        let known = Known { looked: Some((now, seen.is_some())), identity: seen.unwrap_or(known.identity) };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&known);
        known.identity
    }

    async fn look(&self) -> Option<Identity> {
        let version = self.get("/version").await.ok()?;
        let ping = self.get("/_ping").await.ok()?;
        let body: Value = serde_json::from_slice(&version.body).ok()?;
        let api = |key: &str| body.get(key).and_then(Value::as_str).and_then(ApiVersion::parse);
        let field = |name: &str| ping.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let default = Identity::default();
        Some(Identity {
            api: api("ApiVersion")?.min(NEWEST),
            min_api: api("MinAPIVersion").map_or(OLDEST, |min| min.min(OLDEST)),
            server: field("server").unwrap_or(default.server),
            experimental: field("docker-experimental").unwrap_or(default.experimental),
            ostype: field("ostype").unwrap_or(default.ostype),
            builder: field("builder-version"),
        })
    }
}

/// The id of the swarm network that an engine network is a part of; `None` for networks that are the engine's own.
pub fn swarm_network_of(network: &Value) -> Option<&str> {
    if network.get("Driver").and_then(Value::as_str) != Some(DRIVER) {
        return None;
    }
    Some(network.get("Options").and_then(|o| o.get(docker::NETWORK_OPTION)).and_then(Value::as_str).unwrap_or_default())
}
