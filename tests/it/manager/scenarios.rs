//! What users do, and the state that must result.

use super::fixture::{self, after, node, restarting, service};
use super::simulation::Simulation;
use skep::manager::invariants::check_settled;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::task::{RestartCondition, RestartPolicy};
use skep::model::{Availability, Nanos, Network, NodeState, Protocol, PublishMode, Task, TaskState};
use skep::store::{Action, Kind};
use std::time::Duration;

fn six_on_three() -> Simulation {
    let mut simulation = Simulation::new(3, 1);
    simulation.command(vec![Action::create(service("whoami", 6, &[(8080, 80)], &[]))]);
    simulation.until("six run", |s| s.running("whoami").len() == 6);
    simulation
}

#[test]
fn six_on_three_nodes_are_spread_and_published() {
    let mut simulation = Simulation::new(3, 1);
    let before = simulation.commits;
    simulation.command(vec![Action::create(service("whoami", 6, &[(8080, 80)], &[]))]);
    assert_eq!(simulation.commits - before, 2, "the service is one commit, its assigned tasks are another");
    assert!(simulation.tasks("whoami").iter().all(|t| t.status.state == TaskState::Assigned));
    simulation.until("six run", |s| s.running("whoami").len() == 6);
    assert_eq!(simulation.per_node("whoami").into_values().collect::<Vec<_>>(), [2, 2, 2]);
    simulation.run(Duration::from_secs(1));
    for agent in simulation.agents.values() {
        let cluster = agent.cluster.as_ref().unwrap();
        assert_eq!(cluster.ports.len(), 1);
        assert_eq!(cluster.ports[0].published, 8080);
        assert_eq!(cluster.ports[0].backends.len(), 6, "every node sends to all");
        assert!(cluster.ports[0].backends.iter().all(|b| b.listens.v4), "and knows that they listen");
        assert!(cluster.nodes.iter().all(|n| n.containers.len() == 2));
        assert_eq!(agent.networks.by_id.len(), 1);
        assert_eq!(agent.networks.by_id.values().next().unwrap().members.len(), 6);
    }
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}

#[test]
fn tasks_of_a_drained_node_are_replaced_and_it_keeps_forwarding() {
    let mut simulation = six_on_three();
    simulation.availability(&node(3), Availability::Drain);
    simulation.until("six run on two nodes", |s| s.running("whoami").len() == 6 && !s.per_node("whoami").contains_key("n3"));
    assert_eq!(simulation.per_node("whoami").into_values().collect::<Vec<_>>(), [3, 3]);
    simulation.run(Duration::from_secs(2));
    assert_eq!(simulation.agents[&node(3)].cluster.as_ref().unwrap().ports[0].backends.len(), 6);
    assert_eq!(simulation.running_containers("whoami"), 6);
    simulation.availability(&node(3), Availability::Active);
    simulation.run(Duration::from_secs(3));
    assert!(!simulation.per_node("whoami").contains_key("n3"), "no task moves back");
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}

#[test]
fn a_fixed_host_port_is_used_once_per_node_and_the_engine_chooses_others() {
    let with_port = |name: &str, replicas, published_port| {
        let mut service = service(name, replicas, &[(published_port, 80)], &[]);
        for port in service.spec.endpoint_spec.iter_mut().flat_map(|e| &mut e.ports) {
            port.publish_mode = PublishMode::Host;
        }
        service
    };
    let mut simulation = Simulation::new(3, 1);
    simulation.command(vec![Action::create(with_port("fixed", 4, 8083)), Action::create(with_port("drawn", 6, 0))]);
    simulation.until("those that fit run", |s| s.running("fixed").len() == 3 && s.running("drawn").len() == 6);
    assert_eq!(simulation.per_node("fixed").into_values().collect::<Vec<_>>(), [1, 1, 1]);
    let waiting = |simulation: &Simulation| {
        simulation.tasks("fixed").into_iter().find(|t| t.node_id.is_none()).map(|t| t.status.err.clone())
    };
    assert_eq!(waiting(&simulation).as_deref(), Some("no suitable node (host-mode port already in use on 3 nodes)"));
    let service = simulation.store.service(&"fixed".into()).expect("service");
    assert!(service.endpoint.ports.iter().all(|p| p.published_port == 8083), "shown as requested");
    assert!(simulation.agents.values().all(|a| a.cluster.as_ref().unwrap().ports.is_empty()), "only engines publish it");
    assert!(simulation.tasks("fixed").iter().all(|t| t.attachments.is_empty()), "nothing on ingress");
    // Another service waits for the same port.
    simulation.command(vec![Action::create(with_port("other", 1, 8083))]);
    simulation.run(Duration::from_secs(1));
    assert!(simulation.running("other").is_empty());
    simulation.scale("fixed", 2);
    simulation.until("the freed port is used", |s| s.running("other").len() == 1);
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}

