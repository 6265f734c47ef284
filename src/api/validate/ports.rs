//! Published ports of a posted service.

use crate::api::error::{ApiError, Result};
use crate::model::ServiceId;
use crate::model::mesh::DEFAULT_PORT;
use crate::model::service::{EndpointMode, ServiceSpec};
use crate::model::{Protocol, PublishMode};
use crate::store::Store;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Brings the `i`-th posted port into the spelling of the model.
///
/// # Errors
/// 501 for SCTP, 400 for a number above 65535, and for no target port.
pub fn normalize(i: usize, port: &mut Value) -> Result<()> {
    let text = |port: &Value, key: &str| port[key].as_str().unwrap_or_default().to_ascii_lowercase();
    // Unknown values become the default, as in the real server.
    let protocol = text(port, "Protocol");
    if protocol == "sctp" {
        return Err(ApiError::unsupported_field(&format!("EndpointSpec.Ports[{i}].Protocol"), &protocol));
    }
    let host = text(port, "PublishMode") == "host";
    for key in ["TargetPort", "PublishedPort"] {
        let number = port[key].as_u64().unwrap_or(0);
        // Published: 0 has one drawn. Nothing listens on the target port 0.
        if number > u64::from(u16::MAX) || (number == 0 && key == "TargetPort") {
            return Err(ApiError::invalid_argument(format!("EndpointSpec: {key} {number} is not a port (1 to 65535)")));
        }
    }
    port["Protocol"] = json!(if protocol == "udp" { "udp" } else { "tcp" });
    port["PublishMode"] = json!(if host { "host" } else { "ingress" });
    Ok(())
}

/// Refuses ports that contradict each other or the endpoint mode.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn endpoint(spec: &ServiceSpec) -> Result<()> {
    let Some(endpoint) = &spec.endpoint_spec else { return Ok(()) };
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if spec.endpoint_mode() == EndpointMode::Dnsrr && port.publish_mode == PublishMode::Ingress {
            return Err(ApiError::invalid_argument(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        if port.published_port != 0 && !published.insert((port.protocol, port.published_port)) {
            return Err(ApiError::invalid_argument("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

/// Refuses to publish the ports that every node needs for the swarm itself: 2377/tcp (joins) and the tunnel's UDP port. A
/// service there would cut the nodes off, and the order to remove it could not reach them.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn reserved(spec: &ServiceSpec, data_path_port: u16) -> Result<()> {
    for port in spec.endpoint_spec.iter().flat_map(|e| &e.ports) {
        let (protocol, number) = (port.protocol, port.published_port);
        if (protocol, number) == (Protocol::Tcp, DEFAULT_PORT) || (protocol, number) == (Protocol::Udp, data_path_port) {
            return Err(ApiError::invalid_argument(format!(
                "EndpointSpec: port {number}/{} is used by the swarm itself on every node: publish another one",
                protocol.as_str()
            )));
        }
    }
    Ok(())
}

/// Refuses ports that another service publishes. Two services may publish a port in host mode: the scheduler places them
/// on different nodes. `own` is the id of the service itself on an update.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn free_ports(spec: &ServiceSpec, own: Option<&ServiceId>, store: &Store) -> Result<()> {
    let requested = spec.endpoint_spec.iter().flat_map(|e| &e.ports).filter(|p| p.published_port != 0);
    for port in requested {
        let conflict = store.port_conflict(port.publish_mode, port.protocol, port.published_port, own);
        if let Some((other, taken)) = conflict {
            let taken = if taken == PublishMode::Ingress { "an ingress port" } else { "a host-published port" };
            return Err(ApiError::invalid_argument(format!(
                "port '{}' is already in use by service '{}' ({}) as {taken}",
                port.published_port, other.spec.name, other.id
            )));
        }
    }
    Ok(())
}

/// Number of ports that a service publishes on every node.
pub(super) fn ingress_count(spec: &ServiceSpec) -> usize {
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    ports.filter(|port| port.publish_mode == PublishMode::Ingress).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PortConfig;
    use crate::model::service::EndpointSpec;

    #[test]
    fn the_ports_of_the_swarm_itself_cannot_be_published() {
        let publish = |protocol, published_port| ServiceSpec {
            endpoint_spec: Some(EndpointSpec {
                ports: vec![PortConfig { protocol, published_port, target_port: 53, ..PortConfig::default() }],
                ..EndpointSpec::default()
            }),
            ..ServiceSpec::default()
        };
        let refused = |protocol, port| reserved(&publish(protocol, port), 4789).is_err();
        assert!(refused(Protocol::Tcp, 2377) && refused(Protocol::Udp, 4789));
        assert!(!refused(Protocol::Udp, 2377) && !refused(Protocol::Tcp, 4789) && !refused(Protocol::Udp, 53));
    }
}
