//! Updates on simulated nodes: what serves goes on serving, what fails is found, and the update comes to an end.

use super::fixture::{after, network, node, restarting, service, updating};
use super::simulation::Simulation;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skep::model::service::UpdateConfig;
use skep::model::task::{Placement, RestartCondition, RestartPolicy};
use skep::model::{Availability, NodeState, ServiceSpec, TaskState, UpdateState};
use skep::store::Action;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn image(name: &str) -> impl FnOnce(&mut ServiceSpec) + use<'_> {
    move |spec| name.clone_into(&mut spec.task_template.container_spec.image)
}

/// A service that runs, with a published port.
fn web(nodes: usize, seed: u64, replicas: u64, config: UpdateConfig) -> Simulation {
    let mut simulation = Simulation::new(nodes, seed);
    let mut web = restarting(service("web", replicas, &[(8080, 80)], &[]), after(Duration::from_millis(500)));
    (web.spec.update_config, web.spec.rollback_config) = (Some(config.clone()), Some(config));
    simulation.command(vec![Action::create(web)]);
    simulation.until("all listen", |s| s.running("web").iter().filter(|t| !t.listens.is_empty()).count() as u64 == replicas);
    simulation
}

/// Runs until the last update is in this state; at least so many tasks serve all the time, as far as ports are concerned.
fn until_state(simulation: &mut Simulation, state: UpdateState, least: usize) -> Duration {
    simulation.until(state.as_str(), |s| {
        let serving = s.running("web").iter().filter(|t| !t.listens.is_empty()).count();
        assert!(serving >= least, "{serving} tasks serve, at least {least} must\n{}", s.dump());
        s.update_state("web") == Some(state)
    })
}

fn assert_all_run(simulation: &Simulation, image: &str, replicas: usize) {
    let running = simulation.running("web");
    let with_image = running.iter().filter(|t| t.spec.container_spec.image == image).count();
    assert_eq!((running.len(), with_image), (replicas, replicas), "{}", simulation.dump());
}

#[test]
fn never_fewer_tasks_serve_than_the_order_of_the_update_allows() {
    for seed in 0..120 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (replicas, parallelism) = (rng.random_range(1..6_u64), rng.random_range(1..3_u64));
        let order = if rng.random_bool(0.5) { "start-first" } else { "stop-first" };
        let delay = rng.random_bool(0.3).then(|| Duration::from_millis(rng.random_range(1..1500)).into());
        let config = UpdateConfig { order: order.to_owned(), delay, ..updating(parallelism, SECOND) };
        let mut simulation = web(rng.random_range(1..4), seed, replicas, config.clone());
        let replicas = usize::try_from(replicas).unwrap();
        let gap = if config.starts_first() { 0 } else { usize::try_from(parallelism).unwrap() };
        for image_name in ["v2", "v3"] {
            simulation.update("web", image(image_name));
            if rng.random_bool(0.3) {
                simulation.run(Duration::from_millis(rng.random_range(0..900)));
                simulation.change_leader();
            }
            until_state(&mut simulation, UpdateState::Completed, replicas.saturating_sub(gap));
            assert_all_run(&simulation, image_name, replicas);
            let service = simulation.store.service(&"web".into()).unwrap();
            assert_eq!(service.update.as_ref().unwrap().message, "update completed");
        }
        simulation.rollback("web");
        until_state(&mut simulation, UpdateState::RollbackCompleted, replicas.saturating_sub(gap));
        assert_all_run(&simulation, "v2", replicas);
    }
}

