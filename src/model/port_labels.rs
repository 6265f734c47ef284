//! Labels of a service that configure its published ports: `skep.affinity` and `skep.allow`. Docker's spec has no field
//! for either, and every client passes labels through.

use super::port::PublishMode;
use super::service::ServiceSpec;
use super::source_prefixes::{PREFIXES, prefixes};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// `source`: connections of one client address go to the same backend as long as the set of backends stays the same.
pub const AFFINITY: &str = "skep.affinity";
/// Comma-separated source prefixes that may use the ports: `192.0.2.0/24,2001:db8::/32`. A bare address is a prefix of
/// full length. Processes of a node itself (source address loopback or one of the node's own, except link-local ones) may
/// always use the ports on that node; containers of the node have other addresses, which the list must contain.
pub const ALLOW: &str = "skep.allow";

/// Entries of the map of allowed sources that ports may use together, of its 65,536: each prefix of a list is one for each
/// published port of its service. The rest is for networks and nodes.
pub const MOST_SOURCES: usize = 61_440;
/// Entries that one service may use.
pub const MOST_SOURCES_OF_SERVICE: usize = 16_384;

/// The parsed labels.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PortLabels {
    pub affinity: bool,
    /// Source prefixes that may use the ports, sorted; every source if empty.
    pub allow: Vec<IpNet>,
}

impl PortLabels {
    /// Parses the labels of a service; other labels are ignored.
    ///
    /// # Errors
    /// Text for the user: which label is wrong, and what is valid.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let affinity = match labels.get(AFFINITY).map(|value| value.trim()) {
            None => false,
            Some("source") => true,
            Some(other) => {
                return Err(format!(
                    "label {AFFINITY}={other}: the only affinity is \"source\" (one client address always gets the same task); \
                     leave the label out for none"
                ));
            }
        };
        let Some(text) = labels.get(ALLOW) else { return Ok(Self { affinity, allow: Vec::new() }) };
        // An empty value is refused: an empty list would allow every source.
        let Some(allow) = prefixes(text) else {
            return Err(format!(
                "label {ALLOW}={text}: must be source prefixes separated by {PREFIXES}; leave the label out to allow every source"
            ));
        };
        Ok(Self { affinity, allow })
    }
}

impl PortLabels {
    /// Entries of the map of allowed sources that a service with so many published ports uses.
    #[must_use]
    pub fn sources(&self, ports: usize) -> usize {
        self.allow.len().saturating_mul(ports)
    }
}

/// Entries of the map of allowed sources that a service uses.
#[must_use]
pub fn sources_of(spec: &ServiceSpec) -> usize {
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    let published = ports.filter(|port| port.publish_mode == PublishMode::Ingress).count();
    PortLabels::read(&spec.labels).map_or(0, |labels| labels.sources(published))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> Result<PortLabels, String> {
        PortLabels::read(&labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn allowed(text: &str) -> Vec<String> {
        read(&[(ALLOW, text)]).unwrap().allow.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn without_labels_every_source_is_allowed_and_there_is_no_affinity() {
        assert_eq!(read(&[("skep.other", "?"), ("com.example", "source")]), Ok(PortLabels::default()));
    }

    #[test]
    fn the_only_affinity_is_by_source() {
        assert!(read(&[(AFFINITY, " source ")]).unwrap().affinity);
        for wrong in ["", "Source", "cookie", "true"] {
            let error = read(&[(AFFINITY, wrong)]).unwrap_err();
            assert!(error.contains("skep.affinity") && error.contains("\"source\""), "{error}");
        }
    }

    #[test]
    fn prefixes_of_both_families_blanks_and_bare_addresses() {
        assert_eq!(allowed("192.0.2.0/24,2001:db8::/32"), ["192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!(allowed(" 2001:db8::1 , 192.0.2.7 "), ["192.0.2.7/32", "2001:db8::1/128"]);
        assert_eq!(allowed("0.0.0.0/0"), ["0.0.0.0/0"]);
    }

    #[test]
    fn equal_prefixes_are_listed_once() {
        assert_eq!(allowed("192.0.2.9/24,192.0.2.0/24,::ffff:192.0.2.0/120"), ["192.0.2.0/24"]);
    }

    #[test]
    fn invalid_prefixes_are_refused_with_a_valid_example() {
        for wrong in ["", ",", "192.0.2.0/24,", "192.0.2.0/33", "192.0.2", "example.com", "192.0.2.0/24;192.0.3.0/24", "::/129"] {
            let error = read(&[(ALLOW, wrong)]).unwrap_err();
            assert!(error.contains("skep.allow") && error.contains("192.0.2.0/24,2001:db8::/32"), "{error}");
        }
    }
}