#[test]
fn ports_without_a_number_are_assigned_once_per_protocol() {
    let mut simulation = Simulation::new(1, 1);
    let mut both = service("both", 1, &[(0, 53), (0, 53), (0, 80)], &[]);
    both.spec.endpoint_spec.as_mut().unwrap().ports[1].protocol = Protocol::Udp;
    simulation.command(vec![Action::create(both)]);
    simulation.command(vec![
        Action::create(service("named", 1, &[(30_002, 80)], &[])),
        Action::create(service("late", 1, &[(0, 80)], &[])),
    ]);
    simulation.until("all run", |s| ["both", "named", "late"].iter().all(|n| s.running(n).len() == 1));
    let ports = |simulation: &Simulation, name: &str| {
        let service = simulation.store.service(&name.into()).unwrap().clone();
        assert!(name == "named" || service.spec.endpoint_spec.unwrap().ports.iter().all(|p| p.published_port == 0));
        service.endpoint.ports.iter().map(|p| (p.protocol, p.published_port)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&simulation, "both"), [(Protocol::Tcp, 30_000), (Protocol::Udp, 30_000), (Protocol::Tcp, 30_001)]);
    assert_eq!(ports(&simulation, "late"), [(Protocol::Tcp, 30_003)], "not the named one");
    simulation.scale("both", 2);
    simulation.until("scaled", |s| s.running("both").len() == 2);
    assert_eq!(ports(&simulation, "both")[2], (Protocol::Tcp, 30_001), "numbers do not change");
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}

#[test]
fn a_drawn_port_is_not_the_tunnels() {
    let mut simulation = Simulation::new(1, 1);
    let mut cluster = simulation.store.cluster().expect("a cluster").clone();
    cluster.data_path_port = 30_000;
    simulation.command(vec![Action::update(cluster)]);
    let mut both = service("both", 1, &[(0, 53), (0, 53)], &[]);
    both.spec.endpoint_spec.as_mut().unwrap().ports[1].protocol = Protocol::Udp;
    simulation.command(vec![Action::create(both)]);
    simulation.until("it runs", |s| s.running("both").len() == 1);
    let ports = simulation.store.service(&"both".into()).unwrap().endpoint.ports.iter().map(|p| (p.protocol, p.published_port));
    assert_eq!(ports.collect::<Vec<_>>(), [(Protocol::Tcp, 30_000), (Protocol::Udp, 30_001)]);
}

/// Marks a network as the API does when it is removed under tasks that still stop.
fn remove_network(simulation: &mut Simulation, id: &str) {
    let network = simulation.store.network(&id.into()).expect("network").clone();
    simulation.command(vec![Action::update(Network { removing: true, ..network })]);
}

#[test]
fn a_removed_network_goes_with_its_last_address_and_its_name_is_free_at_once() {
    let mut simulation = Simulation::new(2, 1);
    simulation.command(vec![Action::create(fixture::network("back", Some("192.168.7.0/24")))]);
    simulation.command(vec![Action::create(service("web", 2, &[], &["back"]))]);
    simulation.until("both run", |s| s.running("web").len() == 2);
    // One of its nodes is away: it cannot stop its task.
    simulation.disconnect(&node(2));
    simulation.until("n2 is down", |s| s.state_of(&node(2)) == NodeState::Down);
    simulation.command(vec![Action::Remove(Kind::Service, "web".into())]);
    remove_network(&mut simulation, "back");
    let second = Network { id: "other".into(), ..fixture::network("back", None) };
    simulation.command(vec![Action::create(second)]);
    simulation.run(Duration::from_secs(20));
    assert!(simulation.store.network(&"back".into()).is_some(), "the lost node's container may still have its address");
    simulation.reconnect(&node(2));
    simulation.until("all has stopped", |s| s.running_containers("web") == 0);
    simulation.until("it is gone", |s| s.store.network(&"back".into()).is_none());
    assert!(simulation.store.network(&"other".into()).is_some_and(|n| n.subnet.is_some()));
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}

