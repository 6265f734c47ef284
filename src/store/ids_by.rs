//! Ids by a key that several objects may have. The key is kept once, not with each id: of the tasks of a service or a node
//! there are many.

use imbl::{OrdMap, OrdSet};
use std::ops::Bound;
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct IdsBy<K: Ord, I: Ord>(OrdMap<K, Ids<I>>);

/// The ids of one key, at least one, in order. Which of the two depends on their number alone, so that equal ones are equal.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Ids<I: Ord> {
    /// [`FEW`] at most: the nodes of a set have room for more than most keys have.
    Few(Arc<[I]>),
    Many(OrdSet<I>),
}

const FEW: usize = 16;

impl<K: Ord, I: Ord> Default for IdsBy<K, I> {
    fn default() -> Self {
        Self(OrdMap::default())
    }
}

impl<K: Ord + Clone, I: Ord + Clone> IdsBy<K, I> {
    pub(super) fn insert(&mut self, key: &K, id: &I) {
        match self.0.get_mut(key) {
            Some(ids) => ids.insert(id),
            None => drop(self.0.insert(key.clone(), Ids::Few([id.clone()].into()))),
        }
    }
    pub(super) fn remove(&mut self, key: &K, id: &I) {
        if self.0.get_mut(key).is_some_and(|ids| ids.remove(id)) {
            self.0.remove(key);
        }
    }
    /// The ids with this key, in order.
    pub(super) fn of<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a I> + use<'a, K, I> {
        self.0.get(key).into_iter().flat_map(Ids::iter)
    }
    /// The ids with this key, from one on, in order.
    pub(super) fn from<'a>(&'a self, key: &K, first: &I) -> impl Iterator<Item = &'a I> + use<'a, K, I> {
        self.0.get(key).map(|ids| ids.from(first)).into_iter().flatten()
    }
    /// All keys with their ids, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = (&K, &I)> {
        self.0.iter().flat_map(|(key, ids)| ids.iter().map(move |id| (key, id)))
    }
}

impl<I: Ord + Clone> Ids<I> {
    fn insert(&mut self, id: &I) {
        match self {
            Self::Many(ids) => drop(ids.insert(id.clone())),
            Self::Few(ids) => {
                let Err(at) = ids.binary_search(id) else { return };
                let all = ids[..at].iter().chain([id]).chain(&ids[at..]).cloned();
                *self = if ids.len() < FEW { Self::Few(all.collect()) } else { Self::Many(all.collect()) };
            }
        }
    }

    /// Says whether none is left; the last one stays.
    fn remove(&mut self, id: &I) -> bool {
        match self {
            Self::Many(ids) => {
                ids.remove(id);
                if ids.len() <= FEW {
                    *self = Self::Few(ids.iter().cloned().collect());
                }
            }
            Self::Few(ids) => {
                let Ok(at) = ids.binary_search(id) else { return false };
                if ids.len() == 1 {
                    return true;
                }
                *ids = ids[..at].iter().chain(&ids[at + 1..]).cloned().collect();
            }
        }
        false
    }

    fn iter(&self) -> impl Iterator<Item = &I> {
        let (few, many) = match self {
            Self::Few(ids) => (Some(ids.iter()), None),
            Self::Many(ids) => (None, Some(ids.iter())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    fn from<'a>(&'a self, first: &I) -> impl Iterator<Item = &'a I> + use<'a, I> {
        let (few, many) = match self {
            Self::Few(ids) => (Some(&ids[ids.partition_point(|id| id < first)..]), None),
            Self::Many(ids) => (None, Some(ids.range::<_, I>((Bound::Included(first), Bound::Unbounded)))),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_has_what_a_set_of_pairs_has(writes in proptest::collection::vec((0_u8..3, 0_u8..40, any::<bool>()), 0..300)) {
            let (mut ids, mut pairs) = (IdsBy::default(), BTreeSet::new());
            for (key, id, is_there) in writes {
                if is_there {
                    ids.insert(&key, &id);
                    pairs.insert((key, id));
                } else {
                    ids.remove(&key, &id);
                    pairs.remove(&(key, id));
                }
            }
            prop_assert!(ids.all().eq(pairs.iter().map(|(key, id)| (key, id))));
            for key in 0..3 {
                prop_assert!(ids.of(&key).eq(pairs.range((key, 0)..=(key, u8::MAX)).map(|(_, id)| id)));
                prop_assert!(ids.from(&key, &17).eq(pairs.range((key, 17)..=(key, u8::MAX)).map(|(_, id)| id)));
            }
            let mut other = IdsBy::default();
            pairs.iter().rev().for_each(|(key, id)| other.insert(key, id));
            prop_assert_eq!(other, ids);
        }
    }
}
