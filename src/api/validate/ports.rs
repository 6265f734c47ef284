//! Published ports: what may be asked for, and what is still free.

use super::{invalid, not_carried_out};
use crate::api::error::Result;
use crate::model::ServiceId;
use crate::model::service::{EndpointMode, Service, ServiceSpec};
use crate::model::{Protocol, PublishMode};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Brings a posted port into our spelling.
///
/// # Errors
/// 501 for what is not carried out, 400 for a number that is no port.
pub fn values(i: usize, port: &mut Value) -> Result<()> {
    let text = |port: &Value, key: &str| port[key].as_str().unwrap_or_default().to_ascii_lowercase();
    // Unknown words become the default, as in the real server.
    let protocol = text(port, "Protocol");
    if protocol == "sctp" {
        return Err(not_carried_out(&format!("EndpointSpec.Ports[{i}].Protocol"), &protocol));
    }
    let host = text(port, "PublishMode") == "host";
    for key in ["TargetPort", "PublishedPort"] {
        let number = port[key].as_u64().unwrap_or(0);
        if number > u64::from(u16::MAX) {
            return Err(invalid(format!("EndpointSpec: {key} {number} is not a port (1 to 65535)")));
        }
    }
    port["Protocol"] = json!(if protocol == "udp" { "udp" } else { "tcp" });
    port["PublishMode"] = json!(if host { "host" } else { "ingress" });
    Ok(())
}

/// Refuses ports that contradict each other.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn endpoint(spec: &ServiceSpec) -> Result<()> {
    let Some(endpoint) = &spec.endpoint_spec else { return Ok(()) };
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if spec.endpoint_mode() == EndpointMode::Dnsrr && port.publish_mode == PublishMode::Ingress {
            return Err(invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode"));
        }
        if port.published_port != 0 && !published.insert((port.protocol, port.published_port)) {
            return Err(invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

/// Refuses ports that another service has. The same port in host mode twice is the scheduler's affair: one per node.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn free_ports<'a>(spec: &ServiceSpec, own: Option<&ServiceId>, services: impl Iterator<Item = &'a Service>) -> Result<()> {
    let wanted: BTreeSet<(PublishMode, Protocol, u16)> =
        spec.endpoint_spec.iter().flat_map(|e| &e.ports).map(|p| (p.publish_mode, p.protocol, p.published_port)).collect();
    for other in services.filter(|s| Some(&s.id) != own) {
        let posted = other.spec.endpoint_spec.iter().flat_map(|e| &e.ports);
        for port in posted.chain(&other.endpoint.ports).filter(|p| p.published_port != 0) {
            let asked = |mode| wanted.contains(&(mode, port.protocol, port.published_port));
            let taken = match port.publish_mode {
                PublishMode::Ingress if asked(PublishMode::Ingress) || asked(PublishMode::Host) => "an ingress port",
                PublishMode::Host if asked(PublishMode::Ingress) => "a host-published port",
                _ => continue,
            };
            return Err(invalid(format!(
                "port '{}' is already in use by service '{}' ({}) as {taken}",
                port.published_port, other.spec.name, other.id
            )));
        }
    }
    Ok(())
}
