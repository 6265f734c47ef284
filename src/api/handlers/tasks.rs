//! `/tasks`.

use super::reply::ok;
use super::request::ApiRequest;
use crate::api::convert;
use crate::api::error::{ApiError, Result};
use crate::api::http_conflicts::{conflicts_of, http_conflicts};
use crate::api::lookup;
use crate::api::query::Filters;
use crate::api::wire;
use crate::model::{ContainerAttachment, NodeId, Service, ServiceId, Task, TaskState, UnwrittenObject};
use crate::store::Store;
use axum::response::Response;
use std::collections::BTreeSet;

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
    let left_out = request.api.control.left_out();
    let passing: Vec<&Task> = filters.candidates(&store).filter(|t| filters.pass(t, &store)).collect();
    let services: BTreeSet<&ServiceId> = passing.iter().map(|task| &task.service_id).collect();
    let conflicts = conflicts(services, &store);
    let tasks: Vec<_> = passing.into_iter().map(|t| shown(t, &store, request, &left_out, &conflicts)).collect();
    ok(&tasks)
}

/// Filters, with names of services and nodes resolved to ids.
struct TaskFilters<'a> {
    filters: &'a Filters,
    services: BTreeSet<ServiceId>,
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
            services: filters.values("service").map(service_id).collect::<Result<BTreeSet<_>>>()?,
            nodes: filters.values("node").map(node_id).collect::<Result<_>>()?,
            up_to_date: filters.values("_up-to-date").any(|v| v == "true"),
        })
    }

    /// The tasks that are looked at: of named services alone, if there are any, because progress displays ask all the time.
    fn candidates<'b>(&'b self, store: &'b Store) -> Box<dyn Iterator<Item = &'b Task> + 'b> {
        if self.services.is_empty() {
            return Box::new(store.tasks());
        }
        Box::new(self.services.iter().flat_map(|service| store.tasks_of_service(service)))
    }

    /// As in Docker, plain containers are shown only to those who ask for them.
    fn has_runtime(&self, task: &Task) -> bool {
        let runtime = if task.attached.is_some() { ContainerAttachment::RUNTIME } else { "container" };
        let unasked = !self.filters.has("runtime") && task.attached.is_none();
        unasked || (self.filters.has("runtime") && self.filters.any("runtime", |v| v.eq_ignore_ascii_case(runtime)))
    }

    fn pass(&self, task: &Task, store: &Store) -> bool {
        let is_current = || {
            let is_run = |s: &Service| task.job_iteration == s.job.map(|job| job.iteration);
            store.service(&task.service_id).is_some_and(|s| s.spec_version == task.spec_version && is_run(s))
        };
        (self.services.is_empty() || self.services.contains(&task.service_id))
            && (self.nodes.is_empty() || task.shown_node().is_some_and(|n| self.nodes.contains(n)))
            && self.filters.any("id", |v| task.id.as_str().starts_with(v))
            && self.filters.any("name", |v| task.display_name().starts_with(v))
            && self.filters.any("desired-state", |v| v.eq_ignore_ascii_case(task.desired_state.as_str()))
            && self.has_runtime(task)
            && self.filters.swarm_labels("label", &task.service_labels)
            && (!self.up_to_date || is_current())
    }
}

/// GET /tasks/{id}
pub fn inspect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let store = request.store()?.read();
    let task = lookup::task(&store, reference)?;
    let conflicts = conflicts([&task.service_id], &store);
    ok(&shown(task, &store, request, &request.api.control.left_out(), &conflicts))
}

/// What of the HTTP routes of all services is not served, if one of these has some.
fn conflicts<'a>(services: impl IntoIterator<Item = &'a ServiceId>, store: &Store) -> Vec<String> {
    let has_route = |service: &Service| service.spec.http().is_ok_and(|labels| !labels.routes.is_empty() || labels.is_closed);
    let mut services = services.into_iter().filter_map(|id| store.service(id));
    if services.any(has_route) { http_conflicts(store, None) } else { Vec::new() }
}

/// The task as clients see it.
fn shown(task: &Task, store: &Store, request: &ApiRequest, left_out: &[UnwrittenObject], conflicts: &[String]) -> wire::Task {
    let mut shown = convert::task::task(task, store, request.version);
    if shown.status.err.is_empty() {
        shown.status.err = unwritten(task, store, left_out).or_else(|| conflict(task, conflicts)).unwrap_or_default();
    }
    shown
}

/// What of its service's HTTP routes another service has: a task that is wanted runs for less than its labels say.
fn conflict(task: &Task, conflicts: &[String]) -> Option<String> {
    let mut lines = conflicts_of(conflicts, &task.service_name).filter(|_| task.is_wanted() && task.attached.is_none());
    lines.next().map(|line| format!("HTTP route: {line}"))
}

