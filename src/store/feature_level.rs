//! The feature level of a cluster: what may be written to its log. A manager of an older build reads what its own levels have and
//! nothing newer, so the leader raises the level only when every manager has the next one ([`crate::model::Cluster::feature_level`]).
//! Entries and snapshots carry the level that they were written at as the number of their format.
//!
//! | level | since | what is new |
//! |---|---|---|
//! | 1 | 0.1 | |
//! | 2 | 0.2 | every manager refuses fields that it does not know; managers of level 1 drop them in silence |
//! |   |     | conditions, plans, times that do not go back, and writes of one field are part of a transaction; at level 1 its |
//! |   |     | proposer checks and resolves them ([`Transaction::resolved`]) |
//! |   |     | a snapshot has the spec of a service's tasks once |
//! |   |     | the ACME account and its certificates |
//! |   |     | updates, other modes than replicated, causes of tasks, tasks of plain containers: what `newer_field` of the types says |
//! | 3 | 0.3 | a node changes its WireGuard key ([`FieldUpdate::TunnelKey`]) |
//! |   |     | why a service was scaled, if not by its connections ([`crate::model::Scaling`]) |
//! |   |     | addresses of a node's host ([`crate::model::node::NodeDescription`]) |
//! |   |     | a snapshot in a manager's log is compressed ([`crate::manager::replica::Replica`]) |
//! |   |     | the key of the ACME account before there is the account ([`crate::model::AcmeAccount`]) |

use super::field_update::FieldUpdate;
use super::object::{Action, Kind, Object, Store, StoreError};
use super::transaction::Transaction;
use crate::model::FormatRange;

/// Levels of this build. It reads entries and snapshots of each, and writes at the cluster's.
pub const FEATURE_LEVELS: FormatRange = FormatRange::new(1, 3);

impl Kind {
    /// First level at which objects of the kind may be written.
    fn first_level(self) -> u32 {
        match self {
            Self::Cluster | Self::Node | Self::Network | Self::Service | Self::Task => 1,
            Self::ClusterSecret | Self::ClusterConfig | Self::PayloadKeys | Self::AcmeAccount | Self::AcmeCertificate => 2,
        }
    }
}

impl Store {
    /// The cluster's level; the first one before there is a cluster.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.cluster().map_or(FEATURE_LEVELS.oldest, |cluster| cluster.feature_level)
    }
}

/// First level of clusters with several managers.
const SEVERAL_MANAGERS: u32 = 2;

impl Store {
    /// Whether tasks may have causes and ends, and may be those of plain containers.
    #[must_use]
    pub fn has_new_task_fields(&self) -> bool {
        self.feature_level() >= FIELDS
    }

    /// Whether the cluster may have more than one manager: those of earlier builds do not read each other's entries.
    #[must_use]
    pub fn may_have_several_managers(&self) -> bool {
        self.feature_level() >= SEVERAL_MANAGERS
    }
}

/// First level at which a transaction has more than its time and its writes of whole objects.
const CONDITIONS: u32 = 2;

impl Transaction {
    /// The transaction as every manager of the cluster reads it. For the proposer: what is committed is applied everywhere.
    ///
    /// # Errors
    /// [`StoreError::NeedsLevel`] with the first kind that is too new; at level 1 also a condition that does not hold in this
    /// state, or a write that it refuses.
    pub fn at_level_of(self, store: &Store) -> Result<Self, StoreError> {
        let level = store.feature_level();
        check_level(&self, level)?;
        if level < CONDITIONS { self.resolved(store) } else { Ok(self) }
    }
}

fn check_level(transaction: &Transaction, level: u32) -> Result<(), StoreError> {
    let kinds = transaction.actions.iter().map(|action| action.target().0);
    refuse_newer(kinds.map(|kind| (kind, kind.first_level())), level)?;
    let refused =
        |(kind, field): (Kind, &str), needed| StoreError::FieldNeedsLevel { kind, field: field.to_owned(), needed, level };
    let newer = |action| {
        let old = newer_field(action).filter(|_| level < FIELDS).map(|field| refused(field, FIELDS));
        old.or_else(|| newest_field(action).filter(|_| level < KEY_CHANGES).map(|field| refused(field, KEY_CHANGES)))
    };
    transaction.actions.iter().filter(|_| level < KEY_CHANGES).find_map(newer).map_or(Ok(()), Err)
}

/// First level at which nodes may change their WireGuard keys. Every node knows the key to come of another from the same level on.
pub const KEY_CHANGES: u32 = 3;

/// First level at which a change of a service's replicas by its load may have a reason.
pub const SCALING_REASONS: u32 = 3;

/// First level at which a node's description may have the addresses of its host.
pub const NODE_ADDRESSES: u32 = 3;

/// First level at which managers read compressed snapshots.
pub const COMPRESSED_SNAPSHOTS: u32 = 3;

/// First level at which the ACME account may have a key before it is registered.
pub const ACME_KEYS: u32 = 3;

