//! What users do, and what must come of it.

use super::build::{self, after, node, restarting, service};
use super::sim::Sim;
use skep::manager::invariants::check_settled;
use skep::model::task::{RestartCondition, RestartPolicy};
use skep::model::{Availability, Nanos, NodeState, Protocol, PublishMode, TaskState};
use skep::store::{Action, Kind};
use std::time::Duration;

fn six_on_three() -> Sim {
    let mut sim = Sim::new(3, 1);
    sim.command(vec![Action::create(service("whoami", 6, &[(8080, 80)], &[]))]);
    sim.until("six run", |s| s.running("whoami").len() == 6);
    sim
}

#[test]
fn six_on_three_nodes_are_spread_and_published() {
    let mut sim = Sim::new(3, 1);
    let before = sim.commits;
    sim.command(vec![Action::create(service("whoami", 6, &[(8080, 80)], &[]))]);
    assert_eq!(sim.commits - before, 2, "the wish is one commit, from there to assigned is another");
    assert!(sim.tasks("whoami").iter().all(|t| t.status.state == TaskState::Assigned));
    sim.until("six run", |s| s.running("whoami").len() == 6);
    assert_eq!(sim.per_node("whoami").into_values().collect::<Vec<_>>(), [2, 2, 2]);
    sim.run(Duration::from_secs(1));
    for agent in sim.agents.values() {
        let cluster = agent.cluster.as_ref().unwrap();
        assert_eq!(cluster.ports.len(), 1);
        assert_eq!(cluster.ports[0].published, 8080);
        assert_eq!(cluster.ports[0].backends.len(), 6, "every node sends to all");
        assert!(cluster.ports[0].backends.iter().all(|b| b.listens.v4), "and knows that they listen");
        assert!(cluster.nodes.iter().all(|n| n.containers.len() == 2));
        assert_eq!(agent.networks.by_id.len(), 1);
        assert_eq!(agent.networks.by_id.values().next().unwrap().members.len(), 6);
    }
    assert_eq!(check_settled(&sim.store), Vec::<String>::new());
}

#[test]
fn a_drained_node_gives_its_tasks_away_and_keeps_answering() {
    let mut sim = six_on_three();
    sim.availability(&node(3), Availability::Drain);
    sim.until("six run on two nodes", |s| s.running("whoami").len() == 6 && !s.per_node("whoami").contains_key("n3"));
    assert_eq!(sim.per_node("whoami").into_values().collect::<Vec<_>>(), [3, 3]);
    sim.run(Duration::from_secs(2));
    assert_eq!(sim.agents[&node(3)].cluster.as_ref().unwrap().ports[0].backends.len(), 6);
    assert_eq!(sim.really_running("whoami"), 6);
    sim.availability(&node(3), Availability::Active);
    sim.run(Duration::from_secs(3));
    assert!(!sim.per_node("whoami").contains_key("n3"), "nothing moves back by itself");
    assert_eq!(check_settled(&sim.store), Vec::<String>::new());
}

#[test]
fn a_host_port_is_had_once_per_node_and_drawn_ones_are_the_engines_affair() {
    let with_port = |name: &str, replicas, published_port| {
        let mut service = service(name, replicas, &[(published_port, 80)], &[]);
        for port in service.spec.endpoint_spec.iter_mut().flat_map(|e| &mut e.ports) {
            port.publish_mode = PublishMode::Host;
        }
        service
    };
    let mut sim = Sim::new(3, 1);
    sim.command(vec![Action::create(with_port("fixed", 4, 8083)), Action::create(with_port("drawn", 6, 0))]);
    sim.until("those that fit run", |s| s.running("fixed").len() == 3 && s.running("drawn").len() == 6);
    assert_eq!(sim.per_node("fixed").into_values().collect::<Vec<_>>(), [1, 1, 1]);
    let waiting = |sim: &Sim| sim.tasks("fixed").into_iter().find(|t| t.node_id.is_none()).map(|t| t.status.err.clone());
    assert_eq!(waiting(&sim).as_deref(), Some("no suitable node (host-mode port already in use on 3 nodes)"));
    let service = sim.store.service(&"fixed".into()).expect("service");
    assert!(service.endpoint.ports.iter().all(|p| p.published_port == 8083), "shown as asked");
    assert!(sim.agents.values().all(|a| a.cluster.as_ref().unwrap().ports.is_empty()), "no node answers it but by its engine");
    assert!(sim.tasks("fixed").iter().all(|t| t.attachments.is_empty()), "nothing on ingress");
    // Another service waits for the same port, the same number on UDP is free.
    sim.command(vec![Action::create(with_port("other", 1, 8083))]);
    sim.run(Duration::from_secs(1));
    assert!(sim.running("other").is_empty());
    sim.scale("fixed", 2);
    sim.until("the freed port is had", |s| s.running("other").len() == 1);
    assert_eq!(check_settled(&sim.store), Vec::<String>::new());
}

