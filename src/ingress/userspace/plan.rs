//! The steps from the ports that are open to those that should be. Pure.

use crate::model::{IpFamily, Protocol, view::PublishedPort};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A port of this node. The same number may be published for TCP and for UDP.
pub type PortKey = (Protocol, u16);

/// A port as this node has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActualPort {
    /// What its new connections follow.
    pub route: Arc<PublishedPort>,
    /// Listens on 0.0.0.0.
    pub v4: bool,
    /// Listens on [::].
    pub v6: bool,
    /// Bound, but the kernel refuses clients.
    pub refuses: bool,
}

/// The ports of this node, including those whose listeners could not be opened.
pub type ActualPorts = BTreeMap<PortKey, ActualPort>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortStep {
    /// Stop listening. Connections continue until they end, UDP flows end.
    Close(PortKey),
    /// Make new connections follow this.
    Route(Arc<PublishedPort>),
    /// Open the listener of a family.
    Listen(PortKey, IpFamily),
    /// Keep the port bound, and let the kernel refuse clients: there is no task that could serve them.
    Refuse(PortKey),
    /// Serve clients again.
    Serve(PortKey),
}

/// The steps from `actual` to `desired`, closes first. A listener that could not be opened is missing in `actual`, so each
/// plan tries it again. Protocols other than TCP and UDP are skipped.
#[must_use]
pub fn plan(desired: &[Arc<PublishedPort>], actual: &ActualPorts) -> Vec<PortStep> {
    let wanted: BTreeMap<PortKey, &Arc<PublishedPort>> =
        desired.iter().filter(|p| p.protocol != Protocol::Sctp).map(|p| ((p.protocol, p.published), p)).collect();
    let mut steps: Vec<PortStep> =
        actual.keys().filter(|key| !wanted.contains_key(key)).map(|key| PortStep::Close(*key)).collect();
    for (key, wanted) in wanted {
        let current = actual.get(&key);
        // Before it listens: the first connection needs a route.
        if current.is_none_or(|port| port.route != *wanted) {
            steps.push(PortStep::Route(wanted.clone()));
        }
        let refuses = current.is_some_and(|port| port.refuses);
        // Before it listens, too: no client may find it open for a moment.
        let wants_refusal = wanted.backends.is_empty() && !wanted.holds;
        if wants_refusal != refuses {
            steps.push(if refuses { PortStep::Serve(key) } else { PortStep::Refuse(key) });
        }
        for (family, open) in [(IpFamily::V4, current.is_some_and(|p| p.v4)), (IpFamily::V6, current.is_some_and(|p| p.v6))] {
            if !open {
                steps.push(PortStep::Listen(key, family));
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::published_port;
    use std::net::Ipv4Addr;

    fn port(published: u16, backends: u8) -> Arc<PublishedPort> {
        let backends: Vec<Ipv4Addr> = (1..=backends).map(|n| [10, 0, 0, n].into()).collect();
        Arc::new(published_port(published, 80, &backends))
    }

    fn of_protocol(protocol: Protocol) -> Arc<PublishedPort> {
        Arc::new(PublishedPort { protocol, ..(*port(53, 1)).clone() })
    }

    const TCP: Protocol = Protocol::Tcp;

    fn actual(route: Arc<PublishedPort>, v4: bool, v6: bool) -> (PortKey, ActualPort) {
        ((route.protocol, route.published), ActualPort { route, v4, v6, refuses: false })
    }

    #[test]
    fn a_new_port_is_routed_before_it_listens() {
        let steps = plan(&[port(80, 1)], &BTreeMap::new());
        assert_eq!(
            steps,
            [PortStep::Route(port(80, 1)), PortStep::Listen((TCP, 80), IpFamily::V4), PortStep::Listen((TCP, 80), IpFamily::V6)]
        );
    }

    #[test]
    fn an_open_port_needs_no_step() {
        assert_eq!(plan(&[port(80, 2)], &BTreeMap::from([actual(port(80, 2), true, true)])), []);
    }

    #[test]
    fn a_changed_backend_set_changes_no_listener() {
        let steps = plan(&[port(80, 3)], &BTreeMap::from([actual(port(80, 2), true, true)]));
        assert_eq!(steps, [PortStep::Route(port(80, 3))]);
    }

    #[test]
    fn a_removed_port_is_closed_before_another_opens_and_a_failed_family_is_tried_again() {
        let open = BTreeMap::from([actual(port(80, 1), true, true), actual(port(81, 1), true, false)]);
        let steps = plan(&[port(81, 1)], &open);
        assert_eq!(steps, [PortStep::Close((TCP, 80)), PortStep::Listen((TCP, 81), IpFamily::V6)]);
    }

    #[test]
    fn a_port_without_backends_refuses_before_it_listens_and_serves_as_soon_as_it_has_one() {
        let listen = |family| PortStep::Listen((TCP, 80), family);
        let refuse = PortStep::Refuse((TCP, 80));
        let steps = plan(&[port(80, 0)], &BTreeMap::new());
        assert_eq!(steps, [PortStep::Route(port(80, 0)), refuse.clone(), listen(IpFamily::V4), listen(IpFamily::V6)]);
        assert_eq!(
            plan(&[port(80, 0)], &BTreeMap::from([actual(port(80, 1), true, true)])),
            [PortStep::Route(port(80, 0)), refuse]
        );
        let refusing = |route| BTreeMap::from([((TCP, 80), ActualPort { route, v4: true, v6: true, refuses: true })]);
        assert_eq!(plan(&[port(80, 0)], &refusing(port(80, 0))), []);
        assert_eq!(plan(&[port(80, 1)], &refusing(port(80, 0))), [PortStep::Route(port(80, 1)), PortStep::Serve((TCP, 80))]);
    }

    #[test]
    fn a_port_whose_connections_wait_for_a_task_is_open_without_one() {
        let holding = || Arc::new(PublishedPort { holds: true, ..(*port(80, 0)).clone() });
        let open = BTreeMap::from([actual(holding(), true, true)]);
        assert_eq!(plan(&[holding()], &open), []);
        assert_eq!(plan(&[port(80, 0)], &open), [PortStep::Route(port(80, 0)), PortStep::Refuse((TCP, 80))], "the label is gone");
    }

    #[test]
    fn other_protocols_are_skipped() {
        assert_eq!(plan(&[of_protocol(Protocol::Sctp)], &BTreeMap::new()), []);
    }

    #[test]
    fn the_same_number_on_tcp_and_udp_is_two_ports() {
        let udp = of_protocol(Protocol::Udp);
        let steps = plan(std::slice::from_ref(&udp), &BTreeMap::from([actual(port(53, 1), true, true)]));
        let listen = |family| PortStep::Listen((Protocol::Udp, 53), family);
        assert_eq!(steps, [PortStep::Close((TCP, 53)), PortStep::Route(udp), listen(IpFamily::V4), listen(IpFamily::V6)]);
    }
}
