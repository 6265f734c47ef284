//! The log: human lines on standard error, filtered by `SKEP_LOG` or the settings.

use tracing_subscriber::EnvFilter;

/// Starts the log; a filter that cannot be read is an error.
///
/// # Errors
/// The filter's text is not right.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| anyhow::anyhow!("log filter {filter:?} is not right: {e}"))?;
    // A second start (tests) keeps the first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    Ok(())
}