#[test]
fn an_update_that_fails_is_paused_with_what_worked_still_running() {
    for (seed, bad) in [(1, "crash"), (2, "once"), (3, "reject"), (4, "crash"), (5, "reject")] {
        for order in ["stop-first", "start-first"] {
            let config = UpdateConfig { order: order.to_owned(), ..updating(1, 2 * SECOND) };
            let mut simulation = web(3, seed, 4, config);
            simulation.update("web", image(bad));
            // What listens before it fails has taken the place of one good task, and of a second one if that was in time.
            let least = if bad == "reject" { 4 } else { 2 };
            until_state(&mut simulation, UpdateState::Paused, least);
            let service = simulation.store.service(&"web".into()).unwrap();
            let message = service.update.as_ref().unwrap().message.clone();
            assert!(message.starts_with("update paused due to failure or early termination of task "), "{message}");
            simulation.run(Duration::from_secs(20));
            let good = simulation.running("web").iter().filter(|t| t.spec.container_spec.image == "whoami").count();
            assert!(good >= least, "{good}\n{}", simulation.dump());
            // Neither a label nor a scale starts it again.
            simulation.update("web", |spec| drop(spec.labels.insert("a".to_owned(), "b".to_owned())));
            simulation.run(Duration::from_secs(5));
            assert_eq!(simulation.update_state("web"), Some(UpdateState::Paused));
            let again = simulation.running("web").iter().filter(|t| t.spec.container_spec.image == "whoami").count();
            assert!(again >= good, "{again}\n{}", simulation.dump());
            simulation.rollback("web");
            until_state(&mut simulation, UpdateState::RollbackCompleted, good.min(least));
            assert_all_run(&simulation, "whoami", 4);
        }
    }
}

#[test]
fn an_update_that_fails_is_rolled_back_as_a_whole() {
    for (seed, bad, parallelism) in [(1, "crash", 1), (2, "reject", 2), (3, "once", 0)] {
        let config = UpdateConfig { failure_action: "rollback".to_owned(), ..updating(parallelism, 2 * SECOND) };
        let mut simulation = web(3, seed, 3, config);
        simulation.update("web", |spec| {
            image(bad)(spec);
            spec.labels.insert("a".to_owned(), "b".to_owned());
        });
        until_state(&mut simulation, UpdateState::RollbackCompleted, 0);
        assert_all_run(&simulation, "whoami", 3);
        let service = simulation.store.service(&"web".into()).unwrap();
        assert!(service.previous_spec.is_none() && service.spec.labels.is_empty() && service.spec_version == 1);
        // A later update has a number of its own, and its tasks no failures of the earlier ones.
        simulation.update("web", image("v3"));
        until_state(&mut simulation, UpdateState::Completed, 0);
        assert_all_run(&simulation, "v3", 3);
        assert_eq!(simulation.store.service(&"web".into()).unwrap().spec_version, 3);
    }
}

#[test]
fn the_share_of_failures_decides() {
    // Of four, one fails: more than 0.24, not more than 0.25.
    for (ratio, state) in [(0.25, UpdateState::Completed), (0.24, UpdateState::Paused)] {
        let max_failure_ratio = serde_json::Number::from_f64(ratio).unwrap();
        let mut simulation = web(4, 9, 4, UpdateConfig { max_failure_ratio, ..updating(0, 2 * SECOND) });
        // The image cannot be prepared on one node; a slot each.
        simulation.update("web", |spec| {
            image("not-on-n4")(spec);
            spec.task_template.restart_policy = Some(after(Duration::from_millis(200)));
        });
        until_state(&mut simulation, state, 0);
    }
}

#[test]
fn an_update_goes_on_through_failures_if_that_is_its_action() {
    let config = UpdateConfig { failure_action: "continue".to_owned(), ..updating(1, SECOND) };
    let mut simulation = web(3, 4, 3, config);
    simulation.update("web", image("reject"));
    until_state(&mut simulation, UpdateState::Completed, 3);
    assert_all_run(&simulation, "whoami", 3);
    let update = simulation.store.service(&"web".into()).unwrap().update.clone().unwrap();
    assert_eq!((update.failed, update.dirty), (3, 3));
    let left = "update completed; 3 tasks are as before, because what was to replace them failed: it is tried again";
    assert_eq!(update.message, left);
    // What was tried goes on being tried beside the one that serves, as long as the policy allows it.
    let newest = |s: &Simulation| s.tasks("web").iter().filter(|t| t.slot == 1).map(|t| t.meta.created_at).max();
    let before = newest(&simulation);
    simulation.until("tried again", |s| newest(s) > before && s.running("web").len() == 3);
}

