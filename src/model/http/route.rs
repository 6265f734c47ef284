//! A route: which requests it is for, and what happens to them.

use crate::model::secret::{self, Secret};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A route of a service. Requests are for it by host and path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the labels")]
pub struct HttpRoute {
    /// Hosts in lower case, without a port, sorted: `shop.example.com`, `*.example.com` (one label or more in place of `*`), or `*`
    /// (every host that no other route names).
    pub hosts: Vec<String>,
    /// Whole segments that the path begins with; `/` for every path. No slash at its end otherwise.
    pub prefix: String,
    /// What follows the prefix in a path. (Nodes of 0.2 know whole segments alone.)
    #[serde(skip_serializing_if = "is_default")]
    pub prefix_end: PrefixEnd,
    /// Where its requests arrive.
    #[serde(skip_serializing_if = "is_default")]
    pub entry: HttpEntry,
    /// Its requests with TLS are left to routes for one of its hosts that have TLS alone and keep clients out.
    #[serde(skip_serializing_if = "is_default")]
    pub yields_tls: bool,
    /// Port of the containers.
    pub port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub scheme: HttpScheme,
    /// The prefix is taken off the path before the request is sent on.
    #[serde(skip_serializing_if = "is_default")]
    pub strip: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub redirect: Option<HttpRedirect>,
    /// The redirect to https is for hosts that have a certificate of an authority or of a secret alone.
    #[serde(skip_serializing_if = "is_default")]
    pub redirects_if_certified: bool,
    /// Name of the cookie by which a client stays with its task; none if empty.
    #[serde(skip_serializing_if = "is_default")]
    pub sticky: String,
    /// Client prefixes that may use the route, sorted; every client if empty.
    #[serde(skip_serializing_if = "is_default")]
    pub allow: Vec<IpNet>,
    /// Largest body of a request, in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub body: Option<u64>,
    /// Longest time that a task may be silent while it is asked, in milliseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub timeout_ms: Option<u64>,
    /// Headers of requests that are set, or removed if the value is empty, by names in lower case. Values may be secret: what the
    /// containers know the proxy by.
    #[serde(skip_serializing_if = "is_default", serialize_with = "secret::expose_map")]
    pub request_headers: BTreeMap<String, Secret<String>>,
    /// As `request_headers`, of answers.
    #[serde(skip_serializing_if = "is_default")]
    pub response_headers: BTreeMap<String, String>,
    /// Who may use the route; everybody if empty.
    #[serde(skip_serializing_if = "is_default")]
    pub auth: Vec<BasicUser>,
    /// Share of the requests among services that all name one for the same host and prefix.
    #[serde(skip_serializing_if = "is_default")]
    pub weight: Option<u32>,
    /// Requests in flight that a node sends to the service, and of one client; 0: no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub requests: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub client_requests: u32,
    /// How often a client may ask a node; as often as it likes if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub rate: Option<HttpRate>,
    /// How tasks are checked; only by their answers without.
    #[serde(skip_serializing_if = "is_default")]
    pub check: Option<HttpCheck>,
    /// A task that has just come gets fewer requests for so long, in milliseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub slow_start_ms: Option<u64>,
    /// Version of the PROXY header that connections to tasks begin with.
    #[serde(skip_serializing_if = "is_default")]
    pub proxy_protocol: Option<u8>,
    /// Protocols besides WebSocket for which a task may take over a connection, in lower case, as `tcp` or `spdy/3.1`.
    #[serde(skip_serializing_if = "is_default")]
    pub upgrade: Vec<String>,
    /// Answers of text are compressed for clients that ask for it.
    #[serde(skip_serializing_if = "is_default")]
    pub compress: bool,
    /// Where copies of requests are sent.
    #[serde(skip_serializing_if = "is_default")]
    pub mirror: Option<HttpMirror>,
    /// Requests are answered with 503 and this text.
    #[serde(skip_serializing_if = "is_default")]
    pub maintenance: Option<String>,
    /// The page of the cluster, of the node that is asked, is served instead of tasks.
    #[serde(skip_serializing_if = "is_default")]
    pub dashboard: bool,
    /// Whether its hosts get certificates by ACME; if absent, those that can have a public one.
    #[serde(skip_serializing_if = "is_default")]
    pub acme: Option<bool>,
}

