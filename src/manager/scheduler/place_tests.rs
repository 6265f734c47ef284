//! Where tasks go, and what those say that have no node.

use super::testing::*;
use crate::model::mount::{VolumeDriver, VolumeOptions};
use crate::model::service::UpdateConfig;
use crate::model::task::{EarlierFailures, GenericResource, LogDriver, Mount, Placement, Platform, Reservations};
use crate::model::{Availability, FormatRange, NodeState, ServiceUpdate, TaskSpec, TaskState};
use std::time::Duration;

#[test]
fn every_reason_in_swarms_words() {
    let platform = |architecture: &str, os: &str| {
        placed(Placement {
            platforms: vec![Platform { architecture: architecture.to_owned(), os: os.to_owned() }],
            ..Placement::default()
        })
    };
    let gpu = reserving(Reservations { generic_resources: vec![GenericResource::discrete("gpu", 1)], ..Reservations::default() });
    let cpus = reserving(Reservations { nano_cpus: 4_000_000_001, ..Reservations::default() });
    for (template, reason) in [
        (memory(1001), "insufficient resources on"),
        (memory(i64::MAX), "insufficient resources on"),
        (cpus, "insufficient resources on"),
        (gpu, "insufficient resources on"),
        (constrained(&["node.labels.zone==a"]), "scheduling constraints not satisfied on"),
        (constrained(&["node.role==worker", "node.foo==1"]), "scheduling constraints not satisfied on"),
        (platform("arm64", "linux"), "unsupported platform on"),
        (platform("AMD64", "linux"), "unsupported platform on"),
        (platform("amd64", "Linux"), "unsupported platform on"),
        (platform("amd64", "windows"), "unsupported platform on"),
    ] {
        for nodes in 1..=3 {
            let mut cluster = TestCluster::new(nodes);
            for number in 1..=nodes {
                cluster.node(&format!("n{number}"), |n| {
                    (n.description.architecture, n.description.os) = ("x86_64".to_owned(), "linux".to_owned());
                });
            }
            cluster.service("web", &[], template.clone());
            let id = &cluster.pending("web", 1)[0];
            cluster.schedule();
            let number = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
            assert_eq!(cluster.fate(id), format!("no suitable node ({reason} {number})"));
        }
    }
    let mut cluster = TestCluster::new(1);
    for (name, template) in [("a", platform("x86_64", "")), ("b", platform("", "linux")), ("c", memory(1000))] {
        cluster.service(name, &[], template);
        let id = &cluster.pending(name, 1)[0];
        cluster.schedule();
        assert_eq!(cluster.fate(id), "n1", "{name}");
    }
}

#[test]
fn reasons_are_sorted_by_nodes_then_in_the_order_of_the_checks_and_each_node_counts_once() {
    let mut cluster = TestCluster::new(6);
    cluster.service("web", &[], TaskSpec { placement: constrained(&["node.labels.zone==a"]).placement, ..memory(1000) });
    let id = cluster.pending("web", 1).remove(0);
    for n in ["n1", "n2"] {
        cluster.node(n, |n| n.spec.availability = Availability::Pause);
    }
    // n3 and n4 have neither the memory nor the label: they count for the memory.
    for n in ["n3", "n4"] {
        cluster.node(n, |n| n.description.memory_bytes = 999);
    }
    cluster.schedule();
    let all = "no suitable node (2 nodes not available for new tasks; insufficient resources on 2 nodes; scheduling constraints not \
               satisfied on 2 nodes)";
    assert_eq!(cluster.fate(&id), all);
    cluster.node("n1", |n| n.spec.availability = Availability::Active);
    cluster.schedule();
    let sorted = "no suitable node (scheduling constraints not satisfied on 3 nodes; insufficient resources on 2 nodes; 1 node not \
                  available for new tasks)";
    assert_eq!(cluster.fate(&id), sorted);
    // Nothing is written while nothing changes.
    cluster.wait(Duration::from_mins(1));
    assert_eq!(cluster.schedule(), 0);
    // The reason goes away.
    cluster.node("n5", |n| drop(n.spec.labels.insert("zone".to_owned(), "A".to_owned())));
    assert_eq!(cluster.schedule(), 1);
    assert_eq!(cluster.fate(&id), "n5");
    assert_eq!(cluster.store.task(&id).unwrap().status.err, "");
}