#[test]
fn one_window_of_failures_for_every_slot() {
    // They fail about 2.7 s after their start: after the monitor time, within the delay.
    let delay = Some(Duration::from_secs(6).into());
    let mut simulation = web(2, 6, 4, UpdateConfig { delay, ..updating(1, SECOND) });
    simulation.update("web", image("seconds"));
    until_state(&mut simulation, UpdateState::Paused, 3);
    let good = simulation.running("web").iter().filter(|t| t.spec.container_spec.image == "whoami").count();
    assert_eq!(good, 3, "the first failure was seen before the second slot was taken\n{}", simulation.dump());
}

#[test]
fn an_update_in_the_middle_of_another_one_and_a_scale() {
    let mut simulation = web(3, 8, 4, updating(1, SECOND));
    simulation.update("web", image("v2"));
    simulation.until("the first slot is done", |s| s.running("web").iter().any(|t| t.spec.container_spec.image == "v2"));
    simulation.update("web", image("v3"));
    simulation.run(Duration::from_millis(400));
    simulation.scale("web", 6);
    until_state(&mut simulation, UpdateState::Completed, 2);
    simulation.until("six run", |s| s.running("web").len() == 6);
    assert_all_run(&simulation, "v3", 6);
    // Back in the middle: only what was changed is changed back.
    let untouched: Vec<_> = simulation.running("web").iter().map(|t| t.id.clone()).collect();
    simulation.update("web", image("v4"));
    simulation.until("a slot is done", |s| s.running("web").iter().any(|t| t.spec.container_spec.image == "v4"));
    simulation.rollback("web");
    until_state(&mut simulation, UpdateState::RollbackCompleted, 4);
    let kept = simulation.running("web").iter().filter(|t| untouched.contains(&t.id)).count();
    assert!(kept >= 4, "{kept}\n{}", simulation.dump());
    assert_all_run(&simulation, "v3", 6);
}

#[test]
fn an_update_whose_tasks_get_no_address_is_paused_with_the_reason_and_what_runs_goes_on() {
    let mut simulation = Simulation::new(2, 5);
    simulation.command(vec![Action::create(network("small", Some("10.9.0.0/29")))]);
    // Of six addresses one is the gateway's and one the service's virtual address.
    let mut web = restarting(service("web", 4, &[], &["small"]), after(Duration::from_millis(500)));
    web.spec.update_config = Some(UpdateConfig { order: "start-first".to_owned(), ..updating(1, 2 * SECOND) });
    simulation.command(vec![Action::create(web)]);
    simulation.until("all run", |s| s.running("web").len() == 4);
    let before: Vec<_> = simulation.running("web").iter().map(|task| task.id.clone()).collect();
    simulation.update("web", image("v2"));
    simulation.until("paused", |s| {
        assert!(before.iter().all(|id| s.running("web").iter().any(|task| task.id == *id)), "stopped\n{}", s.dump());
        s.update_state("web") == Some(UpdateState::Paused)
    });
    let message = simulation.store.service(&"web".into()).unwrap().update.clone().unwrap().message;
    assert!(message.ends_with(": could not find an available IP on network small (10.9.0.0/29 is full)"), "{message}");
}

/// The old task is stopped first, so that its address is there for the new one: the network need not have more than all tasks together.
#[test]
fn an_update_that_stops_first_goes_through_on_a_network_that_is_full() {
    let mut simulation = Simulation::new(2, 5);
    simulation.command(vec![Action::create(network("small", Some("10.9.0.0/29")))]);
    let mut web = restarting(service("web", 4, &[], &["small"]), after(Duration::from_millis(500)));
    web.spec.update_config = Some(updating(1, 2 * SECOND));
    simulation.command(vec![Action::create(web)]);
    simulation.until("all run", |s| s.running("web").len() == 4);
    simulation.update("web", image("v2"));
    simulation.until("completed", |s| {
        assert!(s.running("web").len() >= 3, "more than one at once\n{}", s.dump());
        s.update_state("web") == Some(UpdateState::Completed)
    });
    assert!(simulation.running("web").iter().all(|task| task.spec.container_spec.image == "v2"), "{}", simulation.dump());
}

