//! The access log: a JSON document a line on standard output, for each request.

use super::context::RequestContext;
use pingora::Error;
use pingora::proxy::Session;
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;

/// Writes the line of a request.
pub(super) fn write(session: &Session, error: Option<&Error>, context: &RequestContext, status: u16, took: Duration) {
    let request = session.req_header();
    let field = |name: &str| request.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let client =
        session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip().to_canonical().to_string());
    let line = json!({
        "client": client,
        "method": request.method.as_str(),
        "host": field("host").or_else(|| request.uri.authority().map(ToString::to_string)),
        "path": String::from_utf8_lossy(request.raw_path()),
        "version": format!("{:?}", request.version),
        "status": status,
        "micros": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "received": session.body_bytes_read(),
        "sent": session.body_bytes_sent(),
        "service": context.route.as_ref().map(|route| &route.service.service_name),
        "task": context.task.as_ref().map(ToString::to_string),
        "request_id": context.request_id,
        "user_agent": field("user-agent"),
        "error": error.map(ToString::to_string),
    });
    // A reader that is gone ends the log, not the requests.
    let _ = writeln!(std::io::stdout(), "{line}");
}
