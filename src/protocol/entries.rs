//! Sorted lists of shared entries: equal entries of two lists are the same allocation, so that a reader compares pointers
//! to find what changed.

use crate::model::http::HttpService;
use crate::model::view::{PublishedPort, ServiceNames, ServiceVip, TaskEndpoint};
use std::cmp::Ordering;
use std::sync::Arc;

/// An entry of a sorted list.
pub trait KeyedEntry: PartialEq {
    /// Orders by key; entries with equal keys are versions of one object.
    fn order(&self, other: &Self) -> Ordering;
}

/// An entry before and now; `None`: it did not exist, or exists no longer.
type Pair<'a, T> = (Option<&'a Arc<T>>, Option<&'a Arc<T>>);

/// The entries of both lists, paired by key.
fn pairs<'a, T: KeyedEntry>(before: &'a [Arc<T>], now: &'a [Arc<T>]) -> impl Iterator<Item = Pair<'a, T>> {
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

/// Entries that were added, removed or changed.
pub fn differing<'a, T: KeyedEntry>(before: &'a [Arc<T>], now: &'a [Arc<T>]) -> impl Iterator<Item = Pair<'a, T>> {
    pairs(before, now).filter(|pair| !matches!(pair, (Some(was), Some(is)) if Arc::ptr_eq(was, is) || was == is))
}

/// Replaces unchanged entries by the allocation of the list before.
pub fn share<T: KeyedEntry>(before: &[Arc<T>], now: &mut [Arc<T>]) {
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

impl KeyedEntry for TaskEndpoint {
    fn order(&self, other: &Self) -> Ordering {
        self.task_id.cmp(&other.task_id)
    }
}

impl KeyedEntry for ServiceVip {
    fn order(&self, other: &Self) -> Ordering {
        self.service_id.cmp(&other.service_id)
    }
}

impl KeyedEntry for ServiceNames {
    fn order(&self, other: &Self) -> Ordering {
        self.service_id.cmp(&other.service_id)
    }
}

impl KeyedEntry for PublishedPort {
    fn order(&self, other: &Self) -> Ordering {
        (self.protocol, self.published).cmp(&(other.protocol, other.published))
    }
}

impl KeyedEntry for HttpService {
    fn order(&self, other: &Self) -> Ordering {
        self.service_id.cmp(&other.service_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Named = (u8, u8);

    impl KeyedEntry for Named {
        fn order(&self, other: &Self) -> Ordering {
            self.0.cmp(&other.0)
        }
    }

    fn list(entries: &BTreeMap<u8, u8>) -> Vec<Arc<Named>> {
        entries.iter().map(|(key, value)| Arc::new((*key, *value))).collect()
    }

    proptest! {
        #[test]
        fn differences_match_those_of_a_map(
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
            prop_assert_eq!(&new, &list(&now), "no value changed");
            for entry in &new {
                let same = before.get(&entry.0) == Some(&entry.1);
                prop_assert_eq!(old.iter().any(|was| Arc::ptr_eq(was, entry)), same);
            }
        }
    }
}