/// Writes the node's label `zone`.
fn label(simulation: &mut Simulation, number: usize, zone: &str) {
    let mut node = simulation.store.node(&node(number)).unwrap().clone();
    node.spec.labels.insert("zone".to_owned(), zone.to_owned());
    simulation.command(vec![Action::update(node)]);
}

/// A slot in which nothing runs does not wait for its turn: nothing is lost there.
#[test]
fn what_has_failed_is_replaced_by_the_update_at_once() {
    let config = UpdateConfig { delay: Some(Duration::from_mins(10).into()), ..updating(1, SECOND) };
    // One of four crashes while the first one is watched.
    let mut simulation = web(3, 4, 4, config.clone());
    simulation.update("web", image("v2"));
    simulation.run(2 * SECOND);
    let last =
        simulation.running("web").iter().find(|t| t.slot == 4).map(|t| (t.id.clone(), t.node_id.clone().unwrap())).unwrap();
    simulation.agents.get_mut(&last.1).unwrap().containers.get_mut(&last.0).unwrap().life = Some(0);
    simulation.until("it has failed", |s| s.running("web").len() == 3);
    let took = simulation.until("it is replaced", |s| s.running("web").len() == 4);
    assert!(took < 3 * SECOND, "{took:?}\n{}", simulation.dump());
    let image_of =
        |s: &Simulation, slot| s.running("web").iter().find(|t| t.slot == slot).unwrap().spec.container_spec.image.clone();
    assert_eq!(image_of(&simulation, 4), "v2");
    simulation.run(30 * SECOND);
    assert_eq!([2, 3].map(|slot| image_of(&simulation, slot)), ["whoami"; 2], "those that serve wait for their turn");
    // All of them are broken.
    for broken in ["crash", "reject"] {
        let mut simulation = Simulation::new(3, 5);
        let mut web = restarting(service("web", 4, &[], &[]), after(30 * SECOND));
        image(broken)(&mut web.spec);
        web.spec.update_config = Some(config.clone());
        simulation.command(vec![Action::create(web)]);
        simulation.run(20 * SECOND);
        simulation.update("web", image("good"));
        let took = simulation.until("repaired", |s| s.running("web").len() == 4);
        assert!(took < 5 * SECOND, "{broken}: {took:?}");
    }
}

#[test]
fn a_move_is_no_restart() {
    for condition in [RestartCondition::None, RestartCondition::OnFailure, RestartCondition::Any] {
        let mut simulation = Simulation::new(3, 5);
        let policy = RestartPolicy { condition: Some(condition), max_attempts: Some(1), ..after(Duration::from_secs(30)) };
        let mut db = restarting(service("db", 2, &[], &[]), policy);
        let constraints = vec!["node.labels.zone==a".to_owned()];
        db.spec.task_template.placement = Some(Placement { constraints, ..Placement::default() });
        for n in 1..=3 {
            label(&mut simulation, n, "a");
        }
        simulation.command(vec![Action::create(db)]);
        simulation.until("it runs", |s| s.running("db").len() == 2);
        let is_elsewhere =
            |s: &Simulation, n| s.running("db").len() == 2 && s.running("db").iter().all(|t| t.node_id != Some(node(n)));
        for round in 0..3 {
            // A label that a constraint asks for goes.
            for n in 1..=3 {
                label(&mut simulation, n, "b");
                let took = simulation.until("elsewhere", |s| is_elsewhere(s, n));
                assert!(took < Duration::from_secs(5), "{condition:?} {round} {took:?}");
                label(&mut simulation, n, "a");
            }
            for n in 1..=3 {
                simulation.availability(&node(n), Availability::Drain);
                let took = simulation.until("elsewhere", |s| is_elsewhere(s, n));
                assert!(took < Duration::from_secs(5), "{condition:?} {round} {took:?}");
                simulation.availability(&node(n), Availability::Active);
            }
            simulation.disconnect(&node(1));
            simulation.until("down", |s| s.state_of(&node(1)) == NodeState::Down);
            let took = simulation.until("elsewhere", |s| s.running("db").len() == 2);
            assert!(took < Duration::from_secs(3), "{condition:?} {took:?}");
            simulation.reconnect(&node(1));
            simulation.until("back", |s| s.state_of(&node(1)) == NodeState::Ready);
            simulation.run(SECOND);
        }
    }
}

