//! What a write of one field makes of the stored object.

use super::field_update::FieldUpdate;
use super::object::{Kind, Object, Store, StoreError, StoreObject};
use crate::model::{Cluster, Node, Role, Service};

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
            Self::ServiceSpec { id, spec, pull_auth, .. } => {
                let mut service: Service = stored(now, id)?;
                service.previous_pull_auth = std::mem::replace(&mut service.pull_auth, pull_auth.clone());
                service.previous_spec = Some(std::mem::replace(&mut service.spec, (**spec).clone()));
                Ok(service.into())
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

fn stored<T: StoreObject>(store: &Store, id: &T::Id) -> Result<T, StoreError> {
    store.get(id).cloned().ok_or_else(|| StoreError::NotFound { kind: T::KIND, id: id.to_string() })
}
