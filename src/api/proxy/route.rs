//! Whose a request is, by method and path alone.

use crate::api::query::split_version;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// We do; some of it after asking the engine.
    Ours,
    /// The engine, without us.
    Engine,
}

/// Folders that are ours whatever the method: an unknown path below them is our "page not found".
const FOLDERS: [&str; 7] = ["swarm", "nodes", "services", "tasks", "secrets", "configs", "networks"];

/// Decides. Paths that are no one's go to the engine, which says so.
pub fn owner(method: &str, target: &str) -> Owner {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let (_, path) = split_version(path);
    let mut segments = path.trim_start_matches('/').split('/');
    let first = segments.next().unwrap_or_default();
    if FOLDERS.contains(&first) {
        return Owner::Ours;
    }
    match (method, first, segments.next(), segments.next()) {
        ("GET" | "HEAD", "_ping", None, None)
        | ("GET", "version" | "info", None, None)
        | ("POST", "containers", Some("create"), None) => Owner::Ours,
        _ => Owner::Engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swarm_paths_are_ours_and_the_rest_is_the_engines() {
        for (method, target) in [
            ("GET", "/services"),
            ("GET", "/v1.50/services?filters=%7B%7D"),
            ("POST", "/v1.41/networks/create"),
            ("OPTIONS", "/v1.51/services"),
            ("GET", "/v9.9/tasks/x/logs"),
            ("HEAD", "/_ping"),
            ("GET", "/v1.24/info"),
            ("POST", "/v1.50/containers/create?name=c1"),
        ] {
            assert_eq!(owner(method, target), Owner::Ours, "{method} {target}");
        }
        for (method, target) in [
            ("GET", "/v1.50/containers/json"),
            ("POST", "/v1.50/containers/services/attach"),
            ("POST", "/session"),
            ("GET", "/vx/services"),
            ("POST", "/_ping"),
            ("GET", "/v1.50/events?filters=swarm"),
            ("GET", "/v1.50/distribution/lab:1/json"),
            ("GET", "*"),
            ("GET", ""),
        ] {
            assert_eq!(owner(method, target), Owner::Engine, "{method} {target}");
        }
    }
}
