//! Labels of a service whose number of replicas follows its load, and what was made of them. Docker's spec has no field for
//! either, and every client passes labels through.

use super::service_mode::ServiceMode;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// `min..max`: the fewest and the most replicas.
pub const RANGE: &str = "skep.autoscale";
/// Established TCP connections that a replica is to have at most, on average.
pub const CONNECTIONS: &str = "skep.autoscale.connections";
/// HTTP requests per second that a replica is to get at most, on average.
pub const REQUESTS: &str = "skep.autoscale.requests";
/// How long a service has no connection before it is scaled to 0.
pub const IDLE: &str = "skep.autoscale.idle";
const FURTHER: [&str; 3] = [CONNECTIONS, REQUESTS, IDLE];
/// Most replicas that a range may name.
const MOST_REPLICAS: u64 = 10_000;
/// Most connections per replica, and most requests per second.
const MOST_LOAD: u64 = 1_000_000;
/// [`IDLE`] of a service that does not say.
const DEFAULT_IDLE: Duration = Duration::from_mins(5);
/// Bounds of [`IDLE`].
const IDLE_BOUNDS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_hours(24));
/// Changes that a service keeps for its history.
pub(super) const KEPT: usize = 32;

/// The parsed labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AutoscaleLabels {
    pub min: u64,
    /// At least 1.
    pub max: u64,
    /// Connections per replica, at least 1.
    pub connections: Option<u64>,
    /// Requests per second and replica, at least 1.
    pub requests: Option<u64>,
    /// For a range from 0.
    pub idle: Duration,
}

impl AutoscaleLabels {
    /// Parses the labels of a service; other labels are ignored. `None`: it is not scaled by load.
    ///
    /// # Errors
    /// Text for the user: which label is wrong, and what is valid.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Option<Self>, String> {
        let further = || labels.keys().filter(|key| key.strip_prefix(RANGE).is_some_and(|rest| rest.starts_with('.')));
        if let Some(unknown) = further().find(|key| !FURTHER.contains(&key.as_str())) {
            return Err(format!("label {unknown}: skep scales by {CONNECTIONS} and {REQUESTS}, and to 0 after {IDLE}"));
        }
        let Some(range) = labels.get(RANGE) else {
            let alone = further().next();
            return alone.map_or(Ok(None), |alone| Err(format!("label {alone}: it does nothing without {RANGE}=min..max")));
        };
        let wrong = |why: &str| Err(format!("label {RANGE}={range}: {why}"));
        let numbers = range.split_once("..").and_then(|(min, max)| Some((min.trim().parse().ok()?, max.trim().parse().ok()?)));
        let (min, max): (u64, u64) = match numbers {
            Some((min, max)) if min <= max && (1..=MOST_REPLICAS).contains(&max) => (min, max),
            _ => return wrong(&format!("must be min..max, as 2..20, with at most {MOST_REPLICAS} replicas")),
        };
        let (connections, requests) = (per_replica(labels, CONNECTIONS)?, per_replica(labels, REQUESTS)?);
        // From 0 to 1 there is nothing to count but whether there is a connection at all.
        if connections.is_none() && requests.is_none() && (min, max) != (0, 1) {
            return wrong(&format!(
                "it needs {CONNECTIONS}=N, the established TCP connections that a replica is to have at most, or {REQUESTS}=N, HTTP \
                 requests per second (1 to {MOST_LOAD})"
            ));
        }
        let idle = match labels.get(IDLE) {
            None => DEFAULT_IDLE,
            Some(_) if min > 0 => return Err(format!("label {IDLE}: it does nothing unless {RANGE} begins with 0")),
            Some(text) => idle(text)?,
        };
        Ok(Some(Self { min, max, connections, requests, idle }))
    }

    /// Refuses labels that contradict the mode of their service.
    ///
    /// # Errors
    /// As [`AutoscaleLabels::read`].
    pub fn check(labels: &BTreeMap<String, String>, mode: &ServiceMode) -> Result<(), String> {
        let Some(read) = Self::read(labels)? else { return Ok(()) };
        if mode.is_global() || mode.is_job() {
            return Err(format!("label {RANGE}: only replicated services are scaled, this one is {}", mode.as_str()));
        }
        let (replicas, Self { min, max, .. }) = (mode.replicas(), read);
        if (min..=max).contains(&replicas) {
            return Ok(());
        }
        let set = [RANGE].into_iter().chain(FURTHER).filter(|key| labels.contains_key(*key));
        let remove: Vec<String> = set.map(|key| format!("--label-rm {key}")).collect();
        Err(format!(
            "label {RANGE}={min}..{max}: {replicas} replicas are outside of it: choose a number within, change the label, or remove it \
             with docker service update {}",
            remove.join(" ")
        ))
    }

    /// Whether the service may have no task at all.
    #[must_use]
    pub fn reaches_zero(self) -> bool {
        self.min == 0
    }

    /// Replicas for so many connections, and tenths of a request per second. At least 1.
    #[must_use]
    pub fn needed(self, connections: u64, request_tenths: u64) -> u64 {
        let by_connections = self.connections.map_or(0, |most| connections.div_ceil(most));
        let by_requests = self.requests.map_or(0, |most| request_tenths.div_ceil(most.saturating_mul(10)));
        by_connections.max(by_requests).clamp(self.min.max(1), self.max)
    }
}

