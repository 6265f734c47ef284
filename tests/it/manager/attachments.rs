//! Plain containers on networks: a task for each that its node reports, with an address of the network; none once it is gone.

use super::fixture::{self, apply, network, node, service};
use super::leader_cores::LeaderCores;
use skep::manager::dispatcher::view_of;
use skep::manager::invariants::{check, check_settled, check_step};
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{ManagerSettings, SessionId};
use skep::model::{AttachedContainer, ContainerAttachment, NodeState, Revision, Task, TaskState, Timestamp};
use skep::protocol::{FORMAT, ToManager};
use skep::store::{Action, Kind, Store};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

struct Leader {
    store: Store,
    cores: LeaderCores,
    planner: RoundPlanner,
    now: Timestamp,
}

impl Leader {
    /// Of two nodes with sessions, an attachable network `back` and another one.
    fn new(back: &str) -> Self {
        let mut store = fixture::store(2);
        let mut attachable = network("back", Some(back));
        attachable.spec.attachable = true;
        apply(&mut store, fixture::START, vec![Action::create(attachable), Action::create(network("shut", None))]);
        let mut leader = Self::of(store, fixture::START);
        leader.open(1);
        leader.open(2);
        leader.settle();
        leader
    }

    /// A new leader, in which no node has a session yet.
    fn of(store: Store, now: Timestamp) -> Self {
        let settings = ManagerSettings::default();
        let cores = LeaderCores::new(settings.clone(), Arc::new(store.clone()), now);
        Self { store, cores, planner: RoundPlanner::new(settings, 1), now }
    }

    fn open(&mut self, n: u64) {
        let description = fixture::description("n");
        let hello =
            ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
        let _ =
            self.cores.handle(self.now, Event::Opened { node: node(usize::try_from(n).unwrap()), session: SessionId(n), hello });
    }

    fn report(&mut self, n: u64, attachments: &[ContainerAttachment]) {
        let message = ToManager::Attachments(attachments.to_vec());
        let _ = self.cores.handle(self.now, Event::Message { session: SessionId(n), message });
        self.settle();
    }

    /// The node has applied all that there is.
    fn applied(&mut self, n: u64) {
        let message = ToManager::Heartbeat { applied: self.store.revision() };
        let _ = self.cores.handle(self.now, Event::Message { session: SessionId(n), message });
    }

    fn settle(&mut self) {
        loop {
            let reports = self.cores.plan(&self.store, self.now);
            let actions = self.planner.round(&self.store, reports, self.cores.lowest_applied(self.now), self.now);
            if actions.is_empty() {
                return;
            }
            self.planner.written();
            let before = self.store.clone();
            apply(&mut self.store, self.now, actions);
            assert_eq!(check_step(&before, &self.store), Vec::<String>::new());
            assert_eq!(check(&self.store), Vec::<String>::new());
            let _ = self.cores.handle(self.now, Event::StoreChanged(Arc::new(self.store.clone())));
        }
    }

    fn task(&self, id: &str) -> &Task {
        self.store.task(&id.into()).unwrap_or_else(|| panic!("no task {id}"))
    }

    fn address(&self, id: &str) -> Ipv4Addr {
        self.task(id).address_on(&"back".into()).unwrap_or_else(|| panic!("{:?}", self.task(id)))
    }
}

fn wants(id: &str, network: &str) -> ContainerAttachment {
    ContainerAttachment { id: id.into(), network: network.to_owned(), container: AttachedContainer::default() }
}

fn asks(id: &str, requested: &str) -> ContainerAttachment {
    let container = AttachedContainer { requested: Some(requested.parse().unwrap()), ..AttachedContainer::default() };
    ContainerAttachment { container, ..wants(id, "back") }
}

fn named(attachment: ContainerAttachment, name: &str, aliases: &[&str]) -> ContainerAttachment {
    let aliases = aliases.iter().map(ToString::to_string).collect();
    let container = AttachedContainer { id: format!("{name}-id"), name: name.to_owned(), aliases, ..attachment.container };
    ContainerAttachment { container, ..attachment }
}

