//! When the number of replicas changes: up at once by need, down when fewer were enough for a whole [`WINDOW`], with a tenth to
//! spare. To 0 when nothing was there for the time that the service's labels say, and from 0 as soon as something waits. Pure.

use crate::model::Timestamp;
use crate::model::autoscale::{AutoscaleLabels, ScalingReason};
use std::collections::VecDeque;
use std::time::Duration;

/// How long fewer replicas must have been enough.
pub const WINDOW: Duration = Duration::from_mins(1);

/// What is known of a service's load.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ServiceLoad {
    /// As its spec says now.
    pub replicas: u64,
    /// Of all its running tasks that were counted.
    pub connections: u64,
    /// HTTP requests on all nodes, in tenths of one per second.
    pub request_tenths: u64,
    /// Connections and requests that wait for a task.
    pub waiting: u64,
    /// All its running tasks were counted, and it is not being updated. Otherwise nothing is taken away.
    pub tasks_known: bool,
    /// No task runs that a client could be connected to: they start, or cannot.
    pub none_runs: bool,
    /// All nodes have said what their clients do. Otherwise nothing is taken away by requests, nor the last task.
    pub demand_known: bool,
}

/// A number of replicas, and why, if not for connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScalingDecision {
    pub to: u64,
    pub reason: Option<ScalingReason>,
}

/// The needs of a service in the last [`WINDOW`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadWindow {
    since: Timestamp,
    /// When it was last in use, or may have been.
    used: Timestamp,
    /// Needs and when they were seen, older first; each is more than all later ones, so that the first is the most.
    needs: VecDeque<(Timestamp, u64)>,
}

