//! The process without its start and end: carries out the table, and reports.

use super::app::{ClientConnections, IngressApp, LAST_REQUEST};
use super::certificates::Certificates;
use super::checks;
use super::connector::MeshConnector;
use super::credentials::Credentials;
use super::direct::DirectProxy;
use super::limits::HttpLimits;
use super::listeners::{Listeners, Serving};
use super::log_lines::LogLines;
use super::mirror::Mirror;
use super::proxy::IngressProxy;
use super::refusals::HttpRefusals;
use super::routes::Routes;
use super::rules::IngressState;
use super::state::{HttpRouteStatus, HttpStatus};
use super::table::{HttpPorts, HttpTable};
use crate::datapath::Sockets;
use crate::ingress::WaitingRoom;
use crate::model::{ServiceDemand, ServiceId};
use crate::sync::lock;
use arc_swap::ArcSwap;
use pingora::apps::HttpServerApp as _;
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Requests at a time on a connection of HTTP/2.
const H2_STREAMS: u32 = 100;
/// Bytes of headers of a request on HTTP/2.
const H2_HEADERS: u32 = 64 << 10;
/// Bytes that a client may send ahead on HTTP/2: a request, and a connection.
const H2_WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// Connections to tasks, whatever tasks they are, that pingora keeps for each worker thread.
const KEPT_BY_THREAD: usize = 512;

/// How long the reader of the access log has at the end.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long requests and upgraded connections have then.
const LAST_ANSWER: Duration = Duration::from_mins(30);

/// The ingress of this process.
pub(super) struct HttpServer {
    state: Arc<IngressState>,
    proxy: Arc<HttpProxy<IngressProxy>>,
    app: Arc<IngressApp>,
    listeners: Mutex<Listeners>,
    table: Mutex<HttpTable>,
    /// The table has changed, for the checks of tasks.
    changed: Arc<Notify>,
}

impl HttpServer {
    /// Serves nothing yet; is made in a runtime. `inherited` are sockets of the process before, `dashboard` is the daemon's, for its page.
    pub fn new(mesh: Arc<dyn Sockets>, inherited: BTreeMap<SocketAddr, TcpListener>, dashboard: PathBuf) -> Self {
        let (limits, refusals) = (Arc::<ArcSwap<HttpLimits>>::default(), Arc::<HttpRefusals>::default());
        let certificates = Arc::<Certificates>::default();
        let connector = Arc::new(MeshConnector::new(mesh));
        let state = Arc::new(IngressState {
            routes: ArcSwap::default(),
            certificates: certificates.clone(),
            challenges: certificates.challenges.clone(),
            connector: connector.clone(),
            credentials: Credentials::default(),
            access_log: ArcSwap::default(),
            log_lines: LogLines::standard(),
            limits: limits.clone(),
            refusals: refusals.clone(),
            mirror: Arc::new(Mirror::new(connector.clone())),
            waiting: WaitingRoom::new(),
            rerouted: Notify::new(),
            draining: AtomicBool::new(false),
            redirect_port: AtomicU16::new(0),
            began: Instant::now(),
            dashboard,
        });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let conf = ServerConf { threads, upstream_keepalive_pool_size: KEPT_BY_THREAD, max_retries: 8, ..ServerConf::default() };
        let proxy = http_proxy(&Arc::new(conf), IngressProxy(state.clone()));
        let mut h2 = H2Options::new();
        h2.max_concurrent_streams(H2_STREAMS).max_header_list_size(H2_HEADERS);
        h2.initial_window_size(H2_WINDOWS.0).initial_connection_window_size(H2_WINDOWS.1);
        let proxy = Arc::new(proxy);
        let app = Arc::new(IngressApp {
            proxy: proxy.clone(),
            connections: ClientConnections::default(),
            limits,
            refusals,
            h2,
            direct: DirectProxy::new(state.clone()),
            ending: CancellationToken::new(),
        });
        let serving = Serving { app: app.clone(), certificates };
        let (listeners, changed) = (Mutex::new(Listeners::new(serving, inherited)), Arc::<Notify>::default());
        tokio::spawn(checks::run(state.clone(), changed.clone()));
        Self { state, proxy, app, listeners, table: Mutex::default(), changed }
    }

