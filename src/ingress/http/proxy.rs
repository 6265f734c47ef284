//! What happens to a request: the filters that pingora calls.

use super::certificates::Certificates;
use super::challenges::Challenges;
use super::connector::MeshConnector;
use super::context::RequestContext;
use super::credentials::{CredentialCheck, Credentials};
use super::limits::HttpLimits;
use super::log_format::HttpAccessLog;
use super::mirror::Mirror;
use super::progress::ExpectedBody;
use super::proxy_header::ConnectionEnds;
use super::refusals::{HttpRefusal, HttpRefusals};
use super::reply::{Reply, failure, no_task, redirect, too_large};
use super::request_copy::RequestCopy;
use super::routes::Routes;
use super::{access_log, compression, credentials, forwarded, guard, path, progress, rewriting, upstream};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader, Version};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

/// Tasks that are tried, if none can be connected to.
const MOST_TRIED: usize = 4;
/// A client that takes nothing of its answer for so long is cut.
const STALLED: Duration = Duration::from_mins(1);

/// What the filters read.
pub(super) struct IngressState {
    pub routes: ArcSwap<Routes>,
    pub certificates: Arc<Certificates>,
    pub challenges: Arc<Challenges>,
    pub connector: Arc<MeshConnector>,
    pub credentials: Credentials,
    pub access_log: ArcSwap<HttpAccessLog>,
    pub limits: Arc<ArcSwap<HttpLimits>>,
    pub refusals: Arc<HttpRefusals>,
    pub mirror: Arc<Mirror>,
    /// Connections are closed with their next answer.
    pub draining: AtomicBool,
    /// Where clients are redirected to for TLS; 0: nowhere.
    pub redirect_port: AtomicU16,
    /// Of the process.
    pub began: std::time::Instant,
    /// Where the daemon serves its page.
    pub dashboard: PathBuf,
}

impl IngressState {
    /// Nanoseconds since the process began.
    fn age_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The filters.
pub(super) struct IngressProxy(pub Arc<IngressState>);

/// Where the connection is from, and where it is to.
fn ends(session: &Session) -> Option<ConnectionEnds> {
    let client = session.client_addr().and_then(|address| address.as_inet());
    client.copied().zip(session.server_addr().and_then(|address| address.as_inet()).copied())
}

fn is_tls(session: &Session) -> bool {
    session.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}

/// Whether a client asks for an upgrade, and sends no body.
fn is_upgrade(session: &Session) -> bool {
    let headers = &session.req_header().headers;
    session.is_upgrade_req() && !headers.contains_key("transfer-encoding") && !headers.contains_key("content-length")
}

/// The host that the client has asked for, as it wrote it.
fn asked_host(request: &RequestHeader) -> &str {
    let header = request.headers.get("host").and_then(|value| value.to_str().ok());
    header.or_else(|| request.uri.authority().map(AsRef::<str>::as_ref)).unwrap_or_default()
}

fn header<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a [u8]> {
    request.headers.get(name).map(AsRef::<[u8]>::as_ref)
}

/// The value of a cookie.
fn cookie<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    let all = request.headers.get_all("cookie").into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';'))
        .filter_map(|one| one.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v)
}

