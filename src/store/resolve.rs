//! What a write of one field makes of the stored object.

use super::field_update::{FieldUpdate, KeyChange};
use super::object::{Kind, Object, Store, StoreError, StoreObject};
use super::task_report::{is_new_listening, is_new_status};
use crate::model::autoscale;
use crate::model::node::NodeMesh;
use crate::model::{
    Cluster, JobStatus, NextKey, Node, PullAuth, Role, Service, ServiceSpec, ServiceUpdate, SpecChange, UpdateState,
};
use crate::model::{Task, TaskState};

impl FieldUpdate {
    /// Kind and id of the object.
    pub fn target(&self) -> (Kind, String) {
        match self {
            Self::ServiceSpec { id, .. } | Self::ServiceEndpoint { id, .. } | Self::ServiceReplicas { id, .. } => {
                (Kind::Service, id.to_string())
            }
            Self::NodeSpec { id, .. } | Self::NodeReport { id, .. } | Self::TunnelKey { id, .. } => (Kind::Node, id.to_string()),
            Self::TaskStep { id, .. }
            | Self::DesiredState { id, .. }
            | Self::MoveTask { id, .. }
            | Self::TaskReport { id, .. } => (Kind::Task, id.to_string()),
            Self::ClusterSpec { id, .. }
            | Self::JoinToken { id, .. }
            | Self::UnlockKey { id, .. }
            | Self::RootRotation { id, .. }
            | Self::FeatureLevel { id, .. }
            | Self::Incarnation { id, .. } => (Kind::Cluster, id.to_string()),
        }
    }

    /// The object in `now` with the field written; its version is the stored one. `None`: there is nothing to write. `base` is
    /// the state before the transaction: what that itself has written since is no other writer.
    ///
    /// # Errors
    /// Of what has a version: there is no such object, or another writer changed it since.
    pub fn resolve(&self, base: &Store, now: &Store) -> Result<Option<Object>, StoreError> {
        if let Self::ServiceSpec { version, .. } | Self::NodeSpec { version, .. } | Self::ClusterSpec { version, .. } = self {
            let (kind, id) = self.target();
            if kind.stored_meta(base, &id).is_some_and(|meta| meta.version != *version) {
                return Err(StoreError::OutOfSequence);
            }
        }
        match self {
            Self::ServiceSpec { id, spec, pull_auth, change, .. } => {
                let service: Service = stored(now, id)?;
                Ok(Some(update_service(service, spec, pull_auth.as_ref(), *change, now.feature_level()).into()))
            }
            Self::NodeSpec { id, spec, .. } => {
                let node: Node = stored(now, id)?;
                Ok(Some(Node { spec: spec.clone(), ..node }.into()))
            }
            Self::ClusterSpec { id, spec, .. } => {
                let cluster: Cluster = stored(now, id)?;
                Ok(Some(Cluster { spec: (**spec).clone(), ..cluster }.into()))
            }
            Self::JoinToken { id, role, token } => {
                let mut cluster: Cluster = stored(now, id)?;
                match role {
                    Role::Worker => cluster.tokens.worker.clone_from(token),
                    Role::Manager => cluster.tokens.manager.clone_from(token),
                }
                Ok(Some(cluster.into()))
            }
            Self::UnlockKey { id, key } => {
                let cluster: Cluster = stored(now, id)?;
                Ok(Some(Cluster { unlock_key: key.clone(), ..cluster }.into()))
            }
            Self::RootRotation { id, rotation, replaces } => {
                let mut cluster: Cluster = stored(now, id)?;
                let history = &mut cluster.ca_history;
                history.retired.extend(replaces.as_deref().cloned());
                history.rotation = Some((**rotation).clone());
                history.rotations += 1;
                Ok(Some(cluster.into()))
            }
            observed => Ok(observed.resolve_observed(now)),
        }
    }

    /// As [`Self::resolve`], for what the leader's loops write.
    fn resolve_observed(&self, now: &Store) -> Option<Object> {
        match self {
            Self::ServiceEndpoint { id, endpoint } => {
                let write = |s: &mut Service| s.endpoint.clone_from(endpoint);
                changed(now, id, write)
            }
            Self::ServiceReplicas { id, scaling } => changed(now, id, |service: &mut Service| {
                let is_scaled = service.spec.labels.contains_key(autoscale::RANGE);
                if is_scaled && service.spec.mode.replicas() == scaling.from {
                    service.spec.mode.replicated.get_or_insert_default().replicas = Some(scaling.to);
                    scaling.add_to(&mut service.scalings);
                }
            }),
            Self::TaskStep { id, from, status, attachments, node } => changed(now, id, |task: &mut Task| {
                if task.status.state == *from {
                    task.status.clone_from(status);
                    task.attachments.extend_from_slice(attachments);
                    task.node_id = task.node_id.take().or_else(|| node.clone());
                }
            }),
            Self::DesiredState { id, state } => changed(now, id, |task: &mut Task| {
                task.desired_state = task.desired_state.max(*state);
                task.not_before.take_if(|_| *state == TaskState::Running);
            }),
            Self::MoveTask { id, from, to } => changed(now, id, |task: &mut Task| {
                if task.node_id.as_ref() == Some(from) && task.is_wanted() && !task.status.state.is_final() {
                    task.move_to = Some(to.clone());
                }
            }),
            Self::TaskReport { id, node, status, listens } => changed(now, id, |task: &mut Task| {
                if let Some(ports) = listens.as_ref().filter(|ports| is_new_listening(task, node, ports)) {
                    task.listens.clone_from(ports);
                }
                if let Some(status) = status.as_ref().filter(|status| is_new_status(task, node, status)) {
                    task.status = task.status_by_report(status);
                }
            }),
            Self::NodeReport { id, status, description, endpoints } => changed(now, id, |node: &mut Node| {
                if let Some(status) = status {
                    node.status.clone_from(status);
                }
                if let Some(description) = description {
                    node.description.clone_from(description);
                }
                if let Some(endpoints) = endpoints {
                    node.mesh.endpoints.clone_from(endpoints);
                }
            }),
            Self::TunnelKey { id, change } => changed(now, id, |node: &mut Node| change_key(&mut node.mesh, *change)),
            Self::FeatureLevel { id, level } => {
                changed(now, id, |cluster: &mut Cluster| cluster.feature_level = cluster.feature_level.max(*level))
            }
            Self::Incarnation { id, incarnation } => {
                changed(now, id, |cluster: &mut Cluster| cluster.incarnation = cluster.incarnation.max(*incarnation))
            }
            Self::ServiceSpec { .. }
            | Self::NodeSpec { .. }
            | Self::ClusterSpec { .. }
            | Self::JoinToken { .. }
            | Self::UnlockKey { .. }
            | Self::RootRotation { .. } => None,
        }
    }
}

