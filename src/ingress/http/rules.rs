//! What happens to a request, whatever carries it: whether a task is asked, which one, what the heads say then, and what is counted.
//! pingora's filters (`proxy`) and the way for requests without a body (`direct`) both ask here.

use super::certificates::Certificates;
use super::challenges::Challenges;
use super::connector::MeshConnector;
use super::context::{Arrival, RequestContext, RequestEnd};
use super::credentials::{CredentialCheck, Credentials};
use super::limits::HttpLimits;
use super::log_format::HttpAccessLog;
use super::log_lines::LogLines;
use super::mirror::Mirror;
use super::refusals::{HttpRefusal, HttpRefusals};
use super::reply::{Reply, no_task, redirect, to_tls, too_large};
use super::routes::{Claim, Routes, ServedRoute};
use super::{access_log, credentials, forwarded, guard, path, progress, rewriting};
use crate::ingress::WaitingRoom;
use crate::ingress::waiting::WAIT;
use crate::model::http::HttpBackend;
use arc_swap::ArcSwap;
use axum::http::header::HOST;
use bytes::{BufMut as _, BytesMut};
use pingora::http::{RequestHeader, ResponseHeader, StatusCode, Version};
use pingora::protocols::http::v1::client::http_req_header_to_wire;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Tasks that are tried, if none can be connected to.
const MOST_TRIED: usize = 4;
/// A client that takes nothing of its answer for so long is cut.
pub(super) const STALLED: Duration = Duration::from_mins(1);
/// Pause between looks at a route that waits for a task; a change of the table is seen at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the rules read.
pub(super) struct IngressState {
    pub routes: ArcSwap<Routes>,
    pub certificates: Arc<Certificates>,
    pub challenges: Arc<Challenges>,
    pub connector: Arc<MeshConnector>,
    pub credentials: Credentials,
    pub access_log: ArcSwap<HttpAccessLog>,
    pub log_lines: LogLines,
    pub limits: Arc<ArcSwap<HttpLimits>>,
    pub refusals: Arc<HttpRefusals>,
    pub mirror: Arc<Mirror>,
    /// Where requests wait for a task of their service.
    pub waiting: Arc<WaitingRoom>,
    /// The routes were replaced.
    pub rerouted: Notify,
    /// Connections are closed with their next answer.
    pub draining: AtomicBool,
    /// Where clients are redirected to for TLS; 0: nowhere.
    pub redirect_port: AtomicU16,
    /// Of the process.
    pub began: std::time::Instant,
    /// Where the daemon serves its page.
    pub dashboard: PathBuf,
}

/// What is to be done with a request.
pub(super) enum RequestDecision {
    /// A task is asked.
    Task,
    Answer(Reply),
    /// The caller carries no requests to such a route; nothing was counted.
    Other,
}

/// The host that the client has asked for, as it wrote it.
pub(super) fn asked_host(request: &RequestHeader) -> &str {
    let header = request.headers.get("host").and_then(|value| value.to_str().ok());
    header.or_else(|| request.uri.authority().map(AsRef::<str>::as_ref)).unwrap_or_default()
}

pub(super) fn header<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a [u8]> {
    request.headers.get(name).map(AsRef::<[u8]>::as_ref)
}

/// Bytes that the body has, if the request says so.
pub(super) fn announced(request: &RequestHeader) -> Option<u64> {
    std::str::from_utf8(header(request, "content-length")?).ok()?.parse().ok()
}

/// The value of a cookie.
fn cookie<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    let all = request.headers.get_all("cookie").into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';'))
        .filter_map(|one| one.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v)
}

/// The task to ask: another one than those that were tried.
pub(super) fn choose_task<'a>(route: &'a ServedRoute, context: &mut RequestContext) -> Result<&'a HttpBackend> {
    let backend = route.backend(context.stays_with.as_deref(), &context.tried);
    let backend = backend.ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "no task can be connected to"))?;
    context.task = Some(backend.task_id.clone());
    Ok(backend)
}

