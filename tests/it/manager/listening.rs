//! A task takes the place of another one when it listens as those before it did, whether its service publishes ports or has a virtual
//! address alone; where nothing was seen to listen, nothing is waited for for long.

use super::fixture::{after, network, restarting, service, updating};
use super::simulated_agent::SLOW;
use super::simulation::Simulation;
use skep::model::service::UpdateConfig;
use skep::model::{ServiceSpec, UpdateState};
use skep::store::Action;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// What a client can reach a service by.
const PUBLISHED: &[(u16, u16)] = &[(8080, 80)];
const BY_NAME: &[(u16, u16)] = &[];

fn image(name: &str) -> impl FnOnce(&mut ServiceSpec) + use<'_> {
    move |spec| name.clone_into(&mut spec.task_template.container_spec.image)
}

fn in_order(order: &str) -> UpdateConfig {
    UpdateConfig { order: order.to_owned(), ..updating(1, SECOND) }
}

/// A service on a network, with tasks of this image that run.
fn web(ports: &[(u16, u16)], replicas: u64, first: &str, config: UpdateConfig) -> Simulation {
    let mut simulation = Simulation::new(3, replicas);
    let mut web = restarting(service("web", replicas, ports, &["back"]), after(Duration::from_millis(500)));
    image(first)(&mut web.spec);
    (web.spec.update_config, web.spec.rollback_config) = (Some(config.clone()), Some(config));
    simulation.command(vec![Action::create(network("back", None)), Action::create(web)]);
    simulation.until("all run", |s| s.running("web").len() as u64 == replicas);
    if !first.starts_with("deaf") {
        simulation.until("all listen", |s| listening(s) as u64 == replicas);
    }
    simulation
}

fn listening(simulation: &Simulation) -> usize {
    simulation.running("web").iter().filter(|t| !t.listens.is_empty()).count()
}

fn with_image(simulation: &Simulation, image: &str) -> usize {
    simulation.running("web").iter().filter(|t| t.spec.container_spec.image == image).count()
}

/// Until the update is in this state: at least so many tasks listen all the time.
fn until_state(simulation: &mut Simulation, state: UpdateState, least: usize) -> Duration {
    simulation.until(state.as_str(), |s| {
        assert!(listening(s) >= least, "{} tasks listen, at least {least} must\n{}", listening(s), s.dump());
        s.update_state("web") == Some(state)
    })
}

fn message(simulation: &Simulation) -> String {
    simulation.store.service(&"web".into()).unwrap().update.clone().unwrap().message
}

#[test]
fn an_update_waits_until_each_task_listens_as_the_one_before_it() {
    for ports in [PUBLISHED, BY_NAME] {
        for (order, replicas, least) in [("start-first", 1, 1), ("start-first", 2, 2), ("stop-first", 3, 2)] {
            let mut simulation = web(ports, replicas, "v1", in_order(order));
            for name in ["v2", "slow"] {
                simulation.update("web", image(name));
                until_state(&mut simulation, UpdateState::Completed, least);
                assert_eq!(with_image(&simulation, name) as u64, replicas, "{}", simulation.dump());
            }
        }
    }
}

#[test]
fn a_drain_waits_until_each_task_listens_as_the_one_before_it() {
    use skep::model::Availability;
    for ports in [PUBLISHED, BY_NAME] {
        let mut simulation = web(ports, 1, "slow", in_order("start-first"));
        let at = simulation.running("web")[0].node_id.clone().unwrap();
        simulation.availability(&at, Availability::Drain);
        let took = simulation.until("moved", |s| {
            assert!(listening(s) >= 1, "a gap\n{}", s.dump());
            s.running("web").len() == 1 && s.running("web")[0].node_id.as_ref() != Some(&at)
        });
        assert!(took >= SLOW, "{took:?}");
    }
}

