//! A store as it was when something was recorded: made from the recorded replies themselves.

use serde_json::{Value, json};
use skep::model::WgKey;
use skep::model::mesh::MeshPrefix;
use skep::model::node::{ManagerStatus, NodeDescription, NodeMesh, NodeStatus};
use skep::model::service::{Endpoint, EndpointSpec};
use skep::model::task::{Attachment, TaskStatus};
use skep::model::{
    Cluster, ClusterId, ClusterSpec, JoinTokens, Meta, Network, NetworkId, NetworkSpec, Node, NodeId, NodeSpec, NodeState, Role,
    Service, ServiceId, ServiceSpec, Task, TaskId, TaskSpec, Timestamp,
};
use skep::store::{Action, StoreHandle};
use std::collections::{BTreeMap, BTreeSet};

const AT: Timestamp = Timestamp(1_795_000_000_123_456_789);

/// The swarm of the recordings.
pub fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::from("c67q4jahe2xaweq5gh2g0oqvo"),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        incarnation: 1,
        ca_certificate: "PEM".to_owned(),
        ca_key: String::new(),
        tokens: JoinTokens { worker: "SWMTKN-1-a-b".to_owned(), manager: "SWMTKN-1-a-c".to_owned() },
        mesh: mesh(),
        address_pools: Vec::new(),
        subnet_size: 24,
        data_path_port: 4789,
    }
}

fn mesh() -> MeshPrefix {
    serde_json::from_value(json!("fd12:3456:789a::/48")).unwrap_or_else(|_| panic!("a mesh prefix is written differently"))
}

/// A node of it.
pub fn node(id: &str, hostname: &str, role: Role) -> Node {
    let last = hostname.chars().last().and_then(|c| c.to_digit(10)).unwrap_or(9);
    let addr: std::net::IpAddr = format!("10.123.0.{last}").parse().unwrap();
    let plugins = [("Log", "json-file"), ("Network", "bridge"), ("Network", "overlay"), ("Volume", "local")];
    Node {
        id: NodeId::from(id),
        meta: Meta::default(),
        spec: NodeSpec { role, ..NodeSpec::default() },
        description: NodeDescription {
            hostname: hostname.to_owned(),
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
            nano_cpus: 2_000_000_000,
            memory_bytes: 25_276_502_016,
            engine_version: "28.5.2+dfsg4".to_owned(),
            plugins: plugins.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, message: String::new(), addr: Some(addr) },
        mesh: NodeMesh {
            key: WgKey([u8::try_from(last).unwrap(); 32]),
            subnet: format!("fd12:3456:789a:{last}::/64").parse().unwrap(),
            ingress_addr: std::net::Ipv4Addr::new(10, 0, 0, u8::try_from(last).unwrap()),
            endpoints: Vec::new(),
        },
        manager: (role == Role::Manager).then(|| ManagerStatus { raft_id: 1, addr: std::net::SocketAddr::new(addr, 2377) }),
    }
}

/// A network of it.
pub fn network(id: &str, name: &str, subnet: Option<&str>) -> Network {
    Network {
        id: NetworkId::from(id),
        meta: Meta::default(),
        spec: NetworkSpec { name: name.to_owned(), ingress: name == "ingress", ..NetworkSpec::default() },
        subnet: subnet.map(|s| s.parse().unwrap()),
    }
}

/// A service of it with this spec.
pub fn service(id: &str, spec: Value) -> Option<Service> {
    Some(Service {
        id: ServiceId::from(id),
        meta: Meta::default(),
        spec: serde_json::from_value(spec).ok()?,
        previous_spec: None,
        spec_version: 1,
        endpoint: Endpoint::default(),
    })
}

/// A spec like those of the recordings.
pub fn spec(name: &str) -> Value {
    json!({"Name": name, "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Args": ["sleep", "1000"], "Init": false,
        "DNSConfig": {}, "Isolation": "default"}, "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {},
        "ForceUpdate": 0, "Runtime": "container"}, "Mode": {"Replicated": {"Replicas": 2}}, "EndpointSpec": {"Mode": "vip"}})
}

