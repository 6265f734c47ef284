//! Requests without a body to tasks that speak HTTP/1 without TLS: most of all requests. The pipes of pingora's proxy, for bodies, upgrades,
//! HTTP/2 to tasks, compression and caches, cost each of them more processor time than all the rest; here they are carried without,
//! by the same rules. Everything else is left to pingora.

use super::answer_head::TaskAnswerHead;
use super::context::{RequestContext, RequestEnd};
use super::plain_client::PlainClient;
use super::reply::{Reply, failure};
use super::routes::ServedRoute;
use super::rules::{
    IngressState, RequestDecision, answered, broke_off, choose_task, connect_failed, to_client, to_task_bytes, unasked_upgrade,
};
use super::stream_client::StreamClient;
use super::task_connection::{TaskConnection, TaskPool};
use super::upstream::TASK_IDLE;
use bytes::Bytes;
use pingora::http::{Method, RequestHeader, ResponseHeader};
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Connections to a task that wait for their next request.
const KEPT_BY_TASK: usize = 512;

/// What carries requests.
pub(super) struct DirectProxy {
    state: Arc<IngressState>,
    pool: TaskPool,
}

/// Where an answer goes.
pub(super) enum AnswerTo<'a> {
    Plain(&'a mut PlainClient),
    /// A request of HTTP/2.
    Stream(&'a mut StreamClient),
}

/// An answer that has begun.
struct BegunAnswer {
    head: TaskAnswerHead,
    connection: TaskConnection,
    address: SocketAddr,
}

impl AnswerTo<'_> {
    /// Returns once the client is gone.
    async fn gone(&mut self) {
        match self {
            Self::Plain(client) => client.gone().await,
            Self::Stream(client) => client.gone().await,
        }
    }

    /// What comes before the answer proper.
    async fn informational(&mut self, head: &TaskAnswerHead) -> Result<()> {
        match self {
            Self::Plain(client) => {
                client.head(head, false);
                client.flush().await
            }
            // pingora sends none.
            Self::Stream(_) => Ok(()),
        }
    }

    /// The head of an answer of a task.
    fn head(&mut self, head: &TaskAnswerHead, has_body: bool, context: &RequestContext) -> Result<()> {
        match self {
            // Nothing is changed in it.
            Self::Plain(client) if !changes_answers(context) => {
                answered(head.status, context);
                client.head(head, has_body);
                Ok(())
            }
            _ => {
                let mut head = head.to_header(matches!(self, Self::Plain(_)))?;
                to_client(&mut head, context)?;
                self.header(head, has_body)
            }
        }
    }

    fn header(&mut self, mut head: ResponseHeader, has_body: bool) -> Result<()> {
        match self {
            Self::Plain(client) => {
                client.header(&mut head, has_body);
                Ok(())
            }
            Self::Stream(client) => client.head(head, has_body),
        }
    }

    /// Lets the client see what was written, while nothing else comes.
    async fn flush(&mut self) -> Result<()> {
        match self {
            Self::Plain(client) => client.flush().await,
            Self::Stream(_) => Ok(()),
        }
    }

    async fn part(&mut self, part: Bytes, is_last: bool) -> Result<()> {
        match self {
            Self::Plain(client) => client.part(&part, is_last).await,
            Self::Stream(client) => client.part(part, is_last).await,
        }
    }

    /// Of the answer, if it has begun; and bytes of its body.
    fn written(&self) -> (Option<u16>, usize) {
        let (status, sent) = match self {
            Self::Plain(client) => (client.status, client.sent),
            Self::Stream(client) => (client.status, client.sent),
        };
        (Some(status).filter(|status| *status > 0), sent)
    }

    /// Sends an answer of the ingress itself.
    async fn reply(&mut self, reply: Reply, is_head: bool) -> Result<()> {
        let (head, body) = reply.into_parts()?;
        self.header(head, !is_head)?;
        self.part(if is_head { Bytes::new() } else { body }, true).await
    }
}

impl DirectProxy {
    pub fn new(state: Arc<IngressState>) -> Self {
        Self { state, pool: TaskPool::new(KEPT_BY_TASK, TASK_IDLE) }
    }

