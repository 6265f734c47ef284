//! The log: lines of text on standard error, filtered by the setting `log`.

use tracing_subscriber::EnvFilter;

/// Starts the log.
///
/// # Errors
/// The filter cannot be parsed.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        anyhow::anyhow!(
            "setting log is {filter:?}, which is no log filter ({e}): set a level or targets, as `info` or `skep=debug`"
        )
    })?;
    // Only the first start of a process counts (tests start it several times).
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    Ok(())
}
