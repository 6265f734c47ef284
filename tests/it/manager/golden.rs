//! Golden plans: a script of events, and the planners' actions as text. Ids depend on the seed. To accept a change of
//! behaviour run with `SKEP_BLESS=1` and read the difference.

use super::fixture::{self, after, apply, joining_node, node, restarting, service};
use skep::manager::allocator::Freed;
use skep::manager::orchestrator::Orchestrator;
use skep::manager::round::RoundPlanner;
use skep::manager::round_scope::RoundScope;
use skep::manager::{LowestApplied, ManagerSettings, allocator, node_allocation, reaper, scheduler};
use skep::model::service::{EndpointMode, EndpointSpec, Replicated};
use skep::model::{Availability, Cluster, NodeState, Revision, Task, TaskState, TaskStatus, Timestamp};
use skep::store::{Action, FieldUpdate, Kind, Object, Store};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

pub struct Script {
    pub store: Store,
    pub planner: RoundPlanner,
    pub now: Timestamp,
    text: String,
}

impl Script {
    pub fn new(nodes: usize) -> Self {
        let mut script = Self {
            store: fixture::store(nodes),
            planner: RoundPlanner::new(ManagerSettings::default(), 1),
            now: fixture::START,
            text: String::new(),
        };
        for i in 1..=nodes {
            script.node(i, |n| n.status.state = NodeState::Ready);
        }
        script
    }

    /// The feature level of the cluster.
    pub fn level(&mut self, level: u32) {
        let cluster = self.store.cluster().unwrap().clone();
        let raised = skep::model::Cluster { feature_level: level, ..cluster };
        apply(&mut self.store, self.now, vec![Action::update(raised)]);
    }

    pub fn node(&mut self, i: usize, change: impl FnOnce(&mut skep::model::Node)) {
        let mut next = self.store.node(&node(i)).unwrap().clone();
        change(&mut next);
        apply(&mut self.store, self.now, vec![Action::update(next)]);
    }

    /// Applies the actions, and what the planners do then.
    pub fn step(&mut self, what: &str, actions: Vec<Action>) {
        writeln!(self.text, "# {what}").unwrap();
        if !actions.is_empty() {
            apply(&mut self.store, self.now, actions);
        }
        self.settle();
    }

    /// Runs rounds until nothing is left to do.
    pub fn settle(&mut self) {
        loop {
            let applied = LowestApplied::by_all(Revision { incarnation: 1, index: self.store.index() });
            let actions = self.planner.round(&self.store, Vec::new(), applied, self.now);
            if actions.is_empty() {
                break;
            }
            for action in &actions {
                writeln!(self.text, "{}", line(&self.store, action)).unwrap();
            }
            apply(&mut self.store, self.now, actions);
            writeln!(self.text, "--").unwrap();
        }
    }

    /// Sets the observed state of the service's tasks.
    pub fn observe(&mut self, service: &str, state: TaskState) {
        self.observe_slots(service, state, |_| true);
    }

    pub fn observe_slots(&mut self, service: &str, state: TaskState, which: impl Fn(&Task) -> bool) {
        let applies = |t: &&Task| t.service_name == service && t.node_id.is_some() && t.status.state < state && which(t);
        let next = |t: &Task| Task { status: TaskStatus { timestamp: self.now, state, ..t.status.clone() }, ..t.clone() };
        let actions = self.store.tasks().filter(applies).map(|t| Action::update(next(t))).collect();
        apply(&mut self.store, self.now, actions);
    }

