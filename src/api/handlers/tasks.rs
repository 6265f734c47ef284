//! `/tasks`.

use super::reply::ok;
use super::request::ApiRequest;
use super::services::check_log_parameters;
use crate::api::convert;
use crate::api::error::{ApiError, Result};
use crate::api::lookup;
use crate::api::query::Filters;
use crate::model::{NodeId, ServiceId, Task, TaskState};
use crate::store::Store;
use axum::response::Response;

const FILTERS: [&str; 8] = ["id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date"];
/// Values of the filter `desired-state`.
const STATES: [TaskState; 14] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Orphaned,
    TaskState::Remove,
];

/// GET /tasks
pub fn list(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.filters(&FILTERS)?;
    let store = request.store()?.read();
    let filters = TaskFilters::resolve(&filters, &store)?;
    let tasks: Vec<_> =
        store.tasks().filter(|t| filters.pass(t, &store)).map(|t| convert::task::task(t, &store, request.version)).collect();
    ok(&tasks)
}

/// Filters, with names of services and nodes resolved to ids.
struct TaskFilters<'a> {
    filters: &'a Filters,
    services: Vec<ServiceId>,
    nodes: Vec<NodeId>,
    up_to_date: bool,
}

impl<'a> TaskFilters<'a> {
    fn resolve(filters: &'a Filters, store: &Store) -> Result<Self> {
        if let Some(bad) = filters.values("desired-state").find(|v| !STATES.iter().any(|s| s.as_str().eq_ignore_ascii_case(v))) {
            return Err(ApiError::failed(format!("Invalid desired-state filter: '{bad}'")));
        }
        let service_id = |v| lookup::service(store, v).map(|s| s.id.clone());
        let node_id = |v| lookup::node(store, v).map(|n| n.id.clone());
        Ok(Self {
            filters,
            services: filters.values("service").map(service_id).collect::<Result<_>>()?,
            nodes: filters.values("node").map(node_id).collect::<Result<_>>()?,
            up_to_date: filters.values("_up-to-date").any(|v| v == "true"),
        })
    }

    fn pass(&self, task: &Task, store: &Store) -> bool {
        let is_current = || store.service(&task.service_id).is_some_and(|s| s.spec_version == task.spec_version);
        (self.services.is_empty() || self.services.contains(&task.service_id))
            && (self.nodes.is_empty() || task.node_id.as_ref().is_some_and(|n| self.nodes.contains(n)))
            && self.filters.any("id", |v| task.id.as_str().starts_with(v))
            && self.filters.any("name", |v| task.display_name().starts_with(v))
            && self.filters.any("desired-state", |v| v.eq_ignore_ascii_case(task.desired_state.as_str()))
            && self.filters.any("runtime", |v| v.eq_ignore_ascii_case("container"))
            && self.filters.labels("label", &task.service_labels)
            && (!self.up_to_date || is_current())
    }
}

/// GET /tasks/{id}
pub fn inspect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let store = request.store()?.read();
    ok(&convert::task::task(lookup::task(&store, reference)?, &store, request.version))
}

/// GET /tasks/{id}/logs
pub fn logs(request: &ApiRequest, reference: &str) -> Result<Response> {
    let store = request.store()?.read();
    let task = lookup::task(&store, reference)?;
    check_log_parameters(request)?;
    let node = task.node_id.as_ref().and_then(|n| store.node(n)).map_or("its node", |n| &n.description.hostname);
    Err(ApiError::not_implemented(format!(
        "logs of services and tasks are not implemented in skep yet: run docker logs {} on {node}",
        task.container_name()
    )))
}
