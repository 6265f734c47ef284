//! Services.

use crate::api::wire;
use crate::model::service::{Service, ServiceSpec};
use crate::model::task::{DEFAULT_RESTART_DELAY, DEFAULT_STOP_GRACE, RestartCondition, RestartPolicy, TaskState};
use crate::model::{NodeId, ServiceId};
use crate::store::Store;
use std::collections::BTreeMap;

/// A service. With `defaults` its spec is completed for display; an update must not be based on that.
pub fn service(service: &Service, defaults: bool) -> wire::Service {
    let spec = if defaults { with_defaults(service.spec.clone()) } else { service.spec.clone() };
    wire::Service {
        id: service.id.to_string(),
        meta: service.meta.into(),
        spec,
        previous_spec: service.previous_spec.clone(),
        endpoint: wire::Endpoint {
            spec: service.endpoint.spec.clone().unwrap_or_default(),
            ports: service.endpoint.ports.clone(),
            virtual_ips: service.endpoint.vips.clone(),
        },
        service_status: None,
    }
}

/// Number of running tasks by service. What a task on a node that is down or gone reported last says nothing of it.
pub fn running(store: &Store) -> BTreeMap<&ServiceId, u64> {
    let may_run = |id: &NodeId| store.node(id).is_some_and(|node| node.status.state.may_be_up());
    let mut counts = BTreeMap::new();
    for task in store.tasks().filter(|t| t.status.state == TaskState::Running && t.node_id.as_ref().is_none_or(may_run)) {
        *counts.entry(&task.service_id).or_default() += 1;
    }
    counts
}

/// The counts of a service's tasks. None is completed: only jobs have such tasks.
pub fn status(service: &Service, running: &BTreeMap<&ServiceId, u64>) -> wire::ServiceStatus {
    wire::ServiceStatus {
        running_tasks: running.get(&service.id).copied().unwrap_or(0),
        desired_tasks: service.spec.mode.replicas(),
        completed_tasks: 0,
    }
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
    spec.update_config.get_or_insert_default();
    spec.rollback_config.get_or_insert_default();
    spec
}
