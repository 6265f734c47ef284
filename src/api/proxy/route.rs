//! Decides by method and path whether a request is answered by skep or passed through to the engine.

use crate::api::query::split_version;

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
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let (_, path) = split_version(path);
    let mut segments = path.trim_start_matches('/').split('/');
    let first = segments.next().unwrap_or_default();
    if SWARM_PATHS.contains(&first) {
        return Destination::Skep;
    }
    match (method, first, segments.next(), segments.next()) {
        ("GET" | "HEAD", "_ping", None, None)
        | ("GET", "version" | "info" | "events", None, None)
        | ("POST", "containers", Some("create" | "prune"), None) => Destination::Skep,
        // The engine knows no tasks. Plain lists are not delayed.
        ("GET", "containers", Some("json"), None) if target.contains(IS_TASK) => Destination::Skep,
        _ => Destination::Engine,
    }
}

/// Whether skep's reply goes on until the client closes the connection.
pub fn is_endless(target: &str) -> bool {
    let path = split_version(target.split(['?', '#']).next().unwrap_or_default()).1;
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    matches!(segments[..], ["events"] | ["services" | "tasks", _, "logs"])
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