fn per_replica(labels: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>, String> {
    let Some(text) = labels.get(key) else { return Ok(None) };
    match text.trim().parse::<u64>() {
        Ok(number @ 1..=MOST_LOAD) => Ok(Some(number)),
        _ => Err(format!("label {key}={text}: must be what a replica is to have at most, a number from 1 to {MOST_LOAD}")),
    }
}

/// Seconds, minutes or hours.
fn idle(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = IDLE_BOUNDS;
    let number = |unit: char, seconds: u64| {
        let number = text.trim().strip_suffix(unit)?.parse::<u64>().ok()?;
        Some(Duration::from_secs(number.checked_mul(seconds)?))
    };
    let read = number('s', 1).or_else(|| number('m', 60)).or_else(|| number('h', 3600));
    read.filter(|idle| (shortest..=longest).contains(idle))
        .ok_or_else(|| format!("label {IDLE}={text}: must be a time from {}s to 24h, as 90s or 5m", shortest.as_secs()))
}

/// A change of a service's number of replicas by its load.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scaling {
    pub at: Timestamp,
    pub from: u64,
    pub to: u64,
    /// Connections of all its replicas at that time.
    pub connections: u64,
    /// As its label said; 0 without that label.
    pub per_replica: u64,
    /// Absent: its connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ScalingReason>,
}

/// Why a service was scaled, if not by its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ScalingReason {
    /// Tenths of an HTTP request per second, and what a replica is to get as the label said.
    Requests { tenths: u64, per_replica: u64 },
    /// It had no task, and so many connections and requests waited for one.
    Waiting(u64),
    /// It had no connection for so many seconds.
    Idle(u64),
}

impl Scaling {
    /// Adds a change to those that a service keeps.
    pub fn add_to(&self, kept: &mut Vec<Self>) {
        kept.push(self.clone());
        kept.drain(..kept.len().saturating_sub(KEPT));
    }

