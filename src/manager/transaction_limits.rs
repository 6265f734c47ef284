//! Cuts a plan to one transaction: in bytes, and in what the store takes. An object that cannot be written is found, named and
//! left out, so that it does not keep all others from being written. Pure.

use super::allocator;
use crate::model::service::Endpoint;
use crate::model::task::Attachment;
use crate::model::{NetworkId, ServiceId, SlotKey, Timestamp};
use crate::store::{Action, FieldUpdate, Kind, Object, Store};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Largest transaction with more than one object, in bytes of its actions.
pub const TRANSACTION: usize = 1 << 20;
/// Largest object, in bytes: raft takes entries of 8 MiB, and an entry has an envelope.
pub const OBJECT: usize = (8 << 20) - (64 << 10);
/// Refusals in a row that another writer may explain; after these the plan itself is searched for the cause.
const REFUSALS: u32 = 5;
/// An object is left out for this long, unless it changes.
const LEFT_OUT: Duration = Duration::from_mins(1);

/// Kind and id of an object.
pub type ObjectKey = (Kind, String);

/// What limits the next transaction.
#[derive(Default, Debug)]
pub struct TransactionLimits {
    /// Most actions, network guards not counted; `None`: no limit.
    most: Option<usize>,
    refusals: u32,
    /// The last plan had more than the transaction took.
    has_cut: bool,
    /// Actions of the transaction that is being written, network guards not counted, with the service of each.
    writing: Vec<(ObjectKey, Option<ServiceId>)>,
    left_out: BTreeMap<ObjectKey, LeftOutObject>,
}

/// An object that is not written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOutObject {
    /// For people.
    pub reason: String,
    /// The service itself, or the one of the task.
    pub service_id: Option<ServiceId>,
    /// The stored version that the plan was for; of what is not stored yet its service's, or 0.
    version: u64,
    until: Timestamp,
}

impl TransactionLimits {
    /// The actions to write now, in order; the rest is planned again.
    pub fn fit(&mut self, store: &Store, actions: Vec<Action>, now: Timestamp) -> Vec<Action> {
        self.left_out
            .retain(|key, object| now < object.until && version_of(key, object.service_id.as_ref(), store) == object.version);
        let (mut networks, mut rest) = (BTreeMap::new(), Vec::new());
        for action in actions {
            let key = key_of(&action);
            let size = encoded_size(&action);
            if size > OBJECT {
                let reason = format!("it has {size} bytes, {OBJECT} are the most");
                self.leave_out(key, service_of(&action, store), &reason, store, now);
            } else if self.left_out.contains_key(&key) {
            } else if key.0 == Kind::Network {
                networks.insert(NetworkId::from(key.1), (action, size));
            } else {
                rest.push((action, size));
            }
        }
        // A network is in the transaction of its addresses, also if it is only their guard.
        let (mut kept, mut count, mut left) = (Vec::new(), 0, TRANSACTION);
        for (action, size) in &rest {
            let with = guards_of(action, store, &networks);
            let size = size + with.iter().map(|id| networks[id].1).sum::<usize>();
            if count > 0 && (size > left || self.most.is_some_and(|most| count >= most)) {
                break;
            }
            kept.extend(with.iter().filter_map(|id| networks.remove(id)).map(|(action, _)| action));
            left = left.saturating_sub(size);
            count += 1;
        }
        // Alone, what changes nothing would be planned again for ever.
        networks.retain(|_, (action, _)| !matches!(action, Action::Update(object) if object.is_stored(store)));
        let mut has_more = false;
        for (action, size) in networks.into_values() {
            if size <= left || (count == 0 && kept.is_empty()) {
                left = left.saturating_sub(size);
                kept.push(action);
            } else {
                has_more = true;
            }
        }
        // What happens to the tasks of a slot belongs together.
        let slot = |at: usize| slot_of(&rest[at].0, store);
        let together = |at: usize| slot(at).is_some_and(|of| slot(at - 1) == Some(of));
        if count < rest.len() && self.most.is_none() {
            count = (1..=count).rev().find(|at| !together(*at)).unwrap_or(count);
        }
        self.has_cut = has_more || count < rest.len();
        rest.truncate(count);
        self.writing = rest.iter().map(|(action, _)| (key_of(action), service_of(action, store))).collect();
        rest.into_iter().map(|(action, _)| action).chain(kept).collect()
    }

    /// The transaction was written.
    pub fn written(&mut self) {
        self.refusals = 0;
        self.most = None;
    }