#[test]
fn a_task_that_was_made_for_a_node_has_the_bare_reason() {
    let mut cluster = TestCluster::new(2);
    cluster.service("each", &[], memory(600));
    let for_node = |node: &'static str| move |task: &mut crate::model::Task| task.slot_node = Some(node.into());
    let first = cluster.pending_with("each", 1, for_node("n2")).remove(0);
    let second = cluster.pending_with("each", 1, for_node("n2")).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&first), "n2");
    assert_eq!(cluster.store.task(&first).unwrap().status.message, "scheduler confirmed task can run on preassigned node");
    assert_eq!(cluster.fate(&second), "insufficient resources on 1 node", "although n1 is empty");
    cluster.observe(&first, TaskState::Failed);
    cluster.schedule();
    assert_eq!(cluster.fate(&second), "n2");
}

#[test]
fn a_stopping_task_holds_its_port_and_memory_but_does_not_count_for_the_limit_per_node() {
    let mut cluster = TestCluster::new(1);
    cluster.service(
        "web",
        &[],
        TaskSpec { placement: placed(Placement { max_replicas: 1, ..Placement::default() }).placement, ..memory(600) },
    );
    let with_port = |task: &mut crate::model::Task| task.ports = vec![host_port(8080)];
    let old = cluster.pending_with("web", 1, with_port).remove(0);
    let new = cluster.pending_with("web", 1, with_port).remove(0);
    let small = cluster.pending_with("other", 1, with_port).remove(0);
    cluster.schedule();
    assert_eq!(
        (cluster.fate(&old), cluster.fate(&new)),
        ("n1".to_owned(), "no suitable node (insufficient resources on 1 node)".to_owned())
    );
    assert_eq!(cluster.fate(&small), "no suitable node (host-mode port already in use on 1 node)");
    cluster.node("n1", |n| n.description.memory_bytes = 1200);
    cluster.remove(&small);
    cluster.task(&new, |task| task.ports.clear());
    cluster.schedule();
    assert_eq!(cluster.fate(&new), "no suitable node (max replicas per node limit exceed)", "the text has no number");
    cluster.task(&old, |task| task.desired_state = TaskState::Shutdown);
    cluster.schedule();
    assert_eq!(cluster.fate(&new), "n1");
}

#[test]
fn plugins_that_the_node_does_not_list() {
    let mut cluster = TestCluster::new(1);
    let attached = |task: &mut crate::model::Task| {
        let address = "10.0.0.3/24".parse().unwrap();
        task.attachments = vec![crate::model::task::Attachment { network_id: "net".into(), address }];
    };
    cluster.node("n1", |n| n.description.plugins = vec![("Network".to_owned(), "bridge".to_owned())]);
    let id = cluster.pending_with("web", 1, attached).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&id), "no suitable node (missing plugin on 1 node)");
    cluster.node("n1", |n| n.description.plugins.push(("Network".to_owned(), "overlay".to_owned())));
    cluster.schedule();
    assert_eq!(cluster.fate(&id), "n1");

    let log = |name: &str| TaskSpec {
        log_driver: Some(LogDriver { name: name.to_owned(), ..LogDriver::default() }),
        ..TaskSpec::default()
    };
    let volume = |name: &str| {
        let driver_config = Some(VolumeDriver { name: name.to_owned(), ..VolumeDriver::default() });
        let volume_options = Some(VolumeOptions { driver_config, ..VolumeOptions::default() });
        let mut template = TaskSpec::default();
        template.container_spec.mounts = vec![Mount { kind: "volume".to_owned(), volume_options, ..Mount::default() }];
        template
    };
    let listed = [("Log", "json-file"), ("Network", "overlay"), ("Volume", "local"), ("Volume", "nfs:latest")];
    for (template, fits) in [
        (log("json-file"), true),
        (log("none"), true),
        (log(""), true),
        (log("gelf"), false),
        (volume("local"), true),
        (volume("nfs"), true),
        (volume("nfs:latest"), true),
        (volume("nf"), false),
        (volume("ceph"), false),
    ] {
        let mut cluster = TestCluster::new(1);
        cluster.node("n1", |n| {
            n.description.feature_levels = Some(FormatRange::new(1, 2));
            n.description.plugins = listed.iter().map(|(kind, name)| ((*kind).to_owned(), (*name).to_owned())).collect();
        });
        cluster.service("web", &[], template.clone());
        let id = &cluster.pending("web", 1)[0];
        cluster.schedule();
        let expected = if fits { "n1" } else { "no suitable node (missing plugin on 1 node)" };
        assert_eq!(cluster.fate(id), expected, "{template:?}");
        // A node that lists no plugins of the type is taken to have it, as in Swarm.
        cluster.node("n1", |n| n.description.plugins.retain(|(kind, _)| kind == "Network"));
        cluster.schedule();
        assert_eq!(cluster.fate(id), "n1");
    }
}

