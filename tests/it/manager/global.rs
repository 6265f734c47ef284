//! Global services on simulated nodes.

use super::fixture::{global, in_mode, node, service, updating};
use super::simulation::Simulation;
use skep::model::service::UpdateConfig;
use skep::model::{Availability, NodeState, PublishMode, UpdateState};
use skep::store::Action;
use std::time::Duration;

fn nodes(simulation: &Simulation) -> Vec<String> {
    simulation.per_node("all").into_iter().map(|(name, count)| format!("{name}:{count}")).collect()
}

fn everywhere(count: usize) -> Simulation {
    let mut simulation = Simulation::new(count, 4);
    simulation.command(vec![Action::create(in_mode(service("all", 0, &[], &[]), global()))]);
    simulation.until("one on each node", |s| s.running("all").len() == count);
    simulation
}

#[test]
fn every_node_that_may_run_it_has_one_task() {
    let mut simulation = everywhere(4);
    assert_eq!(nodes(&simulation), ["n1:1", "n2:1", "n3:1", "n4:1"]);
    for task in simulation.tasks("all") {
        assert_eq!(task.display_name(), format!("all.{}", task.node_id.as_ref().unwrap()));
    }
    simulation.availability(&node(2), Availability::Drain);
    simulation.until("stopped", |s| s.running_containers("all") == 3);
    simulation.availability(&node(3), Availability::Pause);
    simulation.run(Duration::from_secs(5));
    assert_eq!(nodes(&simulation), ["n1:1", "n3:1", "n4:1"], "a paused node keeps its own");
    simulation.availability(&node(2), Availability::Active);
    simulation.until("back", |s| s.running("all").len() == 4);
    assert_eq!(nodes(&simulation), ["n1:1", "n2:1", "n3:1", "n4:1"]);
}

#[test]
fn a_node_that_returns_runs_the_one_that_it_had() {
    let mut simulation = everywhere(3);
    let before: Vec<_> = simulation.running("all").iter().map(|t| t.id.clone()).collect();
    simulation.disconnect(&node(2));
    simulation.until("down", |s| s.state_of(&node(2)) == NodeState::Down);
    simulation.run(Duration::from_secs(20));
    assert_eq!(simulation.tasks("all").len(), 3, "no other node runs it instead\n{}", simulation.dump());
    simulation.reconnect(&node(2));
    simulation.until("back", |s| {
        assert!(s.agents[&node(2)].containers.values().filter(|c| c.runs()).count() <= 1, "two copies\n{}", s.dump());
        s.running("all").len() == 3
    });
    let after: Vec<_> = simulation.running("all").iter().map(|t| t.id.clone()).collect();
    assert_eq!(before, after);
}

/// What the node could not prepare is tried again when the node is back.
#[test]
fn a_task_that_waited_for_its_next_try_is_made_again_when_its_node_is_active_again() {
    let mut simulation = Simulation::new(2, 4);
    let mut all = in_mode(service("all", 0, &[], &[]), global());
    "not-on-n2".clone_into(&mut all.spec.task_template.container_spec.image);
    simulation.command(vec![Action::create(all)]);
    simulation.run(Duration::from_secs(40));
    let newest = |s: &Simulation| s.tasks("all").iter().filter(|t| t.slot_node == Some(node(2))).map(|t| t.meta.created_at).max();
    let before = newest(&simulation);
    simulation.availability(&node(2), Availability::Drain);
    simulation.run(Duration::from_secs(2));
    simulation.availability(&node(2), Availability::Active);
    let took = simulation.until("tried again", |s| newest(s) > before);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn an_update_of_a_global_service_waits_for_no_node_that_is_away_or_paused() {
    let mut simulation = everywhere(4);
    simulation.disconnect(&node(2));
    simulation.until("down", |s| s.state_of(&node(2)) == NodeState::Down);
    simulation.availability(&node(3), Availability::Pause);
    simulation.update("all", |spec| spec.task_template.force_update = 1);
    let took = simulation.until("completed", |s| s.update_state("all").is_some_and(|state| state.as_str() == "completed"));
    assert!(took < Duration::from_secs(20), "{took:?}");
    let message = simulation.store.service(&"all".into()).unwrap().update.clone().unwrap().message;
    assert_eq!(message, "update completed; nodes that are not available: n2, n3");
    // As soon as they can, they follow: one after the other, in the order of the update.
    simulation.availability(&node(3), Availability::Active);
    simulation.reconnect(&node(2));
    simulation.until("all run the new one", |s| {
        assert!(s.agents.values().all(|a| a.containers.values().filter(|c| c.runs()).count() <= 1), "{}", s.dump());
        s.running("all").iter().filter(|t| t.spec_version == 2).count() == 4
    });
}

#[test]
fn a_removed_node_leaves_no_task_behind() {
    let mut simulation = everywhere(3);
    simulation.disconnect(&node(3));
    simulation.until("down", |s| s.state_of(&node(3)) == NodeState::Down);
    simulation.command(vec![Action::Remove(skep::store::Kind::Node, "n3".to_owned())]);
    simulation.run(Duration::from_secs(2));
    assert_eq!(nodes(&simulation), ["n1:1", "n2:1"]);
    assert_eq!(simulation.tasks("all").len(), 2, "{}", simulation.dump());
}

/// The old task gives its node's port up before the new one takes it. While the old one is to go on it cannot: said in time, and nothing
/// is stopped.
#[test]
fn a_port_of_each_node_is_passed_on_if_the_old_task_is_stopped_first() {
    for (order, end, runs) in [("stop-first", UpdateState::Completed, 2), ("start-first", UpdateState::Paused, 1)] {
        let mut all = in_mode(service("all", 0, &[(8080, 80)], &[]), global());
        all.spec.endpoint_spec.as_mut().unwrap().ports[0].publish_mode = PublishMode::Host;
        all.spec.update_config = Some(UpdateConfig { order: order.to_owned(), ..updating(1, Duration::from_secs(1)) });
        let mut simulation = Simulation::new(3, 6);
        simulation.command(vec![Action::create(all)]);
        simulation.until("one on each node", |s| s.running("all").len() == 3);
        simulation.update("all", |spec| spec.task_template.force_update = 1);
        let took = simulation.until(end.as_str(), |s| {
            assert!(s.agents.values().all(|a| a.containers.values().filter(|c| c.runs()).count() <= 1), "{}", s.dump());
            s.update_state("all") == Some(end)
        });
        assert!(took < Duration::from_secs(20), "{took:?}");
        let running = simulation.running("all");
        let of_version = running.iter().filter(|task| task.spec_version == runs).count();
        assert_eq!((running.len(), of_version), (3, 3), "{order}\n{}", simulation.dump());
        let message = simulation.store.service(&"all".into()).unwrap().update.clone().unwrap().message;
        assert_eq!(message.contains("host-mode port already in use on 1 node"), order == "start-first", "{message}");
    }
}