#[test]
fn a_task_that_does_not_listen_as_those_before_it_did_fails_the_update_with_the_port() {
    for ports in [PUBLISHED, BY_NAME] {
        for (order, replicas, least) in [("start-first", 1, 1), ("stop-first", 3, 2)] {
            let mut simulation = web(ports, replicas, "v1", in_order(order));
            simulation.update("web", image("deaf"));
            let took = until_state(&mut simulation, UpdateState::Paused, least);
            assert!((Duration::from_mins(1)..Duration::from_secs(70)).contains(&took), "{took:?}");
            let says = "update paused due to failure or early termination of task ";
            let why = ": it runs and does not listen on 80/tcp, as tasks before it did";
            assert!(message(&simulation).starts_with(says) && message(&simulation).ends_with(why), "{}", message(&simulation));
            simulation.run(5 * SECOND);
            assert_eq!(with_image(&simulation, "v1"), least, "{}", simulation.dump());
            // The way back.
            simulation.rollback("web");
            until_state(&mut simulation, UpdateState::RollbackCompleted, least);
            assert_eq!((with_image(&simulation, "v1"), listening(&simulation) as u64), (listening(&simulation), replicas));
            // By itself.
            let rollback = UpdateConfig { failure_action: "rollback".to_owned(), ..in_order(order) };
            simulation.update("web", |spec| {
                image("deaf")(spec);
                spec.update_config = Some(rollback);
            });
            until_state(&mut simulation, UpdateState::RollbackCompleted, least);
            assert!(message(&simulation).starts_with("rollback completed"), "{}", message(&simulation));
            assert_eq!(with_image(&simulation, "v1") as u64, replicas, "{}", simulation.dump());
            // Where failures are to be gone through, what stops first is replaced.
            let onward = UpdateConfig { failure_action: "continue".to_owned(), ..updating(0, SECOND) };
            simulation.update("web", |spec| {
                image("deaf")(spec);
                spec.update_config = Some(onward);
            });
            until_state(&mut simulation, UpdateState::Completed, 0);
            assert_eq!(with_image(&simulation, "deaf") as u64, replicas, "{}", simulation.dump());
        }
    }
}

#[test]
fn what_never_listened_is_not_waited_for() {
    for (ports, longest) in [(BY_NAME, Duration::from_secs(8)), (PUBLISHED, Duration::from_secs(40))] {
        for order in ["start-first", "stop-first"] {
            let mut simulation = web(ports, 2, "deaf", in_order(order));
            // It begins to: from then on that is measured, and not for the way back.
            simulation.update("web", image("deaf-too"));
            let took = until_state(&mut simulation, UpdateState::Completed, 0);
            assert!(took < longest, "{order}: {took:?}");
            simulation.update("web", image("v2"));
            until_state(&mut simulation, UpdateState::Completed, 0);
            simulation.until("all listen", |s| listening(s) == 2);
            simulation.rollback("web");
            let took = until_state(&mut simulation, UpdateState::RollbackCompleted, 0);
            assert!(took < longest, "{order}: {took:?}");
            assert_eq!(with_image(&simulation, "deaf-too"), 2, "{}", simulation.dump());
        }
    }
}

/// A worker that ends right after it was seen to run: an update goes no further than its first step.
#[test]
fn a_program_that_ends_at_once_takes_the_place_of_no_second_task() {
    for (order, least) in [("start-first", 4), ("stop-first", 3)] {
        let mut simulation = web(BY_NAME, 4, "deaf", in_order(order));
        simulation.update("web", image("deaf-crash"));
        simulation.until("paused", |s| {
            let before = with_image(s, "deaf");
            assert!(before >= least, "{order}: {before} tasks are left, at least {least} must\n{}", s.dump());
            s.update_state("web") == Some(UpdateState::Paused)
        });
    }
}

/// As of a service that elects a leader, which alone opens its port.
#[test]
fn where_one_task_of_several_listens_the_others_are_not_waited_for_for_long() {
    for ports in [PUBLISHED, BY_NAME] {
        for order in ["start-first", "stop-first"] {
            let mut simulation = Simulation::new(3, 4);
            let mut web = restarting(service("web", 3, ports, &["back"]), after(Duration::from_millis(500)));
            image("single")(&mut web.spec);
            web.spec.update_config = Some(in_order(order));
            simulation.command(vec![Action::create(network("back", None)), Action::create(web)]);
            simulation.until("one listens", |s| s.running("web").len() == 3 && listening(s) == 1);
            simulation.run(15 * SECOND);
            for name in ["single-2", "single-3"] {
                simulation.update("web", image(name));
                let took = until_state(&mut simulation, UpdateState::Completed, 0);
                assert!(took < 50 * SECOND, "{order}: {took:?}");
                simulation.run(15 * SECOND);
                assert_eq!((with_image(&simulation, name), listening(&simulation)), (3, 1), "{}", simulation.dump());
            }
        }
    }
}

/// Nodes of the release before say nothing of the containers of services that publish no port.
#[test]
fn a_node_that_cannot_say_whether_tasks_listen_is_not_waited_for() {
    let mut simulation = web(BY_NAME, 2, "v1", in_order("start-first"));
    for number in 1..=3 {
        simulation.describe(&super::fixture::node(number), |description| description.feature_levels = None);
    }
    simulation.run(SECOND);
    simulation.update("web", image("deaf"));
    let took = until_state(&mut simulation, UpdateState::Completed, 0);
    assert!(took < Duration::from_secs(8), "{took:?}");
}
