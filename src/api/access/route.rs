//! What a request of the access point is about: one node, found by what the path names, or several. Pure.

use crate::api::query::{RequestQuery, decode_segment, encode, split_version};

/// The kind of object that a path names, by which its node is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectKind {
    Container,
    Exec,
    Image,
    Volume,
    Network,
}

/// A request about one object: the node that has it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRequest {
    pub kind: ObjectKind,
    /// As the client wrote it: an id, a name, or `node/name`.
    pub reference: String,
    /// The target, with `{}` where the object's name on its own node belongs.
    template: String,
}

impl ObjectRequest {
    /// The target on the node, where the object has this name.
    pub fn target(&self, name: &str) -> String {
        let name = if self.kind == ObjectKind::Image { encode_image(name) } else { encode(name) };
        self.template.replacen("{}", &name, 1)
    }
}

/// Who answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessCall {
    /// The API of this node, as it is.
    Here,
    /// The API of the node that has an object.
    Object(ObjectRequest),
    /// Several nodes, or one that must be chosen: the handlers.
    Handled,
    /// 501, with the reason.
    Refused(&'static str),
}

/// First segments of what each manager's own API answers alike, or what has no node.
const HERE: [&str; 14] = [
    "auth",
    "build",
    "session",
    "grpc",
    "distribution",
    "swarm",
    "services",
    "nodes",
    "tasks",
    "secrets",
    "configs",
    "rebalance",
    "",
    "*",
];

/// Routes a request.
pub fn route(method: &str, target: &str) -> AccessCall {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let prefix = path.len() - split_version(path).1.len();
    let (version, path) = path.split_at(prefix);
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let with_query = |path: String| if query.is_empty() { path } else { format!("{path}?{query}") };
    let object = |kind, names: &[&str], folder: &str, suffix: &[&str]| {
        let reference = names.iter().map(|name| decode_segment(name)).collect::<Vec<_>>().join("/");
        let suffix = suffix.iter().map(|part| format!("/{part}")).collect::<Vec<_>>().concat();
        let template = with_query(format!("{version}/{folder}/{{}}{suffix}"));
        AccessCall::Object(ObjectRequest { kind, reference, template })
    };
    match (method, &segments[..]) {
        ("GET" | "HEAD", ["_ping"])
        | ("GET", ["info" | "events" | "version" | "volumes" | "networks"] | ["containers" | "images", "json"])
        | ("POST", ["containers" | "images" | "volumes" | "networks", "create" | "prune"] | ["images", "load"]) => {
            AccessCall::Handled
        }
        ("GET", ["containers", .., "json"]) | ("POST", ["containers", .., "rename"]) if segments.len() > 2 => AccessCall::Handled,
        ("DELETE", ["containers", names @ ..]) if is_reference(names) => object(ObjectKind::Container, names, "containers", &[]),
        (_, ["containers", names @ .., "attach", "ws"]) if is_reference(names) => {
            object(ObjectKind::Container, names, "containers", &["attach", "ws"])
        }
        (_, ["containers", names @ .., "checkpoints"]) if is_reference(names) => AccessCall::Refused("checkpoints"),
        (_, ["containers", names @ .., action]) if is_reference(names) => {
            object(ObjectKind::Container, names, "containers", &[action])
        }
        (_, ["exec", id, action]) => object(ObjectKind::Exec, &[id], "exec", &[action]),
        ("POST", ["commit"]) => commit(version, query),
        ("GET", ["images", "get"]) => image_archive(version, query),
        ("GET", ["images", names @ .., action @ ("json" | "history" | "get")])
        | ("POST", ["images", names @ .., action @ "push"])
            if !names.is_empty() =>
        {
            image(version, names, action, query)
        }
        ("POST", ["images", names @ .., "tag"]) | ("DELETE", ["images", names @ ..]) if !names.is_empty() => AccessCall::Handled,
        ("GET" | "DELETE", ["volumes", names @ ..]) if is_reference(names) => AccessCall::Handled,
        (_, ["volumes", names @ ..]) if is_reference(names) => object(ObjectKind::Volume, names, "volumes", &[]),
        ("POST", ["networks", names @ .., "connect" | "disconnect"]) if is_reference(names) => AccessCall::Handled,
        ("GET" | "DELETE", ["networks", names @ ..]) if is_reference(names) => {
            object(ObjectKind::Network, names, "networks", &[])
        }
        ("GET", ["system", "df"]) => AccessCall::Refused("docker system df"),
        // Plugins: so that `docker inspect NAME` finds that no plugin has the name.
        ("GET", ["plugins", ..] | ["images", "search"]) => AccessCall::Here,
        (_, ["plugins", ..]) => AccessCall::Refused("plugins"),
        (_, [first, ..]) if HERE.contains(first) => AccessCall::Here,
        _ => AccessCall::Refused("this path"),
    }
}

/// `name` or `node/name`.
fn is_reference(names: &[&str]) -> bool {
    matches!(names.len(), 1 | 2) && names.iter().all(|name| !name.is_empty())
}

fn image(version: &str, names: &[&str], action: &str, query: &str) -> AccessCall {
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let reference = names.iter().map(|name| decode_segment(name)).collect::<Vec<_>>().join("/");
    let template = format!("{version}/images/{{}}/{action}{query}");
    AccessCall::Object(ObjectRequest { kind: ObjectKind::Image, reference, template })
}

