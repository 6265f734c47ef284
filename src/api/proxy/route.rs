//! Decides by method and path whether a request is answered by skep or passed through to the engine.

use crate::api::query::decode_segment;

/// Which server answers a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The handlers of skep; some of them ask the engine first.
    Skep,
    /// The engine; skep only copies bytes.
    Engine,
}

/// First segments of paths that skep answers for any method: an unknown path below them is skep's "page not found".
/// `rebalance` is skep's own.
const SWARM_PATHS: [&str; 9] = ["swarm", "nodes", "services", "tasks", "secrets", "configs", "networks", "rebalance", "acme"];

/// Filter of containers that only skep can apply; its name is the same in an encoded query.
const IS_TASK: &str = "is-task";

/// Routes a request. Unknown paths are the engine's to refuse.
pub fn destination(method: &str, target: &str) -> Destination {
    let segments = segments(target);
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (method, &segments[..]) {
        (_, [first, ..]) if SWARM_PATHS.contains(first) => Destination::Skep,
        ("GET" | "HEAD", ["_ping"]) | ("GET", ["version" | "info" | "events"]) | ("POST", ["containers", "create" | "prune"]) => {
            Destination::Skep
        }
        // The engine knows no tasks. Plain lists are not delayed.
        ("GET", ["containers", "json"]) if target.contains(IS_TASK) => Destination::Skep,
        _ => Destination::Engine,
    }
}

/// Whether skep's reply goes on until the client closes the connection.
pub fn is_endless(target: &str) -> bool {
    let segments = segments(target);
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    matches!(segments[..], ["events"] | ["services" | "tasks", _, "logs"])
}

/// The segments of the path behind the version, as the engine reads them: decoded, without empty ones and dots. The engine has a swarm of
/// its own, which no spelling of a path may reach.
fn segments(target: &str) -> Vec<String> {
    let path = origin_form(target).split(['?', '#']).next().unwrap_or_default();
    let path = decode_segment(path);
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.to_owned()),
        }
    }
    // What the engine takes for a version, although it may be none.
    let is_version = |text: &str| {
        text.strip_prefix('v').is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    if path.starts_with('/') && segments.first().is_some_and(|first| is_version(first)) {
        segments.remove(0);
    }
    segments
}

/// Path and query of a target that names its server too (`http://docker/info`), which clients may send to any server.
pub fn origin_form(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once(':') else { return target };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    match rest.strip_prefix("//") {
        _ if !is_scheme => target,
        Some(rest) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        None => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_logs_go_on_until_the_client_ends_them() {
        for target in ["/events?since=1", "/v1.50/services/web/logs?follow=1", "/tasks/x/logs"] {
            assert!(is_endless(target), "{target}");
        }
        for target in ["/services/logs", "/v1.50/services", "/containers/x/logs"] {
            assert!(!is_endless(target), "{target}");
        }
    }

    #[test]
    fn no_spelling_of_a_path_reaches_the_engines_own_swarm() {
        for target in [
            "/%73warm/init",
            "/v1.44/%73ervices",
            "/%761.44/services",
            "/v1.44%2Fservices/create",
            "//swarm",
            "/v1.44//swarm/init",
            "/v1.44/./swarm",
            "/containers/../swarm/init",
            "/v1.44/x%2F..%2Fswarm",
            "/v1/swarm/init",
            "/v1.44.5/swarm/init",
            "http://docker/v1.44/swarm/init",
            "HTTP://docker:2375/swarm",
            "tcp:/v1.44/swarm",
        ] {
            assert_eq!(destination("POST", target), Destination::Skep, "{target}");
        }
        for target in ["/containers/%70rune", "http://docker/v1.50/containers/create?name=x"] {
            assert_eq!(destination("POST", target), Destination::Skep, "{target}");
        }
        for target in ["http://docker/images/json", "/images/swarm/json", "/containers/%73warm/start", "/v1.50/images/swarm/../x"]
        {
            assert_eq!(destination("GET", target), Destination::Engine, "{target}");
        }
    }

    #[test]
    fn a_target_that_names_its_server_has_a_path() {
        for (target, path) in [
            ("http://docker/info?x=1", "/info?x=1"),
            ("http://docker", "/"),
            ("/images/a:1/json", "/images/a:1/json"),
            ("docker:80", "80"),
        ] {
            assert_eq!(origin_form(target), path);
        }
    }

    #[test]
    fn swarm_paths_are_answered_and_the_rest_is_passed_through() {
        for (method, target) in [
            ("GET", "/services"),
            ("GET", "/v1.50/services?filters=%7B%7D"),
            ("POST", "/v1.41/networks/create"),
            ("OPTIONS", "/v1.51/services"),
            ("GET", "/v9.9/tasks/x/logs"),
            ("HEAD", "/_ping"),
            ("POST", "/rebalance?service=web"),
            ("GET", "/v1.24/info"),
            ("POST", "/v1.50/containers/create?name=c1"),
            ("POST", "/v1.50/containers/prune"),
            ("GET", "/v1.50/events?filters=swarm"),
            ("GET", "/v1.50/containers/json?filters=%7B%22is-task%22%3A%7B%22true%22%3Atrue%7D%7D"),
        ] {
            assert_eq!(destination(method, target), Destination::Skep, "{method} {target}");
        }
        for (method, target) in [
            ("GET", "/v1.50/containers/json"),
            ("POST", "/v1.50/containers/services/attach"),
            ("POST", "/session"),
            ("GET", "/vx/services"),
            ("POST", "/_ping"),
            ("GET", "/v1.50/events/x"),
            ("GET", "/v1.50/distribution/lab:1/json"),
            ("GET", "*"),
            ("GET", ""),
        ] {
            assert_eq!(destination(method, target), Destination::Engine, "{method} {target}");
        }
    }
}
