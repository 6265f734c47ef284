//! The filters that pingora calls, by the rules of [`super::rules`].

use super::context::{Arrival, RequestContext, RequestEnd};
use super::progress::{self, ExpectedBody};
use super::proxy_header::ConnectionEnds;
use super::reply::failure;
use super::request_copy::RequestCopy;
use super::rules::{
    IngressState, RequestDecision, STALLED, announced, asked_host, broke_off, choose_task, connect_failed, header, to_client,
    to_task, unasked_upgrade,
};
use super::{compression, path, upgrade, upstream};
use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader, Version};
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The filters.
pub(super) struct IngressProxy(pub Arc<IngressState>);

/// Where the connection of a request is from, and where it is to.
fn ends(session: &ServerSession) -> Option<ConnectionEnds> {
    let client = session.client_addr().and_then(|address| address.as_inet());
    client.copied().zip(session.server_addr().and_then(|address| address.as_inet()).copied())
}

#[async_trait]
impl ProxyHttp for IngressProxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::new(Arrival::default())
    }

    async fn early_request_filter(&self, session: &mut Session, _context: &mut RequestContext) -> Result<()> {
        let request = session.req_header();
        let length = announced(request);
        // Streams of gRPC and upgraded connections are silent for as long as they like. A body that is chunked is neither.
        let is_stream = match request.version {
            Version::HTTP_2 => header(request, "content-type").is_some_and(|kind| kind.starts_with(b"application/grpc")),
            _ => upgrade::is_asked(request),
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
        if upgrade::is_asked(session.req_header()) {
            // WebSocket is silent for as long as it likes: the kernel notices a client that is gone.
            session.set_read_timeout(None);
        }
        drop(limits);
        let ends = ends(session);
        context.arrival = Arrival {
            client: ends.map(|(client, _)| client.ip().to_canonical()),
            port: ends.map_or(0, |(_, to)| to.port()),
            tls: session.digest().is_some_and(|digest| digest.ssl_digest.is_some()),
        };
        let RequestDecision::Answer(reply) = self.0.admit(session.req_header(), context, |_| true).await else {
            return Ok(false);
        };
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
        let no_route = || Error::explain(ErrorType::HTTPStatus(503), "the request has no route");
        let route = context.route.clone().ok_or_else(no_route)?;
        if route.route.dashboard {
            return upstream::local(&self.0.dashboard);
        }
        let backend = choose_task(&route, context)?;
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
        if connect_failed(context) {
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
        let is_failure = *error.esource() == ErrorSource::Upstream && session.response_written().is_none();
        let may_repeat = broke_off(context, session.req_header(), client_reused || !is_failure);
        if may_repeat && !session.as_ref().retry_buffer_truncated() {
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
        let Some(route) = context.route.clone() else { return Ok(()) };
        to_task(request, context, &route)?;
        if let Some(protocol) = upgrade::passed_on(session.req_header(), &route.route.upgrade) {
            request.insert_header("Connection", "Upgrade")?;
            request.insert_header("Upgrade", protocol)?;
        }
        context.upgrade = request.headers.contains_key("upgrade");
        // pingora shows what it sends again to the filter of the body again.
        context.body = 0;
        if let Some((copy, _)) = &mut context.copy {
            copy.again();
        }
        // Once, whatever tasks are tried.
        let first = !std::mem::replace(&mut context.sent, true);
        if let Some(mirror) =
            route.route.mirror.as_ref().filter(|mirror| first && !session.is_upgrade_req() && self.0.mirror.takes(mirror.percent))
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
            if !context.upgrade {
                return Err(unasked_upgrade());
            }
            progress::upgraded();
        }
        to_client(response, context)?;
        if context.route.as_ref().is_some_and(|route| route.route.compress) {
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
        let (received, sent) = (session.body_bytes_read(), session.body_bytes_sent());
        self.0.ended(context, &RequestEnd { request: session.req_header(), status, received, sent, error });
    }

    /// Errors are counted and answered; a client could fill the disk with them.
    fn suppress_error_log(&self, _session: &Session, _context: &RequestContext, _error: &Error) -> bool {
        true
    }
}
