//! The store of the swarm that a recording was made with, reconstructed from the recorded replies.

use serde_json::{Value, json};
use skep::model::WgKey;
use skep::model::mesh::MeshPrefix;
use skep::model::node::{ManagerStatus, NodeDescription, NodeMesh, NodeStatus};
use skep::model::service::{Endpoint, EndpointSpec};
use skep::model::task::{Attachment, TaskStatus};
use skep::model::{
    Cluster, ClusterId, ClusterSpec, JobStatus, JoinTokens, Meta, Network, NetworkId, NetworkSpec, Node, NodeId, NodeSpec,
    NodeState, Role, Service, ServiceId, ServiceSpec, ServiceUpdate, Task, TaskId, TaskSpec, TaskState, Timestamp, fixture,
};
use skep::store::{Action, FEATURE_LEVELS, StoreHandle};
use std::collections::{BTreeMap, BTreeSet};

const AT: Timestamp = Timestamp(1_795_000_000_123_456_789);

/// The cluster of the recordings.
pub fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::from("c67q4jahe2xaweq5gh2g0oqvo"),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        incarnation: 1,
        ca_certificate: "PEM".to_owned(),
        ca_key: "".into(),
        tokens: JoinTokens { worker: "SWMTKN-1-a-b".into(), manager: "SWMTKN-1-a-c".into() },
        mesh: mesh(),
        address_pools: Vec::new(),
        reserved_subnets: Vec::new(),
        ca_history: skep::model::CaHistory::default(),
        unlock_key: None,
        incarnations: Vec::new(),
        subnet_size: 24,
        feature_level: 3,
        data_path_port: 4789,
    }
}

fn mesh() -> MeshPrefix {
    serde_json::from_value(json!("fd12:3456:789a::/48")).unwrap_or_else(|_| panic!("a mesh prefix is written differently"))
}

/// A node of that cluster.
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
            feature_levels: Some(FEATURE_LEVELS),
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, addr: Some(addr), ..NodeStatus::default() },
        mesh: NodeMesh {
            key: WgKey([u8::try_from(last).unwrap(); 32]),
            next: None,
            subnet: format!("fd12:3456:789a:{last}::/64").parse().unwrap(),
            ingress_addr: std::net::Ipv4Addr::new(10, 0, 0, u8::try_from(last).unwrap()),
            endpoints: Vec::new(),
        },
        manager: (role == Role::Manager).then(|| ManagerStatus { raft_id: 1, addr: std::net::SocketAddr::new(addr, 2377) }),
    }
}

/// A network of that cluster.
pub fn network(id: &str, name: &str, subnet: Option<&str>) -> Network {
    Network {
        subnet: subnet.map(|s| s.parse().unwrap()),
        ..Network::new(
            NetworkId::from(id),
            NetworkSpec { name: name.to_owned(), ingress: name == "ingress", ..NetworkSpec::default() },
        )
    }
}

/// A service of that cluster.
pub fn service(id: &str, spec: Value) -> Option<Service> {
    Some(fixture::service(id, serde_json::from_value(spec).ok()?))
}

/// A spec like those of the recordings.
pub fn spec(name: &str) -> Value {
    json!({"Name": name, "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Args": ["sleep", "1000"], "Init": false,
        "DNSConfig": {}, "Isolation": "default"}, "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {},
        "ForceUpdate": 0, "Runtime": "container"}, "Mode": {"Replicated": {"Replicas": 2}}, "EndpointSpec": {"Mode": "vip"}})
}