/// A store that holds what the recorded replies show, and the usual objects besides.
pub async fn fill(handle: &StoreHandle, exchanges: &[Value]) {
    let mut made = BTreeSet::new();
    // Of several replies about an object the fullest counts; what is made on the way is not there at the start.
    let mut shown: BTreeMap<String, (&str, Value)> = BTreeMap::new();
    let mut updated = false;
    for exchange in exchanges {
        updated |= exchange["status"] == 200 && exchange["path"].as_str().is_some_and(|p| p.ends_with("/update"));
        let body = &exchange["response_body"];
        if exchange["status"] == 201 {
            made.insert(id_of(body).to_owned());
            made.insert(exchange["request_body"]["Name"].as_str().unwrap_or_default().to_owned());
        }
        let path = exchange["path"].as_str().unwrap_or_default();
        let kind = path.split('/').find(|s| KINDS.contains(s)).unwrap_or_default();
        let objects: Vec<&Value> = body.as_array().map_or_else(|| vec![body], |list| list.iter().collect());
        for object in objects.into_iter().filter(|o| id_of(o).len() == 25 && !made.contains(id_of(o))) {
            let full = |o: &Value| o.to_string().len() + if o["Spec"]["Name"].is_string() { 10_000 } else { 0 };
            let known = shown.get(id_of(object)).map_or(0, |(_, o)| full(o));
            // What an update on the way made of it is not what it was.
            let mut object = object.clone();
            if let Some((_, earlier)) = shown.get(id_of(&object))
                && object["Spec"].is_string()
            {
                object["Spec"] = earlier["Spec"].clone();
            }
            if full(&object) > known && !(updated && known > 0) && read(kind, &object).is_some() {
                if updated {
                    object.as_object_mut().unwrap().remove("PreviousSpec");
                }
                shown.insert(id_of(&object).to_owned(), (kind, object));
            }
        }
    }
    let mut actions = vec![Action::create(cluster_of(exchanges))];
    let everything = serde_json::to_string(exchanges).unwrap();
    for action in shown.values().filter_map(|(kind, object)| read(kind, object)).chain(usual(&everything)) {
        let (id, name) = named(&action);
        let taken = |a: &Action| named(a).0 == id || (named(a).1 == name && !name.is_empty());
        let spoken_of = [format!("\"{name}\""), format!("/{name}"), format!("'{name}'"), id.clone()];
        let needed = name.starts_with("lab") || name == "ingress" || spoken_of.iter().any(|s| everything.contains(s.as_str()));
        if needed && !actions.iter().any(taken) && !made.contains(&name) {
            actions.push(action);
        }
    }
    actions.extend(shown.values().flat_map(|(_, object)| running(object)));
    actions.extend(exchanges.iter().filter_map(|e| user_of_network(e["response_body"]["message"].as_str()?)));
    // So that the versions 1 and 2 of the recordings are stale.
    for _ in 0..2 {
        handle.write(AT, Vec::new()).await.unwrap();
    }
    handle.write(AT, actions).await.unwrap();
}

/// The service that keeps a network from being removed.
fn user_of_network(refusal: &str) -> Option<Action> {
    let (network, id) = refusal.split_once("desc = network ")?.1.split_once(" is in use by service ")?;
    let mut spec = spec("user");
    spec["TaskTemplate"]["Networks"] = json!([{ "Target": network }]);
    service(id, spec).map(Action::create)
}

/// Running tasks, as many as a listed service is said to have.
fn running(service: &Value) -> Vec<Action> {
    let count = service["ServiceStatus"]["RunningTasks"].as_u64().unwrap_or(0);
    let make = |slot| {
        let id = format!("{slot}{}", &id_of(service)[1..]);
        let shown = json!({"ServiceID": id_of(service), "Slot": slot, "DesiredState": "running", "Status": {"State": "running"}});
        task(&id, &shown).map(Action::create)
    };
    (1..=count).filter_map(make).collect()
}

const KINDS: [&str; 4] = ["nodes", "services", "tasks", "networks"];

/// Whether an object can be in our store as it was recorded: its fields are all carried out.
pub fn storable(object: &Value) -> bool {
    let whole = |spec: &Value| {
        let read: Result<ServiceSpec, _> = serde_json::from_value(spec.clone());
        spec.is_null()
            || !spec["TaskTemplate"].is_object()
            || read.is_ok_and(|r| {
                let mut plain = spec.clone();
                // An inspection shows defaults.
                if !plain["UpdateConfig"].is_null()
                    && plain["UpdateConfig"]["Parallelism"] == 1
                    && plain["UpdateConfig"]["Delay"].is_null()
                {
                    plain.as_object_mut().unwrap().remove("UpdateConfig");
                    plain.as_object_mut().unwrap().remove("RollbackConfig");
                }
                serde_json::to_value(r).unwrap() == plain
            })
    };
    if object["DesiredState"].is_string() {
        if object["ServiceID"].is_null() {
            return false;
        }
        let read: Result<TaskSpec, _> = serde_json::from_value(object["Spec"].clone());
        let plain = !object["Spec"].is_object() || read.is_ok_and(|r| serde_json::to_value(r).unwrap() == object["Spec"]);
        return plain && (object["Slot"].is_u64() || object["CreatedAt"].is_null()) && object["JobIteration"].is_null();
    }
    if object["Scope"] == "swarm" {
        return object["Driver"] == "overlay"
            && object["EnableIPv6"] != true
            && object["IPAM"]["Config"][0]["IPRange"].is_null()
            && object["Options"].get("com.docker.network.driver.mtu").is_none();
    }
    whole(&object["Spec"]) && object["JobStatus"].is_null()
}

