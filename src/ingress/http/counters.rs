//! What is counted of each route: requests by outcome, and how long they took.

use super::counts::{CLASSES, LATENCY_BOUNDS_MS, RouteCounts};
use super::exemplars::RouteExemplars;
use super::rates::RateWindow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a route. They outlive a change of the table.
#[derive(Default, Debug)]
pub(super) struct RouteCounters {
    by_class: [AtomicU64; 5],
    gone: AtomicU64,
    pub retries: AtomicU64,
    /// Requests that have not ended.
    pub in_flight: Arc<AtomicU64>,
    durations: [AtomicU64; CLASSES],
    micros: AtomicU64,
    pub exemplars: RouteExemplars,
    /// Earlier readings of these.
    pub window: RateWindow,
}

impl RouteCounters {
    /// Counts a request. `status` is 0 if there was no answer.
    pub fn count(&self, status: u16, took: Duration, traceparent: &str) {
        let class = usize::from(status / 100).checked_sub(1).and_then(|class| self.by_class.get(class));
        class.unwrap_or(&self.gone).fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(0);
        let class = LATENCY_BOUNDS_MS.partition_point(|bound| micros > bound * 1000);
        self.durations[class].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.exemplars.record(class, traceparent, took);
    }

    pub fn read(&self) -> RouteCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RouteCounts {
            by_class: self.by_class.each_ref().map(load),
            gone: load(&self.gone),
            retries: load(&self.retries),
            durations: self.durations.each_ref().map(load),
            micros: load(&self.micros),
        }
    }
}

#[test]
fn requests_are_counted_by_outcome_and_duration() {
    let counters = RouteCounters::default();
    for (status, millis) in [(200, 5), (204, 6), (503, 5001), (0, 1), (999, 1)] {
        counters.count(status, Duration::from_millis(millis), "");
    }
    let counts = counters.read();
    assert_eq!((counts.by_class, counts.gone, counts.requests()), ([0, 2, 0, 0, 1], 2, 5));
    counters.count(200, Duration::from_micros(1_001), "");
    assert_eq!(counters.read().durations[..2], [2, 1], "more than a millisecond");
    assert_eq!(counts.durations, [2, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(counts.micros, 5_014_000);
}
