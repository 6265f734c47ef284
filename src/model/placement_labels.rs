//! Labels of a service that say more about where its tasks run than Docker's placement can: `skep.placement.*`. They are read when a
//! task is scheduled: a change moves no task.

use std::collections::{BTreeMap, BTreeSet};

/// `spread`, which is Swarm's way, or `binpack`: the fullest node that has room, so that others stay empty.
pub const STRATEGY: &str = "skep.placement.strategy";
/// Names of services, separated by commas: only nodes that run a task of each of them.
pub const AFFINITY: &str = "skep.placement.affinity";
/// Names of services, separated by commas: only nodes that run no task of any of them, and the other way round: their tasks do not
/// come to nodes that run one of this service. The service's own name: one task per node.
pub const ANTI_AFFINITY: &str = "skep.placement.anti-affinity";
/// `true`: of nodes with equally few tasks of the service, those on which a container of the same image was created.
pub const PREFER_IMAGE: &str = "skep.placement.prefer-image";

/// The parsed labels.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PlacementLabels {
    pub binpack: bool,
    /// Names of services in lower case.
    pub affinity: BTreeSet<String>,
    /// Names of services in lower case.
    pub anti_affinity: BTreeSet<String>,
    pub prefer_image: bool,
}

impl PlacementLabels {
    /// Parses the labels of a service; other labels are ignored.
    ///
    /// # Errors
    /// Text for the user: which label is wrong, and what is valid.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let one_of = |label: &str, default: bool, values: [&str; 2]| match labels.get(label).map(|value| value.trim()) {
            None => Ok(default),
            Some(value) if value == values[0] => Ok(true),
            Some(value) if value == values[1] => Ok(false),
            Some(value) => Err(format!("label {label}={value}: must be {} or {}", values[0], values[1])),
        };
        let names = |label: &str| -> Result<BTreeSet<String>, String> {
            let Some(text) = labels.get(label) else { return Ok(BTreeSet::new()) };
            let names: BTreeSet<String> = text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
            if names.contains("") {
                return Err(format!("label {label}={text}: must be names of services, separated by commas"));
            }
            Ok(names)
        };
        let read = Self {
            binpack: one_of(STRATEGY, false, ["binpack", "spread"])?,
            affinity: names(AFFINITY)?,
            anti_affinity: names(ANTI_AFFINITY)?,
            prefer_image: one_of(PREFER_IMAGE, false, ["true", "false"])?,
        };
        if let Some(both) = read.affinity.intersection(&read.anti_affinity).next() {
            return Err(format!("labels {AFFINITY} and {ANTI_AFFINITY}: {both} is in both, so that no node is suitable"));
        }
        Ok(read)
    }

    /// Refuses labels by which the service could never have a first task.
    ///
    /// # Errors
    /// As [`PlacementLabels::read`].
    pub fn check(labels: &BTreeMap<String, String>, own_name: &str) -> Result<(), String> {
        if Self::read(labels)?.affinity.contains(&own_name.to_ascii_lowercase()) {
            return Err(format!("label {AFFINITY}: {own_name} is the service itself, whose first task would wait for ever"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn labels_are_read_and_others_ignored() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(PlacementLabels::read(&labels(&[("skep.affinity", "source"), ("a", "b")])), Ok(PlacementLabels::default()));
        let all = [(STRATEGY, "binpack"), (AFFINITY, "Cache, db"), (ANTI_AFFINITY, "batch"), (PREFER_IMAGE, " true ")];
        let expected = PlacementLabels {
            binpack: true,
            affinity: set(&["cache", "db"]),
            anti_affinity: set(&["batch"]),
            prefer_image: true,
        };
        assert_eq!(PlacementLabels::read(&labels(&all)), Ok(expected));
    }

    #[test]
    fn wrong_labels_are_refused_by_name() {
        for (label, value) in
            [(STRATEGY, "random"), (STRATEGY, ""), (AFFINITY, "a,,b"), (ANTI_AFFINITY, ""), (PREFER_IMAGE, "yes")]
        {
            let why = PlacementLabels::read(&labels(&[(label, value)])).unwrap_err();
            assert!(why.contains(label), "{why}");
        }
        let both = labels(&[(AFFINITY, "db"), (ANTI_AFFINITY, "DB")]);
        assert!(PlacementLabels::read(&both).unwrap_err().contains("db is in both"));
        let own = labels(&[(AFFINITY, "web")]);
        assert!(PlacementLabels::check(&own, "Web").unwrap_err().contains("service itself"));
        PlacementLabels::check(&own, "db").unwrap();
    }
}
