//! Which objects differ between two states of the store. Objects are shared between states, so unchanged ones are found by
//! comparing pointers.

use crate::store::{Store, StoreObject};
use std::cmp::Ordering;

/// The objects of a kind that were created, changed or removed, as (before, after), by id.
pub(in crate::manager) fn changed<'a, T: StoreObject>(
    before: &'a Store,
    after: &'a Store,
) -> Vec<(Option<&'a T>, Option<&'a T>)> {
    let (mut was, mut is) = (before.all::<T>().peekable(), after.all::<T>().peekable());
    let mut out = Vec::new();
    loop {
        let order = match (was.peek(), is.peek()) {
            (None, None) => return out,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) if std::ptr::eq(*a, *b) => {
                was.next();
                is.next();
                continue;
            }
            (Some(a), Some(b)) => a.id().cmp(b.id()),
        };
        let before = if order == Ordering::Greater { None } else { was.next() };
        let after = if order == Ordering::Less { None } else { is.next() };
        out.push((before, after));
    }
}
