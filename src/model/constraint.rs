//! Constraints of a placement: `node.labels.zone==a`, `node.role!=manager`. SwarmKit's rules: the whole value is compared, without
//! regard to case and without patterns; keys of labels are case-sensitive; an absent label is empty.

use super::{Node, TaskSpec};
use ipnet::IpNet;
use std::net::IpAddr;

/// What SwarmKit takes besides letters and digits in a value.
const VALUE: &[u8] = b":-_.*()?+[]\\^$|/ \t\n\x0c\r";
const NODE_LABEL: &str = "node.labels.";
const ENGINE_LABEL: &str = "engine.labels.";

/// A parsed constraint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Constraint {
    attribute: NodeAttribute,
    /// `==`, else `!=`.
    equal: bool,
    value: String,
}

/// What is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
enum NodeAttribute {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Architecture,
    NodeLabel(String),
    EngineLabel(String),
    /// No node has it.
    Unknown(String),
}

impl NodeAttribute {
    fn named(key: &str) -> Self {
        let label = |prefix: &str| {
            let (head, label) = key.split_at_checked(prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && !label.is_empty()).then(|| label.to_owned())
        };
        if let Some(label) = label(NODE_LABEL) {
            return Self::NodeLabel(label);
        }
        if let Some(label) = label(ENGINE_LABEL) {
            return Self::EngineLabel(label);
        }
        match key.to_ascii_lowercase().as_str() {
            "node.id" => Self::Id,
            "node.hostname" => Self::Hostname,
            "node.ip" => Self::Ip,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Architecture,
            _ => Self::Unknown(key.to_owned()),
        }
    }
}

impl Constraint {
    /// Parses a constraint.
    ///
    /// # Errors
    /// SwarmKit's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let split = |operator| text.split_once(operator).map(|(key, value)| (key, operator == "==", value));
        let Some((key, equal, value)) = split("==").or_else(|| split("!=")) else {
            return Err("constraint expected one operator from ==, !=".to_owned());
        };
        let (key, value) = (key.trim(), value.trim());
        let (first, rest) = key.as_bytes().split_first().unwrap_or((&b' ', &[]));
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        if !(first.is_ascii_alphabetic() || *first == b'_') || rest.is_empty() || !rest.iter().all(is_name) {
            return Err(format!("key '{key}' is invalid"));
        }
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || VALUE.contains(&byte)) {
            return Err(format!("value '{value}' is invalid"));
        }
        Ok(Self { attribute: NodeAttribute::named(key), equal, value: value.to_owned() })
    }

    /// Why no node can ever meet the constraint; `None` if one may. SwarmKit takes such a constraint, and its tasks wait for ever.
    #[must_use]
    pub fn impossible(&self) -> Option<String> {
        match &self.attribute {
            NodeAttribute::Unknown(key) => Some(format!(
                "key '{key}' is unknown: a constraint compares node.id, node.hostname, node.ip, node.role, node.platform.os, \
                 node.platform.arch, node.labels.KEY or engine.labels.KEY"
            )),
            NodeAttribute::Ip if self.prefix().is_none() => {
                Some(format!("value '{}' is invalid: node.ip is compared with an address or a prefix", self.value))
            }
            NodeAttribute::Role if self.equal && !["worker", "manager"].iter().any(|r| self.value.eq_ignore_ascii_case(r)) => {
                Some(format!("value '{}' is invalid: node.role is worker or manager", self.value))
            }
            _ => None,
        }
    }

    /// Whether the node meets the constraint.
    #[must_use]
    pub fn is_met_by(&self, node: &Node) -> bool {
        let description = &node.description;
        let label = |value: Option<&String>| self.compare(value.map_or("", String::as_str));
        match &self.attribute {
            NodeAttribute::Id => self.compare(node.id.as_str()),
            NodeAttribute::Hostname => self.compare(&description.hostname),
            NodeAttribute::Role => self.compare(node.observed_role().as_str()),
            NodeAttribute::Os => self.compare(&description.os),
            NodeAttribute::Architecture => self.compare(&description.architecture),
            NodeAttribute::NodeLabel(key) => label(node.spec.labels.get(key)),
            NodeAttribute::EngineLabel(key) => label(description.engine_labels.get(key)),
            NodeAttribute::Ip => self.prefix().is_some_and(|prefix| {
                let inside = node.status.addr.is_some_and(|address| prefix.contains(&address.to_canonical()));
                inside == self.equal
            }),
            NodeAttribute::Unknown(_) => false,
        }
    }

    fn compare(&self, value: &str) -> bool {
        self.value.eq_ignore_ascii_case(value) == self.equal
    }

    /// The value as a prefix; a bare address is one of full length.
    fn prefix(&self) -> Option<IpNet> {
        let address = || self.value.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        self.value.parse::<IpNet>().or_else(|_| address()).ok()
    }
}

