//! The bound on each fact, so that the doctor answers although a disk or the engine hangs.

use std::time::Duration;

/// Bound on each fact.
const BOUND: Duration = Duration::from_secs(3);

/// Runs blocking work on a thread of its own, which is left behind if it hangs: tokio's pool would wait for it at the end.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("doctor".to_owned())
        .spawn(move || {
            let _ = done.send(work());
        })
        .map_err(|error| error.to_string())?;
    match tokio::time::timeout(BOUND, result).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err("the thread that reads it panicked".to_owned()),
        Err(_) => Err(format!("no answer within {} s", BOUND.as_secs())),
    }
}

/// Waits for work that can be dropped.
pub(super) async fn bounded<T>(work: impl Future<Output = anyhow::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(BOUND, work).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", BOUND.as_secs())),
    }
}