#[test]
fn tasks_are_spread_by_service_then_by_all_and_not_to_nodes_that_are_away() {
    let mut cluster = TestCluster::new(4);
    cluster.node("n4", |n| n.status.state = NodeState::Down);
    cluster.pending("a", 4);
    cluster.schedule();
    assert_eq!(cluster.per_node("a"), counts(&[("n1", 2), ("n2", 1), ("n3", 1)]));
    cluster.pending("b", 2);
    cluster.schedule();
    assert_eq!(cluster.per_node("b"), counts(&[("n2", 1), ("n3", 1)]));
    cluster.node("n3", |n| n.description.engine_version.clear());
    cluster.node("n4", |n| n.status.state = NodeState::Ready);
    cluster.pending("a", 2);
    cluster.schedule();
    assert_eq!(cluster.per_node("a"), counts(&[("n1", 2), ("n2", 1), ("n3", 1), ("n4", 2)]));
}

#[test]
fn spread_preferences_divide_evenly_and_the_limit_per_node_wins() {
    let labelled = |racks: &[&'static str]| {
        let mut cluster = TestCluster::new(racks.len());
        for (number, rack) in racks.iter().enumerate().filter(|(_, rack)| !rack.is_empty()) {
            cluster.node(&format!("n{}", number + 1), |n| drop(n.spec.labels.insert("rack".to_owned(), (*rack).to_owned())));
        }
        cluster
    };
    for (racks, tasks, expected) in [
        (&["a", "b", ""][..], 10, &[("n1", 4), ("n2", 3), ("n3", 3)][..]),
        (&["a", "b", "b"], 10, &[("n1", 5), ("n2", 3), ("n3", 2)]),
        (&["a", "a", "a", "b"], 6, &[("n1", 1), ("n2", 1), ("n3", 1), ("n4", 3)]),
        (&["", ""], 4, &[("n1", 2), ("n2", 2)]),
    ] {
        let mut cluster = labelled(racks);
        cluster.service("web", &[], spread_over(&["node.labels.rack", "rack"]));
        cluster.pending("web", tasks);
        cluster.schedule();
        assert_eq!(cluster.per_node("web"), counts(expected), "{racks:?}");
    }
    let mut cluster = labelled(&["a", "b", "b"]);
    let mut template = spread_over(&["node.labels.rack"]);
    template.placement.as_mut().unwrap().max_replicas = 2;
    cluster.service("web", &[], template);
    let ids = cluster.pending("web", 7);
    cluster.schedule();
    assert_eq!(cluster.per_node("web"), counts(&[("n1", 2), ("n2", 2), ("n3", 2)]));
    assert_eq!(cluster.fate(&ids[6]), "no suitable node (max replicas per node limit exceed)");
}

#[test]
fn a_node_that_failed_often_is_avoided_for_five_minutes_and_an_eviction_is_no_failure() {
    let mut cluster = TestCluster::new(2);
    for id in cluster.pending("web", 2) {
        cluster.schedule();
        if cluster.fate(&id) == "n1" {
            cluster.observe(&id, TaskState::Rejected);
        }
    }
    let next = cluster.pending("web", 3);
    cluster.schedule();
    assert!(next.iter().all(|id| cluster.fate(id) == "n2"), "{:?}", cluster.per_node("web"));
    cluster.wait(Duration::from_mins(5));
    let later = cluster.pending("web", 1).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&later), "n1");

    let mut cluster = TestCluster::new(2);
    let id = cluster.pending("web", 1).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&id), "n1");
    cluster.task(&id, |task| {
        (task.status.state, task.desired_state) = (TaskState::Rejected, TaskState::Shutdown);
        crate::model::Task::EVICTED.clone_into(&mut task.status.message);
    });
    let next = cluster.pending("web", 1).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&next), "n1");
}