/// `docker save` of several images: of the node that has the first.
fn image_archive(version: &str, query: &str) -> AccessCall {
    let name = RequestQuery::parse(query).get("names").to_owned();
    let template = format!("{version}/images/get?{query}");
    AccessCall::Object(ObjectRequest { kind: ObjectKind::Image, reference: name, template })
}

fn commit(version: &str, query: &str) -> AccessCall {
    let parsed = RequestQuery::parse(query);
    let others = query
        .split('&')
        .filter(|pair| !pair.is_empty() && pair.split('=').next() != Some("container"))
        .map(|pair| format!("&{pair}"))
        .collect::<Vec<_>>()
        .concat();
    let template = format!("{version}/commit?container={{}}{others}");
    AccessCall::Object(ObjectRequest { kind: ObjectKind::Container, reference: parsed.get("container").to_owned(), template })
}

/// An image's name in a path: its slashes stay.
pub fn encode_image(name: &str) -> String {
    name.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// The query with another value of one name, or without it.
pub fn replaced(query: &str, name: &str, value: Option<&str>) -> String {
    let kept = query.split('&').filter(|pair| !pair.is_empty() && pair.split('=').next() != Some(name)).map(str::to_owned);
    let more = value.map(|value| format!("{name}={}", encode(value)));
    kept.chain(more).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_about_one_object_goes_to_its_node_under_the_name_that_it_has_there() {
        for (method, target, kind, reference, there) in [
            ("POST", "/v1.50/containers/n1/web/start", ObjectKind::Container, "n1/web", "/v1.50/containers/ID/start"),
            ("POST", "/containers/web/stop?t=3", ObjectKind::Container, "web", "/containers/ID/stop?t=3"),
            ("DELETE", "/v1.41/containers/n1/web?force=1", ObjectKind::Container, "n1/web", "/v1.41/containers/ID?force=1"),
            ("DELETE", "/containers/n1%2Fweb", ObjectKind::Container, "n1/web", "/containers/ID"),
            ("GET", "/containers/n1/web/attach/ws?stdin=1", ObjectKind::Container, "n1/web", "/containers/ID/attach/ws?stdin=1"),
            ("HEAD", "/containers/n1/web/archive?path=/etc", ObjectKind::Container, "n1/web", "/containers/ID/archive?path=/etc"),
            ("POST", "/v1.50/exec/e1/start", ObjectKind::Exec, "e1", "/v1.50/exec/ID/start"),
            ("POST", "/commit?container=n1%2Fweb&repo=x", ObjectKind::Container, "n1/web", "/commit?container=ID&repo=x"),
            ("GET", "/v1.50/images/a/b:1/json", ObjectKind::Image, "a/b:1", "/v1.50/images/ID/json"),
            ("PUT", "/volumes/n1/data", ObjectKind::Volume, "n1/data", "/volumes/ID"),
            ("DELETE", "/networks/back", ObjectKind::Network, "back", "/networks/ID"),
        ] {
            let AccessCall::Object(found) = route(method, target) else { panic!("{method} {target}") };
            assert_eq!((found.kind, found.reference.as_str()), (kind, reference), "{target}");
            assert_eq!(found.target("ID"), there);
        }
    }

    #[test]
    fn the_rest_is_answered_by_several_nodes_by_this_one_or_refused() {
        for (method, target) in [
            ("GET", "/v1.50/containers/json?all=1"),
            ("POST", "/containers/create?name=web"),
            ("GET", "/containers/n1/web/json"),
            ("POST", "/images/create?fromImage=x"),
            ("DELETE", "/images/a/b:1"),
            ("GET", "/_ping"),
            ("GET", "/info"),
            ("POST", "/networks/n1/back/connect"),
            ("GET", "/volumes/data"),
            ("DELETE", "/v1.44/volumes/n1/data"),
        ] {
            assert_eq!(route(method, target), AccessCall::Handled, "{method} {target}");
        }
        for (method, target) in [("GET", "/v1.50/services"), ("POST", "/build?t=x"), ("POST", "/session"), ("POST", "/auth")] {
            assert_eq!(route(method, target), AccessCall::Here, "{method} {target}");
        }
        for (method, target) in [
            ("GET", "/system/df"),
            ("POST", "/plugins/pull"),
            ("POST", "/containers/a/b/c/start"),
            ("GET", "/containers/"),
            ("GET", "/containers/n1//json2"),
        ] {
            assert!(matches!(route(method, target), AccessCall::Refused(_)), "{method} {target}");
        }
    }

    #[test]
    fn a_name_is_no_further_part_of_a_path_or_a_query() {
        for (method, target, reference, there) in [
            ("POST", "/exec/e1%2F..%2Fx%3Fy/start", "e1/../x?y", "/exec/e1%2F..%2Fx%3Fy/start"),
            ("GET", "/images/a%2Fb%3Fall=1%23/history", "a/b?all=1#", "/images/a/b%3Fall%3D1%23/history"),
            ("GET", "/images/a/b:1%20x/json", "a/b:1 x", "/images/a/b%3A1%20x/json"),
        ] {
            let AccessCall::Object(found) = route(method, target) else { panic!("{method} {target}") };
            assert_eq!((found.reference.as_str(), found.target(&found.reference).as_str()), (reference, there));
        }
        assert_eq!(encode_image("a/b:1?force=1"), "a/b%3A1%3Fforce%3D1");
    }

    #[test]
    fn a_value_of_the_query_is_replaced() {
        assert_eq!(replaced("name=n1%2Fweb&platform=", "name", Some("web")), "platform=&name=web");
        assert_eq!(replaced("name=x", "name", None), "");
    }
}