#[test]
fn a_removed_network_stays_while_a_service_is_attached_to_it() {
    let mut simulation = Simulation::new(1, 1);
    simulation.command(vec![Action::create(fixture::network("back", None))]);
    // Created by a client at the same time as another one removed the network.
    let network = simulation.store.network(&"back".into()).expect("network").clone();
    let removed = Action::update(Network { removing: true, ..network });
    simulation.command(vec![removed, Action::create(service("web", 1, &[], &["back"]))]);
    simulation.until("it runs", |s| s.running("web").len() == 1);
    simulation.command(vec![Action::Remove(Kind::Service, "web".into())]);
    simulation.until("it is gone", |s| s.store.network(&"back".into()).is_none());
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_new_ones() {
    let mut simulation = six_on_three();
    simulation.availability(&node(3), Availability::Pause);
    simulation.scale("whoami", 12);
    simulation.until("twelve run", |s| s.running("whoami").len() == 12);
    assert_eq!(simulation.per_node("whoami")["n3"], 2);
}

#[test]
fn tasks_of_a_dead_node_are_replaced_and_stopped_when_it_returns() {
    let mut simulation = six_on_three();
    simulation.disconnect(&node(2));
    let down = simulation.until("down", |s| s.state_of(&node(2)) == NodeState::Down);
    assert!((Duration::from_millis(1500)..Duration::from_millis(2700)).contains(&down), "{down:?}");
    let back = simulation.until("six again", |s| s.running("whoami").len() == 6);
    assert!(back < Duration::from_secs(1), "{back:?}");
    assert_eq!(simulation.running_containers("whoami"), 8, "the lost node still runs its two");
    simulation.reconnect(&node(2));
    simulation.until("ready", |s| s.state_of(&node(2)) == NodeState::Ready);
    simulation.until("the old ones have stopped", |s| s.running_containers("whoami") == 6);
    simulation.run(Duration::from_secs(1));
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}

#[test]
fn a_session_that_is_reopened_in_time_moves_nothing() {
    let mut simulation = six_on_three();
    let before: Vec<_> = simulation.tasks("whoami").iter().map(|t| t.id.clone()).collect();
    simulation.disconnect(&node(2));
    simulation.run(Duration::from_millis(1200));
    simulation.reconnect(&node(2));
    simulation.run(Duration::from_secs(5));
    assert_eq!(simulation.tasks("whoami").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    assert_eq!(simulation.running("whoami").len(), 6);
}

#[test]
fn a_new_leader_waits_for_the_nodes_and_moves_nothing() {
    let mut simulation = six_on_three();
    let before: Vec<_> = simulation.tasks("whoami").iter().map(|t| t.id.clone()).collect();
    simulation.change_leader();
    simulation.run(Duration::from_secs(5));
    assert_eq!(simulation.tasks("whoami").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    simulation.disconnect(&node(3));
    simulation.change_leader();
    let unknown = simulation.until("unknown", |s| s.state_of(&node(3)) == NodeState::Unknown);
    assert!(unknown >= Duration::from_millis(500), "{unknown:?}");
    let down = simulation.until("down", |s| s.state_of(&node(3)) == NodeState::Down);
    assert!(unknown + down >= Duration::from_secs(2), "{down:?}");
    simulation.until("six again", |s| s.running("whoami").len() == 6);
}

#[test]
fn scale_down_leaves_the_nodes_balanced() {
    let mut simulation = six_on_three();
    simulation.scale("whoami", 3);
    simulation.until("three run", |s| s.running_containers("whoami") == 3);
    assert_eq!(simulation.per_node("whoami").into_values().collect::<Vec<_>>(), [1, 1, 1]);
    simulation.run(Duration::from_secs(1));
    assert_eq!(simulation.tasks("whoami").len(), 3, "removed tasks leave no history");
    simulation.scale("whoami", 7);
    simulation.until("seven run", |s| s.running("whoami").len() == 7);
    let mut slots: Vec<u64> = simulation.running("whoami").iter().map(|t| t.slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, [1, 2, 3, 4, 5, 6, 7], "the lowest free slots are filled");
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut simulation = six_on_three();
    simulation.command(vec![Action::Remove(Kind::Service, "whoami".to_owned())]);
    simulation.until("removed", |s| s.tasks("whoami").is_empty());
    simulation.run(Duration::from_secs(1));
    assert_eq!(simulation.running_containers("whoami"), 0);
    for agent in simulation.agents.values() {
        assert!(agent.cluster.as_ref().unwrap().ports.is_empty());
        assert!(agent.tasks.by_id.is_empty());
        assert_eq!(agent.networks.by_id.len(), 1, "ingress stays");
    }
}

#[test]
fn a_removed_node_is_informed_and_its_tasks_are_orphaned() {
    let mut simulation = six_on_three();
    simulation.disconnect(&node(3));
    simulation.until("down", |s| s.state_of(&node(3)) == NodeState::Down);
    simulation.command(vec![Action::Remove(Kind::Node, "n3".to_owned())]);
    simulation.until("six run", |s| s.running("whoami").len() == 6);
    let orphans = simulation.tasks("whoami").into_iter().filter(|t| t.node_id == Some(node(3)));
    assert_eq!(orphans.clone().count(), 2);
    for task in orphans {
        let status = (task.status.state, task.status.message.as_str());
        assert_eq!(status, (TaskState::Orphaned, "Task belonged to a node that has been deleted"));
    }
    simulation.reconnect(&node(3));
    simulation.until("informed", |s| s.agents[&node(3)].removed);
}

#[test]
fn failed_tasks_are_restarted_after_the_delay_up_to_the_limit() {
    let mut simulation = Simulation::new(2, 7);
    let policy = RestartPolicy { max_attempts: Some(2), ..after(Duration::from_secs(3)) };
    simulation.command(vec![Action::create(restarting(service("crash", 1, &[], &[]), policy))]);
    simulation.until("first failure", |s| s.tasks("crash").iter().any(|t| t.status.state == TaskState::Failed));
    let waits = simulation.tasks("crash").into_iter().find(|t| t.desired_state == TaskState::Ready).unwrap();
    assert_eq!(waits.not_before, Some(waits.meta.created_at.plus(Duration::from_secs(3))));
    let again = simulation
        .until("it runs again", |s| s.tasks("crash").iter().filter(|t| t.desired_state == TaskState::Running).count() == 1);
    assert!((Duration::from_millis(2800)..Duration::from_millis(3200)).contains(&again), "{again:?}");
    simulation.run(Duration::from_mins(1));
    let tasks = simulation.tasks("crash");
    assert_eq!(tasks.len(), 3, "one start and two restarts\n{}", simulation.dump());
    assert!(tasks.iter().all(|t| t.status.state == TaskState::Failed && t.desired_state == TaskState::Shutdown));
    // The count is in the store: a new leader does not start again.
    simulation.change_leader();
    simulation.run(Duration::from_mins(1));
    assert_eq!(simulation.tasks("crash").len(), 3);
}

#[test]
fn networks_come_from_the_pools_of_the_swarm_in_its_size() {
    let pools = ["10.50.0.0/25", "10.60.0.0/24"].map(|pool| pool.parse().unwrap());
    let cluster = skep::model::Cluster { address_pools: pools.to_vec(), subnet_size: 26, ..fixture::cluster() };
    let mut store = fixture::ready_nodes(cluster, 1, |_| {});
    fixture::apply(&mut store, fixture::START, ["a", "b", "c"].map(|id| Action::create(fixture::network(id, None))).to_vec());
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    loop {
        let applied = LowestApplied::by_all(store.revision());
        let actions = planner.round(&store, Vec::new(), applied, fixture::START);
        if actions.is_empty() {
            break;
        }
        fixture::apply(&mut store, fixture::START, actions);
    }
    let mut subnets: Vec<ipnet::Ipv4Net> = store.networks().flat_map(Network::subnets).collect();
    subnets.sort();
    // With `ingress`; the first pool has room for two.
    let expected = ["10.50.0.0/26", "10.50.0.64/26", "10.60.0.0/26", "10.60.0.64/26"].map(|net| net.parse().unwrap());
    assert_eq!(subnets, expected);
}

/// Exact numbers: `golden_moves.rs`.
#[test]
fn history_is_kept_up_to_the_limit() {
    let mut simulation = Simulation::new(2, 7);
    simulation.command(vec![Action::create(restarting(service("crash", 2, &[], &[]), after(Duration::from_millis(100))))]);
    simulation.run(Duration::from_mins(1));
    for slot in [1, 2] {
        let tasks = simulation.tasks("crash").into_iter().filter(|t| t.slot == slot).count();
        assert!((5..=6).contains(&tasks), "{tasks}\n{}", simulation.dump());
    }
}

#[test]
fn only_restarts_within_the_window_count() {
    let mut simulation = Simulation::new(1, 3);
    let window = Some(Nanos::from(Duration::from_secs(20)));
    let policy = RestartPolicy { max_attempts: Some(2), window, ..after(Duration::from_millis(500)) };
    simulation.command(vec![Action::create(restarting(service("crash", 1, &[], &[]), policy))]);
    simulation.run(Duration::from_secs(10));
    assert_eq!(simulation.tasks("crash").len(), 3);
    simulation.run(Duration::from_secs(40));
    assert_eq!(simulation.tasks("crash").len(), 3, "what is used up stays so when the window is over\n{}", simulation.dump());
    // Tries that live for so long that two restarts are never within the window go on for ever.
    let window = Some(Nanos::from(Duration::from_secs(3)));
    let policy = RestartPolicy { max_attempts: Some(2), window, ..after(Duration::from_millis(500)) };
    simulation.command(vec![Action::create(restarting(service("seconds", 1, &[], &[]), policy))]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..300 {
        simulation.run(Duration::from_millis(200));
        seen.extend(simulation.tasks("seconds").iter().map(|t| t.id.clone()));
    }
    assert!(seen.len() > 6, "{}", simulation.dump());
}

#[test]
fn restart_conditions_are_applied() {
    let mut simulation = Simulation::new(2, 5);
    let with = |condition| RestartPolicy { condition: Some(condition), ..after(Duration::from_millis(100)) };
    simulation.command(vec![
        Action::create(restarting(service("once-none", 1, &[], &[]), with(RestartCondition::None))),
        Action::create(restarting(service("once-onfailure", 1, &[], &[]), with(RestartCondition::OnFailure))),
        Action::create(restarting(service("crash-none", 1, &[], &[]), with(RestartCondition::None))),
        Action::create(restarting(service("crash-onfailure", 1, &[], &[]), with(RestartCondition::OnFailure))),
        Action::create(restarting(service("once-any", 1, &[], &[]), with(RestartCondition::Any))),
    ]);
    simulation.run(Duration::from_secs(20));
    for quiet in ["once-none", "once-onfailure", "crash-none"] {
        let tasks = simulation.tasks(quiet);
        assert_eq!(tasks.len(), 1, "{quiet}\n{}", simulation.dump());
        assert_eq!(tasks[0].desired_state, TaskState::Shutdown);
    }
    for busy in ["crash-onfailure", "once-any"] {
        assert!(simulation.tasks(busy).len() >= 4, "{busy}");
    }
}

#[test]
fn a_full_network_is_reported_and_history_releases_its_addresses() {
    let mut simulation = Simulation::new(2, 5);
    simulation.command(vec![Action::create(fixture::network("small", Some("10.9.0.0/29")))]);
    simulation.command(vec![Action::create(service("many", 6, &[], &["small"]))]);
    simulation.run(Duration::from_secs(3));
    // Of six addresses one is the gateway's and one the service's virtual address.
    assert_eq!(simulation.running("many").len(), 4, "{}", simulation.dump());
    let waiting: Vec<_> = simulation.tasks("many").into_iter().filter(|t| t.status.state == TaskState::New).collect();
    assert_eq!(waiting.len(), 2);
    assert_eq!(waiting[0].status.err, "could not find an available IP on network small (10.9.0.0/29 is full)");
    simulation.scale("many", 3);
    simulation.run(Duration::from_secs(3));
    assert_eq!(simulation.running("many").len(), 3);
    // Finished tasks keep their addresses only as long as no new task needs them: restarts continue in a full network.
    simulation.command(vec![Action::Remove(Kind::Service, "many".to_owned())]);
    let crash = restarting(service("crash", 3, &[], &["small"]), after(Duration::from_millis(100)));
    simulation.command(vec![Action::create(crash)]);
    simulation.run(Duration::from_secs(30));
    let restarts = |t: &&Task| t.failures.count >= 6;
    assert!(simulation.tasks("crash").iter().filter(|t| restarts(t)).count() >= 3, "no more restarts\n{}", simulation.dump());
}

#[test]
fn a_successor_waits_until_its_predecessor_has_stopped() {
    let mut simulation = Simulation::new(2, 9);
    simulation.command(vec![Action::create(service("db", 1, &[], &[]))]);
    simulation.until("it runs", |s| s.running("db").len() == 1);
    let at = simulation.running("db")[0].node_id.clone().unwrap();
    simulation.availability(&at, Availability::Drain);
    simulation.until("the successor runs", |s| {
        assert!(s.running_containers("db") <= 1, "two at once\n{}", s.dump());
        s.running("db").iter().any(|t| t.node_id.as_ref() != Some(&at))
    });
}

#[test]
fn late_reports_never_move_a_task_back() {
    let mut simulation = six_on_three();
    // The simulation checks every step; here a reconnected agent repeats old reports.
    simulation.disconnect(&node(1));
    simulation.until("down", |s| s.state_of(&node(1)) == NodeState::Down);
    simulation.command(vec![Action::Remove(Kind::Service, "whoami".to_owned())]);
    simulation.run(Duration::from_secs(3));
    assert_eq!(
        simulation.tasks("whoami").len(),
        2,
        "their addresses stay in use while the node may run them\n{}",
        simulation.dump()
    );
    simulation.reconnect(&node(1));
    simulation.until("removed", |s| s.tasks("whoami").is_empty());
    simulation.run(Duration::from_secs(1));
    assert_eq!(simulation.running_containers("whoami"), 0);
}

#[test]
fn a_task_that_a_connected_node_does_not_take_runs_elsewhere_and_that_node_gets_the_next_ones_last() {
    let mut simulation = Simulation::new(2, 1);
    simulation.agents.get_mut(&node(2)).unwrap().hangs = true;
    simulation.command(vec![Action::create(service("web", 2, &[(8080, 80)], &[]))]);
    let waited = simulation.until("two run on the node that works", |s| s.per_node("web").get("n1") == Some(&2));
    let settings = &simulation.settings;
    assert!(waited >= settings.node_lag, "no node is given up before it counts as behind: {waited:?}");
    assert!(waited <= settings.node_lag * 2 + settings.replace_wait + Duration::from_secs(2), "{waited:?}");
    assert_eq!(simulation.state_of(&node(2)), NodeState::Ready);
    simulation.scale("web", 5);
    simulation.until("five run", |s| s.per_node("web").get("n1") == Some(&5));
    let left = |s: &Simulation| s.tasks("web").iter().filter(|t| t.node_id == Some(node(2)) && t.is_wanted()).count();
    assert_eq!(left(&simulation), 0);

    // It works again: it never starts what was given to others, and is a node like any other.
    simulation.agents.get_mut(&node(2)).unwrap().hangs = false;
    simulation.agents.get_mut(&node(2)).unwrap().session = None;
    simulation.run(Duration::from_secs(10));
    assert_eq!(simulation.running_containers("web"), 5);
    simulation.scale("web", 10);
    simulation.until("ten run on both", |s| s.per_node("web").get("n2") == Some(&5));
    assert_eq!(check_settled(&simulation.store), Vec::<String>::new());
}
