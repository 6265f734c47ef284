//! What has to change so that this node answers the published ports. Pure.

use crate::model::{IpFamily, Protocol, view::PublishedPort};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A port of this node: the same number may be published for TCP and for UDP.
pub type PortKey = (Protocol, u16);

/// A port as this node has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Actual {
    /// Where its connections go.
    pub route: Arc<PublishedPort>,
    /// Listens on 0.0.0.0.
    pub v4: bool,
    /// Listens on [::].
    pub v6: bool,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Stop listening; connections go on until they end, UDP flows end.
    Close(PortKey),
    /// Send new connections of this port there.
    Route(Arc<PublishedPort>),
    /// Listen on this port.
    Listen(PortKey, IpFamily),
}

/// The steps from `actual` to `desired`, closes first. A port that could not be opened is there without its listeners, so
/// it is tried again each time. Protocols other than TCP and UDP are not carried out here.
#[must_use]
pub fn plan(desired: &[Arc<PublishedPort>], actual: &BTreeMap<PortKey, Actual>) -> Vec<Step> {
    let wanted: BTreeMap<PortKey, &Arc<PublishedPort>> =
        desired.iter().filter(|p| p.protocol != Protocol::Sctp).map(|p| ((p.protocol, p.published), p)).collect();
    let mut steps: Vec<Step> = actual.keys().filter(|port| !wanted.contains_key(port)).map(|port| Step::Close(*port)).collect();
    for (port, wanted) in wanted {
        let there = actual.get(&port);
        // Before it listens: a port must know where to send the first connection.
        if there.is_none_or(|there| there.route != *wanted) {
            steps.push(Step::Route(wanted.clone()));
        }
        for (family, open) in [(IpFamily::V4, there.is_some_and(|t| t.v4)), (IpFamily::V6, there.is_some_and(|t| t.v6))] {
            if !open {
                steps.push(Step::Listen(port, family));
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Listens;
    use crate::model::view::Backend;

    fn port(published: u16, backends: u8) -> Arc<PublishedPort> {
        let backend = |n: u8| Backend {
            task_id: format!("t{n}").into(),
            node_id: "n".into(),
            address: [10, 0, 0, n].into(),
            listens: Listens::default(),
        };
        Arc::new(PublishedPort {
            protocol: Protocol::Tcp,
            published,
            target: 80,
            service_id: "s".into(),
            service_name: "web".to_owned(),
            backends: (1..=backends).map(backend).collect(),
            affinity: false,
            allow: Vec::new(),
        })
    }

    fn of_protocol(protocol: Protocol) -> Arc<PublishedPort> {
        Arc::new(PublishedPort { protocol, ..(*port(53, 1)).clone() })
    }

    const TCP: Protocol = Protocol::Tcp;

    fn actual(route: Arc<PublishedPort>, v4: bool, v6: bool) -> (PortKey, Actual) {
        ((route.protocol, route.published), Actual { route, v4, v6 })
    }

    #[test]
    fn a_new_port_is_routed_before_it_listens() {
        let steps = plan(&[port(80, 1)], &BTreeMap::new());
        assert_eq!(
            steps,
            [Step::Route(port(80, 1)), Step::Listen((TCP, 80), IpFamily::V4), Step::Listen((TCP, 80), IpFamily::V6)]
        );
    }

    #[test]
    fn what_is_there_needs_nothing() {
        assert_eq!(plan(&[port(80, 2)], &BTreeMap::from([actual(port(80, 2), true, true)])), []);
    }

    #[test]
    fn a_changed_backend_set_touches_no_listener() {
        let steps = plan(&[port(80, 3)], &BTreeMap::from([actual(port(80, 2), true, true)]));
        assert_eq!(steps, [Step::Route(port(80, 3))]);
    }

    #[test]
    fn a_gone_port_is_closed_before_another_opens_and_a_taken_family_is_tried_again() {
        let there = BTreeMap::from([actual(port(80, 1), true, true), actual(port(81, 1), true, false)]);
        let steps = plan(&[port(81, 1)], &there);
        assert_eq!(steps, [Step::Close((TCP, 80)), Step::Listen((TCP, 81), IpFamily::V6)]);
    }

    #[test]
    fn other_protocols_are_left_alone() {
        assert_eq!(plan(&[of_protocol(Protocol::Sctp)], &BTreeMap::new()), []);
    }

    #[test]
    fn the_same_number_on_tcp_and_udp_is_two_ports() {
        let udp = of_protocol(Protocol::Udp);
        let steps = plan(std::slice::from_ref(&udp), &BTreeMap::from([actual(port(53, 1), true, true)]));
        let listen = |family| Step::Listen((Protocol::Udp, 53), family);
        assert_eq!(steps, [Step::Close((TCP, 53)), Step::Route(udp), listen(IpFamily::V4), listen(IpFamily::V6)]);
    }
}