fn id_of(object: &Value) -> &str {
    object["ID"].as_str().or(object["Id"].as_str()).unwrap_or_default()
}

fn named(action: &Action) -> (String, String) {
    match action {
        Action::Create(skep::store::Object::Node(o)) => (o.id.to_string(), o.description.hostname.clone()),
        Action::Create(skep::store::Object::Network(o)) => (o.id.to_string(), o.spec.name.clone()),
        Action::Create(skep::store::Object::Service(o)) => (o.id.to_string(), o.spec.name.clone()),
        Action::Create(skep::store::Object::Task(o)) => (o.id.to_string(), String::new()),
        _ => (String::new(), String::new()),
    }
}

/// What nearly every recording stands on. The second manager is there where it is spoken of.
fn usual(recording: &str) -> Vec<Action> {
    let mut lab2 = node("drwr0n2tcmgjuamlus2eyenpw", "lab2", Role::Worker);
    lab2.spec.labels.insert("zone".to_owned(), "b".to_owned());
    let mut net1 = network("zbfjs2hqma60u1d2btja6hhrw", "net1", Some("10.0.2.0/24"));
    net1.spec.attachable = true;
    let mut ing = spec("ing");
    ing["EndpointSpec"]["Ports"] =
        json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8081, "PublishMode": "ingress"}]);
    let second = ["lab3", "ymrqj25p8la8xztehs0leksm4", "1 managers out of 2"].iter().any(|word| recording.contains(word));
    let mut lab3 = node("ymrqj25p8la8xztehs0leksm4", "lab3", Role::Manager);
    lab3.spec.labels.insert("zone".to_owned(), "a".to_owned());
    if recording.contains("service r is ambiguous") {
        return ["r1aaaaaaaaaaaaaaaaaaaaaaa", "r2aaaaaaaaaaaaaaaaaaaaaaa"]
            .into_iter()
            .filter_map(|id| service(id, spec(&format!("lab-{id}"))).map(Action::create))
            .collect();
    }
    let mut actions: Vec<Action> = second.then(|| Action::create(lab3)).into_iter().collect();
    actions.extend([
        Action::create(node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager)),
        Action::create(lab2),
        Action::create(network("cznjbon83xpib6n5udkd4hhku", "ingress", Some("10.0.0.0/24"))),
        Action::create(network("22fbmh3ytumi5zhxzrqb9iqsm", "ov1", Some("10.0.1.0/24"))),
        Action::create(node("ty9y0lg7dkj9kci5tkukt89nx", "lab4", Role::Worker)),
        Action::create(net1),
    ]);
    for (id, spec) in [
        ("dig3cz5iw3ixm4gvlqsmq0trz", spec("dig")),
        ("quikb5nvo8bnjmod3oie9yyik", spec("qui")),
        ("zer04cz5iw3ixm4gvlqsmq0tr", spec("zero")),
        ("ms35vw9e21mtexulzi904k5pz", spec("rep")),
        ("9o3pwj13w205azww85h6zl78v", ing),
        ("wf2afx586occ4f7a2aywh0zr3", raw("rawsvc")),
    ] {
        actions.extend(service(id, spec).map(Action::create));
    }
    actions
}

fn raw(name: &str) -> Value {
    json!({"Name": name, "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Command": ["sleep", "1000"],
        "Isolation": "default"}, "ForceUpdate": 0, "Runtime": "container"}, "Mode": {"Replicated": {"Replicas": 1}}})
}

fn cluster_of(exchanges: &[Value]) -> Cluster {
    let mut cluster = cluster();
    let shown = exchanges.iter().find(|e| e["path"].as_str().is_some_and(|p| p.ends_with("/swarm")) && e["status"] == 200);
    if let Some(spec) = shown.and_then(|e| serde_json::from_value(e["response_body"]["Spec"].clone()).ok()) {
        cluster.spec = spec;
    }
    cluster
}