/// Fills a store with the objects that the recorded replies show, and with the usual ones that they mention.
pub async fn fill(handle: &StoreHandle, exchanges: &[Value]) {
    let recorded = RecordedObjects::collect(exchanges);
    let mut actions = vec![Action::create(cluster_of(exchanges))];
    let text = serde_json::to_string(exchanges).unwrap();
    let objects = recorded.shown.values().filter_map(|(kind, object)| parse(kind, object));
    for action in objects.chain(usual_objects(&text)) {
        let (id, name) = id_and_name(&action);
        let is_same = |a: &Action| id_and_name(a).0 == id || (id_and_name(a).1 == name && !name.is_empty());
        let mentions = [format!("\"{name}\""), format!("/{name}"), format!("'{name}'"), id.clone()];
        let needed = name.starts_with("lab") || name == "ingress" || mentions.iter().any(|m| text.contains(m.as_str()));
        if needed && !actions.iter().any(is_same) && !recorded.created.contains(&name) {
            actions.push(action);
        }
    }
    actions.extend(recorded.shown.values().flat_map(|(_, object)| running_tasks(object)));
    actions.extend(exchanges.iter().filter_map(|e| user_of_network(e["response_body"]["message"].as_str()?)));
    // Two transactions, so that the versions 1 and 2 in the recordings are stale.
    for _ in 0..2 {
        handle.write(AT, Vec::new()).await.unwrap();
    }
    handle.write(AT, actions).await.unwrap();
}

/// What a recording shows of the store before its first exchange.
struct RecordedObjects<'a> {
    /// Ids and names of objects that were created during the recording: the store does not have them at first.
    created: BTreeSet<String>,
    /// By id: the kind and the most complete reply about the object.
    shown: BTreeMap<String, (&'a str, Value)>,
}

impl<'a> RecordedObjects<'a> {
    fn collect(exchanges: &'a [Value]) -> Self {
        let mut recorded = Self { created: BTreeSet::new(), shown: BTreeMap::new() };
        let mut updated = false;
        for exchange in exchanges {
            updated |= exchange["status"] == 200 && exchange["path"].as_str().is_some_and(|p| p.ends_with("/update"));
            let body = &exchange["response_body"];
            if exchange["status"] == 201 {
                recorded.created.insert(id_of(body).to_owned());
                recorded.created.insert(exchange["request_body"]["Name"].as_str().unwrap_or_default().to_owned());
            }
            let path = exchange["path"].as_str().unwrap_or_default();
            let kind = path.split('/').find(|s| KINDS.contains(s)).unwrap_or_default();
            let objects: Vec<&Value> = body.as_array().map_or_else(|| vec![body], |list| list.iter().collect());
            for object in objects.into_iter().filter(|o| id_of(o).len() == 25) {
                recorded.keep_if_more_complete(kind, object, updated);
            }
        }
        recorded
    }

    /// `updated`: the object may have been changed by an update during the recording.
    fn keep_if_more_complete(&mut self, kind: &'a str, object: &Value, updated: bool) {
        let id = id_of(object).to_owned();
        if self.created.contains(&id) {
            return;
        }
        let completeness = |o: &Value| o.to_string().len() + if o["Spec"]["Name"].is_string() { 10_000 } else { 0 };
        let best = self.shown.get(&id).map_or(0, |(_, o)| completeness(o));
        let mut object = object.clone();
        // A placeholder text means: the same spec as before.
        if let Some((_, earlier)) = self.shown.get(&id)
            && object["Spec"].is_string()
        {
            object["Spec"] = earlier["Spec"].clone();
        }
        if completeness(&object) > best && !(updated && best > 0) && parse(kind, &object).is_some() {
            if updated {
                object.as_object_mut().unwrap().remove("PreviousSpec");
            }
            self.shown.insert(id, (kind, object));
        }
    }
}

/// The service that an error message names as the user of a network.
fn user_of_network(refusal: &str) -> Option<Action> {
    let (network, id) = refusal.split_once("desc = network ")?.1.split_once(" is in use by service ")?;
    let mut spec = spec("user");
    spec["TaskTemplate"]["Networks"] = json!([{ "Target": network }]);
    service(id, spec).map(Action::create)
}

/// The running tasks that a listed service has according to its status.
fn running_tasks(service: &Value) -> Vec<Action> {
    let count = service["ServiceStatus"]["RunningTasks"].as_u64().unwrap_or(0);
    let create_task = |slot| {
        let id = format!("{slot}{}", &id_of(service)[1..]);
        let shown = json!({"ServiceID": id_of(service), "Slot": slot, "DesiredState": "running", "Status": {"State": "running"}});
        task(&id, &shown).map(Action::create)
    };
    let completed = service["ServiceStatus"]["CompletedTasks"].as_u64().unwrap_or(0);
    let completed_task = |slot| {
        let shown = json!({"ServiceID": id_of(service), "Slot": slot, "DesiredState": "complete", "Status": {"State": "complete"},
            "JobIteration": service["JobStatus"]["JobIteration"]});
        task(&format!("c{slot}{}", &id_of(service)[2..]), &shown).map(Action::create)
    };
    (1..=count).filter_map(create_task).chain((0..completed).filter_map(completed_task)).collect()
}

