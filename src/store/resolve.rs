//! What a write of one field makes of the stored object.

use super::field_update::FieldUpdate;
use super::object::{Kind, Object, Store, StoreError, StoreObject};
use super::task_report::{is_new_listening, is_new_status};
use crate::model::{Cluster, Node, Role, Service, Task, TaskState};

impl FieldUpdate {
    /// Kind and id of the object.
    pub fn target(&self) -> (Kind, String) {
        match self {
            Self::ServiceSpec { id, .. } | Self::ServiceEndpoint { id, .. } => (Kind::Service, id.to_string()),
            Self::NodeSpec { id, .. } | Self::NodeReport { id, .. } => (Kind::Node, id.to_string()),
            Self::TaskStep { id, .. } | Self::DesiredState { id, .. } | Self::TaskReport { id, .. } => {
                (Kind::Task, id.to_string())
            }
            Self::ClusterSpec { id, .. }
            | Self::JoinToken { id, .. }
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
            Self::ServiceSpec { id, spec, pull_auth, .. } => {
                let mut service: Service = stored(now, id)?;
                service.previous_pull_auth = std::mem::replace(&mut service.pull_auth, pull_auth.clone());
                service.previous_spec = Some(std::mem::replace(&mut service.spec, (**spec).clone()));
                Ok(Some(service.into()))
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
            Self::TaskStep { id, from, status, attachments, node } => changed(now, id, |task: &mut Task| {
                if task.status.state == *from {
                    task.status = task.status_by_report(status);
                    task.attachments.extend_from_slice(attachments);
                    task.node_id = task.node_id.take().or_else(|| node.clone());
                }
            }),
            Self::DesiredState { id, state } => changed(now, id, |task: &mut Task| {
                task.desired_state = task.desired_state.max(*state);
                task.not_before.take_if(|_| *state == TaskState::Running);
            }),
            Self::TaskReport { id, node, status, listens } => changed(now, id, |task: &mut Task| {
                if let Some(ports) = listens.as_ref().filter(|ports| is_new_listening(task, node, ports)) {
                    task.listens.clone_from(ports);
                }
                if let Some(status) = status.as_ref().filter(|status| is_new_status(task, node, status)) {
                    task.status.clone_from(status);
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
            Self::FeatureLevel { id, level } => {
                changed(now, id, |cluster: &mut Cluster| cluster.feature_level = cluster.feature_level.max(*level))
            }
            Self::Incarnation { id, incarnation } => {
                changed(now, id, |cluster: &mut Cluster| cluster.incarnation = cluster.incarnation.max(*incarnation))
            }
            Self::ServiceSpec { .. } | Self::NodeSpec { .. } | Self::ClusterSpec { .. } | Self::JoinToken { .. } => None,
        }
    }
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
