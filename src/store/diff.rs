//! What differs between two states of the store. Whatever neither has written since they were one is shared between them and
//! skipped, so the cost is that of the difference (times the logarithm of the table), not that of the state.

use super::object::{Store, StoreObject};
use imbl::ordmap::DiffItem;

/// An object before and after; `None` where it does not exist. Not both.
pub type ChangedObject<'a, T> = (Option<&'a T>, Option<&'a T>);

/// The objects of a kind that were created, changed or removed, by id.
pub fn changed<'a, T: StoreObject>(before: &'a Store, after: &'a Store) -> impl Iterator<Item = ChangedObject<'a, T>> {
    T::table(before).diff(T::table(after)).map(|item| match item {
        DiffItem::Add(_, after) => (None, Some(&**after)),
        DiffItem::Update { old: (_, before), new: (_, after) } => (Some(&**before), Some(&**after)),
        DiffItem::Remove(_, before) => (Some(&**before), None),
    })
}
