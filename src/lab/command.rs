//! Commands, and conditions that take a while to hold.

use anyhow::Context as _;
use tokio::process::Command;

/// Runs a command and returns its standard output; an error contains its standard error.
///
/// # Errors
/// It cannot be started, or exits with another code than 0.
pub async fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{:?}", command.as_std());
    let out = command
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {shown}"))?;
    anyhow::ensure!(out.status.success(), "{shown}: {} {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Polls until the condition holds, and returns its value.
///
/// # Errors
/// It did not hold within the time; the error is the condition's last one and names what was waited for.
pub async fn eventually<T, F>(what: &str, within: std::time::Duration, mut condition: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("waited {within:?} for {what}"));
            }
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}
