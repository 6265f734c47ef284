//! Waiting for what the demo's steps expect.

use super::report::DemoReport;
use std::time::Duration;
use tokio::time::Instant;

/// Polls until the condition holds, and shows on a terminal what does not hold yet.
pub(super) async fn wait<T>(
    what: &str,
    within: Duration,
    report: &mut DemoReport,
    mut condition: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {} s for {what}", within.as_secs())));
            }
            Err(error) => report.progress(&format!("{error:#}")),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