/// A task could not be connected to. Whether another one is asked.
pub(super) fn connect_failed(context: &mut RequestContext) -> bool {
    let Some(route) = context.route.as_ref().filter(|route| !route.route.dashboard) else { return false };
    if let Some(task) = context.task.take() {
        route.health.record(&task, false);
        context.tried.push(task);
    }
    let again = context.tried.len() < route.backends.len().min(MOST_TRIED);
    if again {
        route.counters.retries.fetch_add(1, Ordering::Relaxed);
    }
    again
}

/// The connection to a task ended without an answer. Whether the request may be sent again: once at most, as it may be what ends its
/// tasks. `is_blameless`: it is no failure of the task, which may close a connection that waits.
pub(super) fn broke_off(context: &mut RequestContext, request: &RequestHeader, is_blameless: bool) -> bool {
    if !is_blameless {
        context.record(false);
    }
    request.method.is_idempotent() && !std::mem::replace(&mut context.repeated, true)
}

/// What a request says to its task.
///
/// # Errors
/// A header that cannot be set.
pub(super) fn to_task(request: &mut RequestHeader, context: &mut RequestContext, route: &ServedRoute) -> Result<()> {
    changed_for_task(request, context, route, true)
}

/// `with_client`: what is said of the client becomes a part of the head.
fn changed_for_task(
    request: &mut RequestHeader,
    context: &mut RequestContext,
    route: &ServedRoute,
    with_client: bool,
) -> Result<()> {
    forwarded::clear(request, &context.requester);
    context.traceparent = forwarded::trace(request);
    if with_client {
        about_client(context, |name, value| request.insert_header(name, value))?;
    }
    rewriting::request(request, &route.route)
}

/// The same as bytes of HTTP/1.
///
/// # Errors
/// As [`to_task`]; the request has no form in HTTP/1.
pub(super) fn to_task_bytes(request: &mut RequestHeader, context: &mut RequestContext, route: &ServedRoute) -> Result<BytesMut> {
    // What is said of the client need not be looked up among other fields, unless the route changes some.
    let apart = route.route.request_headers.is_empty();
    // HTTP/2 names its host apart from the fields, too.
    let authority = request.uri.authority().filter(|_| !request.headers.contains_key(HOST)).cloned();
    request.set_version(Version::HTTP_11);
    changed_for_task(request, context, route, !apart)?;
    let unsendable = || Error::explain(ErrorType::InvalidHTTPHeader, "the request cannot be sent in HTTP/1").into_down();
    let mut bytes = http_req_header_to_wire(request).ok_or_else(unsendable)?;
    bytes.truncate(bytes.len() - b"\r\n".len());
    let mut add = |name: &'static str, value: &str| {
        for part in [name, ": ", value, "\r\n"] {
            bytes.put_slice(part.as_bytes());
        }
        Ok(())
    };
    if let Some(host) = authority.filter(|_| !request.headers.contains_key(HOST)) {
        add("Host", host.as_str())?;
    }
    if apart {
        about_client(context, add)?;
    }
    bytes.put_slice(b"\r\n");
    Ok(bytes)
}

fn about_client(context: &RequestContext, set: impl FnMut(&'static str, &str) -> Result<()>) -> Result<()> {
    forwarded::fields(&context.requester, &context.request_id, &context.traceparent, set)
}

/// A task says that it has taken over the connection, which it was not asked for.
#[expect(clippy::unnecessary_box_returns, reason = "as all errors of pingora are")]
pub(super) fn unasked_upgrade() -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, "an upgrade that was not asked for").into_up()
}

/// A task has answered.
pub(super) fn answered(status: StatusCode, context: &RequestContext) {
    context.record(!matches!(status.as_u16(), 502..=504));
}

/// A task has answered: what its answer says to the client.
///
/// # Errors
/// A header that cannot be set.
pub(super) fn to_client(response: &mut ResponseHeader, context: &RequestContext) -> Result<()> {
    answered(response.status, context);
    let Some(route) = &context.route else { return Ok(()) };
    let task = context.task.as_ref().map(crate::model::TaskId::as_str);
    rewriting::answer(response, &route.route, task.filter(|task| Some(*task) != context.stays_with.as_deref()))
}