/// Requests that a node makes to each task of its own accord.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpCheck {
    pub path: String,
    /// Host of the request; the route's first one if empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub host: String,
    pub interval_ms: u64,
    pub timeout_ms: u64,
}

/// Requests of one client in a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpRate {
    pub requests: u32,
    pub period_ms: u64,
    /// Requests that may come at once.
    pub burst: u32,
}

/// Copies of requests, the answers to which are dropped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpMirror {
    /// Name of a service with an HTTP route.
    pub service: String,
    /// Of a hundred requests.
    pub percent: u8,
}

impl Default for HttpRoute {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            prefix: "/".to_owned(),
            prefix_end: PrefixEnd::default(),
            entry: HttpEntry::default(),
            yields_tls: false,
            port: 80,
            scheme: HttpScheme::default(),
            strip: false,
            redirect: None,
            redirects_if_certified: false,
            sticky: String::new(),
            allow: Vec::new(),
            body: None,
            timeout_ms: None,
            request_headers: BTreeMap::new(),
            response_headers: BTreeMap::new(),
            auth: Vec::new(),
            weight: None,
            requests: 0,
            client_requests: 0,
            rate: None,
            check: None,
            slow_start_ms: None,
            proxy_protocol: None,
            upgrade: Vec::new(),
            compress: false,
            mirror: None,
            maintenance: None,
            dashboard: false,
            acme: None,
        }
    }
}

impl HttpRoute {
    /// Whether it may get requests that are the other's without it: for a host of both the longer prefix does, and a host before `*`.
    #[must_use]
    pub fn takes_from(&self, other: &Self) -> bool {
        let is_below = self.prefix.starts_with(&other.prefix);
        let is_above = other.prefix.starts_with(&self.prefix);
        let takes_host = |host: &String| other.hosts.contains(host) && is_below;
        let is_closer = |host: &String| host != "*" && other.hosts.iter().any(|other| other == "*");
        self.hosts.iter().any(|host| takes_host(host) || (is_closer(host) && (is_below || is_above)))
    }

    /// Whether some clients may not use it.
    #[must_use]
    pub fn keeps_clients_out(&self) -> bool {
        !self.auth.is_empty() || !self.allow.is_empty()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What follows the prefix of a route in the paths that it is for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixEnd {
    /// Nothing, or a slash.
    #[default]
    Segment,
    /// Anything: `/admin` is the prefix of `/admin.php`.
    Anything,
    /// A slash.
    Slash,
}

/// The listeners of a route.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpEntry {
    #[default]
    Both,
    /// Without TLS alone.
    Plain,
    /// With TLS alone.
    Tls,
}

impl HttpEntry {
    /// Whether each is with TLS.
    #[must_use]
    pub fn listeners(self) -> &'static [bool] {
        match self {
            Self::Both => &[false, true],
            Self::Plain => &[false],
            Self::Tls => &[true],
        }
    }
}

/// What a task is spoken to with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpScheme {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 without TLS, as gRPC.
    H2c,
    /// HTTP/1.1 or 2 with TLS; the certificate is not verified, as containers make their own.
    Https,
}

/// Requests are answered with the way to another address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpRedirect {
    /// To the same address with TLS; requests that have it are served.
    Https,
    /// To the same path of another host.
    Host(String),
}

/// A user with a password hash in a form of htpasswd.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BasicUser {
    pub name: String,
    #[serde(serialize_with = "secret::expose")]
    pub hash: Secret<String>,
}