/// The parsed constraints of a spec, for many nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Constraints {
    /// `None`: one cannot be parsed, so that no node meets it. The API does not take such a spec.
    parsed: Option<Vec<Constraint>>,
}

impl Constraints {
    /// Parses the constraints of a spec.
    #[must_use]
    pub fn of(spec: &TaskSpec) -> Self {
        let all = spec.placement.iter().flat_map(|placement| &placement.constraints);
        Self { parsed: all.map(|text| Constraint::parse(text).ok()).collect() }
    }

    /// Whether the node meets all of them. Its state, availability and free resources are not looked at.
    #[must_use]
    pub fn are_met_by(&self, node: &Node) -> bool {
        self.parsed.as_ref().is_some_and(|all| all.iter().all(|constraint| constraint.is_met_by(node)))
    }
}

/// The label that a spread descriptor names, and the node's value for it: empty if the node does not have the label. `None` if the
/// descriptor names none.
#[must_use]
pub fn label_value<'a>(node: &'a Node, descriptor: &str) -> Option<&'a str> {
    let labels = match NodeAttribute::named(descriptor) {
        NodeAttribute::NodeLabel(key) => node.spec.labels.get(&key),
        NodeAttribute::EngineLabel(key) => node.description.engine_labels.get(&key),
        _ => return None,
    };
    Some(labels.map_or("", String::as_str))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::model::node::ManagerStatus;
    use crate::model::task::Placement;

    fn node() -> Node {
        let mut node = fixture::node("N1id");
        node.description.hostname = "Web1".to_owned();
        (node.description.architecture, node.description.os) = ("x86_64".to_owned(), "linux".to_owned());
        node.description.engine_labels = [("Storage".to_owned(), "SSD".to_owned())].into();
        node.spec.labels = [("zone".to_owned(), "eu-west:1".to_owned()), ("Zone".to_owned(), "B".to_owned())].into();
        node.status.addr = Some("192.0.2.7".parse().unwrap());
        node
    }

    #[test]
    fn every_key_and_both_operators() {
        for (text, met) in [
            ("node.id==n1ID", true),
            ("node.id==n1", false),
            ("NODE.ID != n1id", false),
            ("node.hostname==web1", true),
            ("node.hostname!=web2", true),
            ("node.hostname==web*", false),
            ("node.role==worker", true),
            ("node.role==Manager", false),
            ("node.role!=manager", true),
            ("node.platform.os==Linux", true),
            ("node.platform.arch==x86_64", true),
            // The name that `uname` has, not Docker's.
            ("node.platform.arch==amd64", false),
            ("node.labels.zone==EU-WEST:1", true),
            ("node.labels.zone==eu-west", false),
            ("Node.Labels.zone != b", true),
            // Keys of labels are case-sensitive.
            ("node.labels.Zone==b", true),
            ("node.labels.ZONE==b", false),
            ("node.labels.absent!=x", true),
            ("node.labels.absent==x", false),
            ("engine.labels.Storage==ssd", true),
            ("engine.labels.storage!=ssd", true),
            ("node.ip==192.0.2.7", true),
            ("node.ip==192.0.2.8", false),
            ("node.ip!=192.0.2.8", true),
            ("node.ip==192.0.2.0/24", true),
            ("node.ip==192.0.2.99/24", true),
            ("node.ip!=192.0.2.0/24", false),
            ("node.ip==2001:db8::/32", false),
            ("node.ip==::ffff:192.0.2.7", true),
            ("node.ip==nowhere", false),
            ("node.ip!=nowhere", false),
            ("node.foo==1", false),
            ("node.foo!=1", false),
            ("node.labels.==1", false),
        ] {
            assert_eq!(Constraint::parse(text).unwrap().is_met_by(&node()), met, "{text}");
        }
    }

    #[test]
    fn the_observed_role_counts_and_an_unknown_address_is_in_no_prefix() {
        let mut node = node();
        node.spec.role = crate::model::Role::Manager;
        assert!(Constraint::parse("node.role==worker").unwrap().is_met_by(&node));
        node.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.7:2377".parse().unwrap() });
        assert!(Constraint::parse("node.role==manager").unwrap().is_met_by(&node));
        node.status.addr = None;
        assert!(!Constraint::parse("node.ip==192.0.2.7").unwrap().is_met_by(&node));
        assert!(Constraint::parse("node.ip!=192.0.2.0/24").unwrap().is_met_by(&node));
    }

    #[test]
    fn parse_errors_are_those_of_swarmkit() {
        let operator = "constraint expected one operator from ==, !=";
        for (text, error) in [
            ("node.foo", operator),
            ("node.role=worker", operator),
            ("a>1", operator),
            ("", operator),
            ("node.role == ", "value '' is invalid"),
            ("bad name==1", "key 'bad name' is invalid"),
            ("a==1", "key 'a' is invalid"),
            ("1a==1", "key '1a' is invalid"),
            ("==1", "key '' is invalid"),
            ("node.hostname=={{.Node.Hostname}}", "value '{{.Node.Hostname}}' is invalid"),
            ("node.labels.a==b==c", "value 'b==c' is invalid"),
            ("node.labels.a==\u{e4}", "value '\u{e4}' is invalid"),
        ] {
            assert_eq!(Constraint::parse(text).unwrap_err(), error, "{text}");
        }
        for fine in ["ab==1", "_a!=x y", "node.labels.a-b_c.d==^(x|y)[1]*$"] {
            Constraint::parse(fine).unwrap();
        }
    }

    #[test]
    fn what_no_node_can_meet_is_reported() {
        for (text, named) in [
            ("node.foo==1", "'node.foo'"),
            ("node.labels!=1", "'node.labels'"),
            ("node.ip==10.0.0", "'10.0.0'"),
            ("node.role==boss", "'boss'"),
        ] {
            let why = Constraint::parse(text).unwrap().impossible().unwrap();
            assert!(why.contains(named), "{why}");
        }
        for fine in ["node.ip!=10.0.0.0/8", "node.role!=boss", "node.id==x", "engine.labels.x==y"] {
            assert_eq!(Constraint::parse(fine).unwrap().impossible(), None, "{fine}");
        }
    }

    #[test]
    fn all_constraints_of_a_spec_must_be_met() {
        let node = fixture::node("n1");
        let met = |constraints: &[&str]| {
            let constraints = constraints.iter().map(|c| (*c).to_owned()).collect();
            let placement = Some(Placement { constraints, ..Placement::default() });
            Constraints::of(&TaskSpec { placement, ..TaskSpec::default() }).are_met_by(&node)
        };
        assert!(Constraints::of(&TaskSpec::default()).are_met_by(&node));
        assert!(met(&["node.id==n1", "node.role==worker"]));
        assert!(!met(&["node.id==n1", "node.role==manager"]));
        assert!(!met(&["node.id"]), "what cannot be parsed is met by no node");
    }

    #[test]
    fn a_spread_descriptor_names_a_label() {
        let node = node();
        for (descriptor, value) in [
            ("node.labels.zone", Some("eu-west:1")),
            ("NODE.labels.Zone", Some("B")),
            ("engine.labels.Storage", Some("SSD")),
            ("node.labels.rack", Some("")),
            ("rack", None),
            ("node.labels.", None),
            ("node.hostname", None),
        ] {
            assert_eq!(label_value(&node, descriptor), value, "{descriptor}");
        }
    }
}
