//! Requests that this node makes to tasks of its own accord, for routes with `skep.http.check.path`: what they find is recorded in
//! [`ServiceHealth`](super::health::ServiceHealth).

use super::routes::{Routes, ServedRoute};
use super::rules::IngressState;
use super::upstream;
use crate::model::http::HttpCheck;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A task and the port of a route.
type CheckKey = (String, u16);

/// What is to be checked: each task once for each port, by the first route with a check.
fn wanted(routes: &Routes) -> BTreeMap<CheckKey, (Arc<ServedRoute>, usize)> {
    let mut all = BTreeMap::new();
    for route in routes.claims.iter().flat_map(|claim| &claim.choices).filter(|route| route.route.check.is_some()) {
        for (at, backend) in route.backends.iter().enumerate() {
            all.entry((backend.task_id.to_string(), route.route.port)).or_insert_with(|| (route.clone(), at));
        }
    }
    all
}

/// When a check is due. One that runs has the other copy of `running`.
struct DueCheck {
    at: Instant,
    running: Arc<()>,
}

/// Keeps those that are wanted, with when they are due; a new one is due now.
fn follow(due: &mut BTreeMap<CheckKey, DueCheck>, wanted: &BTreeMap<CheckKey, (Arc<ServedRoute>, usize)>, now: Instant) {
    due.retain(|key, _| wanted.contains_key(key));
    for key in wanted.keys() {
        due.entry(key.clone()).or_insert_with(|| DueCheck { at: now, running: Arc::new(()) });
    }
}

/// Checks tasks for ever; `changed` says that the table has.
pub(super) async fn run(state: Arc<IngressState>, changed: Arc<Notify>) {
    let connector = Arc::new(Connector::new(None));
    let mut due: BTreeMap<CheckKey, DueCheck> = BTreeMap::new();
    loop {
        let (now, wanted) = (Instant::now(), wanted(&state.routes.load()));
        follow(&mut due, &wanted, now);
        for (key, one) in due.iter_mut().filter(|(_, one)| one.at <= now) {
            let Some((route, backend)) = wanted.get(key).cloned() else { continue };
            let Some(check) = route.route.check.clone() else { continue };
            one.at = now + Duration::from_millis(check.interval_ms);
            // A task that hangs would have more of them with each interval.
            if Arc::strong_count(&one.running) > 1 {
                continue;
            }
            let (state, connector, running) = (state.clone(), connector.clone(), one.running.clone());
            tokio::spawn(async move {
                let limit = Duration::from_millis(check.timeout_ms);
                let asked = tokio::time::timeout(limit, ask(&state, &connector, &route, backend, &check)).await;
                let passed = matches!(asked, Ok(Ok(200..=399)));
                route.health.record_check(&route.backends[backend].task_id, passed);
                drop(running);
            });
        }
        let next = due.values().map(|one| one.at).min();
        let wait = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = changed.notified() => {}
        }
    }
}

/// The status of the answer.
async fn ask(state: &IngressState, connector: &Connector, route: &ServedRoute, backend: usize, check: &HttpCheck) -> Result<u16> {
    let backend = &route.backends[backend];
    let host = if check.host.is_empty() { route.route.hosts.first().map_or("", String::as_str) } else { &check.host };
    let host = host.trim_start_matches("*.").trim_start_matches('*');
    let host = if host.is_empty() { "localhost" } else { host };
    let address = IpAddr::V4(backend.address);
    let own = (IpAddr::V4(Ipv4Addr::LOCALHOST), 0).into();
    let peer = upstream::peer(&state.connector, route, backend, host, Some((own, (address, route.route.port).into())), false);
    let (mut session, _) = connector.get_http_session(&peer).await?;
    let mut request = RequestHeader::build("GET", check.path.as_bytes(), Some(3))?;
    request.insert_header("host", host)?;
    request.insert_header("user-agent", "skep")?;
    request.insert_header("accept", "*/*")?;
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    let status = session.response_header().map(|response| response.status.as_u16());
    session.shutdown().await;
    status.ok_or_else(|| Error::new(ErrorType::ReadError))
}
