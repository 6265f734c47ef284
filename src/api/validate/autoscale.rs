//! Labels of services that are scaled by load: what is refused because it cannot be counted, or could not wait for a task.

use crate::api::error::{ApiError, Result};
use crate::model::autoscale::{AutoscaleLabels, IDLE, RANGE, REQUESTS};
use crate::model::{PortConfig, Protocol, PublishMode, ServiceSpec};

/// Refuses to scale by load what skep does not see, and to scale to 0 what has clients that could not wait for a task.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn check(spec: &ServiceSpec) -> Result<()> {
    AutoscaleLabels::check(&spec.labels, &spec.mode).map_err(ApiError::invalid_argument)?;
    // What is wrong with these labels is said elsewhere.
    let has_routes = !spec.http_ports().is_empty();
    let Ok(Some(labels)) = AutoscaleLabels::read(&spec.labels) else { return Ok(()) };
    if !spec.wants_ingress() && spec.task_template.swarm_networks().next().is_none() {
        return refused(format_args!(
            "label {RANGE}: the service is on no network of the swarm and publishes no port through the routing mesh, so that its \
             connections cannot be counted: add --network or --publish"
        ));
    }
    if labels.requests.is_some() && !has_routes {
        return refused(format_args!(
            "label {REQUESTS}: the service has no HTTP route, and requests are counted there: add the label skep.http with its hosts"
        ));
    }
    if labels.reaches_zero() { check_zero(spec, has_routes) } else { Ok(()) }
}

/// What makes the last task of a service be kept, or its absence be noticed.
fn check_zero(spec: &ServiceSpec, has_routes: bool) -> Result<()> {
    let ports = || spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    let waits = |port: &PortConfig| port.protocol == Protocol::Tcp && port.publish_mode == PublishMode::Ingress;
    let range = spec.labels.get(RANGE).map_or("", String::as_str);
    if let Some(port) = ports().find(|port| !waits(port)) {
        let (target, protocol) = (port.target_port, port.protocol.as_str());
        let why = if port.publish_mode == PublishMode::Host {
            "is published by the task itself, and no client could wait for one there"
        } else {
            "has no connections that could be counted or wait for a task"
        };
        return refused(format_args!("label {RANGE}={range}: port {target}/{protocol} {why}: let the range begin with 1"));
    }
    if !has_routes && ports().next().is_none() {
        return refused(format_args!(
            "label {RANGE}={range}: without a published TCP port or an HTTP route nothing could wait for a task, so that the service \
             would stay at 0: add --publish or the label skep.http, or let the range begin with 1"
        ));
    }
    let routes = spec.http().unwrap_or_default().routes;
    if routes.iter().any(|route| route.check.is_some()) {
        return refused(format_args!(
            "label {RANGE}={range}: the checks of its HTTP routes are connections, with which the service is never without one: leave \
             them out (skep.http.check.path, or Traefik's healthcheck), or let the range begin with 1"
        ));
    }
    Ok(())
}

fn refused(why: std::fmt::Arguments<'_>) -> Result<()> {
    Err(ApiError::invalid_argument(why.to_string()))
}

/// What users are to know of a service that may have no task.
pub fn warnings(spec: &ServiceSpec) -> Vec<String> {
    // A virtual address becomes a task's own in the connect call of the client's container, which cannot wait; a name must be
    // answered sooner than a task may start.
    let has_name = spec.task_template.swarm_networks().next().is_some();
    let warning = format!(
        "label {RANGE}: while the service has no task, containers that connect to it by its name are refused, and none is started for \
         them: what waits for a task are connections to its published TCP ports and requests to its HTTP routes. It has none {} after \
         the last connection of any kind",
        spec.labels.get(IDLE).map_or("5m", String::as_str)
    );
    Some(warning).filter(|_| spec.reaches_zero() && has_name).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::{self, SERVICE_SPEC};
    use serde_json::{Value, json};

    fn spec(labels: &[(&str, &str)], networks: &Value, ports: &Value) -> ServiceSpec {
        let labels: serde_json::Map<String, Value> = labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let task = json!({"ContainerSpec": {"Image": "lab"}, "Networks": networks});
        let posted = json!({"Name": "web", "Labels": labels, "TaskTemplate": task, "EndpointSpec": {"Ports": ports}});
        super::super::service_spec(schema::decode(posted, &SERVICE_SPEC).unwrap()).unwrap()
    }

    fn message(spec: &ServiceSpec) -> String {
        let error = check(spec).expect_err("refused");
        assert_eq!(error.status.as_u16(), 400);
        error.message
    }

    #[test]
    fn what_the_mesh_does_not_see_is_not_scaled_by_load() {
        let labels = [(RANGE, "1..5"), ("skep.autoscale.connections", "9")];
        let with = |networks: Value, ports: Value| spec(&labels, &networks, &ports);
        check(&with(json!([{"Target": "net1"}]), json!([]))).unwrap();
        check(&with(json!([]), json!([{"TargetPort": 80}]))).unwrap();
        for (networks, ports) in [
            (json!([]), json!([])),
            (json!([{"Target": crate::model::PredefinedNetwork::Host.id()}]), json!([])),
            (json!([]), json!([{"TargetPort": 80, "PublishedPort": 8000, "PublishMode": "host"}])),
        ] {
            let message = message(&with(networks, ports));
            assert!(message.contains(RANGE) && message.contains("--network"), "{message}");
        }
    }

    #[test]
    fn requests_are_counted_where_there_is_a_route() {
        let labels = [(RANGE, "1..5"), (REQUESTS, "9"), ("skep.http", "a.example.com")];
        check(&spec(&labels, &json!([]), &json!([]))).unwrap();
        let without = message(&spec(&labels[..2], &json!([]), &json!([{"TargetPort": 80}])));
        assert!(without.contains("no HTTP route"), "{without}");
    }

    #[test]
    fn a_service_goes_to_0_only_if_every_client_can_be_counted_and_some_can_wait() {
        let (range, route, net) = ((RANGE, "0..1"), ("skep.http", "a.example.com"), json!([{"Target": "net1"}]));
        let (tcp, none) = (json!([{"TargetPort": 80}]), json!([]));
        check(&spec(&[range], &none, &tcp)).unwrap();
        check(&spec(&[range, route], &net, &none)).unwrap();
        let udp = json!([{"TargetPort": 80}, {"TargetPort": 53, "Protocol": "udp"}]);
        let host = json!([{"TargetPort": 80, "PublishedPort": 8000, "PublishMode": "host"}]);
        for (labels, networks, ports, why) in [
            (&[range][..], &net, &none, "nothing could wait for a task"),
            (&[range], &none, &udp, "port 53/udp has no connections"),
            (&[range, route], &none, &host, "port 80/tcp is published by the task itself"),
            (&[range, route, ("skep.http.check.path", "/health")], &none, &none, "skep.http.check.path"),
        ] {
            let message = message(&spec(labels, networks, ports));
            assert!(message.contains(RANGE) && message.contains(why), "{message}");
        }
        assert_eq!(warnings(&spec(&[range], &none, &tcp)), [""; 0]);
        let warned = warnings(&spec(&[range, (IDLE, "90s")], &net, &tcp)).concat();
        assert!(warned.contains("by its name are refused") && warned.contains("90s"), "{warned}");
    }
}
