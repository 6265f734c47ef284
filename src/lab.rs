//! Hosts on one machine: what `skep demo` and the tests stand on. A host is a set of namespaces (network, mount, PID,
//! UTS) under one holder process, with a private /run, a veth into the fabric's bridge and, if wished, its own Docker
//! Engine and its own `skep daemon`. When the holder ends the kernel ends everything in it: nothing is left behind.

mod engine;
mod fabric;
mod holder;
mod host;
mod image;

pub use engine::EngineRoot;
pub use fabric::Lab;
pub use host::Host;
pub use image::{WHOAMI_IMAGE, whoami_image};

use anyhow::Context as _;
use tokio::process::Command;

/// Runs a command to its end and returns its standard output; an error carries what it wrote on standard error.
///
/// # Errors
/// It cannot be started, or ends with another code than 0.
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

/// Polls until the condition holds.
///
/// # Errors
/// It did not within the time; the error names what was waited for and what was seen last.
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
