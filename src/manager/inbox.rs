//! What waits for the planning loop: the newest of each kind per node. Its size is bounded by the store and by
//! [`super::bounds`], whatever the nodes send and however long planning takes. Pure.

use super::bounds;
use super::dispatcher::{Event, NodeHello, NodeReports};
use super::liveness::Notice;
use super::session::SessionId;
use crate::model::{NodeId, TaskId};
use crate::protocol::ToManager;
use crate::store::Store;
use std::collections::BTreeMap;

/// The waiting events.
#[derive(Default, Debug)]
pub struct Inbox {
    nodes: BTreeMap<NodeId, Waiting>,
}

/// What waits of one node.
#[derive(Default, Debug)]
struct Waiting {
    opened: Option<(SessionId, NodeHello)>,
    reports: NodeReports,
    closed: Option<SessionId>,
}

impl Inbox {
    /// Adds a notice. `store` is the newest state: reports of tasks that it does not have on the node are dropped.
    pub fn push(&mut self, store: &Store, notice: Notice) {
        match notice {
            Notice::Opened { node, session, hello } => {
                let Some(hello) = node_hello(store, &node, hello) else { return };
                let waiting = self.nodes.entry(node).or_default();
                waiting.opened = Some((session, hello));
                waiting.closed = None;
            }
            Notice::Closed { node, session } => {
                let waiting = self.nodes.entry(node).or_default();
                // The end of a session that another one has replaced already: the dispatcher finds that out itself.
                if waiting.opened.as_ref().is_none_or(|(opened, _)| *opened == session) {
                    waiting.closed = Some(session);
                }
            }
            Notice::Report { node, message } => {
                let reports = &mut self.nodes.entry(node.clone()).or_default().reports;
                let is_here = |id: &TaskId| store.task(id).is_some_and(|task| task.node_id.as_ref() == Some(&node));
                match message {
                    ToManager::Status(statuses) => {
                        for (id, status) in statuses.into_iter().filter(|(id, _)| is_here(id)) {
                            reports.add_status(id, bounds::status(status));
                        }
                    }
                    ToManager::Listens(ports) => {
                        let ports = ports.into_iter().filter(|(id, _)| is_here(id));
                        reports.listens.extend(ports.map(|(id, ports)| (id, bounds::listening(ports))));
                    }
                    ToManager::Troubles(troubles) => reports.troubles = Some(bounds::troubles(troubles)),
                    ToManager::Attachments(all) => reports.attachments = Some(bounds::attachments(all)),
                    ToManager::Load(all) => {
                        reports.loads = Some(all.into_iter().filter(|(id, _)| is_here(id)).collect());
                    }
                    ToManager::Demand(demand) => reports.demand = Some(bounds::demand(store, demand)),
                    ToManager::Behind { have } => reports.behind = Some(have),
                    hello @ ToManager::Hello { .. } => reports.hello = node_hello(store, &node, hello),
                    // The liveness core keeps these.
                    ToManager::Heartbeat { .. } | ToManager::Restarting { .. } | ToManager::Leave => {}
                }
            }
        }
    }

    /// Takes everything.
    pub fn take(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for (node, waiting) in std::mem::take(&mut self.nodes) {
            let Waiting { opened, reports, closed } = waiting;
            if let Some((session, hello)) = opened {
                events.push(Event::Opened { node: node.clone(), session, hello });
            }
            if !reports.is_empty() {
                events.push(Event::Reports { node: node.clone(), reports });
            }
            if let Some(session) = closed {
                events.push(Event::Closed { session });
            }
        }
        events
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

/// The content of a hello, bounded.
fn node_hello(store: &Store, node: &NodeId, message: ToManager) -> Option<NodeHello> {
    let ToManager::Hello { description, endpoints, have, .. } = message else { return None };
    let endpoints = bounds::endpoints(store, node, endpoints);
    Some(NodeHello { description: bounds::description(store, node, description), endpoints, have })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Revision, TaskStatus, node::NodeDescription};
    use crate::protocol::FORMAT;

    fn hello(name: &str) -> ToManager {
        let description = NodeDescription { hostname: name.to_owned(), ..NodeDescription::default() };
        ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() }
    }

    #[test]
    fn a_node_that_reconnects_and_reports_for_ever_waits_as_one_of_each() {
        let (mut inbox, store) = (Inbox::default(), Store::default());
        let node = NodeId::from("n1");
        for n in 0..1000 {
            let session = SessionId(n);
            inbox.push(&store, Notice::Opened { node: node.clone(), session, hello: hello(&n.to_string()) });
            let unknown = ToManager::Status(vec![(n.to_string().as_str().into(), TaskStatus::default())]);
            inbox.push(&store, Notice::Report { node: node.clone(), message: unknown });
            inbox.push(&store, Notice::Report { node: node.clone(), message: hello("newer") });
            inbox.push(&store, Notice::Closed { node: node.clone(), session });
        }
        let events = inbox.take();
        let [
            Event::Opened { session: SessionId(999), .. },
            Event::Reports { reports, .. },
            Event::Closed { session: SessionId(999) },
        ] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert!(reports.statuses.is_empty(), "of tasks that the node does not have");
        assert_eq!(reports.hello.as_ref().map(|h| h.description.hostname.as_str()), Some("newer"));
        assert!(inbox.is_empty());
    }

    #[test]
    fn the_late_end_of_an_older_session_does_not_end_the_newer() {
        let (mut inbox, store) = (Inbox::default(), Store::default());
        let node = NodeId::from("n1");
        inbox.push(&store, Notice::Opened { node: node.clone(), session: SessionId(2), hello: hello("n1") });
        inbox.push(&store, Notice::Closed { node, session: SessionId(1) });
        assert!(matches!(inbox.take()[..], [Event::Opened { session: SessionId(2), .. }]));
    }
}