#[test]
fn ports_that_are_not_named_are_drawn_once_per_protocol() {
    let mut sim = Sim::new(1, 1);
    let mut both = service("both", 1, &[(0, 53), (0, 53), (0, 80)], &[]);
    both.spec.endpoint_spec.as_mut().unwrap().ports[1].protocol = Protocol::Udp;
    sim.command(vec![Action::create(both)]);
    sim.command(vec![
        Action::create(service("named", 1, &[(30_002, 80)], &[])),
        Action::create(service("late", 1, &[(0, 80)], &[])),
    ]);
    sim.until("all run", |s| ["both", "named", "late"].iter().all(|n| s.running(n).len() == 1));
    let ports = |sim: &Sim, name: &str| {
        let service = sim.store.service(&name.into()).unwrap().clone();
        assert!(name == "named" || service.spec.endpoint_spec.unwrap().ports.iter().all(|p| p.published_port == 0));
        service.endpoint.ports.iter().map(|p| (p.protocol, p.published_port)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&sim, "both"), [(Protocol::Tcp, 30_000), (Protocol::Udp, 30_000), (Protocol::Tcp, 30_001)]);
    assert_eq!(ports(&sim, "late"), [(Protocol::Tcp, 30_003)], "not the named one");
    sim.scale("both", 2);
    sim.until("scaled", |s| s.running("both").len() == 2);
    assert_eq!(ports(&sim, "both")[2], (Protocol::Tcp, 30_001), "numbers stay");
    assert_eq!(check_settled(&sim.store), Vec::<String>::new());
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    let mut sim = six_on_three();
    sim.availability(&node(3), Availability::Pause);
    sim.scale("whoami", 12);
    sim.until("twelve run", |s| s.running("whoami").len() == 12);
    assert_eq!(sim.per_node("whoami")["n3"], 2);
}

#[test]
fn a_node_that_dies_is_replaced_and_on_return_told_to_stop() {
    let mut sim = six_on_three();
    sim.cut(&node(2));
    let down = sim.until("down", |s| s.state_of(&node(2)) == NodeState::Down);
    assert!((Duration::from_millis(1500)..Duration::from_millis(2700)).contains(&down), "{down:?}");
    let back = sim.until("six again", |s| s.running("whoami").len() == 6);
    assert!(back < Duration::from_secs(1), "{back:?}");
    assert_eq!(sim.really_running("whoami"), 8, "the lost node still runs its two");
    sim.mend(&node(2));
    sim.until("ready", |s| s.state_of(&node(2)) == NodeState::Ready);
    sim.until("the old ones have stopped", |s| s.really_running("whoami") == 6);
    sim.run(Duration::from_secs(1));
    assert_eq!(check_settled(&sim.store), Vec::<String>::new());
}