#[test]
fn a_container_gets_an_address_and_every_node_of_the_network_its_names() {
    let mut leader = Leader::new("172.20.0.0/24");
    apply(&mut leader.store, leader.now, vec![Action::create(service("web", 1, &[], &["back"]))]);
    let _ = leader.cores.handle(leader.now, Event::StoreChanged(Arc::new(leader.store.clone())));
    leader.settle();
    leader.report(2, &[wants("c1", "back")]);
    let address = leader.address("c1");
    let task = leader.task("c1");
    assert_eq!((task.status.state, task.node_id.clone()), (TaskState::Running, Some(node(2))));
    let view = view_of(&leader.store, &node(2)).unwrap();
    assert!(view.tasks.by_id.contains_key(&"c1".into()), "its node sees the address");
    assert_eq!(view.networks.by_id[&"back".into()].subnet, "172.20.0.0/24".parse().unwrap());
    assert!(view.cluster.node(&node(2)).unwrap().containers.contains(&address), "the others accept packets from it");

    leader.report(2, &[named(wants("c1", "back"), "db", &["primary"])]);
    assert_eq!(leader.address("c1"), address, "its names change nothing else");
    let part = &view_of(&leader.store, &node(1)).unwrap().networks;
    let on_web = leader.store.tasks_of_service(&"web".into()).next().unwrap().node_id.clone().unwrap();
    let part = if on_web == node(1) { part.clone() } else { view_of(&leader.store, &on_web).unwrap().networks };
    let member = part.by_id[&"back".into()].members.iter().find(|m| m.address == address).unwrap().clone();
    assert_eq!((member.container_name.as_str(), member.aliases.as_slice()), ("db", &["primary".to_owned()][..]));
    assert!(member.is_plain() && member.backend && !member.starting);
    assert_eq!(check_settled(&leader.store), Vec::<String>::new());
}

#[test]
fn an_address_that_is_asked_for_is_given_once_and_again_when_no_node_sends_to_it() {
    let mut leader = Leader::new("192.168.40.0/24");
    leader.applied(1);
    leader.applied(2);
    leader.settle();
    leader.report(1, &[asks("c1", "192.168.40.77")]);
    assert_eq!(leader.address("c1"), Ipv4Addr::new(192, 168, 40, 77));
    leader.report(2, &[asks("c2", "192.168.40.77"), asks("c3", "192.168.40.1"), asks("c4", "192.168.41.9")]);
    for (id, said) in [("c2", "Address already in use"), ("c3", "no host address"), ("c4", "no host address")] {
        let task = leader.task(id);
        assert!(task.attachments.is_empty() && task.status.err.contains(said), "{}", task.status.err);
    }
    // Its node starts it again, at once: what is still sent to the address arrives there.
    leader.report(1, &[asks("again", "192.168.40.77")]);
    assert_eq!(leader.address("again"), Ipv4Addr::new(192, 168, 40, 77));
    // Another node waits until the end of that is known everywhere.
    leader.report(1, &[]);
    leader.report(2, &[asks("c5", "192.168.40.77")]);
    assert!(leader.store.task(&"c1".into()).is_none());
    assert!(leader.task("c5").attachments.is_empty() && leader.task("c5").status.err.is_empty());
    leader.applied(1);
    leader.applied(2);
    leader.settle();
    assert_eq!(leader.address("c5"), Ipv4Addr::new(192, 168, 40, 77));
}

#[test]
fn a_new_leader_waits_with_the_few_addresses_that_the_one_before_may_have_freed() {
    let mut before = Leader::new("10.77.0.0/28");
    before.report(1, &[wants("c1", "back")]);
    let mut leader = Leader::of(before.store.clone(), before.now);
    leader.open(1);
    leader.open(2);
    leader.report(2, &[wants("c2", "back")]);
    let waiting = leader.task("c2");
    assert!(waiting.attachments.is_empty() && waiting.status.err.contains("nodes may still send to"), "{}", waiting.status.err);
    leader.applied(1);
    leader.settle();
    assert!(leader.task("c2").attachments.is_empty(), "the other node may have an older view");
    leader.applied(2);
    leader.settle();
    leader.address("c2");
    assert_eq!(leader.task("c2").status.err, "");
}

