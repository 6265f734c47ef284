//! The log: lines of text on standard error, filtered by the setting `log`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The client of the Docker Engine. From `debug` on it writes whole requests and answers, with the variables of tasks: only
/// where a filter asks for it by name.
const ENGINE_CLIENT: &str = "bollard";

/// Starts the log.
///
/// # Errors
/// The filter cannot be parsed.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let filter = parse(filter).map_err(|e| {
        anyhow::anyhow!(
            "setting log is {filter:?}, which is no log filter ({e}): set a level or targets, as `info` or `skep=debug`"
        )
    })?;
    // Only the first start of a process counts (tests start it several times).
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, ParseError> {
    let parsed = EnvFilter::try_new(filter)?;
    if filter.contains(ENGINE_CLIENT) {
        return Ok(parsed);
    }
    Ok(parsed.add_directive(format!("{ENGINE_CLIENT}=info").parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_the_engine_is_logged_only_where_that_is_asked_for() {
        let directives = |filter| {
            let text = parse(filter).unwrap().to_string();
            let mut directives: Vec<String> = text.split(',').map(str::to_owned).collect();
            directives.sort();
            directives
        };
        assert_eq!(directives("trace"), ["bollard=info", "trace"]);
        assert_eq!(directives("warn,skep=debug"), ["bollard=info", "skep=debug", "warn"]);
        assert_eq!(directives("info,bollard=debug"), ["bollard=debug", "info"]);
        parse("skep=loud").unwrap_err();
    }
}
