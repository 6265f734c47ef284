//! Services.

use super::network::v6_with_length;
use crate::api::wire;
use crate::model::eligibility::is_eligible;
use crate::model::service::{Service, ServiceMode, ServiceSpec, Vip};
use crate::model::service_update::DEFAULT_MONITOR;
use crate::model::task::{DEFAULT_RESTART_DELAY, DEFAULT_STOP_GRACE, RestartCondition, RestartPolicy, TaskState};
use crate::model::{Availability, Node, NodeId, ServiceUpdate, Task};
use crate::store::Store;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// A service. With `defaults` its spec is completed for display; an update must not be based on that.
pub fn service(service: &Service, store: &Store, defaults: bool) -> wire::Service {
    let spec = if defaults { with_defaults(service.spec.clone()) } else { service.spec.clone() };
    wire::Service {
        id: service.id.to_string(),
        meta: service.meta.into(),
        spec,
        previous_spec: service.previous_spec.clone(),
        endpoint: wire::Endpoint {
            spec: service.endpoint.spec.clone().unwrap_or_default(),
            ports: service.endpoint.ports.clone(),
            virtual_ips: service.endpoint.vips.iter().flat_map(|vip| virtual_ips(vip, store)).collect(),
        },
        update_status: update_status(service),
        service_status: None,
        job_status: service.job.map(|job| wire::JobStatus {
            job_iteration: wire::JobIteration { index: job.iteration },
            last_execution: job.last_execution,
        }),
    }
}

/// A virtual address, and that of the other family which belongs to it.
fn virtual_ips(vip: &Vip, store: &Store) -> impl Iterator<Item = wire::VirtualIp> {
    let v6 = store.network(&vip.network_id).and_then(|network| v6_with_length(network, vip.addr.addr())).map(IpNet::V6);
    let network = vip.network_id.clone();
    [IpNet::V4(vip.addr)].into_iter().chain(v6).map(move |addr| wire::VirtualIp { network_id: network.clone(), addr })
}

/// The last update, unless it has replaced no task.
fn update_status(service: &Service) -> Option<wire::UpdateStatus> {
    let update = service.update.as_ref().filter(|update| update.is_shown())?;
    let ServiceUpdate { state, completed_at, message, .. } = update.clone();
    // One that the leader has not looked at yet was asked for just now.
    let started_at = update.started_at.unwrap_or(service.meta.updated_at);
    Some(wire::UpdateStatus { state: state.as_str(), started_at, completed_at, message })
}

/// The counts of a service's tasks. What a task on a node that is down or gone reported last says nothing of it.
pub fn status(service: &Service, store: &Store) -> wire::ServiceStatus {
    let may_run = |id: &NodeId| store.node(id).is_some_and(|node| node.status.state.may_be_up());
    let is_of_run = |task: &&Task| task.job_iteration == service.job.map(|job| job.iteration);
    let in_state = |state| {
        let tasks = store.tasks_of_service(&service.id).filter(is_of_run);
        tasks.filter(move |task| task.status.state == state)
    };
    let running = in_state(TaskState::Running).filter(|t| t.node_id.as_ref().is_none_or(may_run)).count();
    let mode = &service.spec.mode;
    let completed = if mode.is_job() { in_state(TaskState::Complete).count() as u64 } else { 0 };
    let desired = match mode {
        // Clients add what has completed.
        ServiceMode { global_job: Some(_), .. } => nodes_of(service, store).saturating_sub(completed),
        ServiceMode { global: None, global_job: None, replicated_job: Some(job), .. } => job.concurrent(),
        mode if mode.is_global() => nodes_of(service, store),
        mode => mode.replicas(),
    };
    wire::ServiceStatus { running_tasks: running as u64, desired_tasks: desired, completed_tasks: completed }
}

/// Nodes that should run a global service: those that take its tasks, and those that are paused and have one.
fn nodes_of(service: &Service, store: &Store) -> u64 {
    let wanted = store.tasks_of_service(&service.id).filter(|task| task.is_wanted());
    let with_task: BTreeSet<&NodeId> = wanted.filter_map(|task| task.node_id.as_ref()).collect();
    let has_task = |node: &Node| with_task.contains(&node.id);
    let eligible = store.nodes().filter(|n| n.status.state.may_be_up() && is_eligible(n, &service.spec.task_template));
    eligible.filter(|n| n.spec.availability == Availability::Active || has_task(n)).count() as u64
}

/// The spec with the defaults of everything that it leaves out.
pub fn with_defaults(mut spec: ServiceSpec) -> ServiceSpec {
    let task = &mut spec.task_template;
    task.container_spec.stop_grace_period.get_or_insert(DEFAULT_STOP_GRACE.into());
    task.container_spec.dns_config.get_or_insert_default();
    task.resources.get_or_insert_default();
    task.placement.get_or_insert_default();
    let restart = task.restart_policy.get_or_insert_with(|| RestartPolicy {
        condition: Some(RestartCondition::Any),
        max_attempts: Some(0),
        ..RestartPolicy::default()
    });
    restart.delay.get_or_insert(DEFAULT_RESTART_DELAY.into());
    for config in [&mut spec.update_config, &mut spec.rollback_config] {
        config.get_or_insert_default().monitor.get_or_insert(DEFAULT_MONITOR.into());
    }
    spec
}