/// What managers of level 2 refuse.
fn newest_field(action: &Action) -> Option<(Kind, &'static str)> {
    match action {
        Action::Create(Object::Node(node)) | Action::Update(Object::Node(node)) if node.mesh.next.is_some() => {
            Some((Kind::Node, NEXT_KEY))
        }
        Action::Set(FieldUpdate::TunnelKey { .. }) => Some((Kind::Node, NEXT_KEY)),
        Action::Create(Object::Node(node)) | Action::Update(Object::Node(node)) if !node.description.addresses.is_empty() => {
            Some((Kind::Node, HOST_ADDRESSES))
        }
        Action::Set(FieldUpdate::NodeReport { description: Some(description), .. }) if !description.addresses.is_empty() => {
            Some((Kind::Node, HOST_ADDRESSES))
        }
        Action::Set(FieldUpdate::ServiceReplicas { scaling, .. }) if scaling.reason.is_some() => {
            Some((Kind::Service, "the reason of a change of its replicas"))
        }
        Action::Create(Object::AcmeAccount(account)) | Action::Update(Object::AcmeAccount(account)) if account.key.is_some() => {
            Some((Kind::AcmeAccount, "its key"))
        }
        _ => None,
    }
}

/// For people.
const NEXT_KEY: &str = "another WireGuard key";
const HOST_ADDRESSES: &str = "addresses of its host";

/// First level at which objects may have fields that managers of level 1 drop in silence.
const FIELDS: u32 = 2;

/// The first field of what is written that managers of level 1 do not know.
fn newer_field(action: &Action) -> Option<(Kind, &'static str)> {
    let field = match action {
        Action::Create(Object::Service(service)) | Action::Update(Object::Service(service)) => service.newer_field(),
        Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) => task.newer_field(),
        Action::Create(Object::Network(network)) | Action::Update(Object::Network(network)) => network.spec.newer_field(),
        Action::Set(FieldUpdate::ServiceSpec { spec, change, .. }) => {
            spec.newer_field().or_else(|| change.replaces_tasks.then_some("UpdateStatus"))
        }
        Action::Set(FieldUpdate::MoveTask { .. }) => Some("move_to"),
        Action::Set(FieldUpdate::ServiceReplicas { .. }) => Some("scalings"),
        Action::Set(FieldUpdate::UnlockKey { .. }) => Some("AutoLockManagers"),
        Action::Set(FieldUpdate::RootRotation { .. }) => Some("another root CA"),
        Action::Create(_) | Action::Update(_) | Action::Remove(..) | Action::Set(_) => None,
    };
    field.map(|field| (action.target().0, field))
}

fn refuse_newer(kinds: impl Iterator<Item = (Kind, u32)>, level: u32) -> Result<(), StoreError> {
    let mut newer = kinds.filter(|(_, needed)| *needed > level);
    newer.next().map_or(Ok(()), |(kind, needed)| Err(StoreError::NeedsLevel { kind, needed, level }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn what_needs_a_newer_level_is_refused_by_name() {
        let remove = |kind| Action::Remove(kind, "a".to_owned());
        let transaction = Transaction::new(Timestamp(0), vec![remove(Kind::Node), remove(Kind::Task)]);
        assert_eq!(check_level(&transaction, 1), Ok(()));
        let error = refuse_newer([(Kind::Node, 1), (Kind::Task, 3)].into_iter(), 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a task needs feature level 3, the cluster is at level 2: upgrade skep on every manager first"
        );
        assert_eq!(refuse_newer([(Kind::Task, 3)].into_iter(), 3), Ok(()));
    }

    #[test]
    fn what_managers_of_level_1_would_drop_is_refused_by_its_name() {
        use crate::model::service::{Global, ServiceMode};
        use crate::model::{ServiceSpec, SpecChange, TaskCause, fixture};
        let spec = |mode| ServiceSpec { mode, ..ServiceSpec::default() };
        let set = |spec, change| {
            let spec = Box::new(spec);
            Action::Set(FieldUpdate::ServiceSpec { id: "a".into(), version: 1, spec, pull_auth: None, change })
        };
        let replaces = SpecChange { replaces_tasks: true, ..SpecChange::default() };
        let global = ServiceMode { global: Some(Global {}), ..ServiceMode::default() };
        let mut task = fixture::task_with_resolvers("t1", "web", "n1", &[]);
        let plain = Action::create(task.clone());
        task.cause = Some(TaskCause::Move);
        for (action, field) in [
            (plain, None),
            (set(spec(ServiceMode::default()), SpecChange::default()), None),
            (Action::create(task), Some("cause of a task")),
            (set(spec(ServiceMode::default()), replaces), Some("UpdateStatus of a service")),
            (set(spec(global), SpecChange::default()), Some("Mode.Global of a service")),
        ] {
            let transaction = Transaction::new(Timestamp(0), vec![action]);
            assert_eq!(check_level(&transaction, 2), Ok(()));
            let refused = check_level(&transaction, 1).err().map(|error| error.to_string());
            let says = "needs feature level 2, the cluster is at level 1: upgrade skep on every manager first";
            assert_eq!(refused, field.map(|field| format!("{field} {says}")));
        }
    }
}
