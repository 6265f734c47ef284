//! Pulls with and without credentials, against an engine that records what it is asked.

use super::{Deadlines, DockerEngine, Engine as _, EngineError};
use crate::http::{bind_unix, serve_unix};
use crate::model::PullAuth;
use crate::model::docker::API_VERSION_HEADER;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What the engine replies to each pull.
type PullReply = Arc<dyn Fn() -> Response + Send + Sync>;

/// An engine that answers pulls; what it is asked.
struct PullServer {
    socket: PathBuf,
    asked: mpsc::UnboundedReceiver<String>,
    shutdown: CancellationToken,
}

impl PullServer {
    fn start(name: &str, reply: PullReply) -> Self {
        let socket = std::env::temp_dir().join(format!("skep-pull-{}-{name}.sock", std::process::id()));
        let (sender, asked) = mpsc::unbounded_channel();
        let router = Router::new().fallback(async move |request: Request| {
            if request.uri().path() == "/_ping" {
                return ([(API_VERSION_HEADER, "1.47")], "OK").into_response();
            }
            let auth = request.headers().get("x-registry-auth").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            let _ = sender.send(format!("{} {} {auth}", request.method(), request.uri()));
            reply()
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(serve_unix(bind_unix(&socket).unwrap(), router, shutdown.clone()));
        Self { socket, asked, shutdown }
    }

    fn engine(&self, pull_idle: Duration) -> DockerEngine {
        let engine = DockerEngine::connect(&format!("unix://{}", self.socket.display())).unwrap();
        engine.with_deadlines(Deadlines { pull_idle, ..Deadlines::DEFAULT })
    }
}

impl Drop for PullServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Bytes that the two alphabets of base64 spell differently.
fn credentials() -> PullAuth {
    PullAuth::new("eyJwYXNzd29yZCI6In4_In0-_w==".to_owned())
}

/// The outcome of a pull with credentials that is answered with this; the target and the header that the engine was sent.
async fn pulled(name: &str, image: &str, status: u16, reply: &'static str) -> (Result<(), EngineError>, String) {
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    let mut server = PullServer::start(name, Arc::new(move || (status, reply).into_response()));
    let outcome = server.engine(Deadlines::DEFAULT.pull_idle).pull(image, Some(&credentials())).await;
    (outcome, server.asked.recv().await.unwrap())
}

#[tokio::test]
async fn credentials_reach_the_engine_as_they_came() {
    let (outcome, asked) = pulled("ok", "registry.example:5000/app:2", 200, "{\"status\":\"Pulling\"}\n").await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(asked, "POST /images/create?fromImage=registry.example:5000/app&tag=2 eyJwYXNzd29yZCI6In4_In0-_w==");
}

#[tokio::test]
async fn a_refusal_is_the_engines_whether_before_or_within_the_progress() {
    let (outcome, _) = pulled("early", "app", 404, "{\"message\":\"pull access denied for app\"}").await;
    assert_eq!(outcome, Err(EngineError::Refused("pull access denied for app".to_owned())));
    let (outcome, _) = pulled("late", "app", 200, "{\"status\":\"x\"}\n{\"error\":\"unauthorized\"}\n").await;
    assert_eq!(outcome, Err(EngineError::Refused("unauthorized".to_owned())));
    let (outcome, _) = pulled("unnamed", "app", 500, "").await;
    assert_eq!(outcome, Err(EngineError::Refused("the pull of app failed (HTTP 500)".to_owned())));
}

/// Lines of progress, `pause` apart, and then the end of the reply, or nothing more.
fn progress(lines: usize, pause: Duration, ends: bool) -> Body {
    let steps = futures_util::stream::unfold(0, move |sent| async move {
        if sent == lines && ends {
            return None;
        }
        if sent == lines {
            std::future::pending::<()>().await;
        }
        if sent > 0 {
            tokio::time::sleep(pause).await;
        }
        Some((Ok::<_, std::io::Error>("{\"status\":\"Downloading\"}\n"), sent + 1))
    });
    Body::from_stream(steps)
}

#[tokio::test]
async fn a_pull_without_progress_ends_with_and_without_credentials() {
    const IDLE: Duration = Duration::from_millis(200);
    // The head of the reply alone; one line.
    let replies: [(&str, PullReply); 2] = [
        ("head", Arc::new(|| progress(0, Duration::ZERO, false).into_response())),
        ("line", Arc::new(|| progress(1, Duration::ZERO, false).into_response())),
    ];
    for (name, reply) in replies {
        let server = PullServer::start(&format!("stalled-{name}"), reply);
        let engine = server.engine(IDLE);
        for auth in [None, Some(credentials())] {
            let pull = engine.pull("app:1", auth.as_ref());
            let outcome = tokio::time::timeout(Duration::from_secs(20), pull).await;
            let outcome = outcome.unwrap_or_else(|_| panic!("{name}, with credentials: {}: it never ends", auth.is_some()));
            assert_eq!(outcome, Err(EngineError::Refused("the pull made no progress for 0 s".to_owned())), "{name}");
        }
    }
    // An engine that accepts, and answers nothing.
    let socket = std::env::temp_dir().join(format!("skep-pull-{}-silent.sock", std::process::id()));
    let silent = bind_unix(&socket).unwrap();
    let client = crate::http::UnixClient::new(&socket);
    let auth = credentials();
    let pull = super::private_pull::pull(&client, "unix:///x", "app", None, &auth, IDLE);
    let outcome = tokio::time::timeout(Duration::from_secs(20), pull).await.expect("it ends");
    assert!(matches!(&outcome, Err(EngineError::Refused(why)) if why.contains("no progress")), "{outcome:?}");
    drop(silent);
    std::fs::remove_file(&socket).unwrap();
}

#[tokio::test]
async fn a_slow_pull_may_take_longer_than_the_time_without_progress() {
    const IDLE: Duration = Duration::from_secs(1);
    let server = PullServer::start("slow", Arc::new(|| progress(12, IDLE / 8, true).into_response()));
    let engine = server.engine(IDLE);
    let auth = credentials();
    let both = tokio::join!(engine.pull("app:1", None), engine.pull("app:1", Some(&auth)));
    assert_eq!(both, (Ok(()), Ok(())));
}
