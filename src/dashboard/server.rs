//! Serves the page: its files, which are in the program, and what it shows as JSON.

use super::access::{PageAccess, PageAdmission, PageToken};
use super::overview::{ClusterAnswers, overview};
use super::shown::DashboardOverview;
use crate::clock::{Clock as _, SystemClock};
use crate::http::{UnixClient, serve_connection};
use crate::status::Status;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

/// Each answer of `/api/overview` is given again for so long: browsers ask every 2 seconds, each window for itself.
const KEPT: Duration = Duration::from_secs(1);
/// Connections at a time; further ones wait.
const MOST_CONNECTIONS: usize = 64;
/// A connection is for one request and is closed after this time: who sends none holds no place that the page needs.
const CONNECTION: Duration = Duration::from_secs(15);
/// Time for the daemon to answer. The page waits for 10 s.
const DAEMON: Duration = Duration::from_secs(5);

/// Nothing but the page's own files; no frame, no form, no other site.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Path, type and content.
const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("/parts.js", "text/javascript; charset=utf-8", include_str!("page/parts.js")),
    ("/map.js", "text/javascript; charset=utf-8", include_str!("page/map.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// Where the daemon answers.
#[derive(Clone, Debug)]
pub struct DaemonSockets {
    pub admin: UnixClient,
    pub docker: UnixClient,
}

struct Dashboard {
    sockets: DaemonSockets,
    access: PageAccess,
    kept: Mutex<Option<(Instant, Bytes)>>,
}

type Shared = State<Arc<Dashboard>>;

/// Serves connections until the future is dropped.
pub async fn serve(listener: TcpListener, sockets: DaemonSockets, token: PageToken) {
    let (router, room) = (page(sockets, PageAccess::Token(token)), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(place);
                });
            }
            // Out of file descriptors, mostly.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The page for a route of the HTTP ingress, which has asked for a password.
pub fn behind_route(sockets: DaemonSockets) -> Router {
    page(sockets, PageAccess::Route)
}

fn page(sockets: DaemonSockets, access: PageAccess) -> Router {
    router(Arc::new(Dashboard { sockets, access, kept: Mutex::default() }))
}

async fn connection(stream: TcpStream, router: Router) {
    let _ = tokio::time::timeout(CONNECTION, serve_connection(stream, router, false, false)).await;
}

fn router(dashboard: Arc<Dashboard>) -> Router {
    let mut router = Router::new();
    for (path, kind, content) in FILES {
        router = router.route(path, get(async || ([(header::CONTENT_TYPE, *kind)], *content)));
    }
    router
        .route("/api/overview", get(shown))
        .route("/api/history/{service}", get(history))
        .fallback(async || (StatusCode::NOT_FOUND, "there is no such page\n"))
        .layer(axum::middleware::from_fn_with_state(dashboard.clone(), admitted))
        .with_state(dashboard)
}

/// Refuses what may not see the page, and adds the headers to every answer.
async fn admitted(State(dashboard): Shared, request: Request, next: Next) -> Response {
    let is_file = FILES.iter().any(|(path, ..)| *path == request.uri().path());
    let mut response = match dashboard.access.admit(is_file, request.headers()) {
        PageAdmission::Granted => next.run(request).await,
        PageAdmission::Refused(status, why) => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN), why).into_response()
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    response
}

/// An error as JSON.
fn failed(status: StatusCode, error: &anyhow::Error) -> Response {
    (status, Json(json!({ "message": format!("{error:#}") }))).into_response()
}

async fn shown(State(dashboard): Shared) -> Response {
    // While one request asks the daemon, others wait for its answer.
    let mut kept = dashboard.kept.lock().await;
    if let Some((at, body)) = &*kept
        && at.elapsed() < KEPT
    {
        return as_json(body.clone());
    }
    match in_time(read(&dashboard.sockets)).await.and_then(|overview| Ok(Bytes::from(serde_json::to_vec(&overview)?))) {
        Ok(body) => {
            *kept = Some((Instant::now(), body.clone()));
            as_json(body)
        }
        Err(error) => failed(StatusCode::BAD_GATEWAY, &error),
    }
}

fn as_json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// An answer of the daemon.
async fn in_time<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let late = |_| anyhow::anyhow!("the daemon gave no answer within {} s", DAEMON.as_secs());
    tokio::time::timeout(DAEMON, answer).await.map_err(late)?
}

async fn read(sockets: &DaemonSockets) -> anyhow::Result<DashboardOverview> {
    let status: Status = sockets.admin.get("/status").await?.json()?;
    let cluster = match status.node {
        Some(_) => cluster(&sockets.docker).await.map_err(|error| format!("{error:#}")),
        None => Err("this node is not in a swarm: `docker swarm init` starts one".to_owned()),
    };
    Ok(overview(&status, &cluster, SystemClock.now()))
}

async fn cluster(docker: &UnixClient) -> anyhow::Result<ClusterAnswers> {
    let ask = async |target: &str| docker.get(target).await?.json::<Value>();
    let (nodes, services, tasks) = tokio::try_join!(
        ask("/nodes"),
        ask("/services?status=true"),
        // Those that are wanted: {"desired-state":{"running":true}}.
        ask("/tasks?filters=%7B%22desired-state%22%3A%7B%22running%22%3Atrue%7D%7D"),
    )?;
    Ok(ClusterAnswers { nodes, services, tasks })
}

/// What `skep history` shows of a service.
async fn history(State(dashboard): Shared, Path(service): Path<String>) -> Response {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if service.is_empty() || service.starts_with('.') || !service.bytes().all(is_plain) {
        return failed(StatusCode::BAD_REQUEST, &anyhow::anyhow!("this is no name or id of a service"));
    }
    let target = format!("/services/{service}/history");
    match in_time(dashboard.sockets.docker.get(&target)).await.and_then(|reply| reply.json::<Value>()) {
        Ok(entries) => Json(entries).into_response(),
        Err(error) => failed(StatusCode::BAD_GATEWAY, &error),
    }
}
