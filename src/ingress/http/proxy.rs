//! What happens to a request: the filters that pingora calls.

use super::certificates::Certificates;
use super::challenges::Challenges;
use super::connector::MeshConnector;
use super::context::{HeadSeen, IDLE_S, RequestContext};
use super::credentials::{CredentialCheck, Credentials};
use super::path;
use super::reply::Reply;
use super::routes::{Routes, ServedRoute};
use crate::model::http::{HttpBackend, HttpRedirect, HttpScheme};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader, Version};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::any::Any;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

/// Idle connections to tasks are closed after this time: common servers close theirs after 5 s, and a request that meets such a
/// close is lost.
const TASK_IDLE: Duration = Duration::from_secs(4);
/// Tasks that are tried, if none can be connected to.
const MOST_TRIED: usize = 4;
/// Requests at a time on a connection of HTTP/2 to a task.
const STREAMS: usize = 100;

/// What the filters read.
pub(super) struct IngressState {
    pub routes: ArcSwap<Routes>,
    pub certificates: Arc<Certificates>,
    pub challenges: Arc<Challenges>,
    pub connector: Arc<MeshConnector>,
    pub credentials: Credentials,
    pub access_log: AtomicBool,
    /// Connections are closed with their next answer.
    pub draining: AtomicBool,
    /// Where clients are redirected to for TLS; 0: nowhere.
    pub redirect_port: AtomicU16,
}

/// The filters.
pub(super) struct IngressProxy(pub Arc<IngressState>);

fn client_ip(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip().to_canonical())
}

