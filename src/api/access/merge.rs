//! Lists of several engines as one. Pure.

use super::engine_node::EngineNode;
use super::objects::{object_in, objects};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Addresses that mean every address of the host.
const ANY_V4: &str = "0.0.0.0";
const ANY_V6: &str = "::";

/// Containers, newest first, with the node in each name and the node's address in place of "every address".
pub fn containers(lists: Vec<(EngineNode, Vec<Value>)>, limit: usize) -> Vec<Value> {
    let mut all: Vec<Value> =
        lists.into_iter().flat_map(|(node, list)| list.into_iter().map(move |container| on_node(container, &node))).collect();
    all.sort_by_key(|container| std::cmp::Reverse(container["Created"].as_i64().unwrap_or_default()));
    if limit > 0 {
        all.truncate(limit);
    }
    all
}

fn on_node(mut container: Value, node: &EngineNode) -> Value {
    if let Some(names) = container["Names"].as_array_mut() {
        for name in names {
            *name = json!(format!("/{}{}", node.name, name.as_str().unwrap_or_default()));
        }
    }
    if let Some(ports) = container["Ports"].as_array_mut() {
        let ip = node.ip();
        if !ip.is_empty() {
            ports.retain(|port| port["IP"] != ANY_V6 || !ports_has_v4(&ip));
            for port in ports {
                if port["IP"] == ANY_V4 || port["IP"] == ANY_V6 {
                    port["IP"] = json!(ip);
                }
            }
        }
    }
    container
}

fn ports_has_v4(ip: &str) -> bool {
    !ip.contains(':')
}

/// Adds the node to what an engine says of a container.
pub fn inspected(container: &mut Value, node: &EngineNode) {
    let ip = node.ip();
    for ports in [&["NetworkSettings", "Ports"][..], &["HostConfig", "PortBindings"]] {
        let bindings = object_in(object_in(container, ports[0]), ports[1]);
        for binding in bindings.as_object_mut().into_iter().flatten().filter_map(|(_, list)| list.as_array_mut()).flatten() {
            if binding["HostIp"] == ANY_V4 && !ip.is_empty() {
                binding["HostIp"] = json!(ip);
            }
        }
    }
    container["Node"] = json!({
        "ID": node.id.to_string(), "IP": ip, "Addr": ip, "Name": node.name, "Cpus": node.nano_cpus / 1_000_000_000,
        "Memory": node.memory, "Labels": node.labels,
    });
}

/// Images by id, newest first: tags and digests of all nodes together.
pub fn images(lists: Vec<(EngineNode, Vec<Value>)>) -> Vec<Value> {
    let mut by_id: BTreeMap<String, Value> = BTreeMap::new();
    for image in lists.into_iter().flat_map(|(_, list)| list) {
        let id = image["Id"].as_str().unwrap_or_default().to_owned();
        match by_id.get_mut(&id) {
            None => drop(by_id.insert(id, image)),
            Some(known) => {
                for key in ["RepoTags", "RepoDigests"] {
                    add_missing(&mut known[key], &image[key]);
                }
            }
        }
    }
    let mut all: Vec<Value> = by_id.into_values().collect();
    all.sort_by_key(|image| std::cmp::Reverse(image["Created"].as_i64().unwrap_or_default()));
    all
}

fn add_missing(into: &mut Value, from: &Value) {
    let Some(more) = from.as_array() else { return };
    if !into.is_array() {
        *into = json!([]);
    }
    let Some(list) = into.as_array_mut() else { return };
    let new: Vec<Value> = more.iter().filter(|tag| !list.contains(tag)).cloned().collect();
    list.extend(new);
}

/// Volumes as `node/name`.
pub fn volumes(lists: Vec<(EngineNode, Value)>) -> Value {
    let (mut volumes, mut warnings) = (Vec::new(), Vec::new());
    for (node, mut reply) in lists {
        for mut volume in objects(reply["Volumes"].as_array_mut().map(std::mem::take).unwrap_or_default()) {
            volume["Name"] = json!(format!("{}/{}", node.name, volume["Name"].as_str().unwrap_or_default()));
            volumes.push(volume);
        }
        warnings.extend(reply["Warnings"].as_array().cloned().unwrap_or_default());
    }
    json!({ "Volumes": volumes, "Warnings": warnings })
}

