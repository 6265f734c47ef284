//! Many nodes and tasks: the size and the number of rounds are bounded.

use super::fixture::{self, apply, service};
use skep::manager::limits::BATCH;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings, invariants};
use skep::model::{NodeState, Revision, TaskState};
use skep::store::{Action, Kind};

#[test]
fn a_thousand_tasks_on_thirty_nodes_need_bounded_transactions() {
    let mut store = fixture::store(30);
    let ready: Vec<Action> = store
        .nodes()
        .map(|n| {
            let mut n = n.clone();
            n.status.state = NodeState::Ready;
            Action::update(n)
        })
        .collect();
    apply(&mut store, fixture::START, ready);
    let net = fixture::network("big", Some("10.64.0.0/16"));
    apply(&mut store, fixture::START, vec![Action::create(net), Action::create(service("many", 1000, &[], &["big"]))]);
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    let mut rounds = 0;
    let mut run = |store: &mut skep::store::Store| {
        loop {
            let applied = LowestApplied::by_all(Revision { incarnation: 1, index: store.index() });
            let actions = planner.round(store, Vec::new(), applied, fixture::START);
            if actions.is_empty() {
                return;
            }
            assert!(actions.len() <= 2 * BATCH, "{}", actions.len());
            apply(store, fixture::START, actions);
            rounds += 1;
            assert!(rounds < 100);
        }
    };
    run(&mut store);
    assert_eq!(store.tasks().filter(|t| t.status.state == TaskState::Assigned).count(), 1000);
    for node in store.nodes() {
        let here = store.tasks().filter(|t| t.node_id.as_ref() == Some(&node.id)).count();
        assert!((33..=34).contains(&here), "{} has {here}", node.id);
    }
    assert_eq!(invariants::check_settled(&store), Vec::<String>::new());
    // No task has started, so removal waits for nothing but the agents.
    apply(&mut store, fixture::START, vec![Action::Remove(Kind::Service, "many".to_owned())]);
    run(&mut store);
    assert!(store.tasks().all(|t| t.desired_state == TaskState::Remove));
}