#[test]
fn a_network_that_is_not_attachable_or_unknown_is_refused_in_dockers_words() {
    let mut leader = Leader::new("10.77.0.0/28");
    leader.report(1, &[wants("c1", "shut"), wants("c2", "nosuch")]);
    assert_eq!(leader.task("c1").status.err, "network shut not manually attachable");
    assert_eq!(leader.task("c2").status.err, "network nosuch not found");
    let many: Vec<ContainerAttachment> = (0..14).map(|n| wants(&format!("m{n:02}"), "back")).collect();
    leader.report(2, &many);
    let full: Vec<&Task> =
        leader.store.tasks().filter(|task| task.status.err.contains("could not find an available IP")).collect();
    assert_eq!(full.len(), 1, "13 of 14 have room in a /28");
}

#[test]
fn it_holds_its_network_until_it_is_gone_and_outlives_a_leader_and_a_session() {
    let mut leader = Leader::new("172.16.8.0/24");
    leader.report(1, &[wants("c1", "back")]);
    let (back, address) = (leader.store.network(&"back".into()).unwrap().clone(), leader.address("c1"));
    assert_eq!(leader.store.network_user(&back), Some((Kind::Task, "c1".to_owned())));

    let mut next = Leader::of(leader.store.clone(), leader.now.plus(Duration::from_secs(5)));
    next.settle();
    assert_eq!(next.address("c1"), address, "the new leader has not heard of its node");
    next.open(1);
    next.settle();
    assert_eq!(next.address("c1"), address, "which has said nothing yet");
    next.report(1, &[wants("c1", "back")]);
    assert_eq!(next.address("c1"), address);
    next.report(1, &[]);
    assert!(next.store.task(&"c1".into()).is_none());
    assert_eq!(next.store.network_user(&back), None);
}

#[test]
fn it_ends_with_its_node_and_no_planner_takes_it_for_a_services_task() {
    let mut leader = Leader::new("10.30.0.0/16");
    leader.report(1, &[wants("c1", "back")]);
    leader.report(2, &[wants("c2", "back")]);
    leader.now = leader.now.plus(Duration::from_mins(10));
    leader.open(1);
    leader.open(2);
    leader.settle();
    assert!(leader.store.task(&"c1".into()).is_some() && leader.store.task(&"c2".into()).is_some(), "nothing has ended them");
    let mut gone = leader.store.node(&node(2)).unwrap().clone();
    gone.status.state = NodeState::Disconnected;
    apply(&mut leader.store, leader.now, vec![Action::update(gone), Action::Remove(Kind::Node, node(1).to_string())]);
    let mut next = Leader::of(leader.store.clone(), leader.now);
    next.settle();
    assert_eq!(next.store.tasks().count(), 0);
}

#[test]
fn an_ingress_network_that_is_made_again_has_addresses_for_the_nodes() {
    let mut leader = Leader::new("172.20.0.0/24");
    apply(&mut leader.store, leader.now, vec![Action::Remove(Kind::Network, "ingress-id".to_owned())]);
    let mut edge = network("edge", Some("192.168.9.0/28"));
    edge.spec.ingress = true;
    edge.spec.ip_range = Some("192.168.9.8/29".parse().unwrap());
    edge.spec.gateway = Some("192.168.9.8".parse().unwrap());
    edge.spec.auxiliary_addresses.insert("router".to_owned(), "192.168.9.9".parse().unwrap());
    apply(&mut leader.store, leader.now, vec![Action::create(edge)]);
    let _ = leader.cores.handle(leader.now, Event::StoreChanged(Arc::new(leader.store.clone())));
    leader.settle();
    let addresses: Vec<Ipv4Addr> = leader.store.nodes().map(|node| node.mesh.ingress_addr).collect();
    assert_eq!(addresses, [Ipv4Addr::new(192, 168, 9, 10), Ipv4Addr::new(192, 168, 9, 11)], "neither reserved nor out of range");
}