/// What the leader cannot write of a task: its own change; or, as there is no other place where a user would look for it, its
/// service's, or the creation of another task of the service, as long as the task is wanted itself.
fn unwritten(task: &Task, store: &Store, left_out: &[UnwrittenObject]) -> Option<String> {
    let is_wanted = task.is_wanted();
    let concerns = |object: &&UnwrittenObject| match object.kind.as_str() {
        "task" if object.id == task.id.as_str() => true,
        "task" if store.task(&object.id.as_str().into()).is_some() => false,
        _ => is_wanted && task.attached.is_none() && object.service_id.as_ref() == Some(&task.service_id),
    };
    let object = left_out.iter().find(concerns)?;
    Some(format!("a change of {} {} cannot be written: {}", object.kind, object.id, object.reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Timestamp, fixture};
    use crate::store::{Action, Transaction};

    #[test]
    fn a_host_that_another_service_has_is_an_error_of_the_wanted_tasks() {
        let service = |id: &str| {
            let labels = [("skep.http".to_owned(), "a.b".to_owned())].into();
            let spec = crate::model::ServiceSpec { name: id.to_owned(), labels, ..crate::model::ServiceSpec::default() };
            Action::create(fixture::service(id, spec))
        };
        let task = |id: &str, service: &str, desired_state| Task {
            desired_state,
            service_name: service.to_owned(),
            ..fixture::task_with_resolvers(id, service, "node1", &[])
        };
        let tasks = [
            task("t1", "older", TaskState::Running),
            task("t2", "young", TaskState::Running),
            task("t3", "young", TaskState::Shutdown),
        ];
        let mut store = Store::default();
        store.apply(1, &Transaction::new(Timestamp(1), vec![service("older")])).expect("applied");
        store.apply(2, &Transaction::new(Timestamp(2), vec![service("young")])).expect("applied");
        let lines = conflicts([&"young".into()], &store);
        let named = tasks.iter().map(|task| conflict(task, &lines));
        let expected =
            Some("HTTP route: a.b/ is older's, which is older: name another host or prefix, or a weight in both".to_owned());
        assert_eq!(named.collect::<Vec<_>>(), [None, expected, None]);
        assert!(conflicts([&"other".into()], &store).is_empty());
        // Stored before such routes were refused.
        let mut both = store.service(&"young".into()).expect("stored").clone();
        let router = [
            ("traefik.http.routers.r.rule", "Host(`a.b`)"),
            ("traefik.http.services.s.loadbalancer.server.port", "80"),
            ("traefik.http.routers.r.middlewares", "m"),
            ("traefik.http.middlewares.m.ipallowlist.sourcerange", "192.0.2.0/24"),
        ];
        both.spec.labels.extend(router.map(|(key, value)| (key.to_owned(), value.to_owned())));
        store.apply(3, &Transaction::new(Timestamp(3), vec![Action::update(both)])).expect("applied");
        let lines = conflicts([&"young".into()], &store);
        let named = conflict(&tasks[1], &lines);
        assert!(named.as_ref().is_some_and(|line| line.contains("a second route of the service for http://a.b/")), "{named:?}");
    }

    #[test]
    fn what_cannot_be_written_is_an_error_of_the_task_or_of_the_wanted_tasks_of_its_service() {
        let task = |id: &str, service: &str, desired_state| {
            let task = fixture::task_with_resolvers(id, service, "node1", &[]);
            Task { desired_state, ..task }
        };
        let (one, two, old) = (
            task("t1", "web", TaskState::Running),
            task("t2", "web", TaskState::Running),
            task("t3", "web", TaskState::Shutdown),
        );
        let other = task("t4", "db", TaskState::Running);
        let actions = [&one, &two, &old, &other].map(|t| Action::create(t.clone())).to_vec();
        let mut store = Store::default();
        store.apply(1, &Transaction::new(Timestamp(0), actions)).expect("applied");
        for (kind, id, concerned) in [
            ("task", "t1", vec!["t1"]),
            ("task", "t3", vec!["t3"]),
            // It is not stored: its creation is what cannot be written.
            ("task", "t9", vec!["t1", "t2"]),
            ("service", "web", vec!["t1", "t2"]),
        ] {
            let left_out = [UnwrittenObject {
                kind: kind.to_owned(),
                id: id.to_owned(),
                service_id: Some("web".into()),
                service_name: "web".to_owned(),
                reason: "it has 9000000 bytes".to_owned(),
            }];
            let named: Vec<&str> =
                store.tasks().filter(|t| unwritten(t, &store, &left_out).is_some()).map(|t| t.id.as_str()).collect();
            assert_eq!(named, concerned, "{kind} {id}");
            let text = unwritten(store.task(&concerned[0].into()).expect("stored"), &store, &left_out).expect("named");
            assert_eq!(text, format!("a change of {kind} {id} cannot be written: it has 9000000 bytes"));
        }
        assert_eq!(unwritten(&one, &store, &[]), None);
    }
}
