//! Kinds of objects, the store's tables, and the transactions that write them. [`store_objects`] is called once, with
//! one line per kind; whatever depends on the kind of an object is generated from that list.

use super::applied::Applied;
use super::field_update::FieldUpdate;
use super::index::{Indexed, StoreIndexes};
use crate::model::port_labels::{ALLOW, MOST_SOURCES};
use crate::model::{
    AcmeAccount, AcmeCertificate, AcmeCertificateId, Cluster, ClusterConfig, ClusterId, ClusterSecret, ConfigId, FormatRange,
    Meta, Network, NetworkId, Node, NodeId, PayloadKeys, PublishMode, SecretId, Service, ServiceId, Task, TaskId, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// All objects of one kind. A persistent map: a copy costs nothing, and shares with the original whatever neither has
/// written since.
pub type Table<T> = imbl::OrdMap<<T as StoreObject>::Id, Arc<T>>;

/// An object that has a table in the store.
pub trait StoreObject: Indexed + Clone + PartialEq + 'static {
    /// Type of its id.
    type Id: Ord + Clone + fmt::Display + for<'a> From<&'a str>;
    /// Kind of all objects of this type.
    const KIND: Kind;
    /// What two objects of the kind must not have in common.
    const UNIQUE: Uniqueness<Self>;

    /// Never changes.
    fn id(&self) -> &Self::Id;
    /// Written by [`Store::apply`] alone.
    fn meta(&self) -> Meta;
    /// See [`StoreObject::meta`].
    fn meta_mut(&mut self) -> &mut Meta;
    /// Where the store keeps the kind.
    fn table(store: &Store) -> &Table<Self>;
    /// See [`StoreObject::table`].
    fn table_mut(store: &mut Store) -> &mut Table<Self>;
}

/// What must be unique among the objects of a kind.
pub enum Uniqueness<T> {
    /// The id.
    Id,
    /// The id, and the name without regard to case: how to get it (an object without one has only its id), and the object that
    /// has a name.
    Name(fn(&T) -> Option<&str>, for<'a> fn(&'a Store, &str) -> Option<&'a T>),
    /// The object: there is one of its kind at most.
    Kind,
}

/// One write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    /// A new object; what is unique about it ([`Uniqueness`]) must be free.
    Create(Object),
    /// The new state of an object; its `meta.version` must be the stored one.
    Update(Object),
    /// Removes the object with this id. One that does not exist is no error.
    Remove(Kind, String),
    /// Writes one field of an object.
    Set(FieldUpdate),
}

impl Action {
    /// A creation.
    pub fn create(object: impl Into<Object>) -> Self {
        Self::Create(object.into())
    }
    /// An update.
    pub fn update(object: impl Into<Object>) -> Self {
        Self::Update(object.into())
    }
    /// Kind and id of the object that is written.
    pub fn target(&self) -> (Kind, String) {
        match self {
            Self::Create(object) | Self::Update(object) => (object.kind(), object.id()),
            Self::Remove(kind, id) => (*kind, id.clone()),
            Self::Set(update) => update.target(),
        }
    }
}

