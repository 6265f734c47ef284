//! Pulls of images that need credentials. Not through bollard, which encodes them in another base64 alphabet than the engine
//! decodes: they are passed on as the client sent them.

use super::EngineError;
use super::deadlines::progress_within;
use crate::http::{ReplyLines, UnixClient};
use crate::model::PullAuth;
use serde_json::Value;
use std::time::Duration;

/// Pulls `image` (with `tag`, unless it has a digest) with these credentials; ended after `idle` without progress.
///
/// # Errors
/// The engine does not answer, refuses, or makes no progress; the message of a refusal is the engine's.
pub async fn pull(
    client: &UnixClient,
    engine: &str,
    image: &str,
    tag: Option<&str>,
    auth: &PullAuth,
    idle: Duration,
) -> Result<(), EngineError> {
    let tag = tag.map(|tag| format!("&tag={tag}")).unwrap_or_default();
    let target = format!("/images/create?fromImage={}{tag}", image.replace('%', "%25").replace('&', "%26").replace('+', "%2B"));
    let unavailable = |e: anyhow::Error| EngineError::Unavailable { engine: engine.to_owned(), reason: format!("{e:#}") };
    let headers = [("X-Registry-Auth", auth.header())];
    let reply = progress_within(idle, client.stream_of("POST", &target, &headers)).await?.map_err(unavailable)?;
    if !reply.status.is_success() {
        let reply = progress_within(idle, reply.whole()).await?.map_err(unavailable)?;
        let message = serde_json::from_slice::<Value>(&reply.body).ok().and_then(|body| message_of(&body, "message"));
        let unnamed = || format!("the pull of {image} failed (HTTP {})", reply.status.as_u16());
        return Err(EngineError::Refused(message.unwrap_or_else(unnamed)));
    }
    let mut lines: ReplyLines = reply.lines().await.map_err(unavailable)?;
    while let Some(line) = progress_within(idle, lines.next()).await?.map_err(unavailable)? {
        // An error after the first progress is a line of the reply.
        if let Some(error) = serde_json::from_str::<Value>(&line).ok().and_then(|line| message_of(&line, "error")) {
            return Err(EngineError::Refused(error));
        }
    }
    Ok(())
}

fn message_of(body: &Value, field: &str) -> Option<String> {
    body[field].as_str().map(str::to_owned)
}