    /// Connections are closed with their next answer.
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::Relaxed)
    }

    /// Connections to tasks wait no more.
    pub fn close(&self) {
        self.pool.close();
    }

    /// Closes what has waited too long; called once a second or so.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// Carries a request.
    pub async fn carry(&self, request: &mut RequestHeader, context: &mut RequestContext, mut to: AnswerTo<'_>) -> Carried {
        let decision = tokio::select! {
            biased;
            decision = self.state.admit(request, context, |claim| claim.direct) => decision,
            // It may have waited for a task: it makes room for others.
            () = to.gone() => {
                self.state.ended(context, &RequestEnd { request, status: 0, received: 0, sent: 0, error: None });
                return Carried::Done { whole: false };
            }
        };
        let reply = match decision {
            RequestDecision::Other => return Carried::Not,
            RequestDecision::Task => None,
            RequestDecision::Answer(reply) => Some(reply),
        };
        // The log shows the request as it came.
        let logged = self.state.is_logged().then(|| request.clone());
        let method = request.method.clone();
        let (carried, is_own) = match reply {
            Some(reply) => {
                // What follows on the connection may not be a request.
                let keeps = !matches!(reply.status, 400 | 431);
                if let (AnswerTo::Plain(client), false) = (&mut to, keeps) {
                    client.keep = false;
                }
                (to.reply(reply, method == Method::HEAD).await, true)
            }
            None => (self.exchange(request, context, &mut to).await, false),
        };
        let error = carried.err();
        if let Some(error) = error.as_deref() {
            if let AnswerTo::Plain(client) = &mut to {
                client.keep = false;
            }
            let reply = failure(error, context.route.as_deref()).filter(|_| !is_own);
            let _ = match reply {
                // The client sees that its answer is cut.
                Some(_) if to.written().0.is_some() => to.flush().await,
                Some(reply) => to.reply(reply, method == Method::HEAD).await,
                None => Ok(()),
            };
        }
        let (status, sent) = to.written();
        let end = RequestEnd {
            request: logged.as_ref().unwrap_or(request),
            status: status.unwrap_or(0),
            received: 0,
            sent,
            error: error.as_deref(),
        };
        self.state.ended(context, &end);
        Carried::Done { whole: error.is_none() }
    }

    async fn exchange(&self, request: &mut RequestHeader, context: &mut RequestContext, to: &mut AnswerTo<'_>) -> Result<()> {
        let no_route = || Error::explain(ErrorType::HTTPStatus(503), "the request has no route");
        let route = context.route.clone().ok_or_else(no_route)?;
        let bytes = to_task_bytes(request, context, &route)?;
        let limit = route.route.timeout_ms.map(Duration::from_millis);
        let mut answer = self.begun(request, &bytes, &route, context, to, limit).await?;
        if let (AnswerTo::Plain(client), true) = (&mut *to, self.is_draining()) {
            client.keep = false;
        }
        let connection = &mut answer.connection;
        let has_body = !connection.has_ended();
        to.head(&answer.head, has_body, context)?;
        let mut part = connection.part_at_hand()?;
        // Without a length it may be a stream of which nothing comes for long.
        if part.is_none() && has_body && !connection.has_length() {
            to.flush().await?;
        }
        loop {
            let next = match part.take() {
                Some(part) => Some(part),
                None if connection.has_ended() => None,
                None => tokio::select! {
                    biased;
                    part = connection.part(limit) => part?,
                    () = to.gone() => return Err(client_gone()),
                },
            };
            let is_last = connection.has_ended();
            to.part(next.unwrap_or_default(), is_last).await?;
            if is_last {
                break;
            }
            part = connection.part_at_hand()?;
        }
        if let Some(task) = &context.task {
            self.pool.give(task, answer.address, answer.connection);
        }
        Ok(())
    }

    /// The beginning of the answer, of one task or of another.
    async fn begun(
        &self,
        request: &RequestHeader,
        bytes: &[u8],
        route: &ServedRoute,
        context: &mut RequestContext,
        to: &mut AnswerTo<'_>,
        limit: Option<Duration>,
    ) -> Result<BegunAnswer> {
        loop {
            let backend = choose_task(route, context)?;
            let address = SocketAddr::from((backend.address, route.route.port));
            // What is sent again is sent on a connection that was not left by its task just now.
            let kept = if context.repeated { None } else { self.pool.take(&backend.task_id, address) };
            let mut connection = match kept {
                Some(connection) => connection,
                // In a box, as few requests need it.
                None => match Box::pin(self.state.connector.open(address)).await {
                    Ok(stream) => TaskConnection::new(stream),
                    Err(_) if connect_failed(context) => continue,
                    Err(error) => return Err(error.into_up()),
                },
            };
            let error = match asked(&mut connection, bytes, &request.method, limit, to).await {
                Ok(head) => return Ok(BegunAnswer { head, connection, address }),
                Err(error) => error,
            };
            let is_upstream = *error.esource() == ErrorSource::Upstream;
            let is_closed = matches!(error.etype(), ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed)
                && is_upstream;
            let may_repeat = broke_off(context, request, !is_upstream || (connection.reused && is_closed));
            if !(may_repeat && connection.reused && is_closed) {
                return Err(error.more_context(format!("task at {address}")));
            }
        }
    }
}

/// Sends a request, and returns the head of its answer.
async fn asked(
    connection: &mut TaskConnection,
    head: &[u8],
    method: &Method,
    limit: Option<Duration>,
    to: &mut AnswerTo<'_>,
) -> Result<TaskAnswerHead> {
    tokio::select! {
        biased;
        sent = connection.send(head, limit) => sent?,
        () = to.gone() => return Err(client_gone()),
    }
    loop {
        let head = tokio::select! {
            biased;
            head = connection.head(method, limit) => head?,
            () = to.gone() => return Err(client_gone()),
        };
        match head.status.as_u16() {
            101 => return Err(unasked_upgrade()),
            100..=199 => to.informational(&head).await?,
            _ => return Ok(head),
        }
    }
}

/// What became of a request.
pub(super) enum Carried {
    /// `whole`: the client has its answer.
    Done { whole: bool },
    /// Nothing was done with it.
    Not,
}

/// Whether the route of a request changes heads of answers.
fn changes_answers(context: &RequestContext) -> bool {
    let changes = |route: &Arc<ServedRoute>| !route.route.sticky.is_empty() || !route.route.response_headers.is_empty();
    context.route.as_ref().is_some_and(changes)
}

#[expect(clippy::unnecessary_box_returns, reason = "as all errors of pingora are")]
fn client_gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client is gone").into_down()
}
