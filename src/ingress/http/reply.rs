//! Answers of the ingress itself: a status, and a word that says why.

use super::routes::ServedRoute;
use crate::model::http::HttpRedirect;
use bytes::Bytes;
use pingora::http::{Method, RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorSource, ErrorType, Result};

#[derive(Debug)]
enum ReplyBody {
    /// After the status.
    Word(String),
    Exactly(String),
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    body: ReplyBody,
    pub headers: Vec<(&'static str, String)>,
}

impl Reply {
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, body: ReplyBody::Word(text.into()), headers: Vec::new() }
    }
    /// An answer whose body is this text and nothing else.
    pub fn exactly(text: String) -> Self {
        Self { status: 200, body: ReplyBody::Exactly(text), headers: Vec::new() }
    }
    pub fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }

    /// Its head and body.
    ///
    /// # Errors
    /// A header that cannot be set.
    pub fn into_parts(self) -> Result<(ResponseHeader, Bytes)> {
        let mut head = ResponseHeader::build(self.status, Some(4 + self.headers.len()))?;
        let (kind, body) = match self.body {
            ReplyBody::Word(text) => ("text/plain; charset=utf-8", format!("{} {text}\n", self.status)),
            ReplyBody::Exactly(text) => ("application/octet-stream", text),
        };
        head.insert_header("content-type", kind)?;
        head.insert_header("cache-control", "no-store")?;
        head.set_content_length(body.len())?;
        for (name, value) in self.headers {
            head.insert_header(name, value)?;
        }
        Ok((head, body.into()))
    }

    /// Sends it; the connection is kept.
    ///
    /// # Errors
    /// The client takes nothing.
    pub async fn send(self, session: &mut ServerSession) -> Result<()> {
        let (head, body) = self.into_parts()?;
        let is_head = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(head)).await?;
        session.write_response_body(if is_head { Bytes::new() } else { body }, true).await
    }
}

/// The way to another address, if the route has one. `is_tls`: the client has TLS, to this node or to a trusted proxy in front.
pub(super) fn redirect(route: &ServedRoute, request: &RequestHeader, is_tls: bool, host: &str, tls_port: u16) -> Option<Reply> {
    match route.route.redirect.as_ref()? {
        HttpRedirect::Https if is_tls => None,
        HttpRedirect::Https => Some(to_tls(request, host, tls_port)),
        HttpRedirect::Host(to) if to == host => None,
        HttpRedirect::Host(to) => {
            Some(to_location(format!("{}://{to}{}", if is_tls { "https" } else { "http" }, asked(request))))
        }
    }
}

/// The way to the same address with TLS.
pub(super) fn to_tls(request: &RequestHeader, host: &str, tls_port: u16) -> Reply {
    let (begin, end) = if host.contains(':') { ("[", "]") } else { ("", "") };
    let port = match tls_port {
        // Not without TLS: what follows may be a password.
        0 => return Reply::new(403, "this route needs TLS, which this node does not serve"),
        443 => String::new(),
        other => format!(":{other}"),
    };
    to_location(format!("https://{begin}{host}{end}{port}{}", asked(request)))
}

fn to_location(location: String) -> Reply {
    Reply::new(308, format!("the address is {location}")).with("location", location)
}

fn asked(request: &RequestHeader) -> &str {
    request.uri.path_and_query().map_or("/", |path| path.as_str())
}

pub(super) fn no_task(route: &ServedRoute) -> Reply {
    if route.route.dashboard {
        return Reply::new(503, "the daemon of this node does not answer").with("retry-after", "1");
    }
    Reply::new(503, format!("no task of {} is ready", route.service.service_name)).with("retry-after", "1")
}

pub(super) fn too_large() -> Reply {
    Reply::new(413, "the body is larger than this route takes")
}

const LATE: &str = "the task does not answer in time";

/// Whether a connection to a task has found out by itself that its answer is late.
fn is_late(error: &Error) -> bool {
    error.root_cause().downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// The answer to a request that has failed; `None` if the client is gone.
pub(super) fn failure(error: &Error, route: Option<&ServedRoute>) -> Option<Reply> {
    let reply = match (error.etype(), error.esource(), route) {
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
        (ErrorType::ReadError, ErrorSource::Upstream, _) if is_late(error) => Reply::new(504, LATE),
        (ErrorType::ReadTimedout, ErrorSource::Upstream, _) => Reply::new(504, LATE),
        (_, ErrorSource::Upstream, _) => Reply::new(502, "the task ended the connection without an answer"),
        (
            ErrorType::WriteError | ErrorType::WriteTimedout | ErrorType::ReadError | ErrorType::ConnectionClosed,
            ErrorSource::Downstream,
            _,
        ) => return None,
        (_, ErrorSource::Downstream, _) => Reply::new(400, "the request is not readable"),
        _ => Reply::new(500, "the request cannot be served"),
    };
    Some(reply)
}
