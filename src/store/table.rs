//! Reads of the tables, and snapshots.

use super::document::decode_document;
use super::object::{Store, StoreObject};
use super::shared_specs::{self, SpecInSnapshot};
use crate::model::{Cluster, Network, NetworkId, Node, NodeId, Revision, Service, ServiceId, Task, TaskId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The format is the feature level that the snapshot was written at.
#[derive(Serialize, Deserialize)]
struct SnapshotDocument<T> {
    format: u32,
    store: T,
    /// From level [`SPECS_ONCE`] on: what tasks have in common.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    specs: Vec<SpecInSnapshot>,
}

/// First level at which a snapshot has each spec of tasks once.
const SPECS_ONCE: u32 = 2;

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
    /// [`Self::services`], as the store has them.
    pub fn shared_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        Service::table(self).values()
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
    /// [`Self::service`], as the store has it.
    pub fn shared_service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        Service::table(self).get(id)
    }
    /// The task with this id.
    pub fn task(&self, id: &TaskId) -> Option<&Task> {
        self.get(id)
    }

    /// The state as bytes, equal on every manager.
    ///
    /// # Panics
    /// Never: every type in the store can be written as JSON.
    pub fn snapshot(&self) -> Vec<u8> {
        let format = self.feature_level();
        let document = if format < SPECS_ONCE {
            serde_json::to_vec(&SnapshotDocument { format, store: self, specs: Vec::new() })
        } else {
            let mut store = self.clone();
            let (tasks, specs) = shared_specs::take_out(Task::table(self));
            *Task::table_mut(&mut store) = tasks;
            serde_json::to_vec(&SnapshotDocument { format, store, specs })
        };
        document.expect("the store is plain data")
    }

    /// Reads what [`Store::snapshot`] wrote.
    ///
    /// # Errors
    /// The bytes are damaged, or of another format than this build reads.
    pub fn restore(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut document: SnapshotDocument<Self> = decode_document(bytes)?;
        let tasks = std::mem::take(Task::table_mut(&mut document.store));
        *Task::table_mut(&mut document.store) = shared_specs::put_back(tasks, document.specs)?;
        document.store.build_indexes();
        Ok(document.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recorded::RecordedNames;

    #[test]
    fn every_field_of_a_snapshot_is_in_the_recorded_one() {
        let recorded = include_bytes!("../../tests/it/formats/snapshot-2.json");
        let names = RecordedNames::default();
        names.read::<SnapshotDocument<Store>>(&serde_json::from_slice(recorded).unwrap()).unwrap();
        let own = |name: &String| ["SnapshotDocument.", "SpecInSnapshot.", "Store."].iter().any(|own| name.starts_with(own));
        assert_eq!(names.missing().into_iter().filter(own).collect::<Vec<_>>(), [""; 0]);
    }
}
