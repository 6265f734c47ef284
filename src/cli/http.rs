//! `skep http`: the HTTP routes of this node, and the process that serves them.

use super::acme::AcmeArgs;
use super::table::table;
use super::target::DaemonTarget;
use crate::ingress::http::{HttpListenerStatus, HttpServeArgs, HttpStatus};
use crate::status::Status;
use std::fmt::Write as _;

/// Show the HTTP routes of this node: hosts, paths, ready tasks, certificates, requests
///
/// Routes come from labels of services:
///
///   docker service create --name shop --label skep.http=shop.example.com --label skep.http.port=8080 my/shop
///
/// Examples:
///   skep http routes
///   skep http routes --json
///   skep http acme --email you@example.com --agree-tos
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct HttpArgs {
    #[command(subcommand)]
    pub verb: HttpVerb,
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
}

pub(super) async fn routes(args: RoutesArgs) -> anyhow::Result<()> {
    let status: Status = args.target.admin().get("/status").await?.json()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status.http)?);
    } else {
        print!("{}", render(&status.http));
    }
    Ok(())
}

/// The routes as text.
fn render(http: &HttpStatus) -> String {
    if http.pid.is_none() && http.error.is_empty() {
        return "no service has an HTTP route: give one the label skep.http=HOST\n".to_owned();
    }
    let mut rows = vec![["HOST", "PATH", "SERVICE", "READY", "CERTIFICATE", "REQUESTS", "ERRORS", "MEAN"].map(str::to_owned)];
    for route in &http.routes {
        let requests = route.counts.requests();
        let mean = route.counts.micros.checked_div(requests).unwrap_or(0);
        rows.push([
            route.host.clone(),
            route.prefix.clone(),
            route.service.clone(),
            format!("{}/{}", route.ready, route.tasks),
            route.certificate.clone(),
            requests.to_string(),
            route.counts.by_class[4].to_string(),
            format!("{}.{} ms", mean / 1000, mean % 1000 / 100),
        ]);
    }
    format!("{}\n{}", summary(http).trim_start(), table(&rows))
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
    use crate::ingress::http::{HttpRouteStatus, RouteCounts};

    #[test]
    fn routes_listeners_and_problems_are_shown() {
        assert!(render(&HttpStatus::default()).contains("skep.http=HOST"));
        assert_eq!(summary(&HttpStatus::default()), "");
        let counts = RouteCounts { by_class: [0, 3, 0, 0, 1], micros: 10_000, ..RouteCounts::default() };
        let http = HttpStatus {
            pid: Some(7),
            listeners: vec![
                HttpListenerStatus { address: "0.0.0.0:80".to_owned(), tls: false, error: None },
                HttpListenerStatus { address: "[::]:443".to_owned(), tls: true, error: Some("Address in use".to_owned()) },
            ],
            routes: vec![HttpRouteStatus {
                host: "a.b".to_owned(),
                prefix: "/".to_owned(),
                service: "web".to_owned(),
                ready: 1,
                tasks: 2,
                certificate: "self-signed".to_owned(),
                counts,
            }],
            problems: vec!["service c: a.b/ is web's".to_owned()],
            ..HttpStatus::default()
        };
        let shown = render(&http);
        let expected = "HTTP:     1 routes, 0 connections, on 0.0.0.0:80, [::]:443 with TLS (Address in use)\n\
                        HTTP:     service c: a.b/ is web's\n\n\
                        HOST  PATH  SERVICE  READY  CERTIFICATE  REQUESTS  ERRORS  MEAN\n\
                        a.b   /     web      1/2    self-signed  4         1       2.5 ms\n";
        assert_eq!(shown, expected);
    }
}
