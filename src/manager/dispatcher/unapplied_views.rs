//! Since when a node has not applied what it was sent.

use crate::model::{Revision, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;

/// Views sent within this time count as one, so that a node that is far behind costs no memory per view.
const SPACING: Duration = Duration::from_millis(500);

/// Views counted one by one; further ones count as sent with the last of them.
const MOST: usize = 128;

/// The views that a node was sent and has not applied, oldest first: when, and the revision with which none of that time is
/// left.
#[derive(Default, Debug)]
pub(super) struct UnappliedViews(VecDeque<(Timestamp, Revision)>);

impl UnappliedViews {
    /// A view was sent.
    pub(super) fn sent(&mut self, now: Timestamp, revision: Revision) {
        let full = self.0.len() >= MOST;
        match self.0.back_mut() {
            Some((at, last)) if full || now.since(*at) < SPACING => *last = revision,
            _ => self.0.push_back((now, revision)),
        }
    }

    /// The node has applied this revision.
    pub(super) fn applied(&mut self, revision: Revision) {
        while self.0.pop_front_if(|(_, sent)| *sent <= revision).is_some() {}
    }

    /// When the oldest view was sent that the node has not applied; `None`: it has applied all.
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.0.front().map(|(at, _)| *at)
    }

    /// Corrects the times by a function of them.
    pub(super) fn adjust(&mut self, correct: impl Fn(Timestamp) -> Timestamp) {
        for (at, _) in &mut self.0 {
            *at = correct(*at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp(0).plus(Duration::from_millis(ms))
    }
    fn revision(index: u64) -> Revision {
        Revision { incarnation: 1, index }
    }

    #[test]
    fn the_time_is_that_of_the_oldest_view_that_is_not_applied() {
        let mut views = UnappliedViews::default();
        assert_eq!(views.since(), None);
        for (ms, index) in [(0, 5), (600, 6), (700, 7), (1300, 8)] {
            views.sent(at(ms), revision(index));
        }
        assert_eq!(views.since(), Some(at(0)));
        views.applied(revision(5));
        assert_eq!(views.since(), Some(at(600)), "5 was all of the first half second");
        views.applied(revision(6));
        assert_eq!(views.since(), Some(at(600)), "7 counts as sent with 6");
        views.applied(revision(8));
        assert_eq!(views.since(), None);
    }

    #[test]
    fn a_node_that_applies_nothing_costs_bounded_memory() {
        let mut views = UnappliedViews::default();
        for index in 0..10_000 {
            views.sent(at(index * 1000), revision(index));
        }
        assert_eq!((views.0.len(), views.since()), (MOST, Some(at(0))));
        views.applied(revision(9_999));
        assert_eq!(views.since(), None);
    }
}
