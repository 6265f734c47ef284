//! The process without its start and end: carries out the table, and reports.

use super::app::{ClientConnections, LAST_REQUEST};
use super::certificates::Certificates;
use super::connector::MeshConnector;
use super::credentials::Credentials;
use super::listeners::{Listeners, Serving};
use super::proxy::{IngressProxy, IngressState};
use super::routes::{Routes, ServedRoute};
use super::state::{HttpRouteStatus, HttpStatus};
use super::table::{HttpPorts, HttpTable};
use crate::clock::{Clock as _, SystemClock};
use crate::datapath::Sockets;
use crate::sync::lock;
use arc_swap::ArcSwap;
use pingora::apps::{HttpServerApp as _, HttpServerOptions};
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A connection of HTTP/2 without a request is closed after this time.
const H2_IDLE: Duration = Duration::from_mins(1);
/// Requests at a time on a connection of HTTP/2.
const H2_STREAMS: u32 = 100;
/// Bytes of headers of a request on HTTP/2.
const H2_HEADERS: u32 = 64 << 10;
/// Bytes that a client may send ahead on HTTP/2: a request, and a connection.
const H2_WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// Connections to tasks that are kept for each worker thread.
const POOL: usize = 512;

/// How long requests and upgraded connections have then.
const LAST_ANSWER: Duration = Duration::from_mins(30);

/// The ingress of this process.
pub(super) struct HttpServer {
    state: Arc<IngressState>,
    proxy: Arc<HttpProxy<IngressProxy>>,
    connections: Arc<ClientConnections>,
    listeners: Mutex<Listeners>,
    table: Mutex<HttpTable>,
}

impl HttpServer {
    /// Serves nothing yet. `inherited` are sockets of the process before; `first_head` is the time for the first head of a connection.
    pub fn new(mesh: Arc<dyn Sockets>, inherited: BTreeMap<SocketAddr, TcpListener>, first_head: Duration) -> Self {
        let certificates = Arc::<Certificates>::default();
        let state = Arc::new(IngressState {
            routes: ArcSwap::default(),
            certificates: certificates.clone(),
            challenges: certificates.challenges.clone(),
            connector: Arc::new(MeshConnector::new(mesh)),
            credentials: Credentials::default(),
            access_log: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            redirect_port: AtomicU16::new(0),
        });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let conf = ServerConf { threads, upstream_keepalive_pool_size: POOL, max_retries: 8, ..ServerConf::default() };
        let mut proxy = http_proxy(&Arc::new(conf), IngressProxy(state.clone()));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(H2_IDLE);
        proxy.server_options = Some(options);
        let mut h2 = H2Options::new();
        h2.max_concurrent_streams(H2_STREAMS).max_header_list_size(H2_HEADERS);
        h2.initial_window_size(H2_WINDOWS.0).initial_connection_window_size(H2_WINDOWS.1);
        proxy.h2_options = Some(h2);
        let (proxy, connections) = (Arc::new(proxy), Arc::<ClientConnections>::default());
        let serving = Serving { proxy: proxy.clone(), connections: connections.clone(), certificates, first_head };
        Self { state, proxy, connections, listeners: Mutex::new(Listeners::new(serving, inherited)), table: Mutex::default() }
    }

    /// Replaces the table, at once for every request that follows.
    pub fn apply(&self, table: HttpTable) {
        self.state.connector.set_source(table.source);
        self.state.certificates.set(&table);
        self.state.challenges.set(&table.challenges);
        let routes = Routes::new(&table, &self.state.routes.load());
        self.state.routes.store(Arc::new(routes));
        self.state.access_log.store(table.access_log, Ordering::Relaxed);
        self.state.redirect_port.store(table.redirect_port, Ordering::Relaxed);
        self.follow(table.ports);
        let mut current = lock(&self.table);
        let mut table = table;
        // For the process that takes over: a certificate that this table did not bring again.
        for (id, content) in std::mem::take(&mut current.certificates) {
            if table.named_certificates().contains(&id) {
                table.certificates.entry(id).or_insert(content);
            }
        }
        *current = table;
    }

    /// Tries again what the kernel has refused.
    pub fn retry(&self) {
        let ports = lock(&self.table).ports;
        self.follow(ports);
    }

    /// Opens and closes listeners, unless this process ends.
    fn follow(&self, ports: HttpPorts) {
        if !self.is_draining() {
            lock(&self.listeners).follow(ports);
        }
    }

    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::Relaxed)
    }

    pub fn table(&self) -> HttpTable {
        lock(&self.table).clone()
    }

    pub fn fds(&self) -> Vec<super::protocol::ListenerFd> {
        lock(&self.listeners).fds()
    }

    pub fn status(&self) -> HttpStatus {
        let (routes, now) = (self.state.routes.load(), SystemClock.now());
        let route = |host: &str, prefix: &str, route: &ServedRoute| HttpRouteStatus {
            host: host.to_owned(),
            prefix: prefix.to_owned(),
            service: route.service.service_name.clone(),
            ready: route.ready,
            tasks: route.service.backends.len(),
            certificate: self.state.certificates.describe(
                route.service.certificate.as_ref(),
                lock(&self.table).issued_for(host),
                now,
            ),
            counts: route.counters.read(),
        };
        let mut all: Vec<HttpRouteStatus> =
            routes.claims.iter().flat_map(|c| c.choices.iter().map(|choice| route(&c.host, &c.prefix, choice))).collect();
        // A route on both listeners is one.
        let mut seen = BTreeSet::new();
        all.retain(|route| seen.insert((route.host.clone(), route.prefix.clone(), route.service.clone())));
        HttpStatus {
            pid: Some(std::process::id()),
            error: String::new(),
            listeners: lock(&self.listeners).status(),
            routes: all,
            problems: lock(&self.table).problems.clone(),
            connections: self.connections.open(),
        }
    }

    /// Accepts no more.
    pub fn close(&self) {
        self.state.draining.store(true, Ordering::Relaxed);
        lock(&self.listeners).close();
    }

    /// Returns when every client has its answers, or [`LAST_ANSWER`] is over.
    pub async fn drain(&self) {
        if self.connections.end(LAST_REQUEST).await {
            return;
        }
        // Ends the idle ones alone.
        self.proxy.http_cleanup().await;
        self.connections.end(LAST_ANSWER).await;
    }
}