impl LoadWindow {
    /// Nothing is known of the time before.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { since: now, used: now, needs: VecDeque::new() }
    }

    /// Takes the load of this moment; the number of replicas, if it is to change.
    pub fn decide(&mut self, load: &ServiceLoad, labels: AutoscaleLabels, now: Timestamp) -> Option<ScalingDecision> {
        // What waits is a connection that has no task yet.
        let connections = load.connections.saturating_add(load.waiting);
        let up = labels.needed(connections, load.request_tenths);
        let by_load = |to| {
            let of_requests = labels.needed(0, load.request_tenths);
            let tells = of_requests > labels.needed(connections, 0) || labels.connections.is_none();
            let reason = labels.requests.filter(|_| tells).map(|per_replica| {
                let tenths = load.request_tenths;
                ScalingReason::Requests { tenths, per_replica }
            });
            Some(ScalingDecision { to, reason })
        };
        if load.replicas == 0 {
            *self = Self::new(now);
            let decision = ScalingDecision { to: up, reason: Some(ScalingReason::Waiting(load.waiting)) };
            return (load.waiting > 0).then_some(decision);
        }
        let more = |load: u64| load.saturating_mul(11).div_ceil(10);
        let spare = labels.needed(more(connections), more(load.request_tenths));
        let is_known = load.tasks_known && (load.demand_known || labels.requests.is_none());
        let kept = if is_known { spare } else { load.replicas.clamp(labels.min, labels.max).max(up) };
        self.see(now, kept);
        let is_used = connections > 0 || load.request_tenths > 0;
        let may_be_used = !load.tasks_known && !load.none_runs || !load.demand_known;
        if is_used || may_be_used || now < self.used {
            self.used = now;
        }
        if up > load.replicas {
            return by_load(up);
        }
        if labels.reaches_zero() && now.since(self.used) >= labels.idle {
            return Some(ScalingDecision { to: 0, reason: Some(ScalingReason::Idle(labels.idle.as_secs())) });
        }
        let most = self.needs.front().map_or(load.replicas, |(_, need)| *need);
        if now.since(self.since) >= WINDOW && most < load.replicas { by_load(most) } else { None }
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

    const LABELS: AutoscaleLabels =
        AutoscaleLabels { min: 1, max: 10, connections: Some(10), requests: None, idle: Duration::from_mins(2) };

    fn at(second: i64) -> Timestamp {
        Timestamp(second * 1_000_000_000)
    }

    /// A load of which all is known.
    fn known(connections: u64) -> ServiceLoad {
        ServiceLoad { connections, tasks_known: true, demand_known: true, ..ServiceLoad::default() }
    }

    /// A service under a load that is a function of the second: replicas after each change, with its second.
    fn changes(seconds: i64, labels: AutoscaleLabels, load: impl Fn(i64) -> ServiceLoad) -> Vec<(i64, u64)> {
        let (mut window, mut replicas, mut changes) = (LoadWindow::new(at(0)), 1, Vec::new());
        for second in 0..seconds {
            let load = ServiceLoad { replicas, ..load(second) };
            if let Some(decision) = window.decide(&load, labels, at(second)) {
                assert_ne!(decision.to, replicas);
                replicas = decision.to;
                changes.push((second, replicas));
            }
        }
        changes
    }

    /// The same of connections alone; `None`: nothing is known of the tasks.
    fn of_connections(seconds: i64, load: impl Fn(i64) -> Option<u64>) -> Vec<(i64, u64)> {
        changes(seconds, LABELS, |second| {
            load(second).map_or(ServiceLoad { demand_known: true, ..ServiceLoad::default() }, known)
        })
    }

    #[test]
    fn a_step_up_is_followed_at_once_and_a_step_down_after_the_window() {
        let step = of_connections(300, |second| Some(if (20..100).contains(&second) { 45 } else { 5 }));
        assert_eq!(step, [(20, 5), (160, 1)]);
        let stairs = of_connections(300, |second| Some(u64::try_from(second / 30 * 10 + 1).unwrap().min(41)));
        assert_eq!(stairs, [(30, 2), (60, 3), (90, 4), (120, 5)]);
    }

    #[test]
    fn bursts_within_the_window_cost_one_change_up() {
        // Ten seconds of every fifty.
        let bursts = of_connections(1000, |second| Some(if second % 50 < 10 { 80 } else { 5 }));
        assert_eq!(bursts, [(0, 8)]);
    }

    #[test]
    fn noise_at_a_threshold_does_not_flap() {
        let mut rng = StdRng::seed_from_u64(7);
        let noise: Vec<u64> = (0..2000).map(|_| rng.random_range(28..=32)).collect();
        let noisy = of_connections(2000, |second| Some(noise[usize::try_from(second).unwrap()]));
        assert_eq!(noisy.last().map(|(_, replicas)| *replicas), Some(4));
        assert!(noisy.len() <= 2, "{noisy:?}");
        // However the load goes, two changes down are a window apart.
        let wild: Vec<u64> = (0..5000).map(|_| rng.random_range(0..=120)).collect();
        let wild = of_connections(5000, |second| Some(wild[usize::try_from(second).unwrap()]));
        assert!(wild.len() <= 12, "{wild:?}");
    }

    #[test]
    fn replicas_stay_within_the_range_and_nothing_is_taken_away_of_which_nothing_is_known() {
        assert_eq!(of_connections(100, |_| Some(100_000)), [(0, 10)]);
        let unknown = of_connections(1000, |second| (second < 10).then_some(50));
        assert_eq!(unknown, [(0, 5)], "no report since");
        let back = of_connections(1000, |second| (!(10..500).contains(&second)).then_some(if second < 10 { 50 } else { 5 }));
        assert_eq!(back, [(0, 5), (560, 1)], "a whole window after the reports came back");
    }

    #[test]
    fn a_new_leader_takes_nothing_away_for_a_window() {
        let (mut window, load) = (LoadWindow::new(at(1000)), ServiceLoad { replicas: 6, ..known(3) });
        let mut to = |second| window.decide(&load, LABELS, at(second)).map(|decision| decision.to);
        assert_eq!(to(1059), None);
        assert_eq!(to(1060), Some(1));
        assert_eq!(to(10), None, "the clock was set back");
    }

    #[test]
    fn requests_make_replicas_as_connections_do_and_none_is_taken_away_while_a_node_is_silent() {
        let labels = AutoscaleLabels { connections: None, requests: Some(20), ..LABELS };
        let load = |request_tenths| ServiceLoad { request_tenths, ..known(0) };
        let step = changes(300, labels, |second| load(if (20..100).contains(&second) { 901 } else { 50 }));
        assert_eq!(step, [(20, 5), (160, 1)]);
        let silent =
            changes(500, labels, |second| ServiceLoad { demand_known: second < 20, ..load(if second < 20 { 901 } else { 50 }) });
        assert_eq!(silent, [(0, 5)]);
        let one = ServiceLoad { replicas: 1, ..load(213) };
        let reason = ScalingReason::Requests { tenths: 213, per_replica: 20 };
        let decided = LoadWindow::new(at(0)).decide(&one, labels, at(1));
        assert_eq!(decided, Some(ScalingDecision { to: 2, reason: Some(reason) }));
        let both = AutoscaleLabels { connections: Some(10), ..labels };
        let decided = LoadWindow::new(at(0)).decide(&ServiceLoad { connections: 90, ..one }, both, at(1));
        assert_eq!(decided, Some(ScalingDecision { to: 9, reason: None }), "it has that many for its connections");
    }

    /// From 0, and to 0 after two minutes.
    const TO_ZERO: AutoscaleLabels = AutoscaleLabels { min: 0, ..LABELS };

    #[test]
    fn a_service_without_clients_goes_to_0_and_comes_back_at_once_for_what_waits() {
        let load = |second: i64| match second {
            100 | 505..=510 => known(1),
            // One waits, its task starts, it is served, and is gone.
            500 => ServiceLoad { waiting: 1, ..known(0) },
            501..=504 => ServiceLoad { waiting: 1, demand_known: true, ..ServiceLoad::default() },
            _ => known(0),
        };
        assert_eq!(changes(1000, TO_ZERO, load), [(220, 0), (500, 1), (630, 0)]);
        assert_eq!(changes(1000, LABELS, load), [], "the least is 1");
        let many = changes(10, TO_ZERO, |_| ServiceLoad { waiting: 35, ..known(0) });
        assert_eq!(many, [(0, 4)]);
        let mut window = LoadWindow::new(at(0));
        let waits = ServiceLoad { waiting: 2, ..known(0) };
        let decided = window.decide(&waits, TO_ZERO, at(1));
        assert_eq!(decided, Some(ScalingDecision { to: 1, reason: Some(ScalingReason::Waiting(2)) }));
        let idle = ServiceLoad { replicas: 3, ..known(0) };
        let decided = (2..200).find_map(|second| Some((second, window.decide(&idle, TO_ZERO, at(second))?)));
        assert_eq!(decided.map(|(second, decision)| (second, decision.to)), Some((61, 1)), "one, once the window is over");
        let idle = ServiceLoad { replicas: 1, ..idle };
        let decided = (62..200).find_map(|second| Some((second, window.decide(&idle, TO_ZERO, at(second))?)));
        assert_eq!(decided, Some((121, ScalingDecision { to: 0, reason: Some(ScalingReason::Idle(120)) })));
    }

    /// Its image cannot be pulled, or its process ends at once: those who waited have left.
    #[test]
    fn a_service_whose_tasks_never_run_goes_back_to_0() {
        let fails = ServiceLoad { none_runs: true, demand_known: true, ..ServiceLoad::default() };
        let load = |second| match second {
            0..10 => known(0),
            300..=330 => ServiceLoad { waiting: 1, ..fails },
            _ => fails,
        };
        assert_eq!(changes(1000, TO_ZERO, load), [(120, 0), (300, 1), (450, 0)]);
        assert_eq!(changes(1000, LABELS, load), [], "the least is 1");
        let silent = changes(1000, TO_ZERO, |second| ServiceLoad { demand_known: second < 10, ..fails });
        assert_eq!(silent, [], "a node may have clients that wait");
    }

    #[test]
    fn the_last_task_stays_while_anything_of_it_was_not_counted_or_a_request_comes_now_and_then() {
        for missing in [
            ServiceLoad { tasks_known: false, ..known(0) },
            ServiceLoad { demand_known: false, ..known(0) },
            ServiceLoad { request_tenths: 1, ..known(0) },
        ] {
            let now_and_then = changes(2000, TO_ZERO, |second| if second % 100 == 7 { missing } else { known(0) });
            assert_eq!(now_and_then, [], "{missing:?}");
        }
        let mut window = LoadWindow::new(at(1000));
        let idle = ServiceLoad { replicas: 1, ..known(0) };
        assert_eq!(window.decide(&idle, TO_ZERO, at(1119)), None, "a new leader knows nothing of the time before");
        assert_eq!(window.decide(&idle, TO_ZERO, at(500)), None, "the clock was set back");
        assert_eq!(window.decide(&idle, TO_ZERO, at(619)), None);
        assert_eq!(window.decide(&idle, TO_ZERO, at(620)).map(|decision| decision.to), Some(0));
    }
}
