//! What a service's labels say about its published ports: `skep.affinity` and `skep.allow`. Docker's spec has no field
//! for either, and a label goes through every client.

use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// `source`: one client address always gets the same backend, as long as the backends stay.
pub const AFFINITY: &str = "skep.affinity";
/// Comma-separated source prefixes that may use the ports: `192.0.2.0/24,2001:db8::/32`. A bare address stands for itself.
/// Processes of a node itself (their address is loopback or one of the node's own, link-local ones excepted) may always
/// use the ports on that node; containers of the node are other addresses, which the list must name.
pub const ALLOW: &str = "skep.allow";

/// What the labels say.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PortLabels {
    /// One client address always gets the same backend.
    pub affinity: bool,
    /// Sources that may use the ports, sorted; empty: everybody.
    pub allow: Vec<IpNet>,
}

impl PortLabels {
    /// Reads the labels of a service; others are not looked at.
    ///
    /// # Errors
    /// What is wrong with which label, and what would be right.
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
        // An empty list would let everybody in, which nobody means who writes this label.
        let allow: Option<Vec<IpNet>> = text.split(',').map(|one| prefix(one.trim())).collect();
        let Some(mut allow) = allow else {
            return Err(format!(
                "label {ALLOW}={text}: must be source prefixes separated by commas, as 192.0.2.0/24,2001:db8::/32,198.51.100.7; \
                 leave the label out to let everybody in"
            ));
        };
        allow.sort_unstable();
        allow.dedup();
        Ok(Self { affinity, allow })
    }
}

/// A prefix or a bare address; IPv4 however it is written.
fn prefix(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?.trunc();
    match net {
        IpNet::V6(mapped) if mapped.prefix_len() >= 96 => match mapped.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, mapped.prefix_len() - 96).ok().map(IpNet::V4),
            None => Some(net),
        },
        _ => Some(net),
    }
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
    fn without_labels_everybody_gets_any_backend() {
        assert_eq!(read(&[("skep.other", "?"), ("com.example", "source")]), Ok(PortLabels::default()));
    }

    #[test]
    fn affinity_is_by_source_or_not_at_all() {
        assert!(read(&[(AFFINITY, " source ")]).unwrap().affinity);
        for wrong in ["", "Source", "cookie", "true"] {
            let said = read(&[(AFFINITY, wrong)]).unwrap_err();
            assert!(said.contains("skep.affinity") && said.contains("\"source\""), "{said}");
        }
    }

    #[test]
    fn prefixes_of_both_families_blanks_and_bare_addresses() {
        assert_eq!(allowed("192.0.2.0/24,2001:db8::/32"), ["192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!(allowed(" 2001:db8::1 , 192.0.2.7 "), ["192.0.2.7/32", "2001:db8::1/128"]);
        assert_eq!(allowed("0.0.0.0/0"), ["0.0.0.0/0"]);
    }

    #[test]
    fn one_prefix_has_one_spelling() {
        assert_eq!(allowed("192.0.2.9/24,192.0.2.0/24,::ffff:192.0.2.0/120"), ["192.0.2.0/24"]);
    }

    #[test]
    fn what_does_not_parse_is_refused_with_what_would_be_right() {
        for wrong in ["", ",", "192.0.2.0/24,", "192.0.2.0/33", "192.0.2", "example.com", "192.0.2.0/24;192.0.3.0/24", "::/129"] {
            let said = read(&[(ALLOW, wrong)]).unwrap_err();
            assert!(said.contains("skep.allow") && said.contains("192.0.2.0/24,2001:db8::/32"), "{said}");
        }
    }
}