#[test]
fn a_lost_session_that_comes_back_in_time_moves_nothing() {
    let mut sim = six_on_three();
    let before: Vec<_> = sim.tasks("whoami").iter().map(|t| t.id.clone()).collect();
    sim.cut(&node(2));
    sim.run(Duration::from_millis(1200));
    sim.mend(&node(2));
    sim.run(Duration::from_secs(5));
    assert_eq!(sim.tasks("whoami").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    assert_eq!(sim.running("whoami").len(), 6);
}

#[test]
fn a_new_leader_gives_nodes_time_and_moves_nothing() {
    let mut sim = six_on_three();
    let before: Vec<_> = sim.tasks("whoami").iter().map(|t| t.id.clone()).collect();
    sim.change_leader();
    sim.run(Duration::from_secs(5));
    assert_eq!(sim.tasks("whoami").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    sim.cut(&node(3));
    sim.change_leader();
    let unknown = sim.until("unknown", |s| s.state_of(&node(3)) == NodeState::Unknown);
    assert!(unknown >= Duration::from_millis(500), "{unknown:?}");
    let down = sim.until("down", |s| s.state_of(&node(3)) == NodeState::Down);
    assert!(unknown + down >= Duration::from_secs(2), "{down:?}");
    sim.until("six again", |s| s.running("whoami").len() == 6);
}

#[test]
fn scale_down_leaves_the_nodes_balanced() {
    let mut sim = six_on_three();
    sim.scale("whoami", 3);
    sim.until("three run", |s| s.really_running("whoami") == 3);
    assert_eq!(sim.per_node("whoami").into_values().collect::<Vec<_>>(), [1, 1, 1]);
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.tasks("whoami").len(), 3, "removed tasks leave no history");
    sim.scale("whoami", 7);
    sim.until("seven run", |s| s.running("whoami").len() == 7);
    let mut slots: Vec<u64> = sim.running("whoami").iter().map(|t| t.slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, [1, 2, 3, 4, 5, 6, 7], "the lowest free slots are filled");
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut sim = six_on_three();
    sim.command(vec![Action::Remove(Kind::Service, "whoami".to_owned())]);
    sim.until("gone", |s| s.tasks("whoami").is_empty());
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.really_running("whoami"), 0);
    for agent in sim.agents.values() {
        assert!(agent.cluster.as_ref().unwrap().ports.is_empty());
        assert!(agent.tasks.by_id.is_empty());
        assert_eq!(agent.networks.by_id.len(), 1, "ingress stays");
    }
}

#[test]
fn a_removed_node_is_told_so_and_its_tasks_are_orphaned() {
    let mut sim = six_on_three();
    sim.cut(&node(3));
    sim.until("down", |s| s.state_of(&node(3)) == NodeState::Down);
    sim.command(vec![Action::Remove(Kind::Node, "n3".to_owned())]);
    sim.until("six run", |s| s.running("whoami").len() == 6);
    let orphans = sim.tasks("whoami").into_iter().filter(|t| t.node_id == Some(node(3)));
    assert!(orphans.clone().count() == 2 && orphans.into_iter().all(|t| t.status.state == TaskState::Orphaned));
    sim.mend(&node(3));
    sim.until("told", |s| s.agents[&node(3)].removed);
}

#[test]
fn failures_are_restarted_after_the_delay_up_to_the_bound() {
    let mut sim = Sim::new(2, 7);
    let policy = RestartPolicy { max_attempts: Some(2), ..after(Duration::from_secs(3)) };
    sim.command(vec![Action::create(restarting(service("crash", 1, &[], &[]), policy))]);
    sim.until("first failure", |s| s.tasks("crash").iter().any(|t| t.status.state == TaskState::Failed));
    let waits = sim.tasks("crash").into_iter().find(|t| t.desired_state == TaskState::Ready).unwrap();
    assert_eq!(waits.not_before, Some(waits.meta.created_at.plus(Duration::from_secs(3))));
    let again =
        sim.until("it runs again", |s| s.tasks("crash").iter().filter(|t| t.desired_state == TaskState::Running).count() == 1);
    assert!((Duration::from_millis(2800)..Duration::from_millis(3200)).contains(&again), "{again:?}");
    sim.run(Duration::from_mins(1));
    let tasks = sim.tasks("crash");
    assert_eq!(tasks.len(), 3, "one start and two restarts\n{}", sim.picture());
    assert!(tasks.iter().all(|t| t.status.state == TaskState::Failed && t.desired_state == TaskState::Shutdown));
    // The count is in the store: a new leader does not begin again.
    sim.change_leader();
    sim.run(Duration::from_mins(1));
    assert_eq!(sim.tasks("crash").len(), 3);
}

#[test]
fn history_is_kept_as_far_as_the_cluster_says() {
    let mut sim = Sim::new(2, 7);
    sim.command(vec![Action::create(restarting(service("crash", 2, &[], &[]), after(Duration::from_millis(100))))]);
    sim.run(Duration::from_mins(1));
    for slot in [1, 2] {
        let tasks = sim.tasks("crash").into_iter().filter(|t| t.slot == slot).count();
        assert!((5..=6).contains(&tasks), "{tasks}\n{}", sim.picture());
    }
}

#[test]
fn a_window_counts_only_what_is_in_it() {
    let mut sim = Sim::new(1, 3);
    let window = Some(Nanos::from(Duration::from_secs(20)));
    let policy = RestartPolicy { max_attempts: Some(2), window, ..after(Duration::from_millis(500)) };
    sim.command(vec![Action::create(restarting(service("crash", 1, &[], &[]), policy))]);
    sim.run(Duration::from_secs(10));
    let newest = |s: &Sim| s.tasks("crash").iter().map(|t| t.meta.created_at).max().unwrap();
    let stuck = newest(&sim);
    assert_eq!(sim.tasks("crash").len(), 3);
    sim.run(Duration::from_secs(20));
    assert!(newest(&sim) > stuck, "the window has moved on");
}

