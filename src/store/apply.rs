//! The one function that writes the tables.

use super::index::Indexed;
use super::object::{Action, Store, StoreError, StoreObject, Uniqueness};
use super::transaction::Transaction;
use crate::model::{Meta, Timestamp};
use std::sync::Arc;
use std::time::Duration;

impl Store {
    /// Applies a transaction as the entry with this index: all of it, or nothing and the reason.
    ///
    /// # Errors
    /// The first condition that does not hold, or the first write that is refused; the store is then as before, except for its
    /// index.
    pub fn apply(&mut self, index: u64, transaction: &Transaction) -> Result<(), StoreError> {
        self.index = index;
        let mut next = self.clone();
        let at = next.begin(index, transaction)?;
        for action in &transaction.actions {
            next.write(self, at, action)?;
        }
        *self = next;
        Ok(())
    }

    /// Time of the last transaction; `None` if an earlier build wrote the log, which kept none.
    pub fn written_at(&self) -> Option<Timestamp> {
        Some(self.applied.last_at).filter(|at| *at != Timestamp::default())
    }

    /// Checks what the transaction requires; returns its time.
    fn begin(&mut self, index: u64, transaction: &Transaction) -> Result<Timestamp, StoreError> {
        if let Some(plan) = transaction.plan {
            if plan.index < self.applied.last_plan || plan.term < self.applied.term {
                return Err(StoreError::StalePlan);
            }
            (self.applied.last_plan, self.applied.term) = (index, plan.term);
        }
        for condition in &transaction.require {
            condition.check(self)?;
        }
        if transaction.rules == 0 {
            return Ok(transaction.at);
        }
        let last = self.applied.last_at;
        self.applied.last_at = if transaction.at < last { last.plus(Duration::from_nanos(1)) } else { transaction.at };
        Ok(self.applied.last_at)
    }

    /// `base` is the state before the transaction.
    fn write(&mut self, base: &Self, at: Timestamp, action: &Action) -> Result<(), StoreError> {
        let index = base.index;
        match action {
            Action::Create(object) => object.create(self, index, at),
            Action::Update(object) => object.update(self, index, at),
            Action::Remove(kind, id) => {
                kind.remove(self, id);
                Ok(())
            }
            Action::Set(update) => update.resolve(base, self)?.map_or(Ok(()), |object| object.update(self, index, at)),
        }
    }

    pub(super) fn create<T: StoreObject>(&mut self, object: &T, index: u64, at: Timestamp) -> Result<(), StoreError> {
        self.check_name(object)?;
        let table = T::table(self);
        let single = matches!(T::UNIQUE, Uniqueness::Kind);
        if table.contains_key(object.id()) || (single && !table.is_empty()) {
            return Err(StoreError::Exists { kind: T::KIND, id: object.id().to_string() });
        }
        let mut object = object.clone();
        *object.meta_mut() = Meta { version: index, created_at: at, updated_at: at };
        self.put(object);
        Ok(())
    }

    pub(super) fn update<T: StoreObject>(&mut self, object: &T, index: u64, at: Timestamp) -> Result<(), StoreError> {
        let not_found = || StoreError::NotFound { kind: T::KIND, id: object.id().to_string() };
        let stored = self.get::<T>(object.id()).ok_or_else(not_found)?.meta();
        if stored.version != object.meta().version {
            return Err(StoreError::OutOfSequence);
        }
        self.check_name(object)?;
        let mut object = object.clone();
        *object.meta_mut() = Meta { version: index, created_at: stored.created_at, updated_at: at };
        self.put(object);
        Ok(())
    }

    pub(super) fn remove<T: StoreObject>(&mut self, id: &T::Id) {
        let before = T::table_mut(self).remove(id);
        self.indexes.replace(before.as_deref(), None);
    }

    fn put<T: StoreObject>(&mut self, mut object: T) {
        let id = object.id().clone();
        if let Some(task) = object.as_task_mut() {
            self.indexes.specs.share(self.get::<T>(&id).and_then(Indexed::as_task), task);
        }
        let after = Arc::new(object);
        let before = T::table_mut(self).insert(id, after.clone());
        self.indexes.replace(before.as_deref(), Some(&*after));
    }

    /// Refuses an object whose name another one has, if names are unique among objects of its kind.
    fn check_name<T: StoreObject>(&self, object: &T) -> Result<(), StoreError> {
        let Uniqueness::Name(name_of, named) = T::UNIQUE else { return Ok(()) };
        let Some(name) = name_of(object) else { return Ok(()) };
        match named(self, name) {
            Some(other) if other.id() != object.id() => Err(StoreError::NameConflict { kind: T::KIND, name: name.to_owned() }),
            _ => Ok(()),
        }
    }
}
