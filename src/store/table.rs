//! Reads of the tables, and the one function that writes them.

use super::document::decode_document;
use super::object::{Action, Store, StoreError, StoreObject, Transaction, Uniqueness};
use crate::model::{Cluster, Meta, Network, NetworkId, Node, NodeId, Revision, Service, ServiceId, Task, TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The format is the feature level that the snapshot was written at.
#[derive(Serialize, Deserialize)]
struct SnapshotDocument<T> {
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
    /// All objects of a kind, by id.
    pub fn all<T: StoreObject>(&self) -> impl Iterator<Item = &T> {
        T::table(self).values().map(Arc::as_ref)
    }
    /// The object with this id.
    pub fn get<T: StoreObject>(&self, id: &T::Id) -> Option<&T> {
        T::table(self).get(id).map(Arc::as_ref)
    }
    /// The cluster object; `None` only before the first entry.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.all().next()
    }
    /// Nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.all()
    }
    /// Networks by id.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.all()
    }
    /// Services by id.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.all()
    }
    /// Tasks by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.all()
    }
    /// The node with this id.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.get(id)
    }
    /// The network with this id.
    pub fn network(&self, id: &NetworkId) -> Option<&Network> {
        self.get(id)
    }
    /// The service with this id.
    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.get(id)
    }
    /// The task with this id.
    pub fn task(&self, id: &TaskId) -> Option<&Task> {
        self.get(id)
    }

    /// Applies a transaction as the entry with this index: all of it, or nothing and the reason.
    ///
    /// # Errors
    /// The first write that is refused; the store is then as before, except for its index.
    pub fn apply(&mut self, index: u64, transaction: &Transaction) -> Result<(), StoreError> {
        self.index = index;
        let mut next = self.clone();
        for action in &transaction.actions {
            next.write(index, transaction.at, action)?;
        }
        *self = next;
        Ok(())
    }

    /// The state as bytes, equal on every manager.
    ///
    /// # Panics
    /// Never: every type in the store can be written as JSON.
    pub fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&SnapshotDocument { format: self.feature_level(), store: self }).expect("the store is plain data")
    }

    /// Reads what [`Store::snapshot`] wrote.
    ///
    /// # Errors
    /// The bytes are damaged, or of another format than this build reads.
    pub fn restore(bytes: &[u8]) -> anyhow::Result<Self> {
        let document: SnapshotDocument<Self> = decode_document(bytes)?;
        Ok(document.store)
    }

    fn write(&mut self, index: u64, at: Timestamp, action: &Action) -> Result<(), StoreError> {
        match action {
            Action::Create(object) => object.create(self, index, at),
            Action::Update(object) => object.update(self, index, at),
            Action::Remove(kind, id) => {
                kind.remove(self, id);
                Ok(())
            }
        }
    }

    pub(super) fn create<T: StoreObject>(&mut self, object: &T, index: u64, at: Timestamp) -> Result<(), StoreError> {
        check_name(object, self.all())?;
        let table = T::table_mut(self);
        let single = matches!(T::UNIQUE, Uniqueness::Kind);
        if table.contains_key(object.id()) || (single && !table.is_empty()) {
            return Err(StoreError::Exists { kind: T::KIND, id: object.id().to_string() });
        }
        let mut object = object.clone();
        *object.meta_mut() = Meta { version: index, created_at: at, updated_at: at };
        table.insert(object.id().clone(), Arc::new(object));
        Ok(())
    }

    pub(super) fn update<T: StoreObject>(&mut self, object: &T, index: u64, at: Timestamp) -> Result<(), StoreError> {
        let not_found = || StoreError::NotFound { kind: T::KIND, id: object.id().to_string() };
        let stored = self.get::<T>(object.id()).ok_or_else(not_found)?.meta();
        if stored.version != object.meta().version {
            return Err(StoreError::OutOfSequence);
        }
        check_name(object, self.all::<T>().filter(|other| other.id() != object.id()))?;
        let mut object = object.clone();
        *object.meta_mut() = Meta { version: index, created_at: stored.created_at, updated_at: at };
        T::table_mut(self).insert(object.id().clone(), Arc::new(object));
        Ok(())
    }
}

/// Refuses an object whose name one of the others has, if names are unique among objects of its kind.
fn check_name<'a, T: StoreObject>(object: &T, mut others: impl Iterator<Item = &'a T>) -> Result<(), StoreError> {
    let Uniqueness::Name(name_of) = T::UNIQUE else { return Ok(()) };
    let Some(name) = name_of(object) else { return Ok(()) };
    if others.any(|other| name_of(other).is_some_and(|other| other.eq_ignore_ascii_case(name))) {
        return Err(StoreError::NameConflict { kind: T::KIND, name: name.to_owned() });
    }
    Ok(())
}
