//! The series of HTTP routes.

use super::family::{Exposition, HistogramFamily, MetricExemplar, MetricFamily};
use crate::ingress::http::{HttpExemplar, LATENCY_BOUNDS_MS};
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
    let mut left_out = MetricFamily::gauge(
        "skep_http_left_out_tasks",
        "Tasks of an HTTP route that get no requests for a while, because they failed.",
        LABELS,
    );
    let mut in_flight = MetricFamily::gauge("skep_http_requests_in_flight", "Requests of an HTTP route in flight.", LABELS);
    let mut refused = MetricFamily::counter(
        "skep_http_refused_total",
        "Connections and requests that were cut or refused for what the client did, by reason.",
        ["reason"],
    );
    let mut durations = HistogramFamily::new(
        "skep_http_request_duration_seconds",
        "Time from the head of a request to the end of its answer.",
        LABELS,
        &LATENCY_BOUNDS_MS,
    );
    let mut ends = MetricFamily::gauge(
        "skep_http_certificate_expiry_timestamp_seconds",
        "End of the life of the certificate that an HTTP route is served with: a secret's, or one by ACME.",
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
        left_out.add(labels, route.left_out.len() as u64);
        in_flight.add(labels, route.in_flight);
        durations.add(labels, &route.counts.durations, route.counts.micros);
        for HttpExemplar { class, trace, micros, at } in &route.exemplars {
            durations.add_exemplar(labels, *class, MetricExemplar { trace: trace.clone(), micros: *micros, at: *at });
        }
    }
    let failures = MetricFamily::gauge(
        "skep_acme_failures",
        "Attempts in a row to get a certificate by ACME that have failed, by its first name.",
        ["certificate"],
    );
    let failing = http.certificate_failures.iter();
    out.add(&failing.fold(failures, |family, (name, count)| family.sample([name], u64::from(*count))));
    out.add(&requests);
    out.add(&retries);
    out.add(&ready);
    out.add(&ends);
    out.add(&left_out);
    out.add(&in_flight);
    for (reason, count) in &http.refused {
        refused.add([reason.as_str()], *count);
    }
    out.add(&refused);
    out.add_histogram(&durations);
    if http.pid.is_some() {
        let open = "Connections of clients of the HTTP ingress.";
        out.add(&MetricFamily::gauge("skep_http_open_connections", open, []).value(http.connections));
        let dropped = "Lines of the HTTP access log for which there was no room, because its reader stalls or is gone.";
        out.add(&MetricFamily::counter("skep_http_log_lines_dropped_total", dropped, []).value(http.log_lines_dropped));
    }
}
