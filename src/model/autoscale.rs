//! Labels of a service whose number of replicas follows its load, and what was made of them. Docker's spec has no field for
//! either, and every client passes labels through.

use super::service_mode::ServiceMode;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `min..max`: the fewest and the most replicas.
pub const RANGE: &str = "skep.autoscale";
/// Established TCP connections that a replica is to have at most, on average.
pub const CONNECTIONS: &str = "skep.autoscale.connections";
/// Most replicas that a range may name.
const MOST_REPLICAS: u64 = 10_000;
/// Most connections per replica.
const MOST_CONNECTIONS: u64 = 1_000_000;
/// Changes that a service keeps for its history.
const KEPT: usize = 8;

/// The parsed labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AutoscaleLabels {
    /// At least 1.
    pub min: u64,
    pub max: u64,
    /// Connections per replica, at least 1.
    pub connections: u64,
}

impl AutoscaleLabels {
    /// Parses the labels of a service; other labels are ignored. `None`: it is not scaled by load.
    ///
    /// # Errors
    /// Text for the user: which label is wrong, and what is valid.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Option<Self>, String> {
        let further = |key: &&String| key.strip_prefix(RANGE).is_some_and(|rest| rest.starts_with('.'));
        if let Some(unknown) = labels.keys().filter(further).find(|key| *key != CONNECTIONS) {
            return Err(format!("label {unknown}: skep scales by {CONNECTIONS} alone, as the mesh counts no requests"));
        }
        let Some(range) = labels.get(RANGE) else {
            let alone = labels.contains_key(CONNECTIONS);
            return if alone { Err(format!("label {CONNECTIONS}: it does nothing without {RANGE}=min..max")) } else { Ok(None) };
        };
        let wrong = |why: &str| Err(format!("label {RANGE}={range}: {why}"));
        let numbers = range.split_once("..").and_then(|(min, max)| Some((min.trim().parse().ok()?, max.trim().parse().ok()?)));
        let (min, max): (u64, u64) = match numbers {
            Some((0, _)) => {
                return wrong("a service is not scaled to 0, as the first connection could not wait for a task: the least is 1");
            }
            Some((min, max)) if min <= max && max <= MOST_REPLICAS => (min, max),
            _ => return wrong(&format!("must be min..max, as 2..20, with at most {MOST_REPLICAS} replicas")),
        };
        let connections = labels.get(CONNECTIONS).map(|text| text.trim().parse::<u64>().unwrap_or(0));
        match connections {
            Some(connections @ 1..=MOST_CONNECTIONS) => Ok(Some(Self { min, max, connections })),
            _ => wrong(&format!(
                "it needs {CONNECTIONS}=N, the established TCP connections that a replica is to have at most (1 to {MOST_CONNECTIONS})"
            )),
        }
    }

    /// Refuses labels that contradict the mode of their service.
    ///
    /// # Errors
    /// As [`AutoscaleLabels::read`].
    pub fn check(labels: &BTreeMap<String, String>, mode: &ServiceMode) -> Result<(), String> {
        let Some(labels) = Self::read(labels)? else { return Ok(()) };
        if mode.is_global() || mode.is_job() {
            return Err(format!("label {RANGE}: only replicated services are scaled, this one is {}", mode.as_str()));
        }
        let (replicas, Self { min, max, .. }) = (mode.replicas(), labels);
        if (min..=max).contains(&replicas) {
            return Ok(());
        }
        Err(format!(
            "label {RANGE}={min}..{max}: {replicas} replicas are outside of it: choose a number within, change the label, or remove it \
             with docker service update --label-rm {RANGE} --label-rm {CONNECTIONS}"
        ))
    }

    /// Replicas for so many connections.
    #[must_use]
    pub fn needed(self, connections: u64) -> u64 {
        connections.div_ceil(self.connections).clamp(self.min, self.max)
    }
}

/// A change of a service's number of replicas by its load.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scaling {
    pub at: Timestamp,
    pub from: u64,
    pub to: u64,
    /// Connections of all its replicas at that time.
    pub connections: u64,
    /// As its label said.
    pub per_replica: u64,
}

impl Scaling {
    /// Adds a change to those that a service keeps.
    pub fn add_to(&self, kept: &mut Vec<Self>) {
        kept.push(self.clone());
        kept.drain(..kept.len().saturating_sub(KEPT));
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
    fn a_range_with_connections_is_read_and_anything_that_would_do_nothing_is_refused() {
        assert_eq!(AutoscaleLabels::read(&labels(&[("a", "b"), ("skep.allow", "10.0.0.0/8")])), Ok(None));
        let read = AutoscaleLabels::read(&labels(&[(RANGE, "2..20"), (CONNECTIONS, "50")]));
        assert_eq!(read, Ok(Some(AutoscaleLabels { min: 2, max: 20, connections: 50 })));
        for (wrong, reason) in [
            (&[(RANGE, "0..5"), (CONNECTIONS, "5")][..], "the least is 1"),
            (&[(RANGE, "5..2"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "1..10001"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "5"), (CONNECTIONS, "5")], "must be min..max"),
            (&[(RANGE, "1..5")], CONNECTIONS),
            (&[(RANGE, "1..5"), (CONNECTIONS, "0")], "at most"),
            (&[(CONNECTIONS, "5")], "does nothing"),
            (&[(RANGE, "1..5"), (CONNECTIONS, "5"), ("skep.autoscale.requests", "9")], "skep.autoscale.requests"),
        ] {
            let error = AutoscaleLabels::read(&labels(wrong)).expect_err("refused");
            assert!(error.contains(reason), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn replicas_outside_of_the_range_and_other_modes_are_refused() {
        let labels = labels(&[(RANGE, "2..4"), (CONNECTIONS, "5")]);
        let replicated = |replicas| ServiceMode { replicated: Some(Replicated { replicas }), ..ServiceMode::default() };
        for (replicas, is_right) in [(Some(2), true), (Some(4), true), (Some(5), false), (Some(0), false), (None, false)] {
            assert_eq!(AutoscaleLabels::check(&labels, &replicated(replicas)).is_ok(), is_right, "{replicas:?}");
        }
        let job = ServiceMode { global_job: Some(crate::model::service_mode::Global {}), ..ServiceMode::default() };
        assert!(AutoscaleLabels::check(&labels, &job).expect_err("refused").contains("only replicated"));
    }

    #[test]
    fn a_service_keeps_its_last_changes() {
        let mut kept = Vec::new();
        for n in 0..20 {
            Scaling { at: Timestamp(n), from: 1, to: 2, connections: 9, per_replica: 5 }.add_to(&mut kept);
        }
        assert_eq!((kept.len(), kept[0].at), (KEPT, Timestamp(12)));
    }
}