/// Kinds of objects, as in paths.
const KINDS: [&str; 4] = ["nodes", "services", "tasks", "networks"];

/// Whether the store can have an object as it was recorded: skep supports all of its fields.
pub fn storable(object: &Value) -> bool {
    let spec_is_supported = |spec: &Value| {
        let read: Result<ServiceSpec, _> = serde_json::from_value(spec.clone());
        spec.is_null()
            || !spec["TaskTemplate"].is_object()
            || read.is_ok_and(|r| {
                let mut plain = spec.clone();
                // Defaults that only an inspection shows.
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
        return plain;
    }
    if object["Scope"] == "swarm" {
        return object["Driver"] == "overlay"
            && object["EnableIPv6"] != true
            && object["IPAM"]["Config"][0]["IPRange"].is_null()
            && object["Options"].get("com.docker.network.driver.mtu").is_none();
    }
    spec_is_supported(&object["Spec"])
}

fn id_of(object: &Value) -> &str {
    object["ID"].as_str().or(object["Id"].as_str()).unwrap_or_default()
}

fn id_and_name(action: &Action) -> (String, String) {
    match action {
        Action::Create(skep::store::Object::Node(o)) => (o.id.to_string(), o.description.hostname.clone()),
        Action::Create(skep::store::Object::Network(o)) => (o.id.to_string(), o.spec.name.clone()),
        Action::Create(skep::store::Object::Service(o)) => (o.id.to_string(), o.spec.name.clone()),
        Action::Create(skep::store::Object::Task(o)) => (o.id.to_string(), String::new()),
        _ => (String::new(), String::new()),
    }
}

/// The objects that nearly all recordings were made with; the second manager only if the recording mentions it.
fn usual_objects(recording: &str) -> Vec<Action> {
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
        ("wf2afx586occ4f7a2aywh0zr3", minimal_spec("rawsvc")),
    ] {
        actions.extend(service(id, spec).map(Action::create));
    }
    actions
}

fn minimal_spec(name: &str) -> Value {
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

/// The creation of a recorded object; `None` if the store cannot have it or the reply shows too little.
fn parse(kind: &str, object: &Value) -> Option<Action> {
    if !storable(object) {
        return None;
    }
    match kind {
        "nodes" => parse_node(object).map(Action::create),
        "services" => parse_service(object).map(Action::create),
        "tasks" => task(id_of(object), object).map(Action::create),
        "networks" => parse_network(object).map(Action::create),
        _ => None,
    }
}

fn parse_node(object: &Value) -> Option<Node> {
    let hostname = object["Description"]["Hostname"].as_str().or(object["Name"].as_str())?;
    let is_manager = ["lab1", "lab3"].contains(&hostname);
    let role = match object["Spec"]["Role"].as_str() {
        Some("manager") => Role::Manager,
        None if is_manager => Role::Manager,
        _ => Role::Worker,
    };
    let mut node = node(id_of(object), hostname, role);
    if object["Spec"].is_null() && hostname != "lab4" {
        node.spec.labels.insert("zone".to_owned(), if is_manager { "a" } else { "b" }.to_owned());
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
    Some(node)
}

fn parse_service(object: &Value) -> Option<Service> {
    let id = id_of(object);
    let shown = &object["Spec"];
    let name = shown["Name"].as_str().or(object["Name"].as_str()).unwrap_or(&id[..8]);
    let mut posted = if shown["TaskTemplate"].is_object() { shown.clone() } else { spec(name) };
    remove_defaults(&mut posted);
    let mut service = service(id, posted)?;
    service.previous_spec = match &object["PreviousSpec"] {
        Value::String(_) => Some(service.spec.clone()),
        other => serde_json::from_value(other.clone()).ok(),
    };
    if let (Some(at), index) = (timestamp(&object["JobStatus"]["LastExecution"]), &object["JobStatus"]["JobIteration"]["Index"]) {
        service.job = Some(JobStatus { iteration: index.as_u64().unwrap_or(0), last_execution: at });
    }
    let update = &object["UpdateStatus"];
    if let (Some(at), Ok(state)) = (timestamp(&update["StartedAt"]), serde_json::from_value(update["State"].clone())) {
        let (completed_at, message) =
            (timestamp(&update["CompletedAt"]), update["Message"].as_str().unwrap_or_default().to_owned());
        service.update = Some(ServiceUpdate { state, started_at: Some(at), completed_at, message, dirty: 1, failed: 0 });
    }
    let endpoint = &object["Endpoint"];
    service.endpoint = Endpoint {
        spec: serde_json::from_value::<EndpointSpec>(endpoint["Spec"].clone()).ok(),
        ports: serde_json::from_value(endpoint["Ports"].clone()).unwrap_or_default(),
        vips: serde_json::from_value(endpoint["VirtualIPs"].clone()).unwrap_or_default(),
    };
    Some(service)
}

fn timestamp(shown: &Value) -> Option<Timestamp> {
    serde_json::from_value(shown.clone()).ok()
}

fn parse_network(object: &Value) -> Option<Network> {
    if object["Driver"] != "overlay" {
        return None;
    }
    let mut network = network(id_of(object), object["Name"].as_str()?, object["IPAM"]["Config"][0]["Subnet"].as_str());
    let flag = |key: &str| object[key].as_bool().unwrap_or(false);
    network.spec.attachable = flag("Attachable");
    network.spec.internal = flag("Internal");
    network.spec.options = serde_json::from_value(object["Options"].clone()).unwrap_or_default();
    network.spec.options.retain(|key, _| !key.contains("vxlanid"));
    network.spec.labels = serde_json::from_value(object["Labels"].clone()).unwrap_or_default();
    Some(network)
}

/// Removes the defaults that only an inspection shows.
fn remove_defaults(spec: &mut Value) {
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
        spec: std::sync::Arc::new(spec),
        spec_version: 1,
        service_id: ServiceId::from(object["ServiceID"].as_str()?),
        service_name: "rep".to_owned(),
        service_labels: std::sync::Arc::default(),
        slot: object["Slot"].as_u64().unwrap_or(0),
        slot_node: object["NodeID"]
            .as_str()
            .filter(|_| object["Slot"].is_null() && object["JobIteration"].is_null())
            .map(NodeId::from),
        job_iteration: object["JobIteration"].as_object().map(|run| run.get("Index").and_then(Value::as_u64).unwrap_or(0)),
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: object["NodeID"].as_str().map(NodeId::from),
        desired_state: serde_json::from_value(object["DesiredState"].clone()).unwrap_or_default(),
        status: TaskStatus {
            timestamp: AT,
            state: serde_json::from_value(status["State"].clone()).unwrap_or_default(),
            message: status["Message"].as_str().unwrap_or_default().to_owned(),
            err: status["Err"].as_str().unwrap_or_default().to_owned(),
            container: serde_json::from_value(status["ContainerStatus"].clone()).ok(),
            ports: serde_json::from_value(status["PortStatus"]["Ports"].clone()).unwrap_or_default(),
            unhealthy: false,
        },
        attachments,
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: skep::model::task::EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
    })
}

/// A running task of a service on a node, with an address on each of its networks.
pub fn running_task(service: &Service, slot: u64, node: &str) -> Task {
    Task {
        id: TaskId::draw(&mut rand::rng()),
        meta: Meta::default(),
        spec: service.spec.task_template.clone().into(),
        spec_version: service.spec_version,
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        service_labels: service.spec.labels.clone().into(),
        slot,
        slot_node: None,
        job_iteration: None,
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: Some(NodeId::from(node)),
        desired_state: TaskState::Running,
        status: TaskStatus { timestamp: AT, state: TaskState::Running, message: "started".to_owned(), ..Default::default() },
        attachments: service
            .spec
            .task_template
            .networks
            .iter()
            .map(|n| Attachment { network_id: n.target.as_str().into(), address: "10.0.9.2/24".parse().unwrap() })
            .collect(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: skep::model::task::EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
    }
}
