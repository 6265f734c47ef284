//! Documents that several sessions send: when nodes step from the same part of a view to the same next one, the difference is
//! made and encoded once.

use crate::model::view::{ClusterPart, Networks};
use crate::sync::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

/// A message as it travels.
pub type Document = Arc<[u8]>;

/// Steps that are remembered per part. Sessions that are behind by more encode their own.
const STEPS: usize = 8;

/// The documents of the last steps.
#[derive(Default, Debug)]
pub struct SharedDocuments {
    pub(super) networks: Steps<Networks>,
    pub(super) cluster: Steps<ClusterPart>,
    /// For sessions before format [`super::BACKENDS`]: not compressed.
    pub(super) earlier_networks: Steps<Networks>,
    /// As [`Self::earlier_networks`], with whole ports.
    pub(super) earlier_cluster: Steps<ClusterPart>,
}

/// The last steps of one part, the newest last.
#[derive(Debug)]
pub(super) struct Steps<T>(Mutex<VecDeque<EncodedStep<T>>>);

#[derive(Debug)]
struct EncodedStep<T> {
    before: Option<Arc<T>>,
    now: Arc<T>,
    documents: Arc<OnceLock<Vec<Document>>>,
}

impl<T> Default for Steps<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Steps<T> {
    /// The documents of a step, made by `encode` unless another session has made them. Parts are compared by allocation.
    pub(super) fn documents(
        &self,
        before: Option<&Arc<T>>,
        now: &Arc<T>,
        encode: impl FnOnce(Option<&T>, &T) -> Vec<Document>,
    ) -> Vec<Document> {
        let documents = {
            let mut steps = lock(&self.0);
            let same = |step: &&EncodedStep<T>| {
                let same_base = match (&step.before, before) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    _ => false,
                };
                same_base && Arc::ptr_eq(&step.now, now)
            };
            let known = steps.iter().find(same).map(|step| step.documents.clone());
            known.unwrap_or_else(|| {
                // The whole of an earlier state, which is large, is sent to no session that begins now.
                steps.retain(|step| step.before.is_some() || Arc::ptr_eq(&step.now, now));
                let documents = Arc::new(OnceLock::new());
                steps.push_back(EncodedStep { before: before.cloned(), now: now.clone(), documents: documents.clone() });
                if steps.len() > STEPS {
                    steps.pop_front();
                }
                documents
            })
        };
        documents.get_or_init(|| encode(before.map(Arc::as_ref), now)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_encoded_once_for_all_sessions_and_another_base_is_another_step() {
        let (steps, mut made) = (Steps::<u8>::default(), 0);
        let (one, two) = (Arc::new(1), Arc::new(2));
        let mut encode = |before: Option<&Arc<u8>>, now: &Arc<u8>| {
            let documents = steps.documents(before, now, |_, now| {
                made += 1;
                vec![vec![*now].into()]
            });
            assert_eq!(documents, [Document::from(vec![**now])]);
        };
        for _ in 0..100 {
            encode(Some(&one), &two);
            encode(None, &two);
        }
        encode(Some(&Arc::new(1)), &two);
        assert_eq!(made, 3);
        assert_eq!(lock(&steps.0).len(), 3);
    }

    #[test]
    fn the_whole_of_a_state_is_kept_until_there_is_a_later_one() {
        let steps = Steps::<u8>::default();
        let (one, two) = (Arc::new(1), Arc::new(2));
        let encode = |_: Option<&u8>, now: &u8| vec![vec![*now].into()];
        steps.documents(None, &one, encode);
        steps.documents(None, &one, |_, _| unreachable!("it is kept"));
        steps.documents(Some(&one), &two, encode);
        let kept: Vec<bool> = lock(&steps.0).iter().map(|step| step.before.is_some()).collect();
        assert_eq!(kept, [true]);
    }
}