fn change_key(mesh: &mut NodeMesh, change: KeyChange) {
    match (change, &mut mesh.next) {
        (KeyChange::Begin(key), None) if key != mesh.key => mesh.next = Some(NextKey { key, known: false }),
        // The node gives up one that it does not have.
        (KeyChange::Begin(key), Some(_)) if key == mesh.key => mesh.next = None,
        // It may use one that is known, whatever a write says that comes late.
        (KeyChange::Begin(key), Some(next)) if key != next.key && !next.known => *next = NextKey { key, known: false },
        (KeyChange::Known(key), Some(next)) if next.key == key => next.known = true,
        (KeyChange::InUse(key), Some(next)) if next.key == key => (mesh.key, mesh.next) = (key, None),
        _ => {}
    }
}

/// First level that has updates of services.
const UPDATES: u32 = 2;

/// First level at which a spec whose update is paused does not become the previous one.
const KEEPS_WORKING_SPEC: u32 = 3;

/// The service with another spec. What was the spec becomes the previous one; not so while its update is not done and this change
/// replaces no task, or its update is paused: then a rollback still brings back the spec that last worked.
fn update_service(
    mut service: Service,
    spec: &ServiceSpec,
    pull_auth: Option<&PullAuth>,
    change: SpecChange,
    level: u32,
) -> Service {
    // Managers of level 1 know no updates.
    let change = if level < UPDATES { SpecChange::default() } else { change };
    let unfinished = service.has_open_update();
    if change.rollback {
        service.restore_previous_spec(true);
        service.spec = spec.clone();
        service.pull_auth = pull_auth.cloned();
    } else {
        let is = |state| level >= KEEPS_WORKING_SPEC && service.update.as_ref().is_some_and(|update| update.state == state);
        let has_worked = !is(UpdateState::Paused);
        // After a rollback that has failed there is no way back to a spec that differs in its labels alone.
        let is_first = service.previous_spec.is_none() && !is(UpdateState::RollbackPaused);
        let becomes_previous = change.replaces_tasks && has_worked || !unfinished || is_first;
        let auth = std::mem::replace(&mut service.pull_auth, pull_auth.cloned());
        if becomes_previous || level < KEEPS_WORKING_SPEC {
            service.previous_pull_auth = auth;
        }
        let before = std::mem::replace(&mut service.spec, spec.clone());
        let version = service.spec_version;
        if change.replaces_tasks {
            service.spec_version = service.next_spec_version();
            service.newest_spec_version = None;
            // Without a number of its own the previous spec has that of the service.
            service.previous_spec_version.get_or_insert(version);
        }
        if becomes_previous {
            service.previous_spec = Some(before);
            service.previous_spec_version = change.replaces_tasks.then_some(version);
        }
    }
    if change.replaces_tasks || change.rollback {
        service.update = Some(ServiceUpdate::requested(change.rollback));
    } else if !unfinished {
        service.update = None;
    }
    if let (Some(job), Some(at)) = (&mut service.job, change.job_run_at) {
        *job = JobStatus { iteration: job.iteration.saturating_add(1), last_execution: at };
        // It runs again: nothing is replaced.
        service.update = change.rollback.then(|| ServiceUpdate {
            state: UpdateState::RollbackCompleted,
            started_at: Some(at),
            completed_at: Some(at),
            message: "rollback completed".to_owned(),
            ..ServiceUpdate::requested(true)
        });
    }
    service
}

fn stored<T: StoreObject>(store: &Store, id: &T::Id) -> Result<T, StoreError> {
    store.get(id).cloned().ok_or_else(|| StoreError::NotFound { kind: T::KIND, id: id.to_string() })
}

/// The stored object after a change of it; `None` if there is none, or it stays the same.
fn changed<T: StoreObject + Into<Object>>(store: &Store, id: &T::Id, change: impl FnOnce(&mut T)) -> Option<Object> {
    let stored = store.get::<T>(id)?;
    let mut next = stored.clone();
    change(&mut next);
    (next != *stored).then(|| next.into())
}
