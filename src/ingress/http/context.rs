//! What is kept of a request while it is served.

use super::forwarded::Requester;
use super::held::Held;
use super::request_copy::RequestCopy;
use super::route_load::RequestInFlight;
use super::routes::ServedRoute;
use crate::model::TaskId;
use pingora::Error;
use pingora::http::RequestHeader;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::time::Instant;

/// The connection that a request came on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Arrival {
    /// Where it is from.
    pub client: Option<IpAddr>,
    /// The port that it is to.
    pub port: u16,
    pub tls: bool,
}

/// A request.
pub(super) struct RequestContext {
    pub started: Instant,
    pub arrival: Arrival,
    pub route: Option<Arc<ServedRoute>>,
    /// Task of the sticky cookie.
    pub stays_with: Option<String>,
    /// Task that is asked now.
    pub task: Option<TaskId>,
    /// Tasks that could not be connected to.
    pub tried: Vec<TaskId>,
    /// It was sent again after a connection ended without an answer.
    pub repeated: bool,
    /// Bytes of the body so far.
    pub body: u64,
    pub request_id: String,
    /// As the task gets it.
    pub traceparent: String,
    /// Whose password was right.
    pub user: Option<String>,
    pub requester: Requester,
    /// The task is asked for an upgrade.
    pub upgrade: bool,
    /// What is sent to another service too, once the body is read.
    pub copy: Option<(RequestCopy, Arc<ServedRoute>)>,
    /// It was sent to a task, whatever became of it.
    pub sent: bool,
    /// What it counts as until it ends.
    pub in_flight: Option<RequestInFlight>,
    pub held: Option<Held>,
}

/// How a request has ended.
pub(super) struct RequestEnd<'a> {
    pub request: &'a RequestHeader,
    /// 0: there was no answer.
    pub status: u16,
    /// Bytes of the body of the request, and of the answer.
    pub received: usize,
    pub sent: usize,
    pub error: Option<&'a Error>,
}

impl RequestContext {
    pub fn new(arrival: Arrival) -> Self {
        Self {
            started: Instant::now(),
            arrival,
            route: None,
            stays_with: None,
            task: None,
            tried: Vec::new(),
            repeated: false,
            body: 0,
            request_id: String::new(),
            traceparent: String::new(),
            user: None,
            requester: Requester::default(),
            upgrade: false,
            copy: None,
            sent: false,
            in_flight: None,
            held: None,
        }
    }

    /// The task that is asked has answered, or has failed.
    pub fn record(&self, succeeded: bool) {
        if let (Some(route), Some(task)) = (&self.route, &self.task) {
            route.health.record(task, succeeded);
        }
    }
}
