//! The feature level rises when every manager has it, and not before an older skep could be installed again.

use super::fixture::{self, START, apply};
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::node::ManagerStatus;
use skep::model::{Cluster, FormatRange, Timestamp};
use skep::store::{Action, FEATURE_LEVELS, Object, Store};
use std::time::Duration;

const WINDOW: Duration = Duration::from_mins(1);

struct Managers {
    store: Store,
    planner: RoundPlanner,
    now: Timestamp,
}

impl Managers {
    fn new(count: usize, level: u32) -> Self {
        let mut store = fixture::store(count);
        let cluster = Cluster { feature_level: level, ..store.cluster().unwrap().clone() };
        apply(&mut store, START, vec![Action::update(cluster)]);
        let settings = ManagerSettings { rollback_window: WINDOW, ..ManagerSettings::default() };
        let mut managers = Self { store, planner: RoundPlanner::new(settings, 1), now: START };
        for number in 1..=count {
            managers.change(number, |node| {
                node.manager = Some(ManagerStatus { raft_id: number as u64, addr: ([192, 0, 2, 1], 2377).into() });
            });
        }
        managers
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut skep::model::Node)) {
        let mut node = self.store.node(&fixture::node(number)).unwrap().clone();
        change(&mut node);
        apply(&mut self.store, self.now, vec![Action::update(node)]);
    }

    fn reports(&mut self, number: usize, levels: Option<FormatRange>) {
        self.change(number, |node| node.description.feature_levels = levels);
    }

    /// Lets time pass, round by round, and writes what is planned; returns the level.
    fn after(&mut self, time: Duration) -> u32 {
        let end = self.now.plus(time);
        loop {
            let revision = self.store.revision();
            let applied = LowestApplied { awaited: revision, all: revision };
            let actions = self.planner.round(&self.store, Vec::new(), applied, self.now);
            let levels = actions.into_iter().filter(|a| matches!(a, Action::Update(Object::Cluster(_)))).collect::<Vec<_>>();
            if !levels.is_empty() {
                apply(&mut self.store, self.now, levels);
            }
            if self.now >= end {
                return self.store.feature_level();
            }
            self.now = self.now.plus(Duration::from_secs(1));
        }
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
fn an_older_skep_that_is_installed_again_starts_the_window_again() {
    let mut managers = Managers::new(1, 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    assert_eq!(managers.after(WINDOW / 2), 1);
    managers.reports(1, None);
    assert_eq!(managers.after(WINDOW * 2), 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    assert_eq!(managers.after(Duration::from_secs(55)), 1);
    assert_eq!(managers.after(Duration::from_secs(10)), FEATURE_LEVELS.newest);
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
    assert_eq!(format(&managers.store), 1);
    managers.reports(1, Some(FEATURE_LEVELS));
    managers.after(WINDOW * 2);
    assert_eq!(format(&managers.store), FEATURE_LEVELS.newest);
    assert_eq!(Store::restore(&managers.store.snapshot()).unwrap(), managers.store, "both are read");
}
