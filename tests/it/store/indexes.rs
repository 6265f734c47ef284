//! Every index finds what a scan of the table finds, after each transaction and after a restore.

use super::{IDS, NAMES, ops, run};
use proptest::prelude::*;
use skep::model::{PortConfig, Protocol, PublishMode, Service, Task, TaskState, Timestamp, WgKey};
use skep::store::{Store, StoreObject};

fn ids<'a, T: StoreObject>(objects: impl Iterator<Item = &'a T>) -> Vec<String> {
    objects.map(|object| object.id().to_string()).collect()
}

fn tasks(store: &Store, condition: impl Fn(&Task) -> bool) -> Vec<String> {
    ids(store.tasks().filter(|t| condition(t)))
}

fn services(store: &Store, condition: impl Fn(&Service) -> bool) -> Vec<String> {
    ids(store.services().filter(|s| condition(s)))
}

fn compare_with_scans(store: &Store) {
    for name in NAMES {
        let is_named = |other: &str| other.eq_ignore_ascii_case(name);
        assert_eq!(ids(store.service_named(name).into_iter()), services(store, |s| is_named(&s.spec.name)));
        let networks = ids(store.networks().filter(|n| !n.removing && is_named(&n.spec.name)));
        assert_eq!(ids(store.network_named(name).into_iter()), networks);
    }
    for id in IDS {
        assert_eq!(ids(store.tasks_of_service(&id.into())), tasks(store, |t| t.service_id.as_str() == id));
        let on_node = tasks(store, |t| t.node_id.as_ref().is_some_and(|n| n.as_str() == id));
        assert_eq!(ids(store.tasks_of_node(&id.into())), on_node);
        let on_network = tasks(store, |t| t.attachments.iter().any(|a| a.network_id.as_str() == id));
        assert_eq!(ids(store.tasks_on_network(&id.into())), on_network);
        let attached = services(store, |s| s.spec.task_template.networks.iter().any(|n| n.target == id));
        assert_eq!(ids(store.services_on_network(&id.into())), attached);
        let wanted = |t: &&Task| on_network.contains(&t.id.to_string()) && store.service(&t.service_id).is_some();
        let is_used = !attached.is_empty() || store.tasks().any(|t| wanted(&t));
        if let Some(network) = store.network(&id.into()) {
            assert_eq!(store.network_user(network).is_some(), is_used);
            assert_eq!(store.has_addresses_on(network), !on_network.is_empty());
        }
    }
    let mut delayed: Vec<(Timestamp, String)> = store
        .tasks()
        .filter_map(|t| Some((t.not_before.filter(|_| t.desired_state <= TaskState::Running)?, t.id.to_string())))
        .collect();
    delayed.sort();
    assert_eq!(store.delayed_tasks().map(|(start, t)| (start, t.id.to_string())).collect::<Vec<_>>(), delayed);
    assert_eq!(ids(store.new_tasks()), tasks(store, |t| t.status.state == TaskState::New));
    assert_eq!(ids(store.pending_tasks()), tasks(store, |t| t.status.state == TaskState::Pending));
    for number in 0..=u8::MAX {
        let key = WgKey([number; 32]);
        assert_eq!(ids(store.nodes_with_key(&key)), ids(store.nodes().filter(|n| n.mesh.key == key)));
    }
    for port in 1..4 {
        let publishes = |ports: &[PortConfig]| ports.iter().any(|p| p.published_port == port);
        let publishing = services(store, |s| {
            publishes(&s.endpoint.ports) || s.spec.endpoint_spec.as_ref().is_some_and(|e| publishes(&e.ports))
        });
        assert_eq!(ids(store.services_publishing(PublishMode::Ingress, Protocol::Tcp, port)), publishing);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_index_finds_what_a_scan_finds(all in ops()) {
        let store = run(&all, |_, store, _, _| compare_with_scans(store));
        compare_with_scans(&Store::restore(&store.snapshot()).expect("restores"));
    }
}
