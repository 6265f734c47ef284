//! Options of a task's resolv.conf. Pure.
//!
//! The engine's resolver (127.0.0.11) answers one-label names by itself, with nothing, in every container whose resolv.conf
//! has the option `ndots`, even `ndots:0` (engine 20.10). So a task gets `ndots` only where it is of use and our names are found
//! all the same: its spec has search domains, and `NAME.DOMAIN` is a name of ours then.

use super::container_spec::DnsConfig;

/// Given to a task whose spec has no other option. The engine takes the host's options, `ndots` among them, for a container
/// that has none of its own. With this one glibc accepts 1200 bytes over UDP instead of 512; other resolvers ignore it.
const DEFAULT: &str = "edns0";

/// Whether the task's resolv.conf has the `ndots` of its spec.
#[must_use]
pub fn keeps_ndots(config: &DnsConfig) -> bool {
    let searches = config.search.iter().any(|domain| !domain.trim_matches('.').is_empty());
    searches && config.options.iter().any(|option| is_ndots(option) && option != "ndots:0")
}

/// The options of the resolv.conf of a task that has a name server of ours; never empty.
#[must_use]
pub fn of_task(config: &DnsConfig) -> Vec<String> {
    let keeps = keeps_ndots(config);
    let mut options: Vec<String> = config.options.iter().filter(|option| keeps || !is_ndots(option)).cloned().collect();
    if options.is_empty() {
        options.push(DEFAULT.to_owned());
    }
    options
}

/// The engine looks for the word anywhere in an option.
fn is_ndots(option: &str) -> bool {
    option.contains("ndots")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndots_is_kept_only_together_with_search_domains_and_options_are_never_empty() {
        let options = |search: &[&str], options: &[&str]| {
            let list = |list: &[&str]| list.iter().map(ToString::to_string).collect();
            of_task(&DnsConfig { search: list(search), options: list(options), ..DnsConfig::default() })
        };
        assert_eq!(options(&[], &[]), ["edns0"]);
        assert_eq!(options(&["a.test"], &[]), ["edns0"]);
        assert_eq!(options(&[], &["ndots:2"]), ["edns0"]);
        assert_eq!(options(&["."], &["ndots:2", "timeout:1"]), ["timeout:1"]);
        assert_eq!(options(&["a.test"], &["ndots:2", "timeout:1"]), ["ndots:2", "timeout:1"]);
        assert_eq!(options(&["a.test"], &["ndots:0", "timeout:1"]), ["timeout:1"]);
    }
}
