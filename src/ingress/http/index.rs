//! Finds by host and path. Pure: the time of a lookup depends on the length of the host and on how many prefixes it has, not on
//! the number of hosts.

use crate::model::http::PrefixEnd;
use std::collections::HashMap;

/// What hosts and path prefixes lead to.
pub struct HostIndex<T> {
    /// By host; wildcards by what follows `*.`.
    exact: HashMap<String, HostPrefixes<T>>,
    wildcards: HashMap<String, HostPrefixes<T>>,
    default: HostPrefixes<T>,
}

/// Longest first.
struct HostPrefixes<T>(Vec<(PathPrefix, T)>);

/// What paths begin with.
pub struct PathPrefix {
    pub text: String,
    pub end: PrefixEnd,
}

impl PathPrefix {
    /// The prefix of whole segments.
    pub fn segments(text: &str) -> Self {
        Self { text: text.to_owned(), end: PrefixEnd::Segment }
    }
    fn has(&self, path: &str) -> bool {
        let is_end = |rest: &str| match self.end {
            PrefixEnd::Segment => rest.is_empty() || rest.starts_with('/'),
            PrefixEnd::Anything => true,
            PrefixEnd::Slash => rest.starts_with('/'),
        };
        self.text == "/" || path.strip_prefix(&self.text).is_some_and(is_end)
    }
}

impl<T> Default for HostPrefixes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcards: HashMap::new(), default: HostPrefixes::default() }
    }
}

impl<T> HostPrefixes<T> {
    fn insert(&mut self, prefix: PathPrefix, value: T) {
        let at = self.0.partition_point(|(other, _)| other.text.len() >= prefix.text.len());
        self.0.insert(at, (prefix, value));
    }
    fn find(&self, path: &str) -> Option<&T> {
        self.0.iter().find(|(prefix, _)| prefix.has(path)).map(|(_, value)| value)
    }
}

impl<T> HostIndex<T> {
    /// Adds a host (`*` and `*.example.com` too) and a prefix.
    pub fn insert(&mut self, host: &str, prefix: PathPrefix, value: T) {
        let prefixes = match host.strip_prefix("*.") {
            _ if host == "*" => &mut self.default,
            Some(suffix) => self.wildcards.entry(suffix.to_owned()).or_default(),
            None => self.exact.entry(host.to_owned()).or_default(),
        };
        prefixes.insert(prefix, value);
    }

    /// The value of a host in lower case and a path. The host itself comes before the longest wildcard, and that before `*`; one
    /// that has no such prefix is passed over.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        let parents = std::iter::successors(host.split_once('.'), |(_, rest)| rest.split_once('.')).map(|(_, rest)| rest);
        let exact = self.exact.get(host).and_then(|prefixes| prefixes.find(path));
        let wildcard = || parents.filter_map(|suffix| self.wildcards.get(suffix)).find_map(|prefixes| prefixes.find(path));
        exact.or_else(wildcard).or_else(|| self.default.find(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_host_and_the_longest_prefix_win() {
        let mut index = HostIndex::default();
        for (host, prefix, value) in [
            ("shop.example.com", "/", "shop"),
            ("shop.example.com", "/api", "api"),
            ("shop.example.com", "/api/v2", "v2"),
            ("*.example.com", "/", "wild"),
            ("*.eu.example.com", "/", "eu"),
            ("only.example.com", "/x", "x"),
            ("*", "/health", "health"),
        ] {
            index.insert(host, PathPrefix::segments(prefix), value);
        }
        for (host, path, expected) in [
            ("shop.example.com", "/", Some("shop")),
            ("shop.example.com", "/api", Some("api")),
            ("shop.example.com", "/api/", Some("api")),
            ("shop.example.com", "/apis", Some("shop")),
            ("shop.example.com", "/api/v2/x", Some("v2")),
            ("other.example.com", "/api", Some("wild")),
            ("a.b.example.com", "/", Some("wild")),
            ("a.eu.example.com", "/", Some("eu")),
            ("eu.example.com", "/", Some("wild")),
            ("example.com", "/", None),
            ("only.example.com", "/x", Some("x")),
            ("only.example.com", "/y", Some("wild")),
            ("example.com", "/health", Some("health")),
            ("", "/health/x", Some("health")),
            ("", "/", None),
        ] {
            assert_eq!(index.find(host, path), expected.as_ref(), "{host}{path}");
        }
    }

    #[test]
    fn a_prefix_of_characters_is_one_of_parts_of_segments_too() {
        let mut index = HostIndex::default();
        let ends = [("/admin", PrefixEnd::Anything), ("/api", PrefixEnd::Slash), ("/shop", PrefixEnd::Segment)];
        for (prefix, end) in [("/", PrefixEnd::Segment)].into_iter().chain(ends) {
            index.insert("a.b", PathPrefix { end, ..PathPrefix::segments(prefix) }, prefix);
        }
        for (path, expected) in [
            ("/admin", "/admin"),
            ("/admin.php", "/admin"),
            ("/administer/x", "/admin"),
            ("/adm", "/"),
            ("/api", "/"),
            ("/api/", "/api"),
            ("/api/x", "/api"),
            ("/apis", "/"),
            ("/shops", "/"),
            ("/shop/x", "/shop"),
        ] {
            assert_eq!(index.find("a.b", path), Some(&expected), "{path}");
        }
    }
}
