//! Services and tasks as the page shows them, from the answers of Docker's API. Pure.

use super::shown::{ShownService, ShownTask};
use crate::ingress::PortStatus;
use crate::ingress::ebpf::EbpfStatus;
use serde_json::Value;
use std::collections::BTreeMap;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// By name.
pub(super) fn services(answer: &Value, ebpf: &EbpfStatus, ports: &[PortStatus]) -> Vec<ShownService> {
    let mut connections: BTreeMap<&str, u64> = BTreeMap::new();
    for frontend in &ebpf.connections {
        *connections.entry(&frontend.service).or_default() += frontend.connections;
    }
    for port in ports {
        connections.entry(&port.service).or_default();
    }
    let service = |service: &Value| {
        let (spec, status) = (&service["Spec"], &service["ServiceStatus"]);
        let name = text(&spec["Name"]);
        let image = text(&spec["TaskTemplate"]["ContainerSpec"]["Image"]);
        ShownService {
            id: text(&service["ID"]),
            stack: text(&spec["Labels"]["com.docker.stack.namespace"]),
            image: image.split('@').next().unwrap_or_default().to_owned(),
            mode: mode(&spec["Mode"]).to_owned(),
            running: status["RunningTasks"].as_u64().unwrap_or(0),
            desired: status["DesiredTasks"].as_u64().unwrap_or(0),
            update: text(&service["UpdateStatus"]["State"]),
            update_message: text(&service["UpdateStatus"]["Message"]),
            ports: service["Endpoint"]["Ports"].as_array().into_iter().flatten().map(port).collect(),
            connections: connections.get(name.as_str()).copied().unwrap_or(0),
            name,
        }
    };
    let mut all: Vec<ShownService> = answer.as_array().into_iter().flatten().map(service).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn mode(mode: &Value) -> &'static str {
    let kinds =
        [("Replicated", "replicated"), ("Global", "global"), ("ReplicatedJob", "replicated job"), ("GlobalJob", "global job")];
    kinds.into_iter().find(|(key, _)| !mode[*key].is_null()).map_or("", |(_, name)| name)
}

fn port(port: &Value) -> String {
    let number = |key: &str| port[key].as_u64().unwrap_or(0);
    let host = if port["PublishMode"] == "host" { ", host" } else { "" };
    format!("{}→{}/{}{host}", number("PublishedPort"), number("TargetPort"), text(&port["Protocol"]))
}

/// By service and slot; at most so many, and the number of the others.
pub(super) fn tasks(answer: &Value, most: usize) -> (Vec<ShownTask>, usize) {
    let task = |task: &Value| ShownTask {
        id: text(&task["ID"]),
        service: text(&task["ServiceID"]),
        slot: task["Slot"].as_u64().unwrap_or(0),
        node: text(&task["NodeID"]),
        state: text(&task["Status"]["State"]),
        error: text(&task["Status"]["Err"]),
        since: text(&task["Status"]["Timestamp"]),
    };
    let of_service = |task: &ShownTask| !task.service.is_empty();
    let mut all: Vec<ShownTask> = answer.as_array().into_iter().flatten().map(task).filter(of_service).collect();
    all.sort_by(|a, b| (&a.service, a.slot, &a.id).cmp(&(&b.service, b.slot, &b.id)));
    let left_out = all.len().saturating_sub(most);
    all.truncate(most);
    (all, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::ebpf::FrontendConnections;
    use serde_json::json;

    #[test]
    fn a_service_is_shown_without_what_its_spec_may_hide() {
        let answer = json!([
            {"ID": "s2", "Spec": {"Name": "web", "Labels": {"com.docker.stack.namespace": "shop", "secret": "planted"},
             "TaskTemplate": {"ContainerSpec": {"Image": "nginx:1@sha256:00", "Env": ["PASSWORD=planted"], "Args": ["planted"]}},
             "Mode": {"Replicated": {"Replicas": 3}}},
             "Endpoint": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
                                    {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53, "PublishMode": "host"}]},
             "ServiceStatus": {"RunningTasks": 2, "DesiredTasks": 3}, "UpdateStatus": {"State": "paused", "Message": "task failed"}},
            {"ID": "s1", "Spec": {"Name": "agent", "Mode": {"Global": {}}}}]);
        let connections = [("8080/tcp", 5), ("10.0.1.2", 7)].map(|(frontend, connections)| FrontendConnections {
            service: "web".to_owned(),
            frontend: frontend.to_owned(),
            connections,
        });
        let all = services(&answer, &EbpfStatus { connections: connections.into(), ..EbpfStatus::default() }, &[]);
        assert_eq!((all[0].name.as_str(), all[0].mode.as_str(), all[0].desired), ("agent", "global", 0));
        let web = &all[1];
        assert_eq!((web.image.as_str(), web.stack.as_str(), web.mode.as_str()), ("nginx:1", "shop", "replicated"));
        assert_eq!((web.running, web.desired, web.update.as_str(), web.connections), (2, 3, "paused", 12));
        assert_eq!(web.ports, ["8080→80/tcp", "53→53/udp, host"]);
        assert!(!serde_json::to_string(&all).unwrap().contains("planted"));
    }

    #[test]
    fn tasks_are_bounded_and_those_of_plain_containers_are_left_out() {
        let task =
            |id: &str, service: &str, slot| json!({"ID": id, "ServiceID": service, "Slot": slot, "Status": {"State": "running"}});
        let answer = json!([task("t3", "s1", 2), task("t1", "s1", 1), task("t9", "", 0), task("t2", "s2", 1)]);
        let (shown, left_out) = tasks(&answer, 2);
        assert_eq!(shown.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["t1", "t3"]);
        assert_eq!(left_out, 1);
        assert_eq!(tasks(&Value::Null, 2), (Vec::new(), 0));
    }
}
