//! The access log: a line on standard output for each request, as JSON or in the combined format of other servers.

use super::context::{RequestContext, RequestEnd};
use super::log_format::HttpAccessLog;
use super::log_lines::LogLines;
use crate::clock::{Clock as _, SystemClock};
use crate::model::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;
use time::OffsetDateTime;

/// Writes the line of a request.
pub(super) fn write(lines: &LogLines, format: HttpAccessLog, end: &RequestEnd<'_>, context: &RequestContext, took: Duration) {
    if format == HttpAccessLog::Off {
        return;
    }
    let request = end.request;
    let field = |name: &str| request.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let line = json!({
        "client": context.requester.client.map(|client| client.to_string()),
        "method": request.method.as_str(),
        "host": context.requester.host,
        "path": String::from_utf8_lossy(request.raw_path()),
        "version": format!("{:?}", request.version),
        "status": end.status,
        "micros": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "received": end.received,
        "sent": end.sent,
        "service": context.route.as_ref().map(|route| &route.service.service_name),
        "task": context.task.as_ref().map(ToString::to_string),
        "request_id": context.request_id,
        "traceparent": context.traceparent,
        "referer": field("referer"),
        "user_agent": field("user-agent"),
        "user": context.user,
        "error": end.error.map(ToString::to_string),
    });
    lines.add(&if format == HttpAccessLog::Json { line.to_string() } else { combined(&line, SystemClock.now()) });
}

/// `192.0.2.1 - ann [29/Nov/2026:22:14:07 +0000] "GET / HTTP/1.1" 200 5 "-" "curl/8.0"`.
fn combined(line: &Value, now: Timestamp) -> String {
    let now = OffsetDateTime::from_unix_timestamp_nanos(i128::from(now.0)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let month = now.month().to_string();
    let (day, month, year) = (now.day(), &month[..3], now.year());
    let (hour, minute, second) = now.to_hms();
    let field = |name: &str| line[name].as_str().filter(|text| !text.is_empty()).map_or_else(|| "-".to_owned(), quoted);
    format!(
        "{} - {} [{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000] \"{} {} {}\" {} {} \"{}\" \"{}\"",
        field("client"),
        field("user"),
        field("method"),
        field("path"),
        field("version"),
        line["status"],
        line["sent"],
        field("referer"),
        field("user_agent"),
    )
}

/// Without what could end a field or a line.
fn quoted(text: &str) -> String {
    let one = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
        c => c.to_string(),
    };
    text.chars().map(one).collect()
}

#[test]
fn a_combined_line_has_one_line_and_its_fields() {
    let line = json!({
        "client": "192.0.2.1", "method": "GET", "path": "/a", "version": "HTTP/1.1", "status": 200, "sent": 5,
        "user_agent": "x\" y\nz", "user": null, "referer": "",
    });
    let now = Timestamp::parse("2026-11-29T22:14:07Z").unwrap();
    assert_eq!(
        combined(&line, now),
        "192.0.2.1 - - [29/Nov/2026:22:14:07 +0000] \"GET /a HTTP/1.1\" 200 5 \"-\" \"x\\\" y\\x0az\""
    );
}
