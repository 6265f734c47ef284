//! The tables and the one function that writes them.

use super::object::{Action, Kind, Object, StoreError, Transaction};
use crate::model::{
    Cluster, ClusterId, Meta, Network, NetworkId, Node, NodeId, Revision, Service, ServiceId, Task, TaskId, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of the snapshot's format; goes up when an older build could not read it.
const FORMAT: u32 = 1;

type Table<I, T> = BTreeMap<I, Arc<T>>;

/// The whole state. Cloning is cheap enough to take a snapshot per change: objects are shared.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Store {
    /// Raft index of the last transaction seen, applied or refused.
    index: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: Table<NodeId, Node>,
    networks: Table<NetworkId, Network>,
    services: Table<ServiceId, Service>,
    tasks: Table<TaskId, Task>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot<T> {
    format: u32,
    store: T,
}

impl Store {
    /// Raft index of the last transaction seen.
    pub fn index(&self) -> u64 {
        self.index
    }
    /// Incarnation and index.
    pub fn revision(&self) -> Revision {
        Revision { incarnation: self.cluster().map_or(0, |c| c.incarnation), index: self.index }
    }
    /// The cluster object; `None` only before the first entry.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }
    /// Nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(Arc::as_ref)
    }
    /// Networks by id.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.values().map(Arc::as_ref)
    }
    /// Services by id.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(Arc::as_ref)
    }
    /// Tasks by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values().map(Arc::as_ref)
    }
    /// One node.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id).map(Arc::as_ref)
    }
    /// One network.
    pub fn network(&self, id: &NetworkId) -> Option<&Network> {
        self.networks.get(id).map(Arc::as_ref)
    }
    /// One service.
    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.services.get(id).map(Arc::as_ref)
    }
    /// One task.
    pub fn task(&self, id: &TaskId) -> Option<&Task> {
        self.tasks.get(id).map(Arc::as_ref)
    }

    /// Applies a transaction as the entry with this index: all of it, or nothing and the reason.
    ///
    /// # Errors
    /// The first write that is refused; the store is then as before, but for its index.
    pub fn apply(&mut self, index: u64, transaction: &Transaction) -> Result<(), StoreError> {
        self.index = index;
        let mut next = self.clone();
        for action in &transaction.actions {
            next.write(index, transaction.at, action)?;
        }
        *self = next;
        Ok(())
    }

    /// The state as bytes, the same on every manager.
    ///
    /// # Panics
    /// Never: every type in the store can be written as JSON.
    pub fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&Snapshot { format: FORMAT, store: self }).expect("the store is plain data")
    }

    /// Reads what [`Store::snapshot`] wrote.
    ///
    /// # Errors
    /// The bytes are damaged, or of a newer format than this build reads.
    pub fn restore(bytes: &[u8]) -> anyhow::Result<Self> {
        let snapshot: Snapshot<Self> = serde_json::from_slice(bytes)?;
        anyhow::ensure!(
            snapshot.format == FORMAT,
            "snapshot has format {}, this skep reads format {FORMAT}: install the newer skep again",
            snapshot.format
        );
        Ok(snapshot.store)
    }

    fn write(&mut self, index: u64, at: Timestamp, action: &Action) -> Result<(), StoreError> {
        match action {
            Action::Create(object) => self.create(index, at, object),
            Action::Update(object) => self.update(index, at, object),
            Action::Remove(kind, id) => {
                self.remove(*kind, id);
                Ok(())
            }
        }
    }

    fn create(&mut self, index: u64, at: Timestamp, object: &Object) -> Result<(), StoreError> {
        let meta = Meta { version: index, created_at: at, updated_at: at };
        match object {
            Object::Cluster(o) => {
                if self.cluster.is_some() {
                    return Err(StoreError::Exists { kind: Kind::Cluster, id: o.id.to_string() });
                }
                self.cluster = Some(Arc::new(Cluster { meta, ..(**o).clone() }));
                Ok(())
            }
            Object::Node(o) => insert(&mut self.nodes, Kind::Node, &o.id, Node { meta, ..(**o).clone() }),
            Object::Network(o) => {
                free_name(Kind::Network, &o.spec.name, self.networks().map(|n| n.spec.name.as_str()))?;
                insert(&mut self.networks, Kind::Network, &o.id, Network { meta, ..(**o).clone() })
            }
            Object::Service(o) => {
                free_name(Kind::Service, &o.spec.name, self.services().map(|s| s.spec.name.as_str()))?;
                insert(&mut self.services, Kind::Service, &o.id, Service { meta, ..(**o).clone() })
            }
            Object::Task(o) => insert(&mut self.tasks, Kind::Task, &o.id, Task { meta, ..(**o).clone() }),
        }
    }

    fn update(&mut self, index: u64, at: Timestamp, object: &Object) -> Result<(), StoreError> {
        let next = |stored: Meta, posted: Meta| {
            if stored.version == posted.version {
                Ok(Meta { version: index, created_at: stored.created_at, updated_at: at })
            } else {
                Err(StoreError::OutOfSequence)
            }
        };
        match object {
            Object::Cluster(o) => {
                let stored = self
                    .cluster
                    .as_deref()
                    .filter(|c| c.id == o.id)
                    .ok_or_else(|| StoreError::NotFound { kind: Kind::Cluster, id: o.id.to_string() })?;
                let meta = next(stored.meta, o.meta)?;
                self.cluster = Some(Arc::new(Cluster { meta, ..(**o).clone() }));
                Ok(())
            }
            Object::Node(o) => {
                replace(&mut self.nodes, Kind::Node, &o.id, |s| Ok(Node { meta: next(s.meta, o.meta)?, ..(**o).clone() }))
            }
            Object::Network(o) => {
                replace(&mut self.networks, Kind::Network, &o.id, |s| {
                    Ok(Network { meta: next(s.meta, o.meta)?, ..(**o).clone() })
                })?;
                let others = self.networks().filter(|n| n.id != o.id);
                free_name(Kind::Network, &o.spec.name, others.map(|n| n.spec.name.as_str()))
            }
            Object::Service(o) => {
                replace(&mut self.services, Kind::Service, &o.id, |s| {
                    Ok(Service { meta: next(s.meta, o.meta)?, ..(**o).clone() })
                })?;
                let others = self.services().filter(|s| s.id != o.id);
                free_name(Kind::Service, &o.spec.name, others.map(|s| s.spec.name.as_str()))
            }
            Object::Task(o) => {
                replace(&mut self.tasks, Kind::Task, &o.id, |s| Ok(Task { meta: next(s.meta, o.meta)?, ..(**o).clone() }))
            }
        }
    }

    fn remove(&mut self, kind: Kind, id: &str) {
        match kind {
            Kind::Cluster => self.cluster = self.cluster.take().filter(|c| c.id != ClusterId::from(id)),
            Kind::Node => drop(self.nodes.remove(&NodeId::from(id))),
            Kind::Network => drop(self.networks.remove(&NetworkId::from(id))),
            Kind::Service => drop(self.services.remove(&ServiceId::from(id))),
            Kind::Task => drop(self.tasks.remove(&TaskId::from(id))),
        }
    }
}

fn free_name<'a>(kind: Kind, name: &str, mut taken: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
    if taken.any(|t| t.eq_ignore_ascii_case(name)) {
        return Err(StoreError::NameConflict { kind, name: name.to_owned() });
    }
    Ok(())
}

fn insert<I: Ord + Clone + ToString, T>(table: &mut Table<I, T>, kind: Kind, id: &I, object: T) -> Result<(), StoreError> {
    if table.contains_key(id) {
        return Err(StoreError::Exists { kind, id: id.to_string() });
    }
    table.insert(id.clone(), Arc::new(object));
    Ok(())
}

fn replace<I: Ord + ToString, T>(
    table: &mut Table<I, T>,
    kind: Kind,
    id: &I,
    make: impl FnOnce(&T) -> Result<T, StoreError>,
) -> Result<(), StoreError> {
    let slot = table.get_mut(id).ok_or_else(|| StoreError::NotFound { kind, id: id.to_string() })?;
    *slot = Arc::new(make(slot)?);
    Ok(())
}
