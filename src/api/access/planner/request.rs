//! What a client asks for with a new container: conditions in its variables and labels, ports, resources, other containers. The
//! conditions are taken out of the variables and kept in labels, so that they are known when the container is made again elsewhere.

use super::expression::PlacementExpression;
use super::{BoundPort, Reservation};
use crate::api::handlers::{field, update};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const CONSTRAINTS: &str = "com.docker.swarm.constraints";
const AFFINITIES: &str = "com.docker.swarm.affinities";
const RESCHEDULE: &str = "com.docker.swarm.reschedule-policies";
const WHITELISTS: &str = "com.docker.swarm.whitelists";
/// Label of a container that stays the same when it is made again elsewhere.
pub const SWARM_ID_LABEL: &str = "com.docker.swarm.id";
/// Label with what a container reserves: lists of containers do not say it.
pub const RESERVED_LABEL: &str = "skep.access-point.reserved";
/// The only policy besides `off`.
const ON_NODE_FAILURE: &str = "on-node-failure";

/// The prefixes of variables, and the labels that they become.
const FORMS: [(&str, &str); 4] =
    [("constraint:", CONSTRAINTS), ("affinity:", AFFINITIES), ("reschedule:", RESCHEDULE), ("whitelist:", WHITELISTS)];

/// What decides where a container goes.
#[derive(Clone, PartialEq, Debug)]
pub struct ContainerRequest {
    pub image: String,
    pub constraints: Vec<PlacementExpression>,
    pub affinities: Vec<PlacementExpression>,
    /// Each a set of nodes, of which it must be one.
    pub whitelists: Vec<BTreeSet<String>>,
    /// Containers that must be on its node.
    pub dependencies: BTreeSet<String>,
    pub ports: Vec<BoundPort>,
    pub reserved: Reservation,
    pub reschedule: bool,
}

impl ContainerRequest {
    /// Reads a posted container, and changes it to what an engine gets. `nodes` are the names that a reference may begin with.
    ///
    /// # Errors
    /// A condition that is not understood, or two nodes at once.
    pub fn take(posted: &mut Value, is_node: &dyn Fn(&str) -> bool) -> Result<Self, String> {
        let mut conditions = conditions(posted);
        let (dependencies, pinned) = references(posted, is_node);
        if pinned.len() > 1 {
            let nodes: Vec<&str> = pinned.iter().map(String::as_str).collect();
            return Err(format!("the container refers to objects of several nodes: {}", nodes.join(", ")));
        }
        let of = |key: &str| conditions.get(key).cloned().unwrap_or_default();
        let parse = |texts: Vec<String>| texts.iter().map(|text| PlacementExpression::parse(text)).collect::<Result<Vec<_>, _>>();
        let mut constraints = parse(of(CONSTRAINTS))?;
        for node in &pinned {
            constraints.push(PlacementExpression::exactly("node", node)?);
        }
        let host = field(posted, "HostConfig");
        let request = Self {
            image: field(posted, "Image").as_str().unwrap_or_default().to_owned(),
            constraints,
            affinities: parse(of(AFFINITIES))?,
            whitelists: of(WHITELISTS).iter().map(|text| whitelist(text)).collect::<Result<_, _>>()?,
            dependencies,
            ports: host_ports(posted),
            reserved: Reservation {
                nano_cpus: field(host, "NanoCpus").as_i64().unwrap_or(0).max(0),
                memory: field(host, "Memory").as_i64().unwrap_or(0).max(0),
            },
            reschedule: policy(&of(RESCHEDULE))?,
        };
        conditions.retain(|_, texts| !texts.is_empty());
        update(posted, "Labels", |labels| {
            for (key, texts) in &conditions {
                labels_of(labels)[*key] = json!(json!(texts).to_string());
            }
            labels_of(labels)[RESERVED_LABEL] = json!(reserved_text(&request.reserved, &request.ports));
        });
        Ok(request)
    }
}

fn labels_of(labels: &mut Value) -> &mut Value {
    if !labels.is_object() {
        *labels = json!({});
    }
    labels
}

/// The conditions in variables, which are removed, and in labels, by the label's name.
fn conditions(posted: &mut Value) -> BTreeMap<&'static str, Vec<String>> {
    let mut found: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let labels = field(posted, "Labels");
    for (_, label) in FORMS {
        let texts = labels.get(label).and_then(Value::as_str).and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
        found.entry(label).or_default().extend(texts.unwrap_or_default());
    }
    let take = |variables: &mut Value| {
        let Some(list) = variables.as_array_mut() else { return };
        list.retain(|variable| {
            let text = variable.as_str().unwrap_or_default();
            let form = FORMS.into_iter().find_map(|(prefix, label)| Some((text.strip_prefix(prefix)?, label)));
            let Some((condition, label)) = form else { return true };
            let texts = found.entry(label).or_default();
            if !texts.iter().any(|known| known == condition) {
                texts.push(condition.to_owned());
            }
            false
        });
    };
    if !field(posted, "Env").is_null() {
        update(posted, "Env", take);
    }
    found
}

fn whitelist(text: &str) -> Result<BTreeSet<String>, String> {
    let nodes = text.strip_prefix("node==").ok_or_else(|| format!("whitelist:{text}: node==A|B is expected"))?;
    Ok(nodes.split('|').map(str::to_owned).collect())
}

