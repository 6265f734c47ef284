//! Pulls of images that need credentials. Not through bollard, which encodes them in another base64 alphabet than the engine
//! decodes: they are passed on as the client sent them.

use super::EngineError;
use crate::http::UnixClient;
use crate::model::PullAuth;
use bytes::Bytes;
use serde_json::Value;

/// Pulls `image` (with `tag`, unless it has a digest) with these credentials.
///
/// # Errors
/// The engine does not answer, or refuses; the message is the engine's.
pub async fn pull(client: &UnixClient, engine: &str, image: &str, tag: Option<&str>, auth: &PullAuth) -> Result<(), EngineError> {
    let tag = tag.map(|tag| format!("&tag={tag}")).unwrap_or_default();
    let target = format!("/images/create?fromImage={}{tag}", image.replace('%', "%25").replace('&', "%26").replace('+', "%2B"));
    let reply = client.send("POST", &target, &[("X-Registry-Auth", auth.header())], Bytes::new()).await;
    let reply = reply.map_err(|e| EngineError::Unavailable { engine: engine.to_owned(), reason: format!("{e:#}") })?;
    let lines = reply.body.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    // An error after the first progress is a line of the reply.
    let refused = lines.into_iter().find_map(|line| {
        let message = if reply.status.is_success() { &line["error"] } else { &line["message"] };
        message.as_str().map(str::to_owned)
    });
    match refused {
        Some(message) => Err(EngineError::Refused(message)),
        None if reply.status.is_success() => Ok(()),
        None => Err(EngineError::Refused(format!("the pull of {image} failed (HTTP {})", reply.status.as_u16()))),
    }
}