impl IngressProxy {
    /// The answer to a request that no task is asked for; `None` if one is.
    async fn decide(&self, session: &Session, context: &mut RequestContext) -> Option<Reply> {
        let request = session.req_header();
        if let Some((reason, status, why)) = guard::refuse(request) {
            self.0.refusals.count(reason);
            return Some(Reply::new(status, why));
        }
        let Some(host) = path::host(asked_host(request)) else {
            return Some(Reply::new(400, "the request names no host"));
        };
        let Some(decoded) = path::path(request.uri.path()) else {
            return Some(Reply::new(400, "the path is not plain: it has `..` or an encoded slash"));
        };
        let routes = self.0.routes.load();
        let merged = path::merged(&decoded);
        if merged != decoded && !routes.have_one_route(is_tls(session), &host, &decoded, &merged) {
            return Some(Reply::new(400, "the path is not plain: without slashes in a row, `.` and `;` it has another route"));
        }
        let Some(route) = routes.find(is_tls(session), &host, &decoded, |name| cookie(request, name)) else {
            return Some(Reply::new(404, format!("no route for {host}")));
        };
        context.route = Some(route.clone());
        let client = context.requester.client;
        if !route.route.allow.is_empty() && !client.is_some_and(|ip| route.route.allow.iter().any(|net| net.contains(&ip))) {
            return Some(Reply::new(403, "this client may not use the route"));
        }
        if let Some(reply) = redirect(&route, request, context.requester.tls, &host, self.0.redirect_port.load(Ordering::Relaxed))
        {
            return Some(reply);
        }
        if let Some(text) = &route.route.maintenance {
            return Some(Reply::new(503, text.as_str()).with("retry-after", "60"));
        }
        if let Some((rate, client)) = route.route.rate.zip(client)
            && let Err(wait) = route.load.rate.admit(client, rate, self.0.age_ns())
        {
            self.0.refusals.count(HttpRefusal::ClientRate);
            let wait = wait.as_secs_f64().ceil().max(1.0);
            return Some(
                Reply::new(429, "this client asks more often than the route allows").with("retry-after", wait.to_string()),
            );
        }
        context.in_flight = route.load.take(route.route.requests);
        if context.in_flight.is_none() {
            self.0.refusals.count(HttpRefusal::ServiceRequests);
            let why = format!("{} has as many requests as it takes", route.service.service_name);
            return Some(Reply::new(503, why).with("retry-after", "1"));
        }
        if route.route.client_requests > 0
            && let Some(client) = client
        {
            context.held = route.load.hold(client, route.route.client_requests);
            if context.held.is_none() {
                self.0.refusals.count(HttpRefusal::ClientRequests);
                return Some(Reply::new(429, "this client has too many requests in flight").with("retry-after", "1"));
            }
        }
        if !route.route.auth.is_empty() {
            match self.0.credentials.check(header(request, "authorization"), &route.route.auth, client).await {
                CredentialCheck::Right => context.user = credentials::name(header(request, "authorization")),
                CredentialCheck::Wrong => {
                    let realm = format!("Basic realm=\"{}\", charset=\"UTF-8\"", route.service.service_name);
                    return Some(Reply::new(401, "name and password are needed").with("www-authenticate", realm));
                }
                CredentialCheck::Busy => {
                    return Some(Reply::new(429, "too many passwords are being checked").with("retry-after", "1"));
                }
            }
        }
        let length = header(request, "content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse::<u64>().ok());
        if route.route.body.zip(length).is_some_and(|(most, length)| length > most) {
            return Some(too_large());
        }
        if route.backends.is_empty() && !route.route.dashboard {
            return Some(no_task(&route));
        }
        if !route.route.sticky.is_empty() {
            context.stays_with = cookie(request, &route.route.sticky).map(str::to_owned);
        }
        None
    }
}

#[async_trait]
impl ProxyHttp for IngressProxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::new()
    }

    async fn early_request_filter(&self, session: &mut Session, _context: &mut RequestContext) -> Result<()> {
        let request = session.req_header();
        let length = header(request, "content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse::<u64>().ok());
        // Streams of gRPC and upgraded connections are silent for as long as they like. A body that is chunked is neither.
        let is_stream = match request.version {
            Version::HTTP_2 => header(request, "content-type").is_some_and(|kind| kind.starts_with(b"application/grpc")),
            _ => is_upgrade(session),
        };
        progress::head_seen(match length {
            _ if session.is_body_empty() => ExpectedBody::Nothing,
            Some(length) => ExpectedBody::Length(length),
            None if is_stream => ExpectedBody::Nothing,
            None => ExpectedBody::Unknown,
        });
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, context: &mut RequestContext) -> Result<bool> {
        let limits = self.0.limits.load();
        // pingora keeps a connection for ever unless each request says otherwise.
        // A client of HTTP/1.0 reads to the end of the connection.
        let is_kept = session.req_header().version > Version::HTTP_10 && !self.0.draining.load(Ordering::Relaxed);
        session.set_keepalive(is_kept.then_some(limits.idle().as_secs().max(1)));
        session.set_write_timeout(Some(STALLED));
        // The rest of a body that its task has not waited for.
        session.set_total_drain_timeout(Some(limits.head()));
        if is_upgrade(session) {
            // WebSocket is silent for as long as it likes: the kernel notices a client that is gone.
            session.set_read_timeout(None);
        }
        let ends = ends(session);
        let peer = ends.map(|(client, _)| client.ip().to_canonical());
        let (request, port) = (session.req_header(), ends.map_or(0, |(_, to)| to.port()));
        context.requester = forwarded::requester(request, peer, &limits, is_tls(session), asked_host(request), port);
        drop(limits);
        let id = header(session.req_header(), "x-request-id").and_then(|id| std::str::from_utf8(id).ok());
        let is_usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        context.request_id = id.filter(is_usable).map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned);
        // Before any host, redirect or password: the authority names a port in the host, and follows no redirect to a TLS port
        // that has no certificate yet.
        if let Some(answer) = self.0.challenges.answer(session.req_header().uri.path())
            && guard::refuse(session.req_header()).is_none()
        {
            answer.send(session).await?;
            return Ok(true);
        }
        let Some(reply) = self.decide(session, context).await else { return Ok(false) };
        if matches!(reply.status, 400 | 431) {
            // What follows on the connection may not be a request.
            session.set_keepalive(None);
        }
        reply.send(session).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut RequestContext,
    ) -> Result<()> {
        let length = body.as_ref().map_or(0, Bytes::len);
        progress::body_read(length, end);
        if session.was_upgraded() {
            // What follows is no body.
            return Ok(());
        }
        context.body += length as u64;
        if let Some((mut copy, to)) = context.copy.take()
            && copy.add(body.as_ref())
        {
            if end {
                self.0.mirror.send(copy, to);
            } else {
                context.copy = Some((copy, to));
            }
        }
        let most = context.route.as_ref().and_then(|route| route.route.body);
        if most.is_some_and(|most| context.body > most) {
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route takes");
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut RequestContext) -> Result<Box<HttpPeer>> {
        let unavailable = || Error::explain(ErrorType::HTTPStatus(503), "no task can be connected to");
        let route = context.route.clone().ok_or_else(unavailable)?;
        if route.route.dashboard {
            return upstream::local(&self.0.dashboard);
        }
        let backend = route.backend(context.stays_with.as_deref(), &context.tried).ok_or_else(unavailable)?;
        context.task = Some(backend.task_id.clone());
        let host = path::host(asked_host(session.req_header())).unwrap_or_default();
        Ok(Box::new(upstream::peer(&self.0.connector, &route, backend, &host, ends(session), session.is_upgrade_req())))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let Some(route) = context.route.as_ref().filter(|route| !route.route.dashboard) else { return error };
        if let Some(task) = context.task.take() {
            route.health.record(&task, false);
            context.tried.push(task);
        }
        if context.tried.len() < route.backends.len().min(MOST_TRIED) {
            route.counters.retries.fetch_add(1, Ordering::Relaxed);
            error.set_retry(true);
        }
        error
    }

    /// A request whose connection to a task ended without an answer is sent once more at most: it may be what ends its tasks.
    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut RequestContext,
        client_reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("task at {peer}"));
        // A connection of the pool that its task has closed meanwhile is no failure.
        if *error.esource() == ErrorSource::Upstream && !client_reused && session.response_written().is_none() {
            context.record(false);
        }
        let may_repeat = session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        if may_repeat && !std::mem::replace(&mut context.repeated, true) {
            error.retry.decide_reuse(client_reused);
        } else {
            error.set_retry(false);
        }
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        let Some(route) = &context.route else { return Ok(()) };
        forwarded::set(request, &context.requester, &context.request_id)?;
        context.traceparent =
            header(request, "traceparent").map_or_else(String::new, |trace| String::from_utf8_lossy(trace).into_owned());
        rewriting::request(request, &route.route)?;
        // Once, whatever tasks are tried.
        if let Some(mirror) = route
            .route
            .mirror
            .as_ref()
            .filter(|mirror| context.tried.is_empty() && !session.is_upgrade_req() && self.0.mirror.takes(mirror.percent))
            && let Some(to) = self.0.routes.load().of_service(&mirror.service)
        {
            let copy = RequestCopy::new(request, &context.requester.host);
            if session.is_body_empty() {
                self.0.mirror.send(copy, to);
            } else {
                context.copy = Some((copy, to));
            }
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        progress::answer_began();
        if response.status.as_u16() == 101 {
            progress::upgraded();
        }
        context.record(!matches!(response.status.as_u16(), 502..=504));
        let Some(route) = &context.route else { return Ok(()) };
        let task = context.task.as_ref().map(crate::model::TaskId::as_str);
        rewriting::answer(response, &route.route, task.filter(|task| Some(*task) != context.stays_with.as_deref()))?;
        if route.route.compress {
            compression::set(session, response)?;
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end: bool,
        _context: &mut RequestContext,
    ) -> Result<Option<Duration>> {
        if end {
            progress::answer_ended();
        }
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut RequestContext) -> FailToProxy {
        let Some(reply) = failure(error, context.route.as_deref()) else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let status = reply.status;
        session.set_keepalive(None);
        // Once a part of an answer was sent there is no place for another.
        if session.response_written().is_none() {
            let _ = reply.send(session).await;
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut RequestContext) {
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let took = context.started.elapsed();
        if let Some(route) = &context.route {
            route.counters.count(status, took);
        }
        let is_stalled =
            |error: &Error| *error.etype() == ErrorType::WriteTimedout && *error.esource() == ErrorSource::Downstream;
        if error.is_some_and(is_stalled) {
            self.0.refusals.count(HttpRefusal::SlowReader);
        }
        access_log::write(**self.0.access_log.load(), session, error, context, status, took);
    }

    /// Errors are counted and answered; a client could fill the disk with them.
    fn suppress_error_log(&self, _session: &Session, _context: &RequestContext, _error: &Error) -> bool {
        true
    }
}
