//! The feature level rises when every manager has it, and not before an older skep could be installed again.

use super::fixture::node;
use super::simulation::Simulation;
use skep::model::node::ManagerStatus;
use skep::model::{Cluster, FormatRange, Node};
use skep::store::{Action, FEATURE_LEVELS, Store};
use std::time::Duration;

/// `ManagerSettings::rollback_window` by default.
const WINDOW: Duration = Duration::from_mins(10);
const SECOND: Duration = Duration::from_secs(1);

struct Managers(Simulation);

impl Managers {
    /// A swarm of managers of the release before, at a level.
    fn new(count: usize, level: u32) -> Self {
        let mut managers = Self(Simulation::new(count, 1));
        let cluster = Cluster { feature_level: level, ..managers.0.store.cluster().unwrap().clone() };
        managers.0.command(vec![Action::update(cluster)]);
        for number in 1..=count {
            managers.change(number, |node| {
                node.manager = Some(ManagerStatus { raft_id: number as u64, addr: ([192, 0, 2, 1], 2377).into() });
            });
            managers.reports(number, None);
        }
        managers
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut Node)) {
        let mut node = self.0.store.node(&node(number)).unwrap().clone();
        change(&mut node);
        self.0.command(vec![Action::update(node)]);
    }

    /// The manager has another build.
    fn reports(&mut self, number: usize, levels: Option<FormatRange>) {
        self.0.describe(&node(number), |description| description.feature_levels = levels);
        self.0.run(SECOND);
        assert_eq!(self.0.store.node(&node(number)).unwrap().description.feature_levels, levels);
    }

    /// Lets time pass; returns the level.
    fn after(&mut self, time: Duration) -> u32 {
        self.0.run(time);
        self.0.store.feature_level()
    }
}

#[test]
fn the_level_rises_a_window_after_the_last_manager_was_upgraded() {
    let mut managers = Managers::new(3, 1);
    assert_eq!(managers.after(WINDOW * 2), 1, "no manager has more");
    managers.reports(1, Some(FEATURE_LEVELS));
    managers.reports(2, Some(FEATURE_LEVELS));
    assert_eq!(managers.after(WINDOW * 2), 1, "the third one is of the release before");
    managers.reports(3, Some(FEATURE_LEVELS));
    assert_eq!(managers.after(WINDOW / 2), 1, "an older skep may be installed again");
    assert_eq!(managers.after(WINDOW), FEATURE_LEVELS.newest);
    assert_eq!(managers.after(WINDOW * 2), FEATURE_LEVELS.newest, "it stays");
}

#[test]
fn the_window_goes_on_when_another_manager_leads_or_the_daemon_is_restarted() {
    let mut managers = Managers::new(1, 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    for _ in 0..4 {
        assert_eq!(managers.after(WINDOW / 5), 1);
        managers.0.change_leader();
    }
    assert_eq!(managers.after(WINDOW / 5 + SECOND * 5), FEATURE_LEVELS.newest);
}

#[test]
fn an_older_skep_that_is_installed_again_starts_the_window_again() {
    let mut managers = Managers::new(1, 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    assert_eq!(managers.after(WINDOW / 2), 1);
    managers.reports(1, None);
    assert_eq!(managers.0.store.node(&node(1)).unwrap().status.levels_since, None);
    assert_eq!(managers.after(WINDOW * 2), 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    assert_eq!(managers.after(SECOND * 590), 1);
    assert_eq!(managers.after(SECOND * 15), FEATURE_LEVELS.newest);
}

/// The release before leads for a while: it writes nodes without what it does not know.
#[test]
fn an_older_skep_that_writes_a_node_starts_the_window_again() {
    let mut managers = Managers::new(2, 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    managers.reports(2, Some(FEATURE_LEVELS));
    managers.after(SECOND * 570);
    managers.change(1, |node| {
        node.description.feature_levels = None;
        node.status.levels_since = None;
    });
    assert_eq!(managers.after(SECOND * 590), 1);
    assert_eq!(managers.after(SECOND * 15), FEATURE_LEVELS.newest);
}

#[test]
fn a_clock_that_is_set_back_starts_the_window_again() {
    let mut managers = Managers::new(1, 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    let later = managers.0.now.plus(WINDOW * 100);
    managers.change(1, |node| node.status.levels_since = Some(later));
    assert_eq!(managers.after(SECOND * 590), 1);
    assert_eq!(managers.after(SECOND * 15), FEATURE_LEVELS.newest);
}

#[test]
fn the_level_is_one_that_this_build_has_and_is_never_lowered() {
    let mut managers = Managers::new(2, 1);
    let newer = FEATURE_LEVELS.newest + 5;
    managers.reports(1, Some(FormatRange::new(1, newer)));
    managers.reports(2, Some(FormatRange::new(1, newer)));
    assert_eq!(managers.after(WINDOW * 2), FEATURE_LEVELS.newest, "newer managers do not raise what this one cannot read");
    let mut managers = Managers::new(1, FEATURE_LEVELS.newest);
    managers.reports(1, None);
    assert_eq!(managers.after(WINDOW * 2), FEATURE_LEVELS.newest);
    let mut managers = Managers::new(1, 1);
    managers.reports(1, Some(FormatRange::new(newer, newer + 1)));
    assert_eq!(managers.after(WINDOW * 2), 1, "no level in common");
}

#[test]
fn entries_and_snapshots_are_written_at_the_level() {
    let mut managers = Managers::new(1, 1);
    let format = |store: &Store| serde_json::from_slice::<serde_json::Value>(&store.snapshot()).unwrap()["format"].clone();
    assert_eq!(format(&managers.0.store), 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    managers.after(WINDOW * 2);
    let store = &managers.0.store;
    assert_eq!(format(store), FEATURE_LEVELS.newest);
    assert_eq!(Store::restore(&store.snapshot()).unwrap(), **store, "both are read");
}