#[test]
fn conditions_are_obeyed() {
    let mut sim = Sim::new(2, 5);
    let with = |condition| RestartPolicy { condition: Some(condition), ..after(Duration::from_millis(100)) };
    sim.command(vec![
        Action::create(restarting(service("once-none", 1, &[], &[]), with(RestartCondition::None))),
        Action::create(restarting(service("once-onfailure", 1, &[], &[]), with(RestartCondition::OnFailure))),
        Action::create(restarting(service("crash-none", 1, &[], &[]), with(RestartCondition::None))),
        Action::create(restarting(service("crash-onfailure", 1, &[], &[]), with(RestartCondition::OnFailure))),
        Action::create(restarting(service("once-any", 1, &[], &[]), with(RestartCondition::Any))),
    ]);
    sim.run(Duration::from_secs(20));
    for quiet in ["once-none", "once-onfailure", "crash-none"] {
        let tasks = sim.tasks(quiet);
        assert_eq!(tasks.len(), 1, "{quiet}\n{}", sim.picture());
        assert_eq!(tasks[0].desired_state, TaskState::Shutdown);
    }
    for busy in ["crash-onfailure", "once-any"] {
        assert!(sim.tasks(busy).len() >= 4, "{busy}");
    }
}

#[test]
fn a_full_network_says_so_and_gives_way() {
    let mut sim = Sim::new(2, 5);
    sim.command(vec![Action::create(build::network("small", Some("10.9.0.0/29")))]);
    sim.command(vec![Action::create(service("many", 6, &[], &["small"]))]);
    sim.run(Duration::from_secs(3));
    // Six addresses but the gateway and the virtual one: four.
    assert_eq!(sim.running("many").len(), 4, "{}", sim.picture());
    let waiting: Vec<_> = sim.tasks("many").into_iter().filter(|t| t.status.state == TaskState::New).collect();
    assert_eq!(waiting.len(), 2);
    assert_eq!(waiting[0].status.err, "could not find an available IP on network small (10.9.0.0/29 is full)");
    sim.scale("many", 3);
    sim.run(Duration::from_secs(3));
    assert_eq!(sim.running("many").len(), 3);
    // History holds addresses only as long as nobody needs them.
    sim.command(vec![Action::Remove(Kind::Service, "many".to_owned())]);
    let crash = restarting(service("crash", 3, &[], &["small"]), after(Duration::from_millis(100)));
    sim.command(vec![Action::create(crash)]);
    sim.run(Duration::from_secs(30));
    assert!(
        sim.tasks("crash").iter().any(|t| t.meta.created_at > sim.now.plus(Duration::ZERO).min(sim.now)
            || sim.now.since(t.meta.created_at) < Duration::from_secs(3)),
        "{}",
        sim.picture()
    );
}

#[test]
fn a_successor_waits_until_its_predecessor_has_stopped() {
    let mut sim = Sim::new(2, 9);
    sim.command(vec![Action::create(service("db", 1, &[], &[]))]);
    sim.until("it runs", |s| s.running("db").len() == 1);
    let at = sim.running("db")[0].node_id.clone().unwrap();
    sim.availability(&at, Availability::Drain);
    sim.until("the successor runs", |s| {
        assert!(s.really_running("db") <= 1, "two at once\n{}", s.picture());
        s.running("db").iter().any(|t| t.node_id.as_ref() != Some(&at))
    });
}

#[test]
fn reports_that_come_late_never_take_a_task_back() {
    let mut sim = six_on_three();
    // The store checks every step (never backwards); here the agent repeats old news.
    sim.cut(&node(1));
    sim.until("down", |s| s.state_of(&node(1)) == NodeState::Down);
    sim.command(vec![Action::Remove(Kind::Service, "whoami".to_owned())]);
    sim.run(Duration::from_secs(3));
    assert_eq!(sim.tasks("whoami").len(), 2, "their addresses stay taken while the node may run them\n{}", sim.picture());
    sim.mend(&node(1));
    sim.until("gone", |s| s.tasks("whoami").is_empty());
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.really_running("whoami"), 0);
}
