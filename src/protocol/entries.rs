//! Sorted lists of shared entries: what is the same in two of them is the same in memory, so whoever follows a list sees at
//! a glance what changed.

use crate::model::view::{PublishedPort, ServiceVip, TaskEndpoint};
use std::cmp::Ordering;
use std::sync::Arc;

/// An entry of a sorted list.
pub trait Entry: PartialEq {
    /// Its place among the others; equal: it is the same one, as it was or not.
    fn order(&self, other: &Self) -> Ordering;
}

/// What became of an entry: as it was, as it is.
type Pair<'a, T> = (Option<&'a Arc<T>>, Option<&'a Arc<T>>);

/// The entries of both lists, side by side.
fn pairs<'a, T: Entry>(before: &'a [Arc<T>], now: &'a [Arc<T>]) -> impl Iterator<Item = Pair<'a, T>> {
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => Ordering::Equal,
            (Some(a), Some(b)) => a.order(b),
        };
        let was = if order == Ordering::Greater { None } else { before.next() };
        Some((was, if order == Ordering::Less { None } else { now.next() }))
    })
}

/// Entries that came, went, or are not what they were.
pub fn differing<'a, T: Entry>(before: &'a [Arc<T>], now: &'a [Arc<T>]) -> impl Iterator<Item = Pair<'a, T>> {
    pairs(before, now).filter(|pair| !matches!(pair, (Some(was), Some(is)) if Arc::ptr_eq(was, is) || was == is))
}

/// Shares the entries that are what they were.
pub fn share<T: Entry>(before: &[Arc<T>], now: &mut [Arc<T>]) {
    let same: Vec<Option<Arc<T>>> = pairs(before, now)
        .filter_map(|pair| match pair {
            (Some(was), Some(is)) => Some((was == is).then(|| Arc::clone(was))),
            (None, Some(_)) => Some(None),
            (_, None) => None,
        })
        .collect();
    for (entry, same) in now.iter_mut().zip(same) {
        if let Some(same) = same {
            *entry = same;
        }
    }
}

impl Entry for TaskEndpoint {
    fn order(&self, other: &Self) -> Ordering {
        self.task_id.cmp(&other.task_id)
    }
}

impl Entry for ServiceVip {
    fn order(&self, other: &Self) -> Ordering {
        self.service_id.cmp(&other.service_id)
    }
}

impl Entry for PublishedPort {
    fn order(&self, other: &Self) -> Ordering {
        (self.protocol, self.published).cmp(&(other.protocol, other.published))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Named = (u8, u8);

    impl Entry for Named {
        fn order(&self, other: &Self) -> Ordering {
            self.0.cmp(&other.0)
        }
    }

    fn list(entries: &BTreeMap<u8, u8>) -> Vec<Arc<Named>> {
        entries.iter().map(|(key, value)| Arc::new((*key, *value))).collect()
    }

    proptest! {
        #[test]
        fn differences_are_what_a_map_would_say(
            before in proptest::collection::btree_map(0_u8..20, 0_u8..3, 0..20),
            now in proptest::collection::btree_map(0_u8..20, 0_u8..3, 0..20),
        ) {
            let (old, mut new) = (list(&before), list(&now));
            let found: Vec<(Option<Named>, Option<Named>)> =
                differing(&old, &new).map(|(was, is)| (was.map(|w| **w), is.map(|i| **i))).collect();
            let wanted: Vec<(Option<Named>, Option<Named>)> = (0..20)
                .filter(|key| before.get(key) != now.get(key))
                .map(|key| (before.get(&key).map(|v| (key, *v)), now.get(&key).map(|v| (key, *v))))
                .collect();
            prop_assert_eq!(&found, &wanted);

            share(&old, &mut new);
            prop_assert_eq!(&new, &list(&now), "nothing is another");
            for entry in &new {
                let same = before.get(&entry.0) == Some(&entry.1);
                prop_assert_eq!(old.iter().any(|was| Arc::ptr_eq(was, entry)), same);
            }
        }
    }
}
