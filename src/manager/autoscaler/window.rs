//! When the number of replicas changes: up at once by need, down when fewer were enough for a whole [`WINDOW`], with a tenth to
//! spare. Pure.

use crate::model::Timestamp;
use crate::model::autoscale::AutoscaleLabels;
use std::collections::VecDeque;
use std::time::Duration;

/// How long fewer replicas must have been enough.
pub const WINDOW: Duration = Duration::from_mins(1);

/// What is known of a service's load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceLoad {
    /// As its spec says now.
    pub replicas: u64,
    /// Of all its running tasks that were counted.
    pub connections: u64,
    /// All its running tasks were counted, and it is not being updated. Otherwise nothing is taken away.
    pub is_known: bool,
}

/// The needs of a service in the last [`WINDOW`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadWindow {
    since: Timestamp,
    /// Needs and when they were seen, older first; each is more than all later ones, so that the first is the most.
    needs: VecDeque<(Timestamp, u64)>,
}

impl LoadWindow {
    /// Nothing is known of the time before.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { since: now, needs: VecDeque::new() }
    }

    /// Takes the load of this moment; the number of replicas, if it is to change.
    pub fn decide(&mut self, load: &ServiceLoad, labels: AutoscaleLabels, now: Timestamp) -> Option<u64> {
        let up = labels.needed(load.connections);
        let spare = labels.needed(load.connections.saturating_mul(11).div_ceil(10));
        let kept = if load.is_known { spare } else { load.replicas.clamp(labels.min, labels.max).max(up) };
        self.see(now, kept);
        if up > load.replicas {
            return Some(up);
        }
        let most = self.needs.front().map_or(load.replicas, |(_, need)| *need);
        (now.since(self.since) >= WINDOW && most < load.replicas).then_some(most)
    }

    fn see(&mut self, now: Timestamp, need: u64) {
        // The clock was set back.
        if now < self.since || self.needs.back().is_some_and(|(at, _)| *at > now) {
            *self = Self::new(now);
        }
        while self.needs.back().is_some_and(|(_, other)| *other <= need) {
            self.needs.pop_back();
        }
        self.needs.push_back((now, need));
        while self.needs.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            self.needs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    const LABELS: AutoscaleLabels = AutoscaleLabels { min: 1, max: 10, connections: 10 };

    /// A service under a load that is a function of the second: replicas after each change, with its second.
    fn changes(seconds: i64, load: impl Fn(i64) -> Option<u64>) -> Vec<(i64, u64)> {
        let at = |second: i64| Timestamp(second * 1_000_000_000);
        let (mut window, mut replicas, mut changes) = (LoadWindow::new(at(0)), 1, Vec::new());
        for second in 0..seconds {
            let connections = load(second);
            let load = ServiceLoad { replicas, connections: connections.unwrap_or(0), is_known: connections.is_some() };
            if let Some(to) = window.decide(&load, LABELS, at(second)) {
                replicas = to;
                changes.push((second, to));
            }
        }
        changes
    }

    #[test]
    fn a_step_up_is_followed_at_once_and_a_step_down_after_the_window() {
        let step = changes(300, |second| Some(if (20..100).contains(&second) { 45 } else { 5 }));
        assert_eq!(step, [(20, 5), (160, 1)]);
        let stairs = changes(300, |second| Some(u64::try_from(second / 30 * 10 + 1).unwrap().min(41)));
        assert_eq!(stairs, [(30, 2), (60, 3), (90, 4), (120, 5)]);
    }

    #[test]
    fn bursts_within_the_window_cost_one_change_up() {
        // Ten seconds of every fifty.
        let bursts = changes(1000, |second| Some(if second % 50 < 10 { 80 } else { 5 }));
        assert_eq!(bursts, [(0, 8)]);
    }

    #[test]
    fn noise_at_a_threshold_does_not_flap() {
        let mut rng = StdRng::seed_from_u64(7);
        let noise: Vec<u64> = (0..2000).map(|_| rng.random_range(28..=32)).collect();
        let noisy = changes(2000, |second| Some(noise[usize::try_from(second).unwrap()]));
        assert_eq!(noisy.last().map(|(_, replicas)| *replicas), Some(4));
        assert!(noisy.len() <= 2, "{noisy:?}");
        // However the load goes, two changes down are a window apart.
        let wild: Vec<u64> = (0..5000).map(|_| rng.random_range(0..=120)).collect();
        let wild = changes(5000, |second| Some(wild[usize::try_from(second).unwrap()]));
        assert!(wild.len() <= 12, "{wild:?}");
    }

    #[test]
    fn replicas_stay_within_the_range_and_nothing_is_taken_away_of_which_nothing_is_known() {
        assert_eq!(changes(100, |_| Some(100_000)), [(0, 10)]);
        let unknown = changes(1000, |second| (second < 10).then_some(50));
        assert_eq!(unknown, [(0, 5)], "no report since");
        let back = changes(1000, |second| (!(10..500).contains(&second)).then_some(if second < 10 { 50 } else { 5 }));
        assert_eq!(back, [(0, 5), (560, 1)], "a whole window after the reports came back");
    }

    #[test]
    fn a_new_leader_takes_nothing_away_for_a_window() {
        let at = |second: i64| Timestamp(second * 1_000_000_000);
        let (mut window, load) = (LoadWindow::new(at(1000)), ServiceLoad { replicas: 6, connections: 3, is_known: true });
        assert_eq!(window.decide(&load, LABELS, at(1059)), None);
        assert_eq!(window.decide(&load, LABELS, at(1060)), Some(1));
        assert_eq!(window.decide(&load, LABELS, at(10)), None, "the clock was set back");
    }
}
