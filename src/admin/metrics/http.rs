//! The series of HTTP routes.

use super::family::{Exposition, HistogramFamily, MetricFamily};
use crate::ingress::http::LATENCY_BOUNDS_MS;
use crate::status::Status;

/// Adds requests, durations and ready tasks by route.
pub fn add(status: &Status, out: &mut Exposition) {
    const LABELS: [&str; 3] = ["service", "host", "path"];
    let http = &status.http;
    let mut requests = MetricFamily::counter(
        "skep_http_requests_total",
        "Requests to an HTTP route, by the class of the answer's status; `gone`: the client went away before.",
        ["service", "host", "path", "status"],
    );
    let mut retries = MetricFamily::counter(
        "skep_http_retries_total",
        "Attempts to connect to a task that another task was asked after.",
        LABELS,
    );
    let mut ready = MetricFamily::gauge("skep_http_ready_tasks", "Tasks of an HTTP route that listen.", LABELS);
    let mut durations = HistogramFamily::new(
        "skep_http_request_duration_seconds",
        "Time from the head of a request to the end of its answer.",
        LABELS,
        &LATENCY_BOUNDS_MS,
    );
    let mut ends = MetricFamily::gauge(
        "skep_http_certificate_expiry_timestamp_seconds",
        "End of the life of the certificate that an HTTP route is served with, if it is a secret's.",
        LABELS,
    );
    for route in &http.routes {
        let labels = [route.service.as_str(), &route.host, &route.prefix];
        let [service, host, path] = labels;
        for (class, count) in route.counts.by_class.iter().enumerate() {
            requests.add([service, host, path, ["1xx", "2xx", "3xx", "4xx", "5xx"][class]], *count);
        }
        requests.add([service, host, path, "gone"], route.counts.gone);
        retries.add(labels, route.counts.retries);
        ready.add(labels, route.ready as u64);
        if let Some(end) = route.certificate_end {
            ends.add(labels, u64::try_from(end.0 / 1_000_000_000).unwrap_or(0));
        }
        durations.add(labels, &route.counts.durations, route.counts.micros);
    }
    out.add(&requests);
    out.add(&retries);
    out.add(&ready);
    out.add(&ends);
    out.add_histogram(&durations);
    if http.pid.is_some() {
        let open = "Connections of clients of the HTTP ingress.";
        out.add(&MetricFamily::gauge("skep_http_open_connections", open, []).value(http.connections));
    }
}
