//! What is moved, and where to.

use super::rebalance::{RebalancePlan, plan};
use super::testing::*;
use crate::model::task::Placement;
use crate::model::{Availability, ServiceUpdate, TaskSpec, TaskState, UpdateState};
use crate::store::Action;

/// Running tasks of a service on nodes.
fn running(cluster: &mut TestCluster, service: &str, nodes: &[&str]) {
    for node in nodes {
        let id = cluster.pending(service, 1).remove(0);
        cluster.task(&id, |task| (task.node_id, task.status.state) = (Some((*node).into()), TaskState::Running));
    }
}

/// From and to, in order.
fn moves(plan: &RebalancePlan) -> Vec<String> {
    plan.moves.iter().map(|one| format!("{} {}>{}", one.service, one.from, one.to)).collect()
}

fn planned(cluster: &TestCluster) -> Vec<String> {
    moves(&plan(&cluster.store, None, cluster.now))
}

#[test]
fn tasks_move_until_their_service_is_even_and_no_further() {
    let mut cluster = TestCluster::new(3);
    cluster.service("web", &[], TaskSpec::default());
    running(&mut cluster, "web", &["n1", "n1", "n1", "n1", "n2"]);
    assert_eq!(planned(&cluster), ["web n1>n3", "web n1>n2"]);
    // The newest move: those that have been there longest stay.
    let first = &plan(&cluster.store, None, cluster.now).moves[0];
    assert_eq!(first.task.as_str(), "t00004");

    let mut cluster = TestCluster::new(3);
    cluster.service("web", &[], TaskSpec::default());
    running(&mut cluster, "web", &["n1", "n1", "n2"]);
    assert_eq!(planned(&cluster), ["web n1>n3"]);
    running(&mut cluster, "web", &["n3"]);
    assert_eq!(planned(&cluster), [""; 0]);
}

#[test]
fn services_of_one_task_are_even_by_all_tasks() {
    let mut cluster = TestCluster::new(2);
    for name in ["a", "b", "c", "d"] {
        cluster.service(name, &[], TaskSpec::default());
        running(&mut cluster, name, &["n1"]);
    }
    assert_eq!(planned(&cluster), ["a n1>n2", "b n1>n2"]);
}

#[test]
fn branches_of_the_preferences_are_even_first_then_the_nodes_within_each() {
    let mut cluster = TestCluster::new(4);
    for (node, rack) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")] {
        cluster.node(node, |n| drop(n.spec.labels.insert("rack".to_owned(), rack.to_owned())));
    }
    cluster.service("web", &[], spread_over(&["node.labels.rack"]));
    running(&mut cluster, "web", &["n1", "n1", "n1", "n2", "n3", "n3"]);
    // 4 and 2 become 3 and 3, then 2 and 0 within the second rack become 1 and 1 … by the same move.
    assert_eq!(planned(&cluster), ["web n1>n4"]);
    let mut cluster = TestCluster::new(4);
    for (node, rack) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")] {
        cluster.node(node, |n| drop(n.spec.labels.insert("rack".to_owned(), rack.to_owned())));
    }
    cluster.service("web", &[], spread_over(&["node.labels.rack"]));
    running(&mut cluster, "web", &["n1", "n1", "n3", "n4"]);
    assert_eq!(planned(&cluster), ["web n1>n2"]);
}

#[test]
fn a_node_without_room_gets_nothing_and_paused_nodes_are_left_alone() {
    let mut cluster = TestCluster::new(3);
    cluster.service("web", &[], TaskSpec { placement: constrained(&["node.labels.zone!=b"]).placement, ..memory(400) });
    running(&mut cluster, "web", &["n1", "n1"]);
    cluster.node("n2", |n| drop(n.spec.labels.insert("zone".to_owned(), "b".to_owned())));
    cluster.node("n3", |n| n.description.memory_bytes = 399);
    assert_eq!(planned(&cluster), [""; 0]);
    cluster.node("n3", |n| n.description.memory_bytes = 400);
    assert_eq!(planned(&cluster), ["web n1>n3"]);
    cluster.node("n1", |n| n.spec.availability = Availability::Pause);
    assert_eq!(planned(&cluster), [""; 0]);
    // The limit per node and host ports count too.
    let mut cluster = TestCluster::new(2);
    cluster.service("web", &[], placed(Placement { max_replicas: 1, ..Placement::default() }));
    running(&mut cluster, "web", &["n1", "n1", "n2"]);
    assert_eq!(planned(&cluster), [""; 0]);
}

#[test]
fn services_that_must_not_be_touched_are_named_with_the_reason() {
    let mut cluster = TestCluster::new(2);
    cluster.service("binpacked", &[("skep.placement.strategy", "binpack")], TaskSpec::default());
    cluster.service("updated", &[], TaskSpec::default());
    cluster.service("moving", &[], TaskSpec::default());
    for name in ["binpacked", "updated", "moving"] {
        running(&mut cluster, name, &["n1", "n1"]);
    }
    let mut updated = cluster.store.service(&"updated".into()).unwrap().clone();
    updated.update = Some(ServiceUpdate { state: UpdateState::Paused, ..ServiceUpdate::requested(false) });
    cluster.apply(vec![Action::update(updated)]);
    let task = cluster.store.tasks_of_service(&"moving".into()).next().unwrap().id.clone();
    cluster.task(&task, |task| task.move_to = Some("n2".into()));
    let plan = plan(&cluster.store, None, cluster.now);
    let left: Vec<(&str, &str)> =
        plan.left.iter().map(|(id, why)| (id.as_str(), why.split([':', '(']).next().unwrap())).collect();
    assert_eq!(
        left,
        [
            ("binpacked", "its tasks share nodes on purpose "),
            ("moving", "its tasks are being moved already"),
            ("updated", "its update is paused")
        ]
    );
    assert_eq!(plan.moves, []);
}

#[test]
fn a_plan_for_many_nodes_ends_with_every_node_even() {
    let mut cluster = TestCluster::new(200);
    cluster.service("web", &[], TaskSpec::default());
    running(&mut cluster, "web", &["n1"; 150]);
    running(&mut cluster, "web", &["n2"; 50]);
    let plan = plan(&cluster.store, None, cluster.now);
    assert_eq!(plan.moves.len(), 198);
    let to: std::collections::BTreeSet<_> = plan.moves.iter().map(|one| &one.to).collect();
    assert_eq!(to.len(), 198, "each another node");
}