/// Why a transaction was not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// Another writer changed the object since the proposer read it.
    #[error("update out of sequence")]
    OutOfSequence,
    /// Another object of the kind has that name.
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameConflict { kind: Kind, name: String },
    /// There is an object with that id.
    #[error("{kind} {id} already exists")]
    Exists { kind: Kind, id: String },
    /// There is no object with that id.
    #[error("{kind} {id} not found")]
    NotFound { kind: Kind, id: String },
    /// A manager of an older build could not read it.
    #[error("a {kind} needs feature level {needed}, the cluster is at level {level}: upgrade skep on every manager first")]
    NeedsLevel { kind: Kind, needed: u32, level: u32 },
    /// A node that is to be a manager could not read the log.
    #[error(
        "the node's skep reads feature levels {levels}, the managers of this swarm write level {level}: upgrade skep there first"
    )]
    UnreadableLevel { levels: FormatRange, level: u32 },
    /// A manager of an older build would drop the field.
    #[error(
        "{field} of a {kind} needs feature level {needed}, the cluster is at level {level}: upgrade skep on every manager first"
    )]
    FieldNeedsLevel { kind: Kind, field: String, needed: u32, level: u32 },
    /// Another object needs it.
    #[error("{kind} {id} is in use by {by} {by_id}")]
    InUse { kind: Kind, id: String, by: Kind, by_id: String },
    /// Another service publishes the port.
    #[error("port '{port}' is already in use by service '{name}' ({service}) as {}", published_as(*.mode))]
    PortInUse { port: u16, mode: PublishMode, service: ServiceId, name: String },
    /// All allow-lists together have too many entries.
    #[error(
        "label {ALLOW}: its {entries} entries (prefixes times published ports) and the {others} of the other services are more \
         than the {MOST_SOURCES} that all may have: list shorter prefixes here or there"
    )]
    AllowListsFull { entries: u64, others: u64 },
    /// Another node has the WireGuard key.
    #[error(
        "node {node} has the WireGuard key of this node already: if that is what is left of this node, remove it with \
         `docker node rm --force {node}` and join again"
    )]
    KeyInUse { node: NodeId },
    /// The leader's planners did not see what another plan did.
    #[error("another plan was applied since this one was made")]
    StalePlan,
}

/// Docker's words for a published port.
fn published_as(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "an ingress port",
        PublishMode::Host => "a host-published port",
    }
}

/// A table of one object at most, written as that object or `null`.
mod single {
    use super::{StoreObject, Table};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub(super) fn serialize<T, S>(table: &Table<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: StoreObject + Serialize,
        S: Serializer,
    {
        table.values().next().map(Arc::as_ref).serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Table<T>, D::Error>
    where
        T: StoreObject + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let object = Option::<T>::deserialize(deserializer)?;
        Ok(object.into_iter().map(|object| (object.id().clone(), Arc::new(object))).collect())
    }
}

/// Generates [`Kind`], [`Object`], [`Store`] and the [`StoreObject`] implementations. A line is: attributes of the table
/// in a snapshot, type, type of the id, name of the table, word for people, what is unique.
macro_rules! store_objects {
    ($($(#[$table_attribute:meta])* $object:ident, $id:ty, $table:ident, $word:literal, $unique:expr;)+) => {
        /// Kind of an object.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub enum Kind {
            $(#[doc = $word] $object,)+
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$object => $word,)+
                })
            }
        }

        impl Kind {
            /// The object with this id.
            pub fn stored(self, store: &Store, id: &str) -> Option<Object> {
                match self {
                    $(Self::$object => store.get::<$object>(&id.into()).cloned().map(Object::from),)+
                }
            }
            /// Version and times of the object with this id.
            pub fn stored_meta(self, store: &Store, id: &str) -> Option<Meta> {
                match self {
                    $(Self::$object => store.get::<$object>(&id.into()).map(StoreObject::meta),)+
                }
            }
            pub(super) fn remove(self, store: &mut Store, id: &str) {
                match self {
                    $(Self::$object => store.remove::<$object>(&id.into()),)+
                }
            }
        }

        /// An object of any kind.
        #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
        pub enum Object {
            $(#[doc = $word] $object(Box<$object>),)+
        }