impl IngressState {
    /// Nanoseconds since the process began.
    fn age_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Who asks, and what is to be done. `takes`: the routes that the caller carries requests to.
    pub async fn admit(
        &self,
        request: &RequestHeader,
        context: &mut RequestContext,
        takes: impl Fn(&Claim) -> bool + Send,
    ) -> RequestDecision {
        let Arrival { client, port, tls } = context.arrival;
        context.requester = forwarded::requester(request, client, &self.limits.load(), tls, asked_host(request), port);
        let id = header(request, "x-request-id").and_then(|id| std::str::from_utf8(id).ok());
        let is_usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        context.request_id = id.filter(is_usable).map_or_else(forwarded::request_id, str::to_owned);
        // Before any host, redirect or password: the authority names a port in the host, and follows no redirect to a TLS port
        // that has no certificate yet.
        if let Some(answer) = self.challenges.answer(request.uri.path())
            && guard::refuse(request).is_none()
        {
            return RequestDecision::Answer(answer);
        }
        match self.decide(request, context, takes).await {
            Ok(Some(())) => RequestDecision::Task,
            Ok(None) => RequestDecision::Other,
            Err(reply) => RequestDecision::Answer(reply),
        }
    }

    /// The claim that a request falls under.
    fn claim(&self, request: &RequestHeader, context: &RequestContext) -> Result<(Arc<Claim>, String), Reply> {
        let tls = context.arrival.tls;
        if let Some((reason, status, why)) = guard::refuse(request) {
            self.refusals.count(reason);
            return Err(Reply::new(status, why));
        }
        let host = path::host(asked_host(request)).ok_or_else(|| Reply::new(400, "the request names no host"))?;
        let Some(decoded) = path::path(request.uri.path()) else {
            return Err(Reply::new(400, "the path is not plain: it has `..` or an encoded slash"));
        };
        let routes = self.routes.load();
        let merged = path::merged(&decoded);
        if merged != decoded && !routes.have_one_route(tls, &host, &decoded, &merged) {
            return Err(Reply::new(400, "the path is not plain: without slashes in a row, `.` and `;` it has another route"));
        }
        match routes.find(tls, &host, &decoded) {
            Some(claim) => Ok((claim.clone(), host)),
            // Proxies redirect for all of their sites at once, and their labels do not say so.
            None if !tls && !context.requester.tls && routes.find(true, &host, &decoded).is_some() => {
                Err(to_tls(request, &host, self.redirect_port.load(Ordering::Relaxed)))
            }
            None => Err(Reply::new(404, format!("no route for {host}"))),
        }
    }