#[test]
fn a_single_replica_with_start_first_is_drained_without_a_gap() {
    let config = UpdateConfig { order: "start-first".to_owned(), ..updating(1, SECOND) };
    let mut simulation = web(2, 3, 1, config);
    for _ in 0..4 {
        let at = simulation.running("web")[0].node_id.clone().unwrap();
        simulation.availability(&at, Availability::Drain);
        simulation.until("moved", |s| {
            assert!(s.running("web").iter().any(|t| !t.listens.is_empty()), "a gap\n{}", s.dump());
            let running = s.running("web");
            running.len() == 1 && running[0].node_id.as_ref() != Some(&at)
        });
        simulation.availability(&at, Availability::Active);
    }
    // Nowhere to go: the node is drained all the same.
    for n in 1..=2 {
        simulation.availability(&node(n), Availability::Drain);
    }
    simulation.until("stopped", |s| s.running_containers("web") == 0);
}

/// Beyond the time in which an update counts failures: its image may have to be pulled.
#[test]
fn a_drained_node_waits_for_a_task_that_is_on_its_way_to_another_one() {
    let mut waited = 0;
    for seed in 0..8 {
        for order in ["start-first", "stop-first"] {
            let mut late = service("web", 1, &[(8080, 80)], &[]);
            "late".clone_into(&mut late.spec.task_template.container_spec.image);
            late.spec.update_config = Some(UpdateConfig { order: order.to_owned(), ..updating(1, SECOND) });
            let mut simulation = Simulation::new(2, seed);
            simulation.command(vec![Action::create(late)]);
            simulation.until("it listens", |s| s.running("web").iter().any(|task| !task.listens.is_empty()));
            let old = simulation.running("web")[0].clone();
            simulation.availability(&old.node_id.clone().unwrap(), Availability::Drain);
            let took = simulation.until("moved", |s| {
                let running = s.running("web");
                let goes_on = running.iter().any(|task| task.id == old.id);
                let is_prepared = s.tasks("web").iter().any(|task| task.id != old.id && task.status.state >= TaskState::Ready);
                assert!(goes_on || is_prepared, "{order}: stopped for nothing\n{}", s.dump());
                running.len() == 1 && !goes_on
            });
            waited += usize::from(took > 3 * SECOND);
        }
    }
    assert!(waited > 0, "some tasks take longer than the update allows");
}

#[test]
fn what_does_not_run_is_removed_first_when_a_service_is_scaled_down() {
    let mut simulation = web(3, 2, 3, updating(0, SECOND));
    // Slot 1 alone on its node waits for its delay, two others share the nodes left.
    let alone = simulation.running("web")[0].id.clone();
    let mut task = simulation.store.task(&alone).unwrap().clone();
    (task.status.state, task.status.timestamp) = (TaskState::Failed, simulation.now);
    let mut slow = simulation.store.service(&"web".into()).unwrap().clone();
    slow.spec.task_template.restart_policy = Some(after(Duration::from_mins(1)));
    std::sync::Arc::make_mut(&mut task.spec).restart_policy.clone_from(&slow.spec.task_template.restart_policy);
    simulation.command(vec![Action::update(task.clone())]);
    simulation.scale("web", 2);
    simulation.run(SECOND);
    let kept: Vec<_> = simulation.running("web").iter().map(|t| t.slot).collect();
    assert_eq!(kept.len(), 2, "{}", simulation.dump());
    assert!(!kept.contains(&task.slot), "{}", simulation.dump());
}

