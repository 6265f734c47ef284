//! Nodes that the managers declared down, as this node finds them.
//!
//! A node is lost if it does not answer here either, or if the managers removed it. Where only the daemon is gone, containers and
//! tunnel still work, and so do their connections: such a node is asked again for as long as it is down. A task that is stopped,
//! moved or drained in order is not lost: its connections last until it ends, and its own kernel closes them. Pure.

use crate::model::view::{ClusterPart, Peer};
use crate::model::{NodeId, NodeView};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A node that is down.
#[derive(Debug)]
struct DownNode {
    /// Addresses whose connections end with it: of containers, and the source of ingress traffic.
    addresses: BTreeSet<Ipv4Addr>,
    /// Of this time that it is down; answers to earlier questions say nothing.
    question: u64,
    /// It has answered, or was up in a view that was followed: its connections are not those of an earlier run.
    was_alive: bool,
    lost: bool,
}

/// A node of which it is to be found out whether it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeQuestion {
    pub node: NodeId,
    /// Its mesh address.
    pub address: Ipv6Addr,
    number: u64,
}

/// What follows from a view.
#[derive(PartialEq, Eq, Default, Debug)]
pub struct DownChange {
    /// Addresses that are lost with nodes that the managers have removed.
    pub failed: BTreeSet<Ipv4Addr>,
    pub ask: Vec<NodeQuestion>,
}

/// The nodes that are down in the view that was followed last.
#[derive(Debug)]
pub struct DownNodes {
    me: NodeId,
    before: Option<Arc<NodeView>>,
    down: BTreeMap<NodeId, DownNode>,
    questions: u64,
}

impl DownNodes {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self { me, before: None, down: BTreeMap::new(), questions: 0 }
    }

    /// Nodes that are down and do not answer here.
    #[must_use]
    pub fn lost(&self) -> BTreeSet<NodeId> {
        self.down.iter().filter(|(_, node)| node.lost).map(|(id, _)| id.clone()).collect()
    }

    /// The view that was followed last.
    #[must_use]
    pub fn view(&self) -> Option<&Arc<NodeView>> {
        self.before.as_ref()
    }

    /// Takes the next view. Of the first one no connection is reset: nodes that are down in it failed in an earlier run.
    pub fn follow(&mut self, now: &Arc<NodeView>) -> DownChange {
        let before = self.before.replace(now.clone());
        let mut change = DownChange::default();
        if let Some(before) = &before {
            for node in before.cluster.nodes.iter().filter(|node| node.node_id != self.me) {
                // Of one that was down before, what it had then.
                if now.cluster.node(&node.node_id).is_none() {
                    let known = self.down.get(&node.node_id);
                    if known.is_none_or(|known| !known.lost && known.was_alive) {
                        change.failed.extend(known.map_or_else(|| addresses(node), |known| known.addresses.clone()));
                    }
                }
            }
        }
        let is_down = |id: &NodeId| now.cluster.node(id).is_some_and(|node| node.down);
        self.down.retain(|id, _| is_down(id));
        for node in now.cluster.nodes.iter().filter(|node| node.down && node.node_id != self.me) {
            if self.down.contains_key(&node.node_id) {
                continue;
            }
            // The managers may have removed its last tasks in the same revision.
            let was = before.as_ref().and_then(|before| before.cluster.node(&node.node_id));
            let addresses = was.into_iter().chain([node]).flat_map(addresses).collect();
            self.questions += 1;
            let (number, was_alive) = (self.questions, before.is_some());
            self.down.insert(node.node_id.clone(), DownNode { addresses, question: number, was_alive, lost: false });
            change.ask.push(NodeQuestion { node: node.node_id.clone(), address: node.address(), number });
        }
        change.failed = without_reused(&now.cluster, change.failed);
        change
    }

    /// A node that was asked does not answer: the addresses that are lost with it.
    pub fn is_silent(&mut self, asked: &NodeQuestion) -> BTreeSet<Ipv4Addr> {
        let Some(node) = self.down.get_mut(&asked.node).filter(|node| node.question == asked.number) else {
            return BTreeSet::new();
        };
        node.lost = true;
        match &self.before {
            Some(view) if node.was_alive => without_reused(&view.cluster, node.addresses.clone()),
            _ => BTreeSet::new(),
        }
    }

    /// A node that was asked answers: it is to be asked again, if it is still down.
    pub fn answers(&mut self, asked: NodeQuestion) -> Option<NodeQuestion> {
        let node = self.down.get_mut(&asked.node).filter(|node| node.question == asked.number)?;
        node.was_alive = true;
        Some(asked)
    }
}

fn addresses(node: &Peer) -> BTreeSet<Ipv4Addr> {
    node.containers.iter().copied().chain([node.ingress_addr]).collect()
}