    /// The answer to a request that no task is asked for; otherwise whether the caller takes it.
    async fn decide(
        &self,
        request: &RequestHeader,
        context: &mut RequestContext,
        takes: impl Fn(&Claim) -> bool + Send,
    ) -> Result<Option<()>, Reply> {
        let (claim, host) = self.claim(request, context)?;
        if !takes(&claim) {
            return Ok(None);
        }
        let Some(route) = claim.choose(|name| cookie(request, name)) else {
            return Err(Reply::new(404, format!("no route for {host}")));
        };
        context.route = Some(route.clone());
        let client = context.requester.client;
        if !route.route.allow.is_empty() && !client.is_some_and(|ip| route.route.allow.iter().any(|net| net.contains(&ip))) {
            return Err(Reply::new(403, "this client may not use the route"));
        }
        if let Some(reply) = redirect(&route, request, context.requester.tls, &host, self.redirect_port.load(Ordering::Relaxed)) {
            return Err(reply);
        }
        if let Some(text) = &route.route.maintenance {
            return Err(Reply::new(503, text.as_str()).with("retry-after", "60"));
        }
        // Labels say so too; this is where it counts.
        if route.route.dashboard && (route.route.auth.is_empty() || !context.requester.tls) {
            return Err(Reply::new(403, "this page is shown over TLS and with a password alone"));
        }
        // A proxy that does not say which client asks is bound as one.
        let client = client.or(context.arrival.client);
        if let Some((rate, client)) = route.route.rate.zip(client)
            && let Err(wait) = route.load.rate.admit(client, rate, self.age_ns())
        {
            self.refusals.count(HttpRefusal::ClientRate);
            let wait = wait.as_secs_f64().ceil().max(1.0).to_string();
            return Err(Reply::new(429, "this client asks more often than the route allows").with("retry-after", wait));
        }
        context.in_flight = route.load.take(route.route.requests, &route.counters.in_flight);
        if context.in_flight.is_none() {
            self.refusals.count(HttpRefusal::ServiceRequests);
            let why = format!("{} has as many requests as it takes", route.service.service_name);
            return Err(Reply::new(503, why).with("retry-after", "1"));
        }
        if route.route.client_requests > 0
            && let Some(client) = client
        {
            context.held = route.load.hold(client, route.route.client_requests);
            if context.held.is_none() {
                self.refusals.count(HttpRefusal::ClientRequests);
                return Err(Reply::new(429, "this client has too many requests in flight").with("retry-after", "1"));
            }
        }
        if !route.route.auth.is_empty() {
            let check = self.credentials.check(header(request, "authorization"), &route.route.auth, client);
            match Box::pin(check).await {
                CredentialCheck::Right => context.user = credentials::name(header(request, "authorization")),
                CredentialCheck::Wrong => {
                    let realm = format!("Basic realm=\"{}\", charset=\"UTF-8\"", route.service.service_name);
                    return Err(Reply::new(401, "name and password are needed").with("www-authenticate", realm));
                }
                CredentialCheck::Busy => {
                    return Err(Reply::new(429, "too many passwords are being checked").with("retry-after", "1"));
                }
            }
        }
        if route.route.body.zip(announced(request)).is_some_and(|(most, length)| length > most) {
            return Err(too_large());
        }
        let route = if route.ready == 0 && route.service.holds { self.wait_for_task(route, context).await? } else { route };
        if route.backends.is_empty() && !route.route.dashboard {
            return Err(no_task(&route));
        }
        if !route.route.sticky.is_empty() {
            context.stays_with = cookie(request, &route.route.sticky).map(str::to_owned);
        }
        Ok(Some(()))
    }

    /// The route once its service has a task that listens, or after the time that a request waits for one.
    async fn wait_for_task(&self, mut route: Arc<ServedRoute>, context: &mut RequestContext) -> Result<Arc<ServedRoute>, Reply> {
        let Some(_waiting) = self.waiting.enter(&route.service.service_id) else {
            let why = format!("as many requests wait for a task of {} as may", route.service.service_name);
            return Err(Reply::new(503, why).with("retry-after", "5"));
        };
        let until = Instant::now() + WAIT;
        while route.ready == 0 && Instant::now() < until {
            // Its body is not read meanwhile, which is no fault of the client.
            progress::task_awaited();
            let rerouted = self.rerouted.notified();
            // The table may have changed since the route was looked up.
            let Some(now) = self.routes.load().again(&route) else { return Err(no_task(&route)) };
            route = now;
            if route.ready == 0 {
                let _ = timeout(LOOK_AGAIN.min(until - Instant::now()), rerouted).await;
            }
        }
        context.route = Some(route.clone());
        if route.backends.is_empty() {
            let (name, seconds) = (&route.service.service_name, WAIT.as_secs());
            let why = format!("{name} had no task, and none was ready within {seconds} s: docker service ps {name} says why");
            return Err(Reply::new(503, why).with("retry-after", "5"));
        }
        Ok(route)
    }

    /// Whether requests are lines of the access log.
    pub fn is_logged(&self) -> bool {
        **self.access_log.load() != HttpAccessLog::Off
    }

    /// Counts a request that has ended, and writes its line of the access log.
    pub fn ended(&self, context: &RequestContext, end: &RequestEnd<'_>) {
        let took = context.started.elapsed();
        if let Some(route) = &context.route {
            route.counters.count(end.status, took, &context.traceparent);
        }
        let is_stalled =
            |error: &Error| *error.etype() == ErrorType::WriteTimedout && *error.esource() == ErrorSource::Downstream;
        if end.error.is_some_and(is_stalled) {
            self.refusals.count(HttpRefusal::SlowReader);
        }
        access_log::write(&self.log_lines, **self.access_log.load(), end, context, took);
    }
}