fn read(kind: &str, object: &Value) -> Option<Action> {
    let id = id_of(object);
    if !storable(object) {
        return None;
    }
    match kind {
        "nodes" => {
            let hostname = object["Description"]["Hostname"].as_str().or(object["Name"].as_str())?;
            let usual = ["lab1", "lab3"].contains(&hostname);
            let role = match object["Spec"]["Role"].as_str() {
                Some("manager") => Role::Manager,
                None if usual => Role::Manager,
                _ => Role::Worker,
            };
            let mut node = node(id, hostname, role);
            if object["Spec"].is_null() && hostname != "lab4" {
                node.spec.labels.insert("zone".to_owned(), if usual { "a" } else { "b" }.to_owned());
            }
            if let Ok(spec) = serde_json::from_value(object["Spec"].clone()) {
                node.spec = spec;
            }
            node.status.state = serde_json::from_value(object["Status"]["State"].clone()).unwrap_or(NodeState::Ready);
            object["Status"]["Message"].as_str().unwrap_or_default().clone_into(&mut node.status.message);
            match (&mut node.manager, object["ManagerStatus"]["Addr"].as_str()) {
                (Some(manager), Some(addr)) => manager.addr = addr.parse().unwrap(),
                (manager, None) if object["Spec"].is_object() => *manager = None,
                _ => {}
            }
            Some(Action::create(node))
        }
        "services" => {
            let shown = &object["Spec"];
            let name = shown["Name"].as_str().or(object["Name"].as_str()).unwrap_or(&id[..8]);
            let mut posted = if shown["TaskTemplate"].is_object() { shown.clone() } else { spec(name) };
            plain(&mut posted);
            let mut service = service(id, posted)?;
            service.previous_spec = match &object["PreviousSpec"] {
                Value::String(_) => Some(service.spec.clone()),
                other => serde_json::from_value(other.clone()).ok(),
            };
            let endpoint = &object["Endpoint"];
            service.endpoint = Endpoint {
                spec: serde_json::from_value::<EndpointSpec>(endpoint["Spec"].clone()).ok(),
                ports: serde_json::from_value(endpoint["Ports"].clone()).unwrap_or_default(),
                vips: serde_json::from_value(endpoint["VirtualIPs"].clone()).unwrap_or_default(),
            };
            Some(Action::create(service))
        }
        "tasks" => Some(Action::create(task(id, object)?)),
        "networks" => {
            let subnet = object["IPAM"]["Config"][0]["Subnet"].as_str();
            if object["Driver"] != "overlay" {
                return None;
            }
            let mut network = network(id, object["Name"].as_str()?, subnet);
            let flag = |key: &str| object[key].as_bool().unwrap_or(false);
            network.spec.attachable = flag("Attachable");
            network.spec.internal = flag("Internal");
            network.spec.options = serde_json::from_value(object["Options"].clone()).unwrap_or_default();
            network.spec.options.retain(|key, _| !key.contains("vxlanid"));
            network.spec.labels = serde_json::from_value(object["Labels"].clone()).unwrap_or_default();
            Some(Action::create(network))
        }
        _ => None,
    }
}

/// Takes the defaults off that only an inspection shows.
fn plain(spec: &mut Value) {
    if spec["UpdateConfig"].is_null() {
        return;
    }
    for key in ["UpdateConfig", "RollbackConfig"] {
        spec.as_object_mut().unwrap().remove(key);
    }
    let task = spec["TaskTemplate"].as_object_mut().unwrap();
    if task["RestartPolicy"] == json!({"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0}) {
        task.remove("RestartPolicy");
    }
    let container = task["ContainerSpec"].as_object_mut().unwrap();
    if container["StopGracePeriod"] == 10_000_000_000_u64 {
        container.remove("StopGracePeriod");
    }
}

fn task(id: &str, object: &Value) -> Option<Task> {
    let status = &object["Status"];
    let spec: TaskSpec = serde_json::from_value(object["Spec"].clone()).unwrap_or_default();
    let attachments = object["NetworksAttachments"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| {
            Some(Attachment {
                network_id: NetworkId::from(a["Network"]["ID"].as_str()?),
                address: a["Addresses"][0].as_str()?.parse().ok()?,
            })
        })
        .collect();
    Some(Task {
        id: TaskId::from(id),
        meta: Meta::default(),
        spec,
        spec_version: 1,
        service_id: ServiceId::from(object["ServiceID"].as_str()?),
        service_name: "rep".to_owned(),
        service_labels: std::collections::BTreeMap::new(),
        slot: object["Slot"].as_u64().unwrap_or(0),
        node_id: object["NodeID"].as_str().map(NodeId::from),
        desired_state: serde_json::from_value(object["DesiredState"].clone()).unwrap_or_default(),
        status: TaskStatus {
            timestamp: AT,
            state: serde_json::from_value(status["State"].clone()).unwrap_or_default(),
            message: status["Message"].as_str().unwrap_or_default().to_owned(),
            err: status["Err"].as_str().unwrap_or_default().to_owned(),
            container: serde_json::from_value(status["ContainerStatus"].clone()).ok(),
            ports: serde_json::from_value(status["PortStatus"]["Ports"].clone()).unwrap_or_default(),
        },
        attachments,
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
    })
}