/// Without the addresses of nodes that are up: they came back, or were allocated to another task.
#[must_use]
pub fn without_reused(now: &ClusterPart, mut failed: BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    for node in now.nodes.iter().filter(|node| !node.down) {
        for address in node.containers.iter().chain([&node.ingress_addr]) {
            failed.remove(address);
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    fn peer(n: u8, down: bool, containers: &[u8]) -> Peer {
        Peer { down, containers: containers.iter().map(|c| [10, 0, 1, *c].into()).collect(), ..fixture::peer(n) }
    }

    fn view(nodes: Vec<Peer>) -> Arc<NodeView> {
        Arc::new(fixture::node_view(1, Vec::new(), fixture::cluster_part(nodes)))
    }

    /// The nodes as of the first view.
    fn of(nodes: Vec<Peer>) -> DownNodes {
        let mut of = DownNodes::new("node1".into());
        assert!(of.follow(&view(nodes)).failed.is_empty(), "the first view is the base");
        of
    }

    /// Follows a view whose nodes do not answer, and returns the addresses that fail.
    fn failed(of: &mut DownNodes, nodes: Vec<Peer>) -> Vec<String> {
        let change = of.follow(&view(nodes));
        let silent = change.ask.iter().flat_map(|asked| of.is_silent(asked)).collect::<BTreeSet<_>>();
        silent.iter().chain(&change.failed).map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_that_answers_here_is_not_lost_although_it_was_declared_down_until_it_is_silent() {
        let mut of = of(vec![peer(1, false, &[1]), peer(2, false, &[2])]);
        let down = view(vec![peer(1, false, &[1]), peer(2, true, &[2])]);
        let change = of.follow(&down);
        assert!(change.failed.is_empty() && change.ask.len() == 1 && of.lost().is_empty(), "{change:?}");
        assert_eq!(of.follow(&down), DownChange::default(), "it is being asked");
        let asked = of.answers(change.ask[0].clone()).expect("it is still down");
        // Its last task is removed while it is down.
        assert_eq!(of.follow(&view(vec![peer(1, false, &[1]), peer(2, true, &[])])), DownChange::default());
        assert_eq!(of.is_silent(&asked), [[10, 0, 0, 3].into(), [10, 0, 1, 2].into()].into());
        assert_eq!(of.lost(), ["node2".into()].into());
        of.follow(&view(vec![peer(1, false, &[1]), peer(2, false, &[])]));
        assert!(of.lost().is_empty() && of.answers(asked).is_none(), "it is back");
    }

    #[test]
    fn an_answer_to_an_earlier_question_says_nothing_of_a_node_that_is_down_again() {
        let [up, down] = [false, true].map(|down| view(vec![peer(1, false, &[1]), peer(2, down, &[2])]));
        let mut of = of(vec![peer(1, false, &[1]), peer(2, false, &[2])]);
        let first = of.follow(&down).ask.remove(0);
        of.follow(&up);
        let second = of.follow(&down).ask.remove(0);
        assert!(of.is_silent(&first).is_empty() && of.lost().is_empty());
        assert!(of.answers(first).is_none(), "it is asked once at a time");
        assert!(!of.is_silent(&second).is_empty());
    }

    #[test]
    fn a_node_that_was_down_in_the_first_view_is_asked_and_its_connections_are_reset_only_if_it_answered_before() {
        let down = view(vec![peer(1, false, &[1]), peer(2, true, &[2])]);
        let mut of = DownNodes::new("node1".into());
        let asked = of.follow(&down).ask.remove(0);
        assert!(of.is_silent(&asked).is_empty(), "it failed in an earlier run");
        assert_eq!(of.lost(), ["node2".into()].into());
        let mut of = DownNodes::new("node1".into());
        let asked = of.follow(&down).ask.remove(0);
        let again = of.answers(asked).expect("its daemon alone is gone");
        assert!(!of.is_silent(&again).is_empty());
    }

    #[test]
    fn the_addresses_of_a_node_that_goes_down_fail_once() {
        let (up, down) =
            (vec![peer(1, false, &[1]), peer(2, false, &[2, 3])], vec![peer(1, false, &[1]), peer(2, true, &[2, 3])]);
        let mut of = of(up.clone());
        assert_eq!(failed(&mut of, down.clone()), ["10.0.0.3", "10.0.1.2", "10.0.1.3"]);
        assert!(failed(&mut of, down).is_empty());
        assert!(failed(&mut of, up.clone()).is_empty());
        assert!(failed(&mut of, up).is_empty());
    }

    #[test]
    fn a_task_that_is_removed_in_order_has_not_failed() {
        let up = |containers: &[u8]| vec![peer(1, false, &[1]), peer(2, false, containers)];
        assert!(failed(&mut of(up(&[2, 3])), up(&[])).is_empty(), "scaled down, drained, moved");
    }

    #[test]
    fn a_removed_node_has_failed_and_so_have_the_tasks_removed_with_it() {
        let both = vec![peer(1, false, &[]), peer(2, false, &[2])];
        assert_eq!(failed(&mut of(both), vec![peer(1, false, &[])]), ["10.0.0.3", "10.0.1.2"]);
        assert_eq!(failed(&mut of(vec![peer(2, false, &[2, 3])]), vec![peer(2, true, &[3, 4])]).len(), 4);
        // One that was down, answered, and is removed.
        let mut of = of(vec![peer(1, false, &[]), peer(2, false, &[2])]);
        of.follow(&view(vec![peer(1, false, &[]), peer(2, true, &[])]));
        assert_eq!(failed(&mut of, vec![peer(1, false, &[])]), ["10.0.0.3", "10.0.1.2"]);
    }

    #[test]
    fn an_address_that_was_allocated_to_another_node_has_not_failed() {
        let mut of = of(vec![peer(1, false, &[]), peer(2, false, &[2, 3]), peer(3, false, &[])]);
        let after = vec![peer(1, false, &[]), peer(2, true, &[3]), peer(3, false, &[2])];
        assert_eq!(failed(&mut of, after), ["10.0.0.3", "10.0.1.3"]);
    }

    #[test]
    fn a_node_never_fails_in_its_own_view() {
        let mut of = of(vec![peer(1, false, &[1])]);
        assert!(failed(&mut of, vec![peer(1, true, &[1])]).is_empty());
        assert!(of.lost().is_empty());
    }
}