    pub(super) fn scaled(&self, name: &str, replicas: u64) -> Vec<Action> {
        let mut service = self.store.service(&name.into()).unwrap().clone();
        service.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
        vec![Action::update(service)]
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    #[expect(clippy::disallowed_methods, reason = "an option of the test, not a setting")]
    pub fn compare(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/manager/golden").join(name);
        if std::env::var("SKEP_BLESS").is_ok() {
            std::fs::write(&path, &self.text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            self.text,
            expected,
            "plans changed: if that is intended, run with SKEP_BLESS=1 and read the difference in {}",
            path.display()
        );
    }
}

fn line(store: &Store, action: &Action) -> String {
    match action {
        Action::Set(FieldUpdate::ServiceReplicas { id, scaling }) => format!("scale {id}: {}", scaling.why()),
        Action::Set(update) => match update.resolve(store, store) {
            Ok(Some(object)) => line(store, &Action::Update(object)),
            other => format!("{update:?}: {other:?}"),
        },
        Action::Create(Object::Task(t)) => format!("create task {}", task(t)),
        Action::Update(Object::Task(t)) => format!("update task {}", task(t)),
        Action::Update(Object::Service(s)) => {
            let ports: Vec<String> = s.endpoint.ports.iter().map(|p| format!("{}:{}", p.published_port, p.target_port)).collect();
            let vips: Vec<String> = s.endpoint.vips.iter().map(|v| v.addr.to_string()).collect();
            let shown =
                s.update.as_ref().map(|u| format!(" {}: {} ({} of {} failed)", u.state.as_str(), u.message, u.failed, u.dirty));
            format!(
                "update service {} ports [{}] vips [{}]{}",
                s.spec.name,
                ports.join(" "),
                vips.join(" "),
                shown.unwrap_or_default()
            )
        }
        Action::Update(Object::Network(n)) if store.network(&n.id).is_some_and(|old| old == &**n) => {
            format!("guard network {}", n.spec.name)
        }
        Action::Update(Object::Network(n)) => format!("update network {} subnet {:?}", n.spec.name, n.subnet),
        Action::Remove(Kind::Task, id) => {
            format!("remove task {}", store.task(&id.as_str().into()).map(task).unwrap_or_default())
        }
        other => format!("{other:?}"),
    }
}

fn task(t: &Task) -> String {
    let mut text = format!(
        "{} {} desired {} is {}",
        t.display_name(),
        &t.id.as_str()[..4],
        t.desired_state.as_str(),
        t.status.state.as_str()
    );
    if let Some(node) = &t.node_id {
        write!(text, " on {node}").unwrap();
    }
    if !t.attachments.is_empty() {
        let addresses: Vec<String> = t.attachments.iter().map(|a| a.address.to_string()).collect();
        write!(text, " at {}", addresses.join(" ")).unwrap();
    }
    if let Some(at) = t.not_before {
        write!(text, " not before {}", at.to_rfc3339()).unwrap();
    }
    if !t.status.err.is_empty() {
        write!(text, " err {:?}", t.status.err).unwrap();
    }
    let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    if let Some(cause) = &t.cause {
        write!(text, " cause {}", name(cause)).unwrap();
    }
    if let Some(end) = &t.end {
        write!(text, " end {}", name(end)).unwrap();
    }
    text
}

#[test]
fn life_of_a_service() {
    let mut s = Script::new(3);
    s.step("network back", vec![Action::create(fixture::network("back", None))]);
    s.step("web, 3 replicas, 8080 and a drawn port", vec![Action::create(service("web", 3, &[(8080, 80), (0, 81)], &["back"]))]);
    s.observe("web", TaskState::Running);
    s.step("all run", Vec::new());
    s.wait(Duration::from_secs(1));
    s.node(2, |n| n.spec.availability = Availability::Drain);
    s.step("n2 is drained", Vec::new());
    s.observe_slots("web", TaskState::Shutdown, |t| t.desired_state == TaskState::Shutdown);
    s.step("the old one has stopped", Vec::new());
    s.observe_slots("web", TaskState::Running, |t| t.desired_state == TaskState::Running);
    s.wait(Duration::from_secs(1));
    s.node(3, |n| n.status.state = NodeState::Down);
    s.step("n3 is down", Vec::new());
    s.observe_slots("web", TaskState::Running, |t| t.desired_state == TaskState::Running);
    let down = s.scaled("web", 1);
    s.step("scaled to 1", down);
    s.observe_slots("web", TaskState::Shutdown, |t| t.desired_state == TaskState::Remove);
    s.step("they have stopped", Vec::new());
    s.step("service removed", vec![Action::Remove(Kind::Service, "web".to_owned())]);
    s.observe("web", TaskState::Shutdown);
    s.step("all have stopped", Vec::new());
    s.compare("life.txt");
}

#[test]
fn failures_and_refusals() {
    let mut s = Script::new(2);
    s.node(1, |n| n.description.engine_version.clear());
    s.node(2, |n| n.spec.availability = Availability::Pause);
    s.step(
        "no node takes tasks",
        vec![Action::create(restarting(service("web", 2, &[(80, 80)], &[]), after(Duration::from_secs(3))))],
    );
    s.node(1, |n| n.description.engine_version = "28.5.0".to_owned());
    s.step("n1 has an engine again", Vec::new());
    s.step("the same port again", vec![Action::create(service("other", 1, &[(80, 80)], &[]))]);
    s.step(
        "a network that overlaps",
        vec![
            Action::create(fixture::network("clash", Some("10.0.0.128/25"))),
            Action::create(service("third", 1, &[], &["clash"])),
        ],
    );
    s.observe("web", TaskState::Running);
    s.wait(Duration::from_secs(10));
    s.observe_slots("web", TaskState::Failed, |t| t.slot == 2);
    s.step("web.2 fails", Vec::new());
    s.wait(Duration::from_secs(3));
    s.step("3 s later", Vec::new());
    s.step("web is removed: its port is free", vec![Action::Remove(Kind::Service, "web".to_owned())]);
    s.compare("failures.txt");
}

#[test]
fn a_new_node_gets_the_lowest_free_index_and_concurrent_joins_are_refused() {
    let mut store = fixture::store(3);
    apply(&mut store, fixture::START, vec![Action::Remove(Kind::Node, "n2".to_owned())]);
    let allocation = node_allocation::next_node_allocation(&store).unwrap();
    assert_eq!((allocation.index, allocation.subnet.to_string().as_str()), (2, "fd00:1:2:2::/64"));
    // Of two concurrent joins the second one is refused, and succeeds when it is planned again.
    let (_, one) = node_allocation::admit(&store, joining_node("a")).unwrap();
    let (_, two) = node_allocation::admit(&store, joining_node("b")).unwrap();
    apply(&mut store, fixture::START, one);
    let refused = store.apply(store.index() + 1, &skep::store::Transaction::new(fixture::START, two));
    assert_eq!(refused, Err(skep::store::StoreError::OutOfSequence));
    let (node, actions) = node_allocation::admit(&store, joining_node("b")).unwrap();
    apply(&mut store, fixture::START, actions);
    assert_eq!(node.mesh.subnet.to_string(), "fd00:1:2:4::/64");
    assert_eq!(skep::manager::invariants::check(&store), Vec::<String>::new());
}

#[test]
fn a_join_and_a_concurrent_address_allocation_do_not_collide() {
    let mut store = fixture::store(1);
    apply(&mut store, fixture::START, vec![Action::create(service("web", 1, &[(80, 80)], &[]))]);
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1);
    let settings = ManagerSettings::default();
    let tasks = Orchestrator::default().plan(&store, fixture::START, &mut rng, &settings, &RoundScope::full()).actions;
    apply(&mut store, fixture::START, tasks);
    let mut quarantine = allocator::QuarantinedAddresses::default();
    let addresses = allocator::plan(&store, fixture::START, &mut quarantine, &RoundScope::full());
    let (_, join) = node_allocation::admit(&store, joining_node("n2")).unwrap();
    apply(&mut store, fixture::START, join);
    let refused = store.apply(store.index() + 1, &skep::store::Transaction::new(fixture::START, addresses));
    assert_eq!(refused, Err(skep::store::StoreError::OutOfSequence));
}

#[test]
fn a_freed_address_is_assigned_again_as_late_as_possible() {
    let mut store = fixture::store(1);
    let mut quarantine = allocator::QuarantinedAddresses::default();
    let net = skep::model::NetworkId::from("ingress-id");
    let subnet = "10.0.0.0/28".parse().unwrap();
    let mut seen = Vec::new();
    for _ in 0..13 {
        let mut book = allocator::AddressBook::new(&store);
        seen.push(book.take(&net, subnet, &mut quarantine).unwrap().to_string());
    }
    // .1 is the gateway, .2 the node's, .15 the broadcast address. No other is in use, yet all are assigned in turn.
    let mut expected: Vec<String> = (3..=14).map(|i| format!("10.0.0.{i}")).collect();
    expected.push("10.0.0.3".to_owned());
    assert_eq!(seen, expected);
    // A freed address is quarantined until every live node has applied the change.
    apply(&mut store, fixture::START, vec![Action::create(service("web", 1, &[(80, 80)], &[]))]);
    let mut quarantine = allocator::QuarantinedAddresses::default();
    let plan = allocator::plan(&store, fixture::START, &mut quarantine, &RoundScope::full());
    apply(&mut store, fixture::START, plan);
    quarantine.observe(&store, LowestApplied::default());
    let vip = store.services().next().unwrap().endpoint.vips[0].addr.addr();
    apply(&mut store, fixture::START, vec![Action::Remove(Kind::Service, "web".to_owned())]);
    let (now, before) = (store.revision(), Revision { incarnation: 1, index: store.index() - 1 });
    quarantine.observe(&store, LowestApplied::by_all(before));
    assert_eq!((quarantine.freed(&net, vip), quarantine.is_waiting()), (Freed::Awaited, true));
    // A node that is too far behind is not waited for, but remembered.
    quarantine.observe(&store, LowestApplied { awaited: now, all: before });
    assert_eq!((quarantine.freed(&net, vip), quarantine.is_waiting()), (Freed::Suspect, false));
    quarantine.observe(&store, LowestApplied::by_all(now));
    assert_eq!(quarantine.freed(&net, vip), Freed::Known);
}

#[test]
fn an_address_that_a_degraded_node_may_know_is_assigned_only_if_no_other_is_free() {
    for subnet in ["10.64.0.0/29", "172.16.5.0/29", "192.168.7.8/29"] {
        let mut store = fixture::store(1);
        apply(&mut store, fixture::START, vec![Action::create(fixture::network("small", Some(subnet)))]);
        let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
        let behind = store.revision();
        let newest = Revision { incarnation: 1, index: 1_000_000 };
        let applied = LowestApplied { awaited: newest, all: behind };
        let mut settle = |store: &mut Store| {
            loop {
                let actions = planner.round(store, Vec::new(), applied, fixture::START);
                if actions.is_empty() {
                    return;
                }
                apply(store, fixture::START, actions);
            }
        };
        // Without virtual addresses: a task each.
        let create = |name: &str, replicas| {
            let mut made = service(name, replicas, &[], &["small"]);
            made.spec.endpoint_spec = Some(EndpointSpec { mode: Some(EndpointMode::Dnsrr), ..EndpointSpec::default() });
            vec![Action::create(made)]
        };
        let addresses = |store: &Store, service: &str| -> BTreeSet<std::net::Ipv4Addr> {
            let tasks = store.tasks().filter(|t| t.service_name == service);
            tasks.flat_map(|t| t.attachments.iter().map(|a| a.address.addr())).collect()
        };
        apply(&mut store, fixture::START, create("old", 2));
        settle(&mut store);
        let old = addresses(&store, "old");
        assert_eq!(old.len(), 2);
        // Two of the five addresses become free: the three others are taken first.
        let remove = store.tasks().map(|t| Action::Remove(Kind::Task, t.id.to_string()));
        let actions = remove.chain([Action::Remove(Kind::Service, "old".to_owned())]).collect();
        apply(&mut store, fixture::START, actions);
        settle(&mut store);
        apply(&mut store, fixture::START, create("first", 3));
        settle(&mut store);
        assert!(addresses(&store, "first").len() == 3 && addresses(&store, "first").is_disjoint(&old), "{subnet}: {old:?}");
        apply(&mut store, fixture::START, create("last", 2));
        settle(&mut store);
        assert_eq!(addresses(&store, "last"), old, "{subnet}: no other is free");
    }
}

#[test]
fn planners_do_nothing_when_there_is_nothing_to_do() {
    let store = fixture::store(2);
    let settings = ManagerSettings::default();
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1);
    let services = Orchestrator::default().plan(&store, fixture::START, &mut rng, &settings, &RoundScope::full());
    assert_eq!(services.actions, Vec::new());
    let mut quarantine = allocator::QuarantinedAddresses::default();
    assert_eq!(allocator::plan(&store, fixture::START, &mut quarantine, &RoundScope::full()), Vec::new());
    assert_eq!(scheduler::Scheduler::default().plan(&store, fixture::START), Vec::new());
    assert_eq!(reaper::plan(&store, fixture::START, &settings, &RoundScope::full()), Vec::new());
}

