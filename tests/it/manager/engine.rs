//! A node whose engine does not answer: connected, and unable to run tasks.

use super::fixture::{node, service};
use super::simulation::Simulation;
use skep::model::{NodeState, TaskState};
use skep::store::Action;
use std::time::Duration;

#[test]
fn a_node_without_its_engine_gets_no_tasks_then_loses_its_own_and_returns() {
    for number in 1..=3 {
        let away = node(number);
        let mut simulation = Simulation::new(3, 5);
        simulation.command(vec![Action::create(service("web", 6, &[(8080, 80)], &[]))]);
        simulation.until("six run", |s| s.running("web").len() == 6);
        // Away for some seconds: it keeps its tasks.
        simulation.describe(&away, |d| d.engine_version.clear());
        simulation.run(Duration::from_millis(500));
        simulation.scale("web", 9);
        simulation.until("nine run", |s| s.running("web").len() == 9);
        assert_eq!(simulation.state_of(&away), NodeState::Ready);
        assert_eq!(simulation.per_node("web")[away.as_str()], 2, "no new ones\n{}", simulation.dump());
        // Away for longer: as a node that is down, and the reason is another one.
        simulation.describe(&away, |d| d.engine_lost = true);
        simulation
            .until("its tasks run elsewhere", |s| s.running("web").len() == 9 && !s.per_node("web").contains_key(away.as_str()));
        let status = simulation.store.node(&away).unwrap().status.clone();
        assert_eq!((status.state, status.message.as_str()), (NodeState::Down, "the node's Docker Engine does not answer"));
        simulation.run(Duration::from_secs(5));
        assert_eq!(simulation.state_of(&away), NodeState::Down, "its heartbeats do not make it ready");
        assert_eq!(simulation.running("web").len(), 9);
        // A new leader sees the same.
        simulation.change_leader();
        simulation.run(Duration::from_secs(5));
        assert_eq!((simulation.state_of(&away), simulation.running("web").len()), (NodeState::Down, 9));
        // Back: what still runs there is stopped, and it gets new tasks.
        simulation.describe(&away, |d| (d.engine_version, d.engine_lost) = ("28.5.1".to_owned(), false));
        simulation.until("ready", |s| s.state_of(&away) == NodeState::Ready);
        simulation.until("its old tasks have stopped", |s| s.running_containers("web") == 9);
        assert_eq!(simulation.store.node(&away).unwrap().description.engine_version, "28.5.1");
        simulation.scale("web", 12);
        simulation.until("twelve run", |s| s.running("web").len() == 12);
        assert_eq!(simulation.per_node("web")[away.as_str()], 3, "{}", simulation.dump());
        let lost = simulation.tasks("web").into_iter().filter(|t| t.desired_state > TaskState::Running);
        assert!(lost.into_iter().all(|t| t.failures.is_none()), "a lost node is no failure of its tasks");
    }
}
