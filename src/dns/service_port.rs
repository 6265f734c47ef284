//! Names of a service's ports in SRV queries (RFC 2782): `_PORT._PROTOCOL.NAME`. Pure.
//!
//! A published port has its number (of the container, `_8080._tcp.web`), the name that its service gives it (`name:` of a port
//! in a Compose file, `_metrics._tcp.web`), and for a few well-known numbers the registered name (`_http._tcp.web` for 80).

use crate::model::{PortConfig, Protocol};

/// Registered names (RFC 6335) of ports that clients look up by name.
const WELL_KNOWN: [(u16, &str); 15] = [
    (22, "ssh"),
    (25, "smtp"),
    (53, "domain"),
    (80, "http"),
    (389, "ldap"),
    (443, "https"),
    (636, "ldaps"),
    (1883, "mqtt"),
    (3306, "mysql"),
    (5060, "sip"),
    (5222, "xmpp-client"),
    (5432, "postgresql"),
    (5672, "amqp"),
    (6379, "redis"),
    (27017, "mongodb"),
];

/// A published port, as SRV queries name it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServicePort {
    protocol: Protocol,
    /// Port of the container.
    number: u16,
    /// Lower case; empty if the service gives it none.
    name: String,
}

impl ServicePort {
    /// The port of a service's endpoint; `None` if its target is not known.
    #[must_use]
    pub fn new(port: &PortConfig) -> Option<Self> {
        (port.target_port != 0).then(|| Self {
            protocol: port.protocol,
            number: port.target_port,
            name: port.name.to_ascii_lowercase(),
        })
    }

    /// Port of the container.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Whether a query for `_label._protocol` (lower case, without the underscores) means this port.
    #[must_use]
    pub fn matches(&self, label: &str, protocol: &str) -> bool {
        let known = || WELL_KNOWN.iter().any(|(number, name)| *number == self.number && *name == label);
        let number = || !label.starts_with(['0', '+']) && label.parse() == Ok(self.number);
        self.protocol.as_str() == protocol && ((!self.name.is_empty() && self.name == label) || number() || known())
    }
}

/// The parts of the lower-case name `_port._protocol.service`: `port`, `protocol` and `service`.
#[must_use]
pub fn parse(name: &str) -> Option<(&str, &str, &str)> {
    let (port, rest) = name.strip_prefix('_')?.split_once("._")?;
    let (protocol, service) = rest.split_once('.')?;
    (!port.is_empty() && !port.contains('.')).then_some((port, protocol, service))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, protocol: Protocol, target_port: u16) -> ServicePort {
        ServicePort::new(&PortConfig { name: name.to_owned(), protocol, target_port, ..PortConfig::default() }).unwrap()
    }

    #[test]
    fn a_port_has_its_number_its_name_and_its_registered_name() {
        let web = port("Metrics", Protocol::Tcp, 80);
        for label in ["80", "http", "metrics"] {
            assert!(web.matches(label, "tcp"), "{label}");
            assert!(!web.matches(label, "udp"), "{label}");
        }
        for label in ["https", "8080", "080", "+80", "", "80 "] {
            assert!(!web.matches(label, "tcp"), "{label}");
        }
        assert!(!port("", Protocol::Udp, 4000).matches("", "udp"), "no name is not the empty name");
        assert_eq!(ServicePort::new(&PortConfig::default()), None);
    }

    #[test]
    fn names_of_services_with_underscores_and_dots_are_kept() {
        assert_eq!(parse("_http._tcp.web"), Some(("http", "tcp", "web")));
        assert_eq!(parse("_8080._udp.tasks.my_web.front"), Some(("8080", "udp", "tasks.my_web.front")));
        for other in ["web", "_web", "_a._b", "http._tcp.web", "_._tcp.web", "_x.y._tcp.web", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