#[test]
fn a_node_that_joins_with_an_address_that_others_may_still_send_to_gets_another_one() {
    let newest = Revision { incarnation: 1, index: 1_000_000 };
    for (pool, size) in [("10.0.0.0/8", 24), ("172.20.0.0/16", 27), ("192.168.3.0/24", 28)] {
        // A round of the leader between what frees the address and the join, none, and a join when all nodes know of it.
        for (rounds, known) in [(1, false), (0, false), (1, true)] {
            let cluster = Cluster { address_pools: vec![pool.parse().unwrap()], subnet_size: size, ..fixture::cluster() };
            let mut store = fixture::ready_nodes(cluster, 2, |_| {});
            let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
            let mut settle = |store: &mut Store, applied: Revision| loop {
                let applied = LowestApplied { awaited: applied, all: applied };
                let actions = planner.round(store, Vec::new(), applied, fixture::START);
                if actions.is_empty() {
                    return;
                }
                apply(store, fixture::START, actions);
                planner.written();
            };
            apply(&mut store, fixture::START, vec![Action::create(service("web", 1, &[(80, 80)], &[]))]);
            settle(&mut store, newest);
            let vip = store.services().flat_map(|s| &s.endpoint.vips).map(|vip| vip.addr.addr());
            let had: BTreeSet<_> =
                vip.chain(store.tasks().flat_map(|t| t.attachments.iter().map(|a| a.address.addr()))).collect();
            let before = store.revision();
            let remove = store.tasks().map(|t| Action::Remove(Kind::Task, t.id.to_string()));
            let remove = remove.chain([Action::Remove(Kind::Service, "web".to_owned())]).collect();
            apply(&mut store, fixture::START, remove);
            for _ in 0..rounds {
                settle(&mut store, if known { newest } else { before });
            }
            // Admitted by a manager that knows only the store.
            let (joined, actions) = node_allocation::admit(&store, joining_node("n3")).unwrap();
            let drawn = joined.mesh.ingress_addr;
            assert!(had.contains(&drawn), "{pool}: {drawn} was no node's");
            apply(&mut store, fixture::START, actions);
            settle(&mut store, if known { newest } else { before });
            let has = store.node(&"n3".into()).unwrap().mesh.ingress_addr;
            let case = format!("{pool}, {rounds} rounds, known {known}: {drawn} became {has}");
            assert_eq!(had.contains(&has), known, "{case}");
            assert_eq!(skep::manager::invariants::check(&store), Vec::<String>::new(), "{case}");
            // It keeps that one.
            settle(&mut store, newest);
            assert_eq!(store.node(&"n3".into()).unwrap().mesh.ingress_addr, has, "{case}");
        }
    }
}

