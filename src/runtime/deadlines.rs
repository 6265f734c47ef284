//! How long each kind of call to an engine may take. An engine may answer some calls and not others: a container whose shim
//! hangs blocks its own inspection and stop, and nothing else.

use super::{Container, Deadlines, Engine, EngineError};
use crate::model::NodeId;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use std::time::Duration;
use tokio::time::Instant;

/// Of a call that reads one object.
pub const INSPECT: Duration = Deadlines::DEFAULT.inspect;
/// Of a call that lists objects, and of all inspections that follow one.
pub const LIST: Duration = Deadlines::DEFAULT.list;
/// Of a call that changes a network.
pub const NETWORK: Duration = Duration::from_mins(2);
/// Inspections at the same time.
const INSPECTIONS: usize = 8;

/// The result of a call; an error if it takes longer. `what` is what the engine is asked for, as a verb.
///
/// # Errors
/// The call's, or [`EngineError::TimedOut`].
pub async fn within<T>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = Result<T, EngineError>> + Send,
) -> Result<T, EngineError> {
    let late = |_| Err(EngineError::TimedOut(format!("the Docker Engine did not {what} within {} s", limit.as_secs())));
    tokio::time::timeout(limit, call).await.unwrap_or_else(late)
}

/// The next sign of a pull's progress; an error if it takes longer. A pull may take hours as long as it makes progress, and must not keep its
/// permit from others when it does not.
///
/// # Errors
/// [`EngineError::Refused`]: the task is tried elsewhere, or again.
pub async fn progress_within<T>(idle: Duration, next: impl Future<Output = T> + Send) -> Result<T, EngineError> {
    let stalled = |_| EngineError::Refused(format!("the pull made no progress for {} s", idle.as_secs()));
    tokio::time::timeout(idle, next).await.map_err(stalled)
}

/// Each of [`Engine::containers`], inspected: on older engines the list itself has neither exit codes nor health. One whose
/// inspection is not answered in time is [`ContainerState::Unknown`](super::ContainerState::Unknown).
///
/// # Errors
/// The engine does not answer, or does not list its containers in time.
pub async fn list(engine: &dyn Engine, me: &NodeId) -> Result<Vec<Container>, EngineError> {
    let Deadlines { inspect, list, .. } = engine.deadlines();
    let listed = within(list, "list the containers", engine.containers(me)).await?;
    let end = Instant::now() + list;
    let inspections = futures_util::stream::iter(listed).map(|listed| async move {
        let limit = inspect.min(end.saturating_duration_since(Instant::now()));
        match within(limit, "inspect a container", engine.inspect(&listed.id)).await {
            Err(EngineError::TimedOut(_)) => {
                tracing::info!(container = listed.id, "the engine does not answer when this container is inspected");
                Ok(Some(listed.unknown()))
            }
            found => found,
        }
    });
    let found: Vec<Option<Container>> = inspections.buffered(INSPECTIONS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}
