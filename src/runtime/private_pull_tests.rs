//! Pulls with credentials, against an engine that records what it is asked.

use super::EngineError;
use super::private_pull::pull;
use crate::http::{UnixClient, bind_unix, serve_unix};
use crate::model::PullAuth;
use axum::Router;
use axum::extract::Request;
use tokio_util::sync::CancellationToken;

/// What the engine replies to the pull; the target and the header that it was sent.
async fn pulled(
    name: &str,
    image: &str,
    tag: Option<&str>,
    status: u16,
    reply: &'static str,
) -> (Result<(), EngineError>, String) {
    let socket = std::env::temp_dir().join(format!("skep-pull-{}-{name}.sock", std::process::id()));
    let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let router = Router::new().fallback(async move |request: Request| {
        let auth = request.headers().get("x-registry-auth").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let _ = sender.send(format!("{} {} {auth}", request.method(), request.uri()));
        (axum::http::StatusCode::from_u16(status).unwrap(), reply)
    });
    let shutdown = CancellationToken::new();
    tokio::spawn(serve_unix(bind_unix(&socket).unwrap(), router, shutdown.clone()));
    // Bytes that the two alphabets of base64 spell differently.
    let auth = PullAuth::new("eyJwYXNzd29yZCI6In4_In0-_w==".to_owned());
    let outcome = pull(&UnixClient::new(&socket), "unix:///x", image, tag, &auth).await;
    shutdown.cancel();
    std::fs::remove_file(&socket).unwrap();
    (outcome, asked.recv().await.unwrap())
}

#[tokio::test]
async fn credentials_reach_the_engine_as_they_came() {
    let (outcome, asked) = pulled("ok", "registry.example:5000/app", Some("2"), 200, "{\"status\":\"Pulling\"}\n").await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(asked, "POST /images/create?fromImage=registry.example:5000/app&tag=2 eyJwYXNzd29yZCI6In4_In0-_w==");
}

#[tokio::test]
async fn a_refusal_is_the_engines_whether_before_or_within_the_progress() {
    let (outcome, _) = pulled("early", "app", None, 404, "{\"message\":\"pull access denied for app\"}").await;
    assert_eq!(outcome, Err(EngineError::Refused("pull access denied for app".to_owned())));
    let (outcome, _) = pulled("late", "app", None, 200, "{\"status\":\"x\"}\n{\"error\":\"unauthorized\"}\n").await;
    assert_eq!(outcome, Err(EngineError::Refused("unauthorized".to_owned())));
}
