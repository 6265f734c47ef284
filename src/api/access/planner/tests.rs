//! The planner case by case: three nodes, a request as the docker CLI posts it, the node or the refusal.

use super::fixture::{candidate, container};
use super::request::reserved_of;
use super::*;
use crate::settings::PlacementStrategy;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

const SPREAD: PlacementRules = PlacementRules { strategy: PlacementStrategy::Spread, overcommit: 0.05 };

/// n1 has the container `db` and the image `redis:7`, n2 the containers `web1` (label tier=front) and `web2` (port 8080), n3 none.
fn nodes() -> Vec<CandidateNode> {
    let mut nodes = vec![
        candidate("n1", "storage=ssd zone=eu-1 operatingsystem=Debian"),
        candidate("n2", "storage=disk zone=eu-2 operatingsystem=Debian"),
        candidate("n3", "storage=ssd-nvme zone=us-1 operatingsystem=Alpine containerslots=1"),
    ];
    nodes[0].containers.push(container("db"));
    nodes[0].images = ["sha256:1".to_owned(), "redis:7".to_owned(), "redis".to_owned()].into();
    let mut front = container("web1");
    front.labels.insert("tier".to_owned(), "front".to_owned());
    let mut port = container("web2");
    port.ports.push(BoundPort { protocol: "tcp".to_owned(), port: 8080, ip: String::new() });
    nodes[1].containers.extend([front, port]);
    nodes
}

fn taken(mut posted: Value) -> Result<(ContainerRequest, Value), String> {
    let request = ContainerRequest::take(&mut posted, &|name| ["n1", "n2", "n3"].contains(&name))?;
    Ok((request, posted))
}

fn chosen(nodes: &[CandidateNode], posted: Value, rules: PlacementRules) -> Result<String, String> {
    let (request, _) = taken(posted)?;
    choose(nodes, &request, rules, &mut StdRng::seed_from_u64(1)).map(|node| node.node.name.clone())
}

#[test]
fn conditions_in_variables() {
    let conditions = "Unable to find a node that satisfies the following conditions \n";
    for (variables, expected) in [
        ("", Ok("n3")),
        ("constraint:node==n2", Ok("n2")),
        ("constraint:node==n2id", Ok("n2")),
        ("constraint:node!=n3", Ok("n1")),
        ("constraint:node!=/n[13]/", Ok("n2")),
        ("constraint:storage==ssd", Ok("n1")),
        ("constraint:storage==ssd*", Ok("n3")),
        ("constraint:storage!=ssd*", Ok("n2")),
        ("constraint:zone==/eu-\\d/; constraint:storage!=disk", Ok("n1")),
        ("constraint:storage==~/tape.*/", Ok("n3")),
        ("constraint:storage==~disk", Ok("n2")),
        ("constraint:nolabel!=x", Ok("n3")),
        ("constraint:storage==tape", Err("[constraint storage==tape]")),
        ("constraint:operatingsystem==Debian; affinity:container!=db", Ok("n2")),
        ("affinity:container==db", Ok("n1")),
        ("affinity:container==db0000", Ok("n1")),
        ("affinity:container==web*", Ok("n2")),
        ("affinity:container!=web*", Ok("n3")),
        ("affinity:container!=~/.*/", Ok("n3")),
        ("affinity:image==redis", Ok("n1")),
        ("affinity:image==redis:7", Ok("n1")),
        ("affinity:image==~mysql", Ok("n3")),
        ("affinity:tier==front", Ok("n2")),
        ("affinity:tier!=front; constraint:node!=n3", Ok("n1")),
        ("affinity:container==nosuch", Err("[affinity container==nosuch]")),
        ("whitelist:node==n2|nosuch", Ok("n2")),
        ("whitelist:node==nosuch", Err("[whitelist node==nosuch]")),
        ("constraint:node=n1", Err("constraint: node=n1: one operator of == and != is expected")),
        ("constraint:node==/(/", Err("is not a regular expression")),
        ("constraint:==x", Err("is no key")),
        ("constraint:node==", Err("a value is expected")),
        ("whitelist:n1", Err("node==A|B is expected")),
        ("reschedule:sometimes", Err("one of on-node-failure and off is expected")),
    ] {
        let env: Vec<&str> = variables.split("; ").filter(|variable| !variable.is_empty()).collect();
        let got = chosen(&nodes(), json!({ "Image": "x", "Env": env }), SPREAD);
        match (got, expected) {
            (Ok(node), Ok(expected)) => assert_eq!(node, expected, "{variables:?}"),
            (Err(reason), Err(expected)) => {
                let expected = expected.strip_prefix("constraint: ").unwrap_or(expected);
                let is_condition = expected.starts_with('[');
                assert!(
                    if is_condition { reason == format!("{conditions}{expected}") } else { reason.contains(expected) },
                    "{reason}"
                );
            }
            (got, expected) => panic!("{variables:?}: {got:?}, not {expected:?}"),
        }
    }
}

