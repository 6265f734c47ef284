//! A large swarm in which every node is ready and every task runs, made without planning each task.

use super::fixture::{self, apply, service};
use ipnet::Ipv4Net;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::service::Replicated;
use skep::model::task::{Attachment, EarlierFailures};
use skep::model::{Cluster, Meta, Service, Task, TaskId, TaskSpec, TaskState, TaskStatus};
use skep::store::{Action, Store};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Rounds until there is nothing left to do.
pub fn settle(store: &mut Store) {
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    loop {
        let applied = LowestApplied::by_all(store.revision());
        let actions = planner.round(store, Vec::new(), applied, fixture::START);
        if actions.is_empty() {
            return;
        }
        apply(store, fixture::START, actions);
        planner.written();
    }
}

/// Ready nodes without tasks.
pub fn nodes(count: usize) -> Store {
    fixture::ready_nodes(Cluster { subnet_size: 14, ..fixture::cluster() }, count, |_| {})
}

/// So many services with a published port each, and tasks spread over the nodes; the planners have nothing to do.
pub fn running(node_count: usize, services: u16, replicas: u64) -> Store {
    let mut store = nodes(node_count);
    let published = |n: u16| service(&format!("s{n}"), 0, &[(10_000 + n, 80)], &[]);
    apply(&mut store, fixture::START, (0..services).map(|n| Action::create(published(n))).collect());
    settle(&mut store);
    let ids: Vec<skep::model::NodeId> = store.nodes().map(|node| node.id.clone()).collect();
    let first = u32::try_from(node_count).unwrap() + u32::from(services) + 16;
    // Ids as skep draws them: neither in order nor easy to compress.
    let mut rng = StdRng::seed_from_u64(1);
    let mut number = 0;
    for n in 0..services {
        let mut scaled: Service = store.service(&format!("s{n}").as_str().into()).unwrap().clone();
        scaled.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
        let spec = Arc::new(TaskSpec { runtime: None, ..scaled.spec.task_template.clone() });
        let subnet = scaled.endpoint.vips[0].addr;
        let mut actions = vec![];
        for slot in 1..=replicas {
            let address = Ipv4Addr::from_bits(subnet.network().to_bits() + first + number);
            actions.push(Action::create(Task {
                id: TaskId::draw(&mut rng),
                meta: Meta::default(),
                spec: spec.clone(),
                spec_version: scaled.spec_version,
                service_id: scaled.id.clone(),
                service_name: scaled.spec.name.clone(),
                service_labels: Arc::default(),
                slot,
                slot_node: None,
                job_iteration: None,
                cause: None,
                end: None,
                started_at: None,
                move_to: None,
                node_id: Some(ids[number as usize % ids.len()].clone()),
                desired_state: TaskState::Running,
                status: TaskStatus {
                    timestamp: fixture::START,
                    state: TaskState::Running,
                    message: "started".to_owned(),
                    ..TaskStatus::default()
                },
                attachments: vec![Attachment {
                    network_id: "ingress-id".into(),
                    address: Ipv4Net::new(address, subnet.prefix_len()).unwrap(),
                }],
                not_before: None,
                ports: Vec::new(),
                listens: Vec::new(),
                failures: EarlierFailures::default(),
                pull_auth: None,
                generic_resources: Vec::new(),
                attached: None,
            }));
            number += 1;
        }
        actions.push(Action::update(scaled));
        apply(&mut store, fixture::START, actions);
    }
    store
}