fn policy(texts: &[String]) -> Result<bool, String> {
    match texts {
        [] => Ok(false),
        [one] if one == "off" => Ok(false),
        [one] if one == ON_NODE_FAILURE => Ok(true),
        _ => Err(format!("reschedule:{}: one of on-node-failure and off is expected", texts.join(","))),
    }
}

/// The containers that a container needs beside it, and the nodes that its references name. `node/` is taken off references to
/// containers, volumes and networks: their node knows them without.
fn references(posted: &mut Value, is_node: &dyn Fn(&str) -> bool) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut dependencies, mut pinned) = (BTreeSet::new(), BTreeSet::new());
    let mut strip = |text: &str| match text.trim_start_matches('/').split_once('/') {
        Some((node, name)) if is_node(node) => {
            pinned.insert(node.to_owned());
            name.to_owned()
        }
        _ => text.to_owned(),
    };
    update(posted, "HostConfig", |host| {
        for list in ["VolumesFrom", "Links"] {
            let Some(texts) = field(host, list).as_array().cloned() else { continue };
            let texts: Vec<String> = texts.iter().filter_map(Value::as_str).map(&mut strip).collect();
            dependencies.extend(texts.iter().map(|text| container_of(text)));
            update(host, list, |value| *value = json!(texts));
        }
        for mode in ["NetworkMode", "IpcMode", "PidMode"] {
            let Some(text) = field(host, mode).as_str().map(str::to_owned) else { continue };
            match text.strip_prefix("container:") {
                Some(name) => {
                    let name = strip(name);
                    update(host, mode, |value| *value = json!(format!("container:{name}")));
                    dependencies.insert(container_of(&name));
                }
                None if mode == "NetworkMode" => {
                    let name = strip(&text);
                    update(host, mode, |value| *value = json!(name));
                }
                None => {}
            }
        }
        if let Some(binds) = field(host, "Binds").as_array().cloned() {
            let stripped = |bind: &str| if bind.starts_with('/') { bind.to_owned() } else { strip(bind) };
            let binds: Vec<String> = binds.iter().filter_map(Value::as_str).map(stripped).collect();
            update(host, "Binds", |value| *value = json!(binds));
        }
        update_each(host, "Mounts", |mount| {
            if mount["Type"] == "volume"
                && let Some(source) = mount["Source"].as_str()
            {
                mount["Source"] = json!(strip(source));
            }
        });
    });
    update(posted, "NetworkingConfig", |networking| {
        let Some(endpoints) = field(networking, "EndpointsConfig").as_object().cloned() else { return };
        let endpoints: serde_json::Map<String, Value> =
            endpoints.into_iter().map(|(name, endpoint)| (strip(&name), endpoint)).collect();
        update(networking, "EndpointsConfig", |value| *value = Value::Object(endpoints));
    });
    (dependencies, pinned)
}

fn update_each(host: &mut Value, list: &str, mut change: impl FnMut(&mut Value)) {
    if field(host, list).is_array() {
        update(host, list, |value| value.as_array_mut().into_iter().flatten().for_each(&mut change));
    }
}

/// `name` of `name:alias` and `name:ro`.
fn container_of(text: &str) -> String {
    text.split(':').next().unwrap_or_default().trim_start_matches('/').to_owned()
}

fn host_ports(posted: &Value) -> Vec<BoundPort> {
    let host = field(posted, "HostConfig");
    if field(host, "NetworkMode") == "host" {
        let exposed = field(posted, "ExposedPorts").as_object();
        return exposed.into_iter().flat_map(|map| map.keys()).filter_map(|key| host_port(key, key, "")).collect();
    }
    let bindings = field(host, "PortBindings").as_object();
    let all = bindings.into_iter().flatten().flat_map(|(key, list)| {
        list.as_array().into_iter().flatten().filter_map(move |binding| {
            let port = field(binding, "HostPort").as_str().unwrap_or_default();
            host_port(key, port, field(binding, "HostIp").as_str().unwrap_or_default())
        })
    });
    all.collect()
}

/// `key` is `80/tcp`. A range or no number is the engine's choice, which conflicts with nothing.
fn host_port(key: &str, port: &str, ip: &str) -> Option<BoundPort> {
    let protocol = key.split_once('/').map_or("tcp", |(_, protocol)| protocol).to_owned();
    let port = port.split('/').next()?.parse().ok().filter(|port| *port > 0)?;
    Some(BoundPort { protocol, port, ip: ip.to_owned() })
}

fn reserved_text(reserved: &Reservation, ports: &[BoundPort]) -> String {
    let ports: Vec<String> = ports.iter().map(|p| format!("{}/{}/{}", p.port, p.protocol, p.ip)).collect();
    json!({ "cpus": reserved.nano_cpus, "memory": reserved.memory, "ports": ports }).to_string()
}

/// What [`RESERVED_LABEL`] says.
pub fn reserved_of(text: &str) -> (Reservation, Vec<BoundPort>) {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let number = |key: &str| value[key].as_i64().unwrap_or(0).max(0);
    let ports = value["ports"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let ports = ports.filter_map(|text| {
        let mut parts = text.splitn(3, '/');
        let (port, protocol) = (parts.next()?.parse().ok()?, parts.next()?.to_owned());
        Some(BoundPort { protocol, port, ip: parts.next().unwrap_or_default().to_owned() })
    });
    (Reservation { nano_cpus: number("cpus"), memory: number("memory") }, ports.collect())
}
