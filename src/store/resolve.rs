//! What a write of one field makes of the stored object.

use super::field_update::FieldUpdate;
use super::object::{Kind, Object, Store, StoreError, StoreObject};
use crate::model::{Cluster, JobStatus, Node, PullAuth, Role, Service, ServiceSpec, ServiceUpdate, SpecChange, UpdateState};

impl FieldUpdate {
    /// Kind and id of the object.
    pub fn target(&self) -> (Kind, String) {
        match self {
            Self::ServiceSpec { id, .. } => (Kind::Service, id.to_string()),
            Self::NodeSpec { id, .. } => (Kind::Node, id.to_string()),
            Self::ClusterSpec { id, .. } | Self::JoinToken { id, .. } => (Kind::Cluster, id.to_string()),
        }
    }

    /// The object in `now` with the field written; its version is the stored one. `base` is the state before the transaction:
    /// what that itself has written since is no other writer.
    ///
    /// # Errors
    /// There is no such object, or another writer changed it since `version`.
    pub fn resolve(&self, base: &Store, now: &Store) -> Result<Object, StoreError> {
        if let Self::ServiceSpec { version, .. } | Self::NodeSpec { version, .. } | Self::ClusterSpec { version, .. } = self {
            let (kind, id) = self.target();
            if kind.stored_meta(base, &id).is_some_and(|meta| meta.version != *version) {
                return Err(StoreError::OutOfSequence);
            }
        }
        match self {
            Self::ServiceSpec { id, spec, pull_auth, change, .. } => {
                let service: Service = stored(now, id)?;
                Ok(update_service(service, spec, pull_auth.as_ref(), *change, now.feature_level()).into())
            }
            Self::NodeSpec { id, spec, .. } => {
                let node: Node = stored(now, id)?;
                Ok(Node { spec: spec.clone(), ..node }.into())
            }
            Self::ClusterSpec { id, spec, .. } => {
                let cluster: Cluster = stored(now, id)?;
                Ok(Cluster { spec: (**spec).clone(), ..cluster }.into())
            }
            Self::JoinToken { id, role, token } => {
                let mut cluster: Cluster = stored(now, id)?;
                match role {
                    Role::Worker => cluster.tokens.worker.clone_from(token),
                    Role::Manager => cluster.tokens.manager.clone_from(token),
                }
                Ok(cluster.into())
            }
        }
    }
}

/// First level that has updates of services.
const UPDATES: u32 = 2;

/// The service with another spec. What was the spec becomes the previous one; not so while an update is not done and this change
/// replaces no task: then a rollback still brings back the spec that last worked.
fn update_service(
    mut service: Service,
    spec: &ServiceSpec,
    pull_auth: Option<&PullAuth>,
    change: SpecChange,
    level: u32,
) -> Service {
    // Managers of level 1 know no updates.
    let change = if level < UPDATES { SpecChange::default() } else { change };
    let unfinished = service.update.as_ref().is_some_and(|u| u.state.is_active() || u.state.is_paused());
    if change.rollback {
        service.restore_previous_spec(true);
        service.spec = spec.clone();
        service.pull_auth = pull_auth.cloned();
    } else {
        service.previous_pull_auth = std::mem::replace(&mut service.pull_auth, pull_auth.cloned());
        let before = std::mem::replace(&mut service.spec, spec.clone());
        let version = service.spec_version;
        if change.replaces_tasks {
            service.spec_version = service.next_spec_version();
            (service.previous_spec_version, service.newest_spec_version) = (Some(version), None);
        }
        if change.replaces_tasks || !unfinished || service.previous_spec.is_none() {
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
