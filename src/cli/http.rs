//! `skep http`: the HTTP routes of this node, and the process that serves them.

use super::acme::AcmeArgs;
use super::print::print_line;
use super::table::table;
use super::target::DaemonTarget;
use super::time_left::time_left;
use crate::clock::{Clock as _, SystemClock};
use crate::ingress::http::{HttpListenerStatus, HttpRouteStatus, HttpServeArgs, HttpStatus};
use crate::model::Timestamp;
use crate::status::Status;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

/// Between two tables of `--watch`: the daemon reads the counters as often.
const WATCH: Duration = Duration::from_secs(2);
/// Removes what the terminal shows.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show the HTTP routes of this node: hosts, paths, ready tasks, certificates, live rates
///
/// Routes come from labels of services:
///
///   docker service create --name shop --label skep.http=shop.example.com --label skep.http.port=8080 my/shop
///
/// RATE, ERRORS (answers of 500 and more), P50 and P99 (durations, from the head of a request to the end of its answer) are of the last
/// 5 to 10 seconds and of the requests that came to this node; REQUESTS is since `skep http serve` was started.
///
/// Examples:
///   skep http                  the routes
///   skep http routes --watch   again every 2 seconds, until Ctrl-C
///   skep http routes --json    one JSON document; with --watch one in each line
///   skep http acme --email you@example.com --agree-tos
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub(super) struct HttpArgs {
    #[command(subcommand)]
    pub verb: Option<HttpVerb>,
    #[command(flatten)]
    pub routes: RoutesArgs,
}

#[derive(clap::Subcommand, Debug)]
pub(super) enum HttpVerb {
    /// Show the routes
    Routes(RoutesArgs),
    // Without a comment of its own, which would replace the longer help.
    Acme(AcmeArgs),
    /// Run the process that serves them (started by the daemon once there is a route)
    Serve(HttpServeArgs),
}

#[derive(clap::Args, Debug)]
pub(super) struct RoutesArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Print again every 2 seconds
    #[arg(long)]
    watch: bool,
}