    /// Replaces the table, at once for every request that follows.
    pub fn apply(&self, table: HttpTable) {
        self.state.connector.set_source(table.source);
        self.state.certificates.set(&table);
        self.state.challenges.set(&table.challenges);
        let routes = Routes::new(&table, &self.state.routes.load());
        self.state.routes.store(Arc::new(routes));
        self.state.rerouted.notify_waiters();
        self.changed.notify_one();
        self.state.access_log.store(Arc::new(table.access_log));
        self.state.limits.store(Arc::new(table.limits.clone()));
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

    /// Reads the counters for the rates, and closes connections that have waited; called once a second.
    pub fn sample(&self) {
        self.app.direct.sweep();
        let now = Instant::now();
        for route in self.state.routes.load().claims.iter().flat_map(|claim| &claim.choices) {
            route.counters.window.sample(now, || route.counters.read());
        }
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
        let routes = self.state.routes.load();
        let (table, now) = (lock(&self.table), Instant::now());
        // A route on both listeners is one.
        let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
        let mut requests = BTreeMap::<ServiceId, u64>::new();
        for claim in &routes.claims {
            for route in &claim.choices {
                if !seen.insert((&claim.host, &claim.prefix, &route.service.service_id)) {
                    continue;
                }
                let (secret, counts) = (route.service.certificate.as_ref(), route.counters.read());
                let (certificate, certificate_end) =
                    self.state.certificates.describe(&claim.host, secret, table.issued_for(&claim.host));
                let rates = route.counters.window.rates(now, &counts);
                *requests.entry(route.service.service_id.clone()).or_default() += rates.tenths_per_second();
                all.push(HttpRouteStatus {
                    host: claim.host.clone(),
                    prefix: claim.prefix.clone(),
                    service: route.service.service_name.clone(),
                    ready: route.ready,
                    tasks: route.service.backends.len(),
                    certificate,
                    certificate_end,
                    left_out: route.health.left_out(&route.backends).iter().map(ToString::to_string).collect(),
                    in_flight: route.counters.in_flight.load(Ordering::Relaxed),
                    rates,
                    counts,
                    exemplars: route.counters.exemplars.read(),
                });
            }
        }
        let of_requests = requests.into_iter().filter(|(_, tenths)| *tenths > 0);
        let mut demand: BTreeMap<ServiceId, ServiceDemand> =
            of_requests.map(|(id, request_tenths)| (id, ServiceDemand { request_tenths, waiting: 0 })).collect();
        for (id, waiting) in self.state.waiting.read() {
            demand.entry(id).or_default().waiting = waiting;
        }
        HttpStatus {
            demand,
            pid: Some(std::process::id()),
            error: String::new(),
            listeners: lock(&self.listeners).status(),
            routes: all,
            problems: [table.problems.clone(), self.state.certificates.problems()].concat(),
            certificate_failures: BTreeMap::new(),
            connections: self.app.connections.open(),
            refused: self.state.refusals.read(),
            log_lines_dropped: self.state.log_lines.dropped(),
        }
    }

    /// Returns when the number of requests that wait for a task changes.
    pub async fn waiting_changed(&self) {
        let _ = self.state.waiting.subscribe().changed().await;
    }

    /// Accepts no more.
    pub fn close(&self) {
        self.state.draining.store(true, Ordering::Relaxed);
        self.app.direct.close();
        lock(&self.listeners).close();
    }

    /// Returns when every client has its answers, or [`LAST_ANSWER`] is over.
    pub async fn drain(&self) {
        if self.app.connections.end(LAST_REQUEST).await {
            return;
        }
        // Ends the idle ones alone.
        self.app.ending.cancel();
        self.proxy.http_cleanup().await;
        self.app.connections.end(LAST_ANSWER).await;
    }

    /// Writes what is left of the access log; called at the end.
    pub fn write_log(&self) {
        self.state.log_lines.close(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::sockets::HereSockets;
    use crate::ingress::http::context::{Arrival, RequestContext};
    use crate::ingress::http::direct::AnswerTo;
    use crate::ingress::http::plain_client::PlainClient;
    use crate::ingress::http::stream::ClientStream;
    use bytes::BytesMut;
    use pingora::http::RequestHeader;
    use tokio::net::{TcpListener, TcpStream};

    /// It is moved several times for each of them. What few of them need is in boxes of its own.
    #[tokio::test]
    async fn what_a_connection_and_a_request_need_is_small() {
        let server = HttpServer::new(Arc::new(HereSockets), BTreeMap::new(), PathBuf::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ends = (stream.peer_addr().unwrap(), 80);
        let stop = tokio::sync::watch::channel(false).1;
        let connection = size_of_val(&server.app.clone().serve(stream, ends, None, stop));
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut client = PlainClient::new(Box::new(ClientStream::new(stream, ends.0, false)), BytesMut::new());
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        let mut context = RequestContext::new(Arrival::default());
        let request = size_of_val(&server.app.direct.carry(&mut request, &mut context, AnswerTo::Plain(&mut client)));
        eprintln!("{connection} {request}");
        assert!(connection < 8 << 10 && request < 4 << 10, "{connection} and {request} bytes");
    }
}