#[test]
fn what_the_predecessors_of_a_slot_failed_at_counts_for_that_slot_alone() {
    let mut cluster = TestCluster::new(3);
    let failed = |task: &mut crate::model::Task| {
        task.failures = EarlierFailures { count: 5, nodes: [("n1".into(), 5), ("n2".into(), 5)].into() };
    };
    let own = cluster.pending_with("web", 2, failed);
    let others = cluster.pending("web", 4);
    cluster.schedule();
    assert!(own.iter().all(|id| cluster.fate(id) == "n3"));
    assert_eq!(cluster.per_node("web"), counts(&[("n1", 2), ("n2", 2), ("n3", 2)]));
    assert!(others.iter().all(|id| cluster.fate(id) != "n3"));
}

#[test]
fn generic_resources_are_given_by_name_and_come_back_with_the_end_of_a_task() {
    let mut cluster = TestCluster::new(2);
    cluster.node("n1", |n| {
        n.description.generic_resources =
            vec![GenericResource::named("gpu", "G1"), GenericResource::named("gpu", "G2"), GenericResource::discrete("ssd", 3)];
    });
    let wanted = vec![GenericResource::discrete("gpu", 1), GenericResource::discrete("ssd", 2)];
    cluster.service("web", &[], reserving(Reservations { generic_resources: wanted, ..Reservations::default() }));
    let ids = cluster.pending("web", 2);
    cluster.schedule();
    let has = |cluster: &TestCluster, n: usize| cluster.store.task(&ids[n]).unwrap().generic_resources.clone();
    // A build that does not know of them would start the container without.
    assert_eq!(cluster.fate(&ids[0]), "no suitable node (insufficient resources on 1 node; an older skep on 1 node)");
    cluster.node("n1", |n| n.description.feature_levels = Some(FormatRange::new(1, 2)));
    cluster.schedule();
    let expected = |gpu: &str| {
        let mut all = vec![GenericResource::named("gpu", gpu), GenericResource::discrete("ssd", 2)];
        all.sort();
        all
    };
    assert_eq!((cluster.fate(&ids[0]), has(&cluster, 0)), ("n1".to_owned(), expected("G1")));
    assert_eq!(cluster.fate(&ids[1]), "no suitable node (insufficient resources on 2 nodes)", "one ssd is left");
    cluster.task(&ids[0], |task| task.desired_state = TaskState::Shutdown);
    assert_eq!(cluster.schedule(), 0, "it has not stopped");
    cluster.observe(&ids[0], TaskState::Shutdown);
    cluster.schedule();
    assert_eq!((cluster.fate(&ids[1]), has(&cluster, 1)), ("n1".to_owned(), expected("G1")));
}

#[test]
fn bin_packing_fills_a_node_before_it_takes_the_next() {
    let mut cluster = TestCluster::new(3);
    cluster.service("web", &[("skep.placement.strategy", "binpack")], memory(300));
    cluster.pending("web", 4);
    cluster.schedule();
    assert_eq!(cluster.per_node("web"), counts(&[("n1", 3), ("n2", 1)]));
    cluster.service("other", &[("skep.placement.strategy", "binpack")], memory(100));
    cluster.pending("other", 2);
    cluster.schedule();
    assert_eq!(cluster.per_node("other"), counts(&[("n1", 1), ("n2", 1)]));
}

#[test]
fn affinity_and_anti_affinity_to_services() {
    let mut cluster = TestCluster::new(3);
    cluster.service("db", &[], TaskSpec::default());
    cluster.service("web", &[("skep.placement.affinity", "DB")], TaskSpec::default());
    cluster.service("batch", &[("skep.placement.anti-affinity", "db,batch")], TaskSpec::default());
    let web = cluster.pending("web", 2);
    cluster.schedule();
    assert_eq!(cluster.fate(&web[0]), "no suitable node (service affinity not satisfied on 3 nodes)");
    let db = cluster.pending("db", 1).remove(0);
    cluster.schedule();
    assert!(web.iter().all(|id| cluster.fate(id) == cluster.fate(&db)));
    let batch = cluster.pending("batch", 3);
    cluster.schedule();
    assert_eq!(cluster.per_node("batch").len(), 2);
    assert_eq!(cluster.fate(&batch[2]), "no suitable node (service anti-affinity not satisfied on 3 nodes)");
    // The other way round.
    let more = cluster.pending("db", 2);
    cluster.schedule();
    assert!(more.iter().all(|id| cluster.fate(id) == cluster.fate(&db)));
}