/// Networks: those of the swarm once, those of a node as `node/name`.
pub fn networks(lists: Vec<(EngineNode, Vec<Value>)>) -> Vec<Value> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut all = Vec::new();
    for (node, list) in lists {
        for mut network in list {
            if network["Scope"] == "local" {
                network["Name"] = json!(format!("{}/{}", node.name, network["Name"].as_str().unwrap_or_default()));
                all.push(network);
            } else if seen.insert(network["Id"].as_str().unwrap_or_default().to_owned()) {
                all.push(network);
            }
        }
    }
    all
}

/// What prunes of several nodes removed, in one reply: lists are joined, numbers added.
pub fn pruned(replies: Vec<Value>) -> Value {
    let mut sum = json!({});
    for (key, value) in replies
        .into_iter()
        .filter_map(|reply| match reply {
            Value::Object(map) => Some(map),
            _ => None,
        })
        .flatten()
    {
        match (&mut sum[&key], value) {
            (Value::Array(list), Value::Array(more)) => list.extend(more),
            (Value::Number(number), Value::Number(more)) => {
                sum[&key] = json!(number.as_u64().unwrap_or(0) + more.as_u64().unwrap_or(0));
            }
            (Value::Null, value) => sum[&key] = value,
            _ => {}
        }
    }
    sum
}

/// An event with its node.
pub fn event(mut event: Value, node: &EngineNode) -> Value {
    let ip = node.ip();
    let parts = [("node.name", node.name.as_str()), ("node.id", node.id.as_str()), ("node.addr", &ip), ("node.ip", &ip)];
    for (key, value) in parts {
        object_in(object_in(&mut event, "Actor"), "Attributes")[key] = json!(value);
    }
    event
}

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::engine_node;
    use super::*;

    #[test]
    fn containers_have_their_node_in_their_names_and_its_address_on_their_ports() {
        let container = |name: &str, created: i64| {
            json!({ "Names": [format!("/{name}")], "Created": created, "Ports": [
                { "IP": "0.0.0.0", "PublicPort": 80 }, { "IP": "::", "PublicPort": 80 }, { "IP": "127.0.0.1", "PublicPort": 81 },
            ]})
        };
        let lists =
            vec![(engine_node("n1"), vec![container("a", 1), container("c", 3)]), (engine_node("n2"), vec![container("b", 2)])];
        let all = containers(lists.clone(), 0);
        let names: Vec<&str> = all.iter().filter_map(|c| c["Names"][0].as_str()).collect();
        assert_eq!(names, ["/n1/c", "/n2/b", "/n1/a"]);
        assert_eq!(all[0]["Ports"], json!([{ "IP": "192.0.2.1", "PublicPort": 80 }, { "IP": "127.0.0.1", "PublicPort": 81 }]));
        assert_eq!(containers(lists, 1).len(), 1);
    }

    #[test]
    fn an_image_is_listed_once_with_the_tags_of_all_nodes() {
        let image = |id: &str, tags: &[&str]| json!({ "Id": id, "RepoTags": tags, "Created": 1 });
        let lists = vec![
            (engine_node("n1"), vec![image("i1", &["a:1"])]),
            (engine_node("n2"), vec![image("i1", &["a:1", "a:2"]), image("i2", &["b:1"])]),
        ];
        let all = images(lists);
        assert_eq!((all.len(), &all[0]["RepoTags"]), (2, &json!(["a:1", "a:2"])));
    }

    #[test]
    fn a_swarm_network_is_listed_once_and_a_local_one_under_its_node() {
        let network = |id: &str, name: &str, scope: &str| json!({ "Id": id, "Name": name, "Scope": scope });
        let lists = vec![
            (engine_node("n1"), vec![network("s", "back", "swarm"), network("l1", "bridge", "local")]),
            (engine_node("n2"), vec![network("s", "back", "swarm"), network("l2", "bridge", "local")]),
        ];
        let names: Vec<String> = networks(lists).iter().map(|n| n["Name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["back", "n1/bridge", "n2/bridge"]);
    }

    #[test]
    fn prunes_are_added_up() {
        let replies = vec![
            json!({ "ContainersDeleted": ["a"], "SpaceReclaimed": 3 }),
            json!({ "ContainersDeleted": null, "SpaceReclaimed": 4 }),
            json!({ "ContainersDeleted": ["b"], "SpaceReclaimed": 0 }),
        ];
        assert_eq!(pruned(replies), json!({ "ContainersDeleted": ["a", "b"], "SpaceReclaimed": 7 }));
    }
}