    /// The store refused the transaction. One that it refuses again and again is halved until the object is found that it
    /// does not take.
    pub fn refused(&mut self, store: &Store, reason: &str, now: Timestamp) {
        self.refusals += 1;
        if self.refusals < REFUSALS {
            return;
        }
        match std::mem::take(&mut self.writing) {
            one if one.len() == 1 => {
                for (key, service) in one {
                    self.leave_out(key, service, reason, store, now);
                }
                self.written();
            }
            several => self.most = Some((several.len() / 2).max(1)),
        }
    }

    /// The last plan had more than the transaction took, what is left out not counted.
    pub fn has_cut(&self) -> bool {
        self.has_cut
    }

    /// Objects that are not written, for people.
    pub fn left_out(&self) -> &BTreeMap<ObjectKey, LeftOutObject> {
        &self.left_out
    }

    fn leave_out(&mut self, key: ObjectKey, service_id: Option<ServiceId>, reason: &str, store: &Store, now: Timestamp) {
        let (kind, id) = &key;
        if !self.left_out.contains_key(&key) {
            tracing::error!(%kind, id, reason, "a planned change cannot be written: it is left out, everything else goes on");
        }
        let version = version_of(&key, service_id.as_ref(), store);
        self.left_out.insert(key, LeftOutObject { reason: reason.to_owned(), service_id, version, until: now.plus(LEFT_OUT) });
    }
}

/// What is left out if the action cannot be written. A task that is to be created has another id in each plan: it is known by its slot.
fn key_of(action: &Action) -> ObjectKey {
    match action {
        Action::Create(Object::Task(task)) if task.attached.is_none() => {
            (Kind::Task, format!("{}.{}", task.service_id, task.slot_key()))
        }
        _ => action.target(),
    }
}

fn version_of((kind, id): &ObjectKey, service: Option<&ServiceId>, store: &Store) -> u64 {
    let of_service = || store.service(service?).map(|service| service.meta.version);
    kind.stored_meta(store, id).map(|meta| meta.version).or_else(of_service).unwrap_or_default()
}

/// Those of the networks of which the action may assign an address.
fn guards_of(action: &Action, store: &Store, networks: &BTreeMap<NetworkId, (Action, usize)>) -> BTreeSet<NetworkId> {
    let named: Vec<&NetworkId> = match action {
        Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) => of_attachments(&task.attachments),
        Action::Set(FieldUpdate::TaskStep { attachments, .. }) => of_attachments(attachments),
        Action::Create(Object::Service(service)) | Action::Update(Object::Service(service)) => of_endpoint(&service.endpoint),
        Action::Set(FieldUpdate::ServiceEndpoint { endpoint, .. }) => of_endpoint(endpoint),
        Action::Create(Object::Node(_)) | Action::Update(Object::Node(_)) => {
            allocator::ingress(store).map(|network| &network.id).into_iter().collect()
        }
        _ => Vec::new(),
    };
    named.into_iter().filter(|id| networks.contains_key(id)).cloned().collect()
}

fn of_attachments(attachments: &[Attachment]) -> Vec<&NetworkId> {
    attachments.iter().map(|attachment| &attachment.network_id).collect()
}

fn of_endpoint(endpoint: &Endpoint) -> Vec<&NetworkId> {
    endpoint.vips.iter().map(|vip| &vip.network_id).collect()
}

/// The service that is written, or the one of the task.
fn service_of(action: &Action, store: &Store) -> Option<ServiceId> {
    match action {
        Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) => Some(task.service_id.clone()),
        Action::Create(Object::Service(service)) | Action::Update(Object::Service(service)) => Some(service.id.clone()),
        Action::Remove(Kind::Task, id) => store.task(&id.as_str().into()).map(|task| task.service_id.clone()),
        Action::Remove(Kind::Service, id) => Some(id.as_str().into()),
        Action::Set(update) => match update.target() {
            (Kind::Task, id) => store.task(&id.as_str().into()).map(|task| task.service_id.clone()),
            (Kind::Service, id) => Some(id.as_str().into()),
            _ => None,
        },
        _ => None,
    }
}

/// The slot of the task that is written. Tasks of plain containers have none.
fn slot_of<'a>(action: &'a Action, store: &'a Store) -> Option<(&'a ServiceId, SlotKey)> {
    let task = match action {
        Action::Set(update) if update.target().0 == Kind::Task => store.task(&update.target().1.as_str().into())?,
        Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) => task,
        _ => return None,
    };
    task.attached.is_none().then(|| (&task.service_id, task.slot_key()))
}

/// Bytes of a document as it is stored.
pub(super) fn encoded_size(document: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Writing to a counter cannot fail; what cannot be encoded fails when it is written.
    let _ = serde_json::to_writer(&mut count, document);
    count.0
}