        impl Object {
            /// Kind of the object.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$object(_) => Kind::$object,)+
                }
            }
            /// Text of the object's id.
            pub fn id(&self) -> String {
                match self {
                    $(Self::$object(object) => object.id.to_string(),)+
                }
            }
            /// Version and times of the object.
            pub fn meta_mut(&mut self) -> &mut Meta {
                match self {
                    $(Self::$object(object) => &mut object.meta,)+
                }
            }
            /// True if the store has the object in exactly this state.
            pub fn is_stored(&self, store: &Store) -> bool {
                match self {
                    $(Self::$object(object) => store.get::<$object>(&object.id) == Some(object),)+
                }
            }
            pub(super) fn create(&self, store: &mut Store, index: u64, at: Timestamp) -> Result<(), StoreError> {
                match self {
                    $(Self::$object(object) => store.create(&**object, index, at),)+
                }
            }
            pub(super) fn update(&self, store: &mut Store, index: u64, at: Timestamp) -> Result<(), StoreError> {
                match self {
                    $(Self::$object(object) => store.update(&**object, index, at),)+
                }
            }
        }

        /// The whole state. A clone shares the objects.
        #[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
        pub struct Store {
            /// Raft index of the last transaction seen, applied or refused.
            pub(super) index: u64,
            $($(#[$table_attribute])* $table: Table<$object>,)+
            #[serde(default, skip_serializing_if = "Applied::is_empty")]
            pub(super) applied: Applied,
            #[serde(skip)]
            pub(super) indexes: StoreIndexes,
        }

        impl Store {
            /// Rebuilds the indexes from the tables, after these were read from a snapshot.
            pub(super) fn build_indexes(&mut self) {
                self.indexes = StoreIndexes::default();
                $(for object in self.$table.values() {
                    self.indexes.replace(None, Some(&**object));
                })+
            }
        }

        $(
            impl StoreObject for $object {
                type Id = $id;
                const KIND: Kind = Kind::$object;
                const UNIQUE: Uniqueness<Self> = $unique;

                fn id(&self) -> &Self::Id {
                    &self.id
                }
                fn meta(&self) -> Meta {
                    self.meta
                }
                fn meta_mut(&mut self) -> &mut Meta {
                    &mut self.meta
                }
                fn table(store: &Store) -> &Table<Self> {
                    &store.$table
                }
                fn table_mut(store: &mut Store) -> &mut Table<Self> {
                    &mut store.$table
                }
            }

            impl From<$object> for Object {
                fn from(object: $object) -> Self {
                    Self::$object(Box::new(object))
                }
            }
        )+
    };
}

// Types and tables are named in snapshots and entries: a line keeps its names for ever. A line that is added has
// `#[serde(default)]`, so that a snapshot of an older build is read as one with an empty table.
store_objects! {
    #[serde(with = "single")] Cluster, ClusterId, cluster, "cluster", Uniqueness::Kind;
    Node, NodeId, nodes, "node", Uniqueness::Id;
    Network, NetworkId, networks, "network",
        Uniqueness::Name(|network| (!network.removing).then_some(&network.spec.name), Store::network_named);
    Service, ServiceId, services, "service", Uniqueness::Name(|service| Some(&service.spec.name), Store::service_named);
    Task, TaskId, tasks, "task", Uniqueness::Id;
    #[serde(default, skip_serializing_if = "Table::<ClusterSecret>::is_empty")] ClusterSecret, SecretId, secrets, "secret",
        Uniqueness::Name(|secret| Some(&secret.spec.name), Store::secret_named);
    #[serde(default, skip_serializing_if = "Table::<ClusterConfig>::is_empty")] ClusterConfig, ConfigId, configs, "config",
        Uniqueness::Name(|config| Some(&config.spec.name), Store::config_named);
    #[serde(default, skip_serializing_if = "Table::<PayloadKeys>::is_empty", with = "single")] PayloadKeys, ClusterId, payload_keys,
        "key of secrets and configs", Uniqueness::Kind;
    #[serde(default, skip_serializing_if = "Table::<AcmeAccount>::is_empty", with = "single")] AcmeAccount, ClusterId, acme_account,
        "ACME account", Uniqueness::Kind;
    #[serde(default, skip_serializing_if = "Table::<AcmeCertificate>::is_empty")] AcmeCertificate, AcmeCertificateId,
        acme_certificates, "ACME certificate", Uniqueness::Id;
}
