//! A placement that changes: tasks that wait have today's, those that run move in the order of the update.

use super::fixture::{node, service, updating};
use super::simulation::Simulation;
use skep::model::service::UpdateConfig;
use skep::model::task::Placement;
use skep::model::{Service, ServiceSpec, UpdateState};
use skep::store::Action;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn zone(zone: &str) -> Placement {
    Placement { constraints: vec![format!("node.labels.zone=={zone}")], ..Placement::default() }
}

fn most(max_replicas: u64) -> Placement {
    Placement { max_replicas, ..Placement::default() }
}

fn placed(placement: Placement) -> impl FnOnce(&mut ServiceSpec) {
    move |spec| spec.task_template.placement = Some(placement)
}

fn label(simulation: &mut Simulation, number: usize, key: &str, value: &str) {
    let mut node = simulation.store.node(&node(number)).unwrap().clone();
    node.spec.labels.insert(key.to_owned(), value.to_owned());
    simulation.command(vec![Action::update(node)]);
}

/// Nodes n1, … in zone a, and the service `web`.
fn cluster(nodes: usize, replicas: u64, placement: Placement) -> Simulation {
    let mut simulation = Simulation::new(nodes, 3);
    for number in 1..=nodes {
        label(&mut simulation, number, "zone", "a");
    }
    let mut web: Service = service("web", replicas, &[], &[]);
    placed(placement)(&mut web.spec);
    web.spec.update_config = Some(UpdateConfig { delay: Some(SECOND.into()), ..updating(1, 5 * SECOND) });
    simulation.command(vec![Action::create(web)]);
    simulation.run(3 * SECOND);
    simulation
}

#[test]
fn tasks_that_wait_are_placed_by_the_placement_of_today() {
    for (before, after, replicas, at_first) in [(zone("typo"), zone("a"), 2, 0), (most(1), most(2), 4, 2)] {
        let mut simulation = cluster(2, replicas, before);
        assert_eq!(simulation.running("web").len(), at_first, "{}", simulation.dump());
        simulation.update("web", placed(after));
        let took = simulation.until("placed", |s| s.running("web").len() as u64 == replicas);
        assert!(took < 2 * SECOND, "{took:?}");
        // And those that come later.
        simulation.scale("web", replicas + 1);
        simulation.run(3 * SECOND);
        let expected = if at_first == 0 { replicas + 1 } else { 4 };
        assert_eq!(simulation.running("web").len() as u64, expected, "{}", simulation.dump());
    }
}

#[test]
fn tasks_that_wait_are_not_placed_where_they_may_not_be_any_more() {
    let mut simulation = cluster(2, 2, zone("b"));
    simulation.update("web", placed(zone("c")));
    label(&mut simulation, 1, "zone", "b");
    simulation.run(5 * SECOND);
    assert_eq!(simulation.tasks("web").iter().filter(|t| t.node_id.is_some()).count(), 0, "{}", simulation.dump());
}

/// Nothing good is stopped for what has no place, also when something else of the node changes, or the leader.
#[test]
fn a_change_of_constraints_that_is_paused_leaves_what_runs() {
    let mut simulation = cluster(2, 6, zone("a"));
    simulation.update("web", placed(zone("b")));
    simulation.until("paused", |s| s.update_state("web") == Some(UpdateState::Paused));
    let message = simulation.store.service(&"web".into()).unwrap().update.as_ref().unwrap().message.clone();
    let left =
        "; 6 tasks stay on nodes that the new constraints exclude until the update goes on (`docker service update --force web`)";
    assert!(message.starts_with("update paused due to") && message.ends_with(left), "{message}");
    simulation.change_leader();
    simulation.run(5 * SECOND);
    label(&mut simulation, 1, "rack", "7");
    simulation.describe(&node(2), |description| "another-name".clone_into(&mut description.hostname));
    simulation.run(5 * SECOND);
    assert_eq!(simulation.running_containers("web"), 6, "{}", simulation.dump());
    // What the node no longer has, and the task was made for, counts as ever.
    label(&mut simulation, 1, "zone", "c");
    simulation.run(5 * SECOND);
    assert_eq!(simulation.running_containers("web"), 3, "{}", simulation.dump());
}

#[test]
fn a_change_of_constraints_under_way_keeps_to_the_parallelism() {
    let mut simulation = cluster(3, 4, zone("a"));
    label(&mut simulation, 3, "zone", "b");
    simulation.run(5 * SECOND);
    simulation.update("web", placed(zone("b")));
    simulation.run(Duration::from_millis(1500));
    label(&mut simulation, 1, "rack", "7");
    label(&mut simulation, 2, "rack", "7");
    simulation.until("moved", |s| {
        assert!(s.running("web").len() >= 3, "{}", s.dump());
        s.per_node("web").get("n3") == Some(&4) && s.update_state("web") == Some(UpdateState::Completed)
    });
}
