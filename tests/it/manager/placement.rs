//! Golden plans of placement: constraints, reservations, preferences and evictions in whole rounds.

use super::fixture::{after, restarting, service};
use super::golden::Script;
use skep::model::task::{Placement, PlacementPreference, Reservations, Resources, SpreadOver};
use skep::model::{Service, TaskState};
use skep::store::Action;
use std::time::Duration;

fn placed(mut service: Service, placement: Placement) -> Vec<Action> {
    service.spec.task_template.placement = Some(placement);
    vec![Action::create(service)]
}

fn constrained(name: &str, replicas: u64, constraint: &str) -> Vec<Action> {
    let service = restarting(service(name, replicas, &[], &[]), after(Duration::from_secs(3)));
    placed(service, Placement { constraints: vec![constraint.to_owned()], ..Placement::default() })
}

#[test]
fn constraints_and_evictions() {
    let mut s = Script::new(3);
    s.step("no node has the label", constrained("web", 2, "node.labels.zone==a"));
    s.node(2, |n| drop(n.spec.labels.insert("zone".to_owned(), "A".to_owned())));
    s.step("n2 has it", Vec::new());
    s.observe("web", TaskState::Running);
    s.wait(Duration::from_secs(1));
    s.node(3, |n| drop(n.spec.labels.insert("zone".to_owned(), "a".to_owned())));
    s.step("n3 has it too: nothing moves", Vec::new());
    s.node(2, |n| n.spec.labels.clear());
    s.step("n2 no longer has it", Vec::new());
    s.wait(Duration::from_secs(3));
    s.step("3 s later", Vec::new());
    s.observe("web", TaskState::Running);
    s.node(3, |n| n.spec.labels.clear());
    s.wait(Duration::from_secs(10));
    s.step("no node has it", Vec::new());
    s.wait(Duration::from_secs(3));
    s.step("nothing is written while nothing changes", Vec::new());
    s.node(1, |n| drop(n.spec.labels.insert("zone".to_owned(), "a".to_owned())));
    s.step("n1 has it", Vec::new());
    s.compare("placement.txt");
}

#[test]
fn reservations_and_preferences() {
    let mut s = Script::new(3);
    for number in 1..=3 {
        s.node(number, |n| {
            n.description.memory_bytes = 1000;
            n.spec.labels = [("rack".to_owned(), if number == 1 { "a" } else { "b" }.to_owned())].into();
        });
    }
    let mut spread = service("spread", 6, &[], &[]);
    spread.spec.task_template.resources = Some(Resources {
        reservations: Some(Reservations { memory_bytes: 300, ..Reservations::default() }),
        ..Resources::default()
    });
    let over = SpreadOver { spread_descriptor: "node.labels.rack".to_owned() };
    let placement = Placement { preferences: vec![PlacementPreference { spread: Some(over) }], ..Placement::default() };
    s.step("six over two racks", placed(spread, placement));
    let up = s.scaled("spread", 10);
    s.step("scaled to ten: nine have room", up);
    s.observe("spread", TaskState::Running);
    let limited = Placement { max_replicas: 1, ..Placement::default() };
    s.step("one per node", placed(service("single", 4, &[], &[]), limited));
    s.node(2, |n| n.description.memory_bytes = 600);
    s.wait(Duration::from_secs(1));
    s.step("n2 has less memory", Vec::new());
    s.node(3, |n| n.description.memory_bytes = 2000);
    s.wait(Duration::from_secs(6));
    s.step("n3 has more", Vec::new());
    s.compare("reservations.txt");
}