#[test]
fn other_containers_ports_slots_and_resources() {
    for (what, host, expected) in [
        ("volumes of another", json!({ "VolumesFrom": ["db:ro"] }), Ok("n1")),
        ("a link", json!({ "Links": ["web1:web"] }), Ok("n2")),
        ("another's network", json!({ "NetworkMode": "container:db" }), Ok("n1")),
        ("another's network by node", json!({ "NetworkMode": "container:n1/db" }), Ok("n1")),
        ("two that are apart", json!({ "VolumesFrom": ["db"], "Links": ["web1:w"] }), Err("container web1")),
        ("objects of two nodes", json!({ "Links": ["n1/db:d", "n2/web1:w"] }), Err("several nodes: n1, n2")),
        ("a volume of a node", json!({ "Binds": ["n2/data:/data", "/etc:/etc"] }), Ok("n2")),
        ("a port that two have free", json!({ "PortBindings": { "80/tcp": [{ "HostPort": "8080" }] } }), Ok("n3")),
        (
            "the port of another protocol",
            json!({ "PortBindings": { "80/udp": [{ "HostPort": "8080" }] }, "Links": ["web1:w"] }),
            Ok("n2"),
        ),
        (
            "a port in use",
            json!({ "PortBindings": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8080" }] }, "Links": ["web1:w"] }),
            Err("dependency: container web1"),
        ),
        (
            "more memory than there is",
            json!({ "Memory": 9_000_000_000_i64 }),
            Err("no resources available to schedule container"),
        ),
        ("overcommitted memory", json!({ "Memory": 8_300_000_000_i64 }), Ok("n3")),
        ("CPUs", json!({ "NanoCpus": 5_000_000_000_i64 }), Err("no resources available to schedule container")),
    ] {
        let got = chosen(&nodes(), json!({ "Image": "x", "HostConfig": host }), SPREAD);
        match (&got, expected) {
            (Ok(node), Ok(expected)) => assert_eq!(node, expected, "{what}"),
            (Err(reason), Err(expected)) => assert!(reason.contains(expected), "{what}: {reason}"),
            _ => panic!("{what}: {got:?}, not {expected:?}"),
        }
    }
    // n3 has one slot.
    let mut full = nodes();
    full[2].containers.push(container("only"));
    assert_eq!(chosen(&full, json!({ "Env": ["constraint:node!=n2"] }), SPREAD).as_deref(), Ok("n1"));
    let refused = chosen(&full[2..], json!({}), SPREAD).unwrap_err();
    assert_eq!(refused, "No node with enough open slots available in the cluster");
    full[2].node.state = crate::model::NodeState::Down;
    assert_eq!(chosen(&full[2..], json!({}), SPREAD).unwrap_err(), "No healthy node available in the cluster");
    assert_eq!(chosen(&[], json!({}), SPREAD).unwrap_err(), "No nodes available in the cluster");
}

#[test]
fn strategies_order_the_nodes_that_fit() {
    let asked = json!({ "HostConfig": { "Memory": 1_000_000_000_i64 } });
    let mut nodes = vec![candidate("n1", ""), candidate("n2", ""), candidate("n3", "")];
    nodes[1]
        .containers
        .push(PlacedContainer { reserved: Reservation { nano_cpus: 0, memory: 2_000_000_000 }, ..container("large") });
    let place =
        |strategy, nodes: &[CandidateNode]| chosen(nodes, asked.clone(), PlacementRules { strategy, overcommit: 0.0 }).unwrap();
    assert_eq!(place(PlacementStrategy::Spread, &nodes), "n1");
    assert_eq!(place(PlacementStrategy::Binpack, &nodes), "n2");
    nodes[1].containers[0].reserved.memory = 7_500_000_000;
    assert_eq!(place(PlacementStrategy::Binpack, &nodes), "n1", "the fullest has no room");
    let (request, _) = taken(json!({})).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let random = PlacementRules { strategy: PlacementStrategy::Random, overcommit: 0.0 };
    let places: std::collections::BTreeSet<String> =
        (0..50).map(|_| choose(&nodes, &request, random, &mut rng).unwrap().node.name.clone()).collect();
    assert_eq!(places.len(), 3, "{places:?}");
}

#[test]
fn conditions_become_labels_and_the_engine_gets_names_without_nodes() {
    let (request, posted) = taken(json!({
        "Image": "x",
        "Env": ["A=1", "constraint:node!=n3", "reschedule:on-node-failure"],
        "Labels": { "com.docker.swarm.affinities": "[\"container!=db\"]", "mine": "1" },
        "HostConfig": {
            "VolumesFrom": ["n2/web1:ro"], "Binds": ["n2/data:/data"], "NetworkMode": "n2/lan", "Memory": 5,
            "PortBindings": { "80/tcp": [{ "HostIp": "10.0.0.1", "HostPort": "81" }, { "HostPort": "" }] },
            "Mounts": [{ "Type": "volume", "Source": "n2/other", "Target": "/o" }, { "Type": "bind", "Source": "n2/x", "Target": "/x" }],
        },
        "NetworkingConfig": { "EndpointsConfig": { "n2/lan": { "Aliases": ["a"] } } },
    }))
    .unwrap();
    assert!(request.reschedule && request.affinities.len() == 1 && request.constraints.len() == 2);
    let host = &posted["HostConfig"];
    assert_eq!(posted["Env"], json!(["A=1"]));
    assert_eq!(
        (&host["VolumesFrom"], &host["Binds"], &host["NetworkMode"]),
        (&json!(["web1:ro"]), &json!(["data:/data"]), &json!("lan"))
    );
    assert_eq!((&host["Mounts"][0]["Source"], &host["Mounts"][1]["Source"]), (&json!("other"), &json!("n2/x")));
    assert_eq!(posted["NetworkingConfig"]["EndpointsConfig"], json!({ "lan": { "Aliases": ["a"] } }));
    let labels: BTreeMap<String, String> = serde_json::from_value(posted["Labels"].clone()).unwrap();
    assert_eq!(labels["com.docker.swarm.constraints"], "[\"node!=n3\"]");
    let policies = labels["com.docker.swarm.reschedule-policies"].as_str();
    assert_eq!((labels["mine"].as_str(), policies), ("1", "[\"on-node-failure\"]"));
    let port = BoundPort { protocol: "tcp".to_owned(), port: 81, ip: "10.0.0.1".to_owned() };
    assert_eq!(reserved_of(&labels[request::RESERVED_LABEL]), (Reservation { nano_cpus: 0, memory: 5 }, vec![port]));
}
