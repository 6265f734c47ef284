//! Outcomes of the last proposals by their ids. A manager whose leader did not answer sends its proposal again, to the same
//! leader or the next: a leader that has written it answers with the outcome.

use super::entry::ApplyOutcome;
use crate::sync::lock;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use tokio::sync::Notify;

/// Proposals that are remembered: those of some seconds at the highest rate.
const REMEMBERED: usize = 4096;

#[derive(Default)]
struct Remembered {
    by_id: BTreeMap<u64, (u64, ApplyOutcome)>,
    /// Ids, oldest first.
    order: VecDeque<u64>,
    in_flight: BTreeSet<u64>,
}

/// The outcomes.
#[derive(Default)]
pub struct RecentOutcomes {
    remembered: Mutex<Remembered>,
    ended: Notify,
}

impl std::fmt::Debug for RecentOutcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecentOutcomes")
    }
}

/// A proposal whose outcome is not known yet.
pub(super) struct InFlight<'a> {
    outcomes: &'a RecentOutcomes,
    id: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.outcomes.remembered).in_flight.remove(&self.id);
        self.outcomes.ended.notify_waiters();
    }
}

impl RecentOutcomes {
    /// An entry was applied.
    pub(super) fn applied(&self, id: u64, index: u64, outcome: ApplyOutcome) {
        let mut remembered = lock(&self.remembered);
        if remembered.by_id.insert(id, (index, outcome)).is_none() {
            remembered.order.push_back(id);
        }
        if remembered.order.len() > REMEMBERED
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.by_id.remove(&oldest);
        }
    }

    /// Marks a proposal as in flight until the guard is dropped.
    pub(super) fn begin(&self, id: u64) -> InFlight<'_> {
        lock(&self.remembered).in_flight.insert(id);
        InFlight { outcomes: self, id }
    }

    /// The outcome of a proposal that was applied; waits for one that is in flight. `None` if there is none.
    pub(super) async fn known(&self, id: u64) -> Option<(u64, ApplyOutcome)> {
        loop {
            let ended = self.ended.notified();
            {
                let remembered = lock(&self.remembered);
                if let Some(known) = remembered.by_id.get(&id) {
                    return Some(known.clone());
                }
                if !remembered.in_flight.contains(&id) {
                    return None;
                }
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_proposal_that_comes_twice_has_one_outcome() {
        let outcomes = RecentOutcomes::default();
        assert_eq!(outcomes.known(7).await, None);
        let in_flight = outcomes.begin(7);
        let again = async { outcomes.known(7).await };
        let written = async {
            outcomes.applied(7, 42, Ok(()));
            drop(in_flight);
        };
        let (again, ()) = tokio::join!(again, written);
        assert_eq!(again, Some((42, Ok(()))));
        drop(outcomes.begin(8));
        assert_eq!(outcomes.known(8).await, None, "it was never applied");
    }

    #[tokio::test]
    async fn old_outcomes_are_forgotten() {
        let outcomes = RecentOutcomes::default();
        for id in 0..=REMEMBERED as u64 {
            outcomes.applied(id, id, Ok(()));
        }
        assert_eq!(outcomes.known(0).await, None);
        assert_eq!(outcomes.known(1).await, Some((1, Ok(()))));
    }
}