fn is_tls(session: &Session) -> bool {
    session.digest().is_some_and(|digest| digest.ssl_digest.is_some())
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
        let Some(route) = routes.find(is_tls(session), &host, &decoded) else {
            return Some(Reply::new(404, format!("no route for {host}")));
        };
        context.route = Some(route.clone());
        let client = client_ip(session);
        if !route.route.allow.is_empty() && !client.is_some_and(|ip| route.route.allow.iter().any(|net| net.contains(&ip))) {
            return Some(Reply::new(403, "this client may not use the route"));
        }
        if let Some(reply) = redirect(&route, session, &host, self.0.redirect_port.load(Ordering::Relaxed)) {
            return Some(reply);
        }
        if !route.route.auth.is_empty() {
            match self.0.credentials.check(header(request, "authorization"), &route.route.auth).await {
                CredentialCheck::Right => {}
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
        if route.backends.is_empty() {
            return Some(no_task(&route));
        }
        if !route.route.sticky.is_empty() {
            context.stays_with = cookie(request, &route.route.sticky).map(str::to_owned);
        }
        None
    }

    fn peer(&self, route: &ServedRoute, backend: &HttpBackend, host: &str) -> HttpPeer {
        let address = SocketAddr::from((backend.address, route.route.port));
        let is_tls = route.route.scheme == HttpScheme::Https;
        let mut peer = HttpPeer::new(address, is_tls, if is_tls { host.to_owned() } else { String::new() });
        // An address may be another task's later: a connection in the pool belongs to its task.
        let mut hasher = DefaultHasher::new();
        backend.task_id.as_str().hash(&mut hasher);
        peer.group_key = hasher.finish();
        let options = &mut peer.options;
        options.custom_l4 = Some(self.0.connector.clone());
        options.idle_timeout = Some(TASK_IDLE);
        options.read_timeout = route.route.timeout_ms.map(Duration::from_millis);
        match route.route.scheme {
            HttpScheme::Http => {}
            HttpScheme::H2c => options.set_http_version(2, 2),
            HttpScheme::Https => options.set_http_version(2, 1),
        }
        options.max_h2_streams = STREAMS;
        (options.verify_cert, options.verify_hostname) = (false, false);
        peer
    }
}

fn redirect(route: &ServedRoute, session: &Session, host: &str, tls_port: u16) -> Option<Reply> {
    let request = session.req_header();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = match route.route.redirect.as_ref()? {
        HttpRedirect::Https if is_tls(session) => return None,
        // Not without TLS: what follows may be a password.
        HttpRedirect::Https if tls_port == 0 => {
            return Some(Reply::new(403, "this route needs TLS, which this node does not serve"));
        }
        HttpRedirect::Https if tls_port == 443 => format!("https://{host}{path}"),
        HttpRedirect::Https => format!("https://{host}:{tls_port}{path}"),
        HttpRedirect::Host(to) if to == host => return None,
        HttpRedirect::Host(to) => format!("{}://{to}{path}", if is_tls(session) { "https" } else { "http" }),
    };
    Some(Reply::new(308, format!("the address is {location}")).with("location", location))
}

fn no_task(route: &ServedRoute) -> Reply {
    Reply::new(503, format!("no task of {} is ready", route.service.service_name)).with("retry-after", "1")
}

fn too_large() -> Reply {
    Reply::new(413, "the body is larger than this route takes")
}

#[async_trait]
impl ProxyHttp for IngressProxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::new()
    }

    fn on_connection_reuse(&self, _session: &mut Session, _context: &mut RequestContext, before: Box<dyn Any + Send + Sync>) {
        if let Some(seen) = before.downcast_ref::<HeadSeen>() {
            seen.set();
        }
    }

    async fn request_filter(&self, session: &mut Session, context: &mut RequestContext) -> Result<bool> {
        // pingora keeps a connection for ever unless each request says otherwise.
        // A client of HTTP/1.0 reads to the end of the connection.
        let is_kept = session.req_header().version > Version::HTTP_10 && !self.0.draining.load(Ordering::Relaxed);
        session.set_keepalive(is_kept.then_some(IDLE_S));
        let id = header(session.req_header(), "x-request-id").and_then(|id| std::str::from_utf8(id).ok());
        let is_usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        context.request_id = id.filter(is_usable).map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned);
        // Before any host, redirect or password: the authority names a port in the host, and follows no redirect to a TLS port
        // that has no certificate yet.
        if let Some(answer) = self.0.challenges.answer(session.req_header().uri.path()) {
            answer.send(session).await?;
            return Ok(true);
        }
        let Some(reply) = self.decide(session, context).await else { return Ok(false) };
        reply.send(session).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        context: &mut RequestContext,
    ) -> Result<()> {
        context.body += body.as_ref().map_or(0, |body| body.len() as u64);
        let most = context.route.as_ref().and_then(|route| route.route.body);
        if most.is_some_and(|most| context.body > most) {
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route takes");
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut RequestContext) -> Result<Box<HttpPeer>> {
        let unavailable = || Error::explain(ErrorType::HTTPStatus(503), "no task can be connected to");
        let route = context.route.clone().ok_or_else(unavailable)?;
        let backend = route.backend(context.stays_with.as_deref(), &context.tried).ok_or_else(unavailable)?;
        context.task = Some(backend.task_id.clone());
        let host = path::host(asked_host(session.req_header())).unwrap_or_default();
        Ok(Box::new(self.peer(&route, backend, &host)))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        context.tried.extend(context.task.take());
        let Some(route) = &context.route else { return error };
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
        // Whatever the client says of itself is not true.
        for name in ["forwarded", "x-forwarded-port", "x-forwarded-server", "x-forwarded-prefix", "x-real-ip"] {
            request.remove_header(name);
        }
        let host = asked_host(session.req_header()).to_owned();
        if let Some(ip) = client_ip(session) {
            request.insert_header("x-forwarded-for", ip.to_string())?;
            request.insert_header("x-real-ip", ip.to_string())?;
        } else {
            request.remove_header("x-forwarded-for");
        }
        request.insert_header("x-forwarded-proto", if is_tls(session) { "https" } else { "http" })?;
        request.insert_header("x-forwarded-host", host)?;
        request.insert_header("x-request-id", context.request_id.as_str())?;
        // HTTP/2 may send each cookie on its own, HTTP/1 has one field for all.
        let cookies: Vec<&[u8]> = request.headers.get_all("cookie").into_iter().map(AsRef::<[u8]>::as_ref).collect();
        if cookies.len() > 1 {
            let joined = cookies.join(&b"; "[..]);
            request.insert_header("cookie", joined)?;
        }
        if route.route.strip {
            let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
            let stripped = path::stripped(path, &route.route.prefix);
            request.set_raw_path(stripped.as_bytes())?;
            request.insert_header("x-forwarded-prefix", route.route.prefix.as_str())?;
        }
        if !route.route.auth.is_empty() {
            request.remove_header("authorization");
        }
        for (name, value) in &route.route.request_headers {
            if value.is_empty() {
                request.remove_header(name.as_str());
            } else {
                request.insert_header(name.clone(), value.as_str())?;
            }
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        let Some(route) = &context.route else { return Ok(()) };
        let task = context.task.as_ref().map(crate::model::TaskId::as_str);
        if !route.route.sticky.is_empty() && task.is_some() && task != context.stays_with.as_deref() {
            let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Lax", route.route.sticky, task.unwrap_or_default());
            response.append_header("set-cookie", cookie)?;
        }
        for (name, value) in &route.route.response_headers {
            if value.is_empty() {
                response.remove_header(name.as_str());
            } else {
                response.insert_header(name.clone(), value.as_str())?;
            }
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut RequestContext) -> FailToProxy {
        let reply = match (error.etype(), error.esource(), &context.route) {
            (ErrorType::HTTPStatus(413), ..) => too_large(),
            (
                ErrorType::HTTPStatus(503)
                | ErrorType::ConnectError
                | ErrorType::ConnectTimedout
                | ErrorType::ConnectRefused
                | ErrorType::ConnectNoRoute,
                _,
                Some(route),
            ) => no_task(route),
            (ErrorType::HTTPStatus(status), ..) => Reply::new(*status, "the request cannot be served"),
            (ErrorType::ReadTimedout, ErrorSource::Upstream, _) => Reply::new(504, "the task does not answer in time"),
            (_, ErrorSource::Upstream, _) => Reply::new(502, "the task ended the connection without an answer"),
            (ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed, ErrorSource::Downstream, _) => {
                return FailToProxy { error_code: 0, can_reuse_downstream: false };
            }
            (_, ErrorSource::Downstream, _) => Reply::new(400, "the request is not readable"),
            _ => Reply::new(500, "the request cannot be served"),
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
        if self.0.access_log.load(Ordering::Relaxed) {
            super::access_log::write(session, error, context, status, took);
        }
    }

    /// Errors are counted and answered; a client could fill the disk with them.
    fn suppress_error_log(&self, _session: &Session, _context: &RequestContext, _error: &Error) -> bool {
        true
    }
}
