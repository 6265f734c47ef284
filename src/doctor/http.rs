//! HTTP routes: their process, their listeners, and the certificates that they are served with.

use super::facts::Facts;
use super::finding::Finding;
use crate::ingress::http::{HttpRouteStatus, HttpStatus};
use crate::model::Timestamp;
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);
/// A secret is replaced by hand: said so long before.
const SOON: Duration = Duration::from_hours(24 * 14);

/// Nothing where there is no route.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    match &facts.daemon {
        Ok(status) if !status.http.routes.is_empty() || !status.http.error.is_empty() => of_routes(&status.http, facts.now),
        _ => Vec::new(),
    }
}

fn of_routes(http: &HttpStatus, now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    if !http.error.is_empty() {
        found.push(Finding::error("http", http.error.clone(), "journalctl -u skep"));
    }
    for listener in &http.listeners {
        if let Some(error) = &listener.error {
            let help = "ss -lntp shows who has the port; `[http]` in skep.toml names others";
            found.push(Finding::error("http", format!("cannot listen on {}: {error}", listener.address), help));
        }
    }
    let mut hosts: Vec<&HttpRouteStatus> = http.routes.iter().filter(|route| route.certificate_end.is_some()).collect();
    hosts.sort_by_key(|route| (&route.host, route.certificate_end));
    hosts.dedup_by_key(|route| &route.host);
    found.extend(hosts.iter().filter_map(|route| ends(route, http, now)));
    // The texts of failed orders name host, reason and the next try.
    let failed = http.problems.iter().filter(|problem| problem.starts_with("certificate of "));
    found.extend(
        failed.map(|problem| Finding::warning("certificates", problem.clone(), "skep http acme; then skep http acme --retry")),
    );
    let unnamed = http.problems.iter().filter(|problem| problem.contains(": the certificate of its secret does not name "));
    let help = "docker secret create one that names the host, and name it in the label skep.http.tls";
    found.extend(unnamed.map(|problem| Finding::warning("certificates", problem.clone(), help)));
    if found.is_empty() {
        let first = hosts.iter().min_by_key(|route| route.certificate_end);
        let what = first.and_then(|route| Some((route, route.certificate_end?))).map_or_else(
            || format!("{} routes", http.routes.len()),
            |(route, end)| {
                format!(
                    "{} hosts with a certificate; the first that ends is {}'s, in {}",
                    hosts.len(),
                    route.host,
                    left(end, now)
                )
            },
        );
        found.push(Finding::ok("certificates", what));
    }
    found
}

/// A certificate that has ended, or that nothing replaces before it does.
fn ends(route: &HttpRouteStatus, http: &HttpStatus, now: Timestamp) -> Option<Finding> {
    let end = route.certificate_end?;
    let is_secret = route.certificate.starts_with("secret");
    let help =
        if is_secret { "docker secret create a new one, and name it in the label skep.http.tls" } else { "skep http acme" };
    if end <= now {
        let what = format!("the certificate of {} has ended at {}", route.host, end.to_rfc3339());
        return Some(Finding::error("certificates", what, help));
    }
    let is_soon = if is_secret {
        end <= now.plus(SOON)
    } else {
        http.certificate_failures.contains_key(&route.host) || end <= now.plus(DAY)
    };
    let what = || format!("the certificate of {} ends in {}", route.host, left(end, now));
    is_soon.then(|| Finding::warning("certificates", what(), help))
}

fn left(end: Timestamp, now: Timestamp) -> String {
    match end.since(now).as_secs() / DAY.as_secs() {
        0 => format!("{} hours", end.since(now).as_secs() / 3600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}