    /// For people.
    #[must_use]
    pub fn why(&self) -> String {
        let Self { from, to, connections, per_replica, reason, .. } = self;
        let why = match reason {
            None => format!("by load: {connections} connections, {per_replica} per replica"),
            Some(ScalingReason::Requests { tenths, per_replica }) => {
                format!("by load: {}.{} requests per second, {per_replica} per replica", tenths / 10, tenths % 10)
            }
            Some(ScalingReason::Waiting(1)) => "for 1 connection or request that waits".to_owned(),
            Some(ScalingReason::Waiting(count)) => format!("for {count} connections or requests that wait"),
            Some(ScalingReason::Idle(seconds)) => format!("after {seconds} s without a connection"),
        };
        format!("{from} to {to} replicas {why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service_mode::Replicated;

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_range_with_what_is_counted_is_read_and_anything_that_would_do_nothing_is_refused() {
        let read = |pairs: &[(&str, &str)]| AutoscaleLabels::read(&labels(pairs));
        assert_eq!(read(&[("a", "b"), ("skep.allow", "10.0.0.0/8")]), Ok(None));
        let expected = AutoscaleLabels { min: 2, max: 20, connections: Some(50), requests: None, idle: DEFAULT_IDLE };
        assert_eq!(read(&[(RANGE, "2..20"), (CONNECTIONS, "50")]), Ok(Some(expected)));
        let both = AutoscaleLabels { min: 0, requests: Some(9), idle: Duration::from_secs(90), ..expected };
        assert_eq!(read(&[(RANGE, "0..20"), (CONNECTIONS, "50"), (REQUESTS, " 9"), (IDLE, "90s")]), Ok(Some(both)));
        let switch = AutoscaleLabels { min: 0, max: 1, connections: None, ..expected };
        assert_eq!(read(&[(RANGE, "0..1")]), Ok(Some(switch)));
        for (wrong, reason) in [
            (&[(RANGE, "0..0"), (CONNECTIONS, "5")][..], "must be min..max"),
            (&[(RANGE, "5..2"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "1..10001"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "5"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "-1..5"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "1..5")], CONNECTIONS),
            (&[(RANGE, "0..2")], REQUESTS),
            (&[(RANGE, "1..5"), (CONNECTIONS, "0")], "at most"),
            (&[(RANGE, "1..5"), (REQUESTS, "x")], "at most"),
            (&[(CONNECTIONS, "5")], "does nothing"),
            (&[(IDLE, "5m")], "does nothing"),
            (&[(RANGE, "1..5"), (CONNECTIONS, "5"), (IDLE, "5m")], "does nothing"),
            (&[(RANGE, "0..1"), (IDLE, "9s")], "from 10s to 24h"),
            (&[(RANGE, "0..1"), (IDLE, "25h")], "from 10s to 24h"),
            (&[(RANGE, "0..1"), (IDLE, "99999999999999999999h")], "from 10s to 24h"),
            (&[(RANGE, "1..5"), (CONNECTIONS, "5"), ("skep.autoscale.cpu", "9")], "skep.autoscale.cpu"),
        ] {
            let error = read(wrong).expect_err("refused");
            assert!(error.contains(reason), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn what_needs_more_replicas_decides() {
        let labels = AutoscaleLabels { min: 0, max: 9, connections: Some(10), requests: Some(2), idle: DEFAULT_IDLE };
        for (connections, tenths, needed) in
            [(0, 0, 1), (11, 0, 2), (11, 41, 3), (31, 41, 4), (0, 20, 1), (0, 21, 2), (999, 0, 9)]
        {
            assert_eq!(labels.needed(connections, tenths), needed, "{connections} {tenths}");
        }
        assert_eq!(AutoscaleLabels { requests: None, ..labels }.needed(1, 900), 1);
    }

    #[test]
    fn replicas_outside_of_the_range_and_other_modes_are_refused() {
        let labels = labels(&[(RANGE, "2..4"), (CONNECTIONS, "5")]);
        let replicated = |replicas| ServiceMode { replicated: Some(Replicated { replicas }), ..ServiceMode::default() };
        for (replicas, is_right) in [(Some(2), true), (Some(4), true), (Some(5), false), (Some(0), false), (None, false)] {
            assert_eq!(AutoscaleLabels::check(&labels, &replicated(replicas)).is_ok(), is_right, "{replicas:?}");
        }
        let refused = AutoscaleLabels::check(&labels, &replicated(Some(9))).expect_err("refused");
        assert!(refused.ends_with("--label-rm skep.autoscale --label-rm skep.autoscale.connections"), "{refused}");
        let job = ServiceMode { global_job: Some(crate::model::service_mode::Global {}), ..ServiceMode::default() };
        assert!(AutoscaleLabels::check(&labels, &job).expect_err("refused").contains("only replicated"));
    }

    #[test]
    fn a_service_keeps_its_last_changes_and_says_why() {
        let mut kept = Vec::new();
        let scaling = |n| Scaling { at: Timestamp(n), from: 1, to: 2, connections: 9, per_replica: 5, reason: None };
        (0..40).for_each(|n| scaling(n).add_to(&mut kept));
        assert_eq!((kept.len(), kept[0].at), (KEPT, Timestamp(8)));
        let why = |reason| Scaling { reason, ..scaling(1) }.why();
        assert_eq!(why(None), "1 to 2 replicas by load: 9 connections, 5 per replica");
        let requests = ScalingReason::Requests { tenths: 213, per_replica: 20 };
        assert_eq!(why(Some(requests)), "1 to 2 replicas by load: 21.3 requests per second, 20 per replica");
        assert_eq!(why(Some(ScalingReason::Waiting(1))), "1 to 2 replicas for 1 connection or request that waits");
        assert_eq!(why(Some(ScalingReason::Idle(300))), "1 to 2 replicas after 300 s without a connection");
        let text = serde_json::to_string(&scaling(1)).expect("written");
        assert!(!text.contains("reason"), "as earlier builds have it: {text}");
    }
}