pub(super) async fn routes(args: RoutesArgs) -> anyhow::Result<()> {
    loop {
        let status: Status = args.target.admin().get("/status").await?.json()?;
        let text = match (args.json, args.watch) {
            (true, true) => serde_json::to_string(&status.http)?,
            (true, false) => serde_json::to_string_pretty(&status.http)?,
            (false, _) => render(&status.http, SystemClock.now()),
        };
        let clears = args.watch && !args.json && std::io::stdout().is_terminal();
        print_line(&format!("{}{}", if clears { CLEAR } else { "" }, text.trim_end()))?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// The routes as text.
fn render(http: &HttpStatus, now: Timestamp) -> String {
    if http.pid.is_none() && http.error.is_empty() {
        return "no service has an HTTP route: give one the label skep.http=HOST\n".to_owned();
    }
    let heading = ["HOST", "PATH", "SERVICE", "READY", "CERTIFICATE", "RATE", "ERRORS", "P50", "P99", "REQUESTS"];
    let mut rows = vec![heading.map(str::to_owned)];
    for route in &http.routes {
        let rates = &route.rates;
        let known = |text: String, is_known: bool| if is_known { text } else { "-".to_owned() };
        let (rate, errors) = (rates.tenths_per_second(), rates.errors_per_mille());
        rows.push([
            route.host.clone(),
            route.prefix.clone(),
            route.service.clone(),
            format!("{}/{}", route.ready - route.left_out.len().min(route.ready), route.tasks),
            certificate(route, now),
            known(format!("{}.{}/s", rate / 10, rate % 10), rates.window_ms > 0),
            known(format!("{}.{} %", errors / 10, errors % 10), rates.requests > 0),
            known(milliseconds(rates.p50_us), rates.requests > 0),
            known(milliseconds(rates.p99_us), rates.requests > 0),
            route.counts.requests().to_string(),
        ]);
    }
    format!("{}\n{}", summary(http).trim_start(), table(&rows))
}

fn certificate(route: &HttpRouteStatus, now: Timestamp) -> String {
    match route.certificate_end {
        Some(end) => format!("{}, {}", route.certificate, time_left(end.since(now).as_secs())),
        None => route.certificate.clone(),
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

fn listener(listener: &HttpListenerStatus) -> String {
    let tls = if listener.tls { " with TLS" } else { "" };
    listener
        .error
        .as_ref()
        .map_or_else(|| format!("{}{tls}", listener.address), |error| format!("{}{tls} ({error})", listener.address))
}

/// Listeners and what is not served, for `skep status`; empty without a route.
pub(super) fn summary(http: &HttpStatus) -> String {
    let mut out = String::new();
    if http.pid.is_none() && http.error.is_empty() && http.problems.is_empty() {
        return out;
    }
    let listeners: Vec<String> = http.listeners.iter().map(listener).collect();
    let _ =
        writeln!(out, "\nHTTP:     {} routes, {} connections, on {}", http.routes.len(), http.connections, listeners.join(", "));
    let refused: Vec<String> =
        http.refused.iter().filter(|(_, count)| **count > 0).map(|(why, count)| format!("{why} {count}")).collect();
    if !refused.is_empty() {
        let _ = writeln!(out, "HTTP:     cut or refused: {}", refused.join(", "));
    }
    if http.log_lines_dropped > 0 {
        let _ =
            writeln!(out, "HTTP:     {} lines of the access log dropped: its reader stalls or is gone", http.log_lines_dropped);
    }
    if !http.error.is_empty() {
        let _ = writeln!(out, "HTTP:     {}", http.error);
    }
    for problem in &http.problems {
        let _ = writeln!(out, "HTTP:     {problem}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::http::{RouteCounts, RouteRates};

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn routes_listeners_and_problems_are_shown() {
        assert!(render(&HttpStatus::default(), Timestamp(0)).contains("skep.http=HOST"));
        assert_eq!(summary(&HttpStatus::default()), "");
        let counts = RouteCounts { by_class: [0, 3, 0, 0, 1], micros: 10_000, ..RouteCounts::default() };
        let busy = HttpRouteStatus {
            host: "a.b".to_owned(),
            prefix: "/".to_owned(),
            service: "web".to_owned(),
            ready: 1,
            tasks: 2,
            left_out: Vec::new(),
            in_flight: 0,
            certificate: "self-signed".to_owned(),
            certificate_end: None,
            counts,
            exemplars: Vec::new(),
            rates: RouteRates { window_ms: 8000, requests: 100, errors: 1, p50_us: 950, p90_us: 3000, p99_us: 12_345 },
        };
        let idle = HttpRouteStatus {
            host: "c.d".to_owned(),
            certificate: "secret".to_owned(),
            rates: RouteRates::default(),
            ..busy.clone()
        };
        let http = HttpStatus {
            pid: Some(7),
            listeners: vec![
                HttpListenerStatus { address: "0.0.0.0:80".to_owned(), tls: false, error: None },
                HttpListenerStatus { address: "[::]:443".to_owned(), tls: true, error: Some("Address in use".to_owned()) },
            ],
            routes: vec![busy.clone(), HttpRouteStatus { certificate_end: Some(Timestamp(0).plus(90 * DAY)), ..idle }],
            problems: vec!["service c: a.b/ is web's".to_owned()],
            ..HttpStatus::default()
        };
        let shown = render(&http, Timestamp(0).plus(DAY));
        let expected = "HTTP:     2 routes, 0 connections, on 0.0.0.0:80, [::]:443 with TLS (Address in use)\n\
                        HTTP:     service c: a.b/ is web's\n\n\
                        HOST  PATH  SERVICE  READY  CERTIFICATE           RATE    ERRORS  P50     P99      REQUESTS\n\
                        a.b   /     web      1/2    self-signed           12.5/s  1.0 %   0.9 ms  12.3 ms  4\n\
                        c.d   /     web      1/2    secret, 89 days left  -       -       -       -        4\n";
        assert_eq!(shown, expected);
    }
}