#[test]
fn a_node_that_has_the_image_is_preferred() {
    let mut cluster = TestCluster::new(3);
    let mut template = TaskSpec::default();
    "shop:1".clone_into(&mut template.container_spec.image);
    cluster.service("seed", &[], TaskSpec { placement: constrained(&["node.id==n3"]).placement, ..template.clone() });
    let seed = cluster.pending("seed", 1).remove(0);
    cluster.schedule();
    cluster.service("web", &[("skep.placement.prefer-image", "true")], template);
    let first = cluster.pending("web", 1).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&first), "n1", "the image is not there before a container is");
    cluster.task(&seed, |task| {
        task.status.state = TaskState::Failed;
        task.status.container = Some(crate::model::task::ContainerStatus::default());
    });
    let second = cluster.pending("web", 1).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&second), "n3", "n2 has as few tasks, and comes first");
    cluster.pending("web", 1);
    cluster.schedule();
    assert_eq!(cluster.per_node("web"), counts(&[("n1", 1), ("n2", 1), ("n3", 1)]), "the spread goes first");
}

/// The tasks of two slots run, that of slot 1 on `n2` and that of slot 2 on `n1`; both are replaced at the same time.
fn two_crossed(order: &str, template: TaskSpec) -> (TestCluster, Vec<crate::model::TaskId>) {
    let mut cluster = TestCluster::new(2);
    cluster.service("web", &[], template);
    let with_port = |slot| move |task: &mut crate::model::Task| (task.slot, task.ports) = (slot, vec![host_port(8080)]);
    for (slot, node) in [(1, "n2"), (2, "n1")] {
        let id = cluster.pending_with("web", 1, with_port(slot)).remove(0);
        cluster.task(&id, |task| (task.node_id, task.status.state) = (Some(node.into()), TaskState::Running));
    }
    let mut service = cluster.store.service(&"web".into()).unwrap().clone();
    service.update = Some(ServiceUpdate { started_at: Some(cluster.now), ..ServiceUpdate::requested(false) });
    service.spec.update_config = Some(UpdateConfig { parallelism: 2, order: order.to_owned(), ..UpdateConfig::default() });
    service.spec_version = 2;
    cluster.apply(vec![crate::store::Action::update(service)]);
    let successor = |slot| {
        move |task: &mut crate::model::Task| {
            (task.slot, task.ports, task.spec_version) = (slot, vec![host_port(8080)], 2);
            task.desired_state = TaskState::Ready;
        }
    };
    let ids = [1, 2].map(|slot| cluster.pending_with("web", 1, successor(slot)).remove(0));
    (cluster, ids.into())
}

#[test]
fn what_an_update_frees_is_for_the_task_of_the_same_slot_alone() {
    // Each waits for its predecessor: in the place of the other it would start while that still has the port.
    let (mut cluster, ids) = two_crossed("stop-first", memory(600));
    cluster.schedule();
    assert_eq!(ids.iter().map(|id| cluster.fate(id)).collect::<Vec<_>>(), ["n2", "n1"]);
    // A node that is free is better than a place that is not yet.
    let (mut cluster, ids) = two_crossed("stop-first", memory(600));
    let mut third = crate::model::fixture::node("n3");
    (third.description.nano_cpus, third.description.memory_bytes) = (4_000_000_000, 1000);
    third.spec.availability = Availability::Pause;
    cluster.apply(vec![crate::store::Action::create(third)]);
    cluster.schedule();
    assert_eq!(ids.iter().map(|id| cluster.fate(id)).collect::<Vec<_>>(), ["n2", "n1"]);
    // Nothing is free beside a task that runs on.
    let (mut cluster, ids) = two_crossed("start-first", memory(600));
    cluster.schedule();
    assert_eq!(cluster.fate(&ids[0]), "no suitable node (insufficient resources on 2 nodes)");
}

#[test]
fn a_task_whose_own_place_does_not_do_says_why_for_that_place() {
    let (mut cluster, ids) =
        two_crossed("stop-first", TaskSpec { placement: constrained(&["node.labels.zone==a"]).placement, ..memory(600) });
    cluster.node("n1", |n| drop(n.spec.labels.insert("zone".to_owned(), "a".to_owned())));
    cluster.schedule();
    // On n2 there would be room once the old task is gone, but not the label; on n1 another slot's task is in the way.
    let reason = "no suitable node (insufficient resources on 1 node; scheduling constraints not satisfied on 1 node)";
    assert_eq!(ids.iter().map(|id| cluster.fate(id)).collect::<Vec<_>>(), [reason, "n1"]);
}