#[test]
fn a_slot_that_has_used_up_its_attempts_is_filled_by_an_update_and_by_nothing_else() {
    let mut simulation = Simulation::new(2, 3);
    let policy = RestartPolicy { max_attempts: Some(2), ..after(Duration::from_millis(200)) };
    simulation.command(vec![Action::create(restarting(service("crash", 1, &[], &[]), policy))]);
    simulation.run(Duration::from_secs(20));
    assert_eq!(simulation.tasks("crash").len(), 3);
    simulation.update("crash", |spec| drop(spec.labels.insert("a".to_owned(), "b".to_owned())));
    simulation.run(Duration::from_secs(20));
    assert_eq!(simulation.tasks("crash").len(), 3, "{}", simulation.dump());
    simulation.update("crash", |spec| spec.task_template.force_update = 1);
    simulation.run(Duration::from_secs(20));
    let newer = simulation.tasks("crash").iter().filter(|t| t.spec_version == 2).count();
    assert_eq!(newer, 3, "with a count of its own\n{}", simulation.dump());
}

#[test]
fn a_host_port_passes_from_the_old_task_to_the_new_one() {
    use skep::model::PublishMode;
    let with_host_port = |order: &str| {
        let mut web = service("web", 1, &[(8080, 80)], &[]);
        web.spec.endpoint_spec.as_mut().unwrap().ports[0].publish_mode = PublishMode::Host;
        web.spec.update_config = Some(UpdateConfig { order: order.to_owned(), ..updating(1, 2 * SECOND) });
        web
    };
    // One node: the port is free when the old task has stopped.
    let mut simulation = Simulation::new(1, 5);
    simulation.command(vec![Action::create(with_host_port("stop-first"))]);
    simulation.until("it runs", |s| s.running("web").len() == 1);
    simulation.update("web", image("v2"));
    simulation.until("completed", |s| {
        assert!(s.running_containers("web") <= 1, "both have the port\n{}", s.dump());
        s.update_state("web") == Some(UpdateState::Completed)
    });
    assert_all_run(&simulation, "v2", 1);
    // It is not while the old one is to go on: said in time, and nothing is stopped.
    let mut simulation = Simulation::new(1, 5);
    simulation.command(vec![Action::create(with_host_port("start-first"))]);
    simulation.until("it runs", |s| s.running("web").len() == 1);
    simulation.update("web", image("v2"));
    until_paused_by(&mut simulation, "host-mode port already in use on 1 node");
    assert_all_run(&simulation, "whoami", 1);
    // With a second node it goes on there.
    let mut simulation = Simulation::new(2, 5);
    simulation.command(vec![Action::create(with_host_port("start-first"))]);
    simulation.until("it runs", |s| s.running("web").len() == 1);
    simulation.update("web", image("v2"));
    until_state(&mut simulation, UpdateState::Completed, 0);
    assert_all_run(&simulation, "v2", 1);
}

fn until_paused_by(simulation: &mut Simulation, reason: &str) {
    let took = simulation.until("paused", |s| s.update_state("web") == Some(UpdateState::Paused));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let message = simulation.store.service(&"web".into()).unwrap().update.clone().unwrap().message;
    assert!(
        message.starts_with("update paused due to failure or early termination of task ") && message.contains(reason),
        "{message}"
    );
}

#[test]
fn an_update_leaves_the_tasks_spread_over_the_nodes() {
    for order in ["stop-first", "start-first"] {
        for (nodes, replicas) in [(2, 2), (3, 6), (4, 4)] {
            let config = UpdateConfig { order: order.to_owned(), ..updating(1, Duration::from_millis(300)) };
            let mut simulation = web(nodes, 3, replicas, config);
            let before: Vec<usize> = simulation.per_node("web").into_values().collect();
            for image_name in ["v2", "v3"] {
                simulation.update("web", image(image_name));
                until_state(&mut simulation, UpdateState::Completed, 0);
                let after: Vec<usize> = simulation.per_node("web").into_values().collect();
                assert_eq!(after, before, "{order}\n{}", simulation.dump());
            }
        }
    }
}
