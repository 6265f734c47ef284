//! From the daemon's answers to what the page shows. Pure.

use super::drops::drops;
use super::services::{services, tasks};
use super::shown::{DashboardOverview, ShownDaemon, ShownHttp, ShownNode, ShownRoute};
use crate::ingress::http::{HttpRouteStatus, HttpStatus};
use crate::model::Timestamp;
use crate::status::{NodeSummary, Status};
use serde_json::Value;
use std::collections::BTreeMap;

/// Tasks that the page is sent.
const MOST_TASKS: usize = 2000;

/// Answers of Docker's API, which only a manager gives.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterAnswers {
    pub nodes: Value,
    pub services: Value,
    pub tasks: Value,
}

/// What the page shows. `cluster` is why there are no answers if there are none.
pub fn overview(status: &Status, cluster: &Result<ClusterAnswers, String>, now: Timestamp) -> DashboardOverview {
    let managers_see: BTreeMap<&str, &Value> = cluster.iter().flat_map(|answers| by_id(&answers.nodes)).collect();
    let (tasks, tasks_left_out) = cluster.as_ref().map(|answers| tasks(&answers.tasks, MOST_TASKS)).unwrap_or_default();
    let services = cluster.as_ref().map(|answers| services(&answers.services, &status.ebpf, &status.ports));
    DashboardOverview {
        at: now.to_rfc3339(),
        this: daemon(status),
        nodes: status.nodes.iter().map(|of| node(of, managers_see.get(of.id.as_str()).copied())).collect(),
        cluster_error: cluster.as_ref().err().cloned().unwrap_or_default(),
        services: services.unwrap_or_default(),
        tasks,
        tasks_left_out,
        http: http(&status.http, now),
        ports: status.ports.clone(),
        drops: drops(&status.ebpf),
    }
}

fn by_id(nodes: &Value) -> impl Iterator<Item = (&str, &Value)> {
    nodes.as_array().into_iter().flatten().filter_map(|node| Some((node["ID"].as_str()?, node)))
}

fn daemon(status: &Status) -> ShownDaemon {
    let mut warnings: Vec<String> = status.blockers.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    warnings.extend(status.troubles.iter().map(|(name, why)| format!("{name}: {why}")));
    warnings.extend(status.warnings.iter().cloned());
    warnings
        .extend(status.stale_since.iter().map(|since| format!("no manager has confirmed what this page shows since {since}")));
    if let Some(certificate) = status.certificate.as_ref().filter(|certificate| !certificate.warning.is_empty()) {
        warnings.push(format!("the node's certificate: {}", certificate.warning));
    }
    let here = status.nodes.iter().find(|node| node.here);
    ShownDaemon {
        version: status.version.clone(),
        state: status.state.clone(),
        error: status.error.clone(),
        hostname: here.map(|node| node.hostname.clone()).unwrap_or_default(),
        role: status.role.map(|role| role.as_str().to_owned()).unwrap_or_default(),
        leader: status.leader.clone().unwrap_or_default(),
        session: status.session.clone(),
        warnings,
        tunnel: status.datapaths.tunnel.clone(),
        datapath: status.datapaths.ports.clone(),
        certificate_seconds_left: status.certificate.as_ref().map(|certificate| certificate.seconds_left),
    }
}

fn node(summary: &NodeSummary, seen: Option<&Value>) -> ShownNode {
    let text = |path: &str| seen.and_then(|node| node.pointer(path)?.as_str()).unwrap_or_default().to_owned();
    ShownNode {
        id: summary.id.to_string(),
        hostname: summary.hostname.clone(),
        manager: summary.manager,
        leader: seen.is_some_and(|node| node["ManagerStatus"]["Leader"] == true),
        here: summary.here,
        state: text("/Status/State"),
        availability: text("/Spec/Availability"),
        path: summary.path.clone(),
        endpoint: summary.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        handshake_seconds: summary.handshake_seconds,
        rx_bytes: summary.rx_bytes,
        tx_bytes: summary.tx_bytes,
    }
}

fn http(http: &HttpStatus, now: Timestamp) -> ShownHttp {
    let route = |route: &HttpRouteStatus| ShownRoute {
        host: route.host.clone(),
        prefix: route.prefix.clone(),
        service: route.service.clone(),
        ready: route.ready,
        tasks: route.tasks,
        certificate: route.certificate.clone(),
        certificate_seconds_left: route.certificate_end.map(|end| end.since(now).as_secs()),
        requests: route.counts.requests(),
        errors: route.counts.by_class[4],
        rates: route.rates,
    };
    ShownHttp {
        error: http.error.clone(),
        connections: http.connections,
        listeners: http.listeners.clone(),
        problems: http.problems.clone(),
        routes: http.routes.iter().map(route).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Role;
    use serde_json::json;

    fn status() -> Status {
        let node = |id: &str, here| NodeSummary {
            id: id.into(),
            hostname: format!("host-{id}"),
            manager: here,
            here,
            mesh: String::new(),
            path: if here { "self" } else { "direct" }.to_owned(),
            endpoint: None,
            handshake_seconds: None,
            rx_bytes: 1,
            tx_bytes: 2,
            containers: 0,
            feature_levels: None,
            path_mtu: None,
        };
        Status {
            state: "active".to_owned(),
            role: Some(Role::Manager),
            nodes: vec![node("a", true), node("b", false)],
            troubles: [("dns".to_owned(), "no port".to_owned())].into(),
            ..Status::default()
        }
    }

    #[test]
    fn a_node_is_what_managers_and_the_tunnel_say_of_it() {
        let nodes = json!([{"ID": "b", "Status": {"State": "down"}, "Spec": {"Availability": "drain"}},
                           {"ID": "a", "Status": {"State": "ready"}, "ManagerStatus": {"Leader": true}}]);
        let answers = ClusterAnswers { nodes, services: json!([]), tasks: json!([]) };
        let shown = overview(&status(), &Ok(answers), Timestamp(0));
        let [a, b] = &shown.nodes[..] else { panic!("{shown:?}") };
        assert_eq!((a.hostname.as_str(), a.leader, a.state.as_str(), a.here), ("host-a", true, "ready", true));
        assert_eq!((b.state.as_str(), b.availability.as_str(), b.path.as_str(), b.leader), ("down", "drain", "direct", false));
        assert_eq!((shown.this.hostname.as_str(), &shown.this.warnings[..]), ("host-a", &["dns: no port".to_owned()][..]));
    }

    #[test]
    fn without_a_manager_the_node_itself_is_shown_and_why_nothing_else_is() {
        let shown = overview(&status(), &Err("this node is not a manager".to_owned()), Timestamp(0));
        assert_eq!((shown.nodes.len(), shown.services.len()), (2, 0));
        assert_eq!(shown.cluster_error, "this node is not a manager");
    }
}