#[test]
fn a_joining_node_keeps_an_address_that_is_waited_for_if_there_is_no_other() {
    let cluster = Cluster { address_pools: vec!["10.9.0.0/16".parse().unwrap()], subnet_size: 29, ..fixture::cluster() };
    let mut store = fixture::ready_nodes(cluster, 5, |_| {});
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    let before = store.revision();
    let mut settle = |store: &mut Store| loop {
        let applied = LowestApplied { awaited: before, all: before };
        let actions = planner.round(store, Vec::new(), applied, fixture::START);
        if actions.is_empty() {
            return;
        }
        apply(store, fixture::START, actions);
        planner.written();
    };
    settle(&mut store);
    let freed = store.node(&node(4)).unwrap().mesh.ingress_addr;
    apply(&mut store, fixture::START, vec![Action::Remove(Kind::Node, node(4).to_string())]);
    let (joined, actions) = node_allocation::admit(&store, joining_node("n6")).unwrap();
    assert_eq!(joined.mesh.ingress_addr, freed, "all others are in use");
    apply(&mut store, fixture::START, actions);
    settle(&mut store);
    assert_eq!(store.node(&"n6".into()).unwrap().mesh.ingress_addr, freed);
    assert_eq!(skep::manager::invariants::check(&store), Vec::<String>::new());
}
