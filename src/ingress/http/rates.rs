//! What a route has done in the last seconds: rate, errors and durations, from two readings of its counters.

use super::counts::{LATENCY_BOUNDS_MS, RouteCounts};
use crate::sync::lock;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time between the readings that are kept: what is reported is of one to two of these.
const STEP: Duration = Duration::from_secs(5);

/// Requests of the last seconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteRates {
    /// Length of that time, in milliseconds. 0: not known yet.
    pub window_ms: u64,
    pub requests: u64,
    /// Answers with a status of 500 or more.
    pub errors: u64,
    /// Durations that half, nine in ten and 99 in a hundred requests did not exceed, in microseconds; estimated within the classes of
    /// [`LATENCY_BOUNDS_MS`], and not more than the last of them. 0 without a request.
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
}

impl RouteRates {
    /// Of what was counted between two readings.
    pub fn between(before: &RouteCounts, now: &RouteCounts, time: Duration) -> Self {
        let rise = |now: u64, before: u64| now.saturating_sub(before);
        let durations: Vec<u64> = now.durations.iter().zip(&before.durations).map(|(now, before)| rise(*now, *before)).collect();
        Self {
            window_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            requests: rise(now.requests(), before.requests()),
            errors: rise(now.by_class[4], before.by_class[4]),
            p50_us: quantile(&durations, 50),
            p90_us: quantile(&durations, 90),
            p99_us: quantile(&durations, 99),
        }
    }

    /// Tenths of a request per second.
    pub fn tenths_per_second(&self) -> u64 {
        (self.requests * 10_000).checked_div(self.window_ms).unwrap_or(0)
    }

    /// Errors in a thousand requests.
    pub fn errors_per_mille(&self) -> u64 {
        (self.errors * 1000).checked_div(self.requests).unwrap_or(0)
    }
}

/// The duration in microseconds that so many in a hundred did not exceed. In a class they are taken as evenly spread.
fn quantile(durations: &[u64], percent: u64) -> u64 {
    let total: u64 = durations.iter().sum();
    let wanted = (total * percent).div_ceil(100);
    let (mut below, mut lower) = (0, 0);
    for (count, bound) in durations.iter().zip(LATENCY_BOUNDS_MS) {
        let upper = bound * 1000;
        if below + count >= wanted && *count > 0 {
            return lower + (upper - lower) * (wanted - below) / count;
        }
        below += count;
        lower = upper;
    }
    if total == 0 { 0 } else { lower }
}

/// The last two readings of a route's counters.
#[derive(Default, Debug)]
pub(super) struct RateWindow(Mutex<[Option<(Instant, RouteCounts)>; 2]>);

impl RateWindow {
    /// Called once a second or so; keeps a reading if the last one is old enough.
    pub fn sample(&self, now: Instant, counts: impl FnOnce() -> RouteCounts) {
        let mut kept = lock(&self.0);
        if kept[1].as_ref().is_none_or(|(at, _)| now.duration_since(*at) >= STEP) {
            kept[0] = kept[1].take();
            kept[1] = Some((now, counts()));
        }
    }

    /// Since the older reading.
    pub fn rates(&self, now: Instant, counts: &RouteCounts) -> RouteRates {
        let kept = lock(&self.0);
        let oldest = kept.iter().flatten().next();
        oldest.map_or_else(RouteRates::default, |(at, before)| RouteRates::between(before, counts, now.duration_since(*at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(ok: u64, errors: u64, durations: &[u64]) -> RouteCounts {
        let mut counts = RouteCounts { by_class: [0, ok, 0, 0, errors], ..RouteCounts::default() };
        counts.durations[..durations.len()].copy_from_slice(durations);
        counts
    }

    #[test]
    fn rates_are_of_what_came_since_and_quantiles_lie_within_their_class() {
        let before = counts(100, 5, &[100, 5]);
        let now = counts(280, 25, &[200, 95, 0, 10]);
        let rates = RouteRates::between(&before, &now, Duration::from_secs(8));
        assert_eq!((rates.window_ms, rates.requests, rates.errors), (8000, 200, 20));
        assert_eq!((rates.tenths_per_second(), rates.errors_per_mille()), (250, 100));
        // 100 within 1 ms, 90 within 2 ms, 10 between 5 and 10 ms.
        assert_eq!((rates.p50_us, rates.p90_us), (1000, 1888));
        assert_eq!(rates.p99_us, 9000);
        let none = RouteRates::between(&now, &now, Duration::from_secs(8));
        assert_eq!((none.requests, none.p50_us, none.p99_us, none.errors_per_mille()), (0, 0, 0, 0));
        // A process that was replaced counts from 0 again.
        assert_eq!(RouteRates::between(&now, &before, Duration::from_secs(8)).requests, 0);
        assert_eq!(RouteRates::default().tenths_per_second(), 0);
    }

    #[test]
    fn what_took_longer_than_the_last_class_is_its_bound() {
        let mut now = RouteCounts::default();
        *now.durations.last_mut().unwrap() = 3;
        let last = LATENCY_BOUNDS_MS.last().unwrap() * 1000;
        assert_eq!(RouteRates::between(&RouteCounts::default(), &now, Duration::from_secs(1)).p50_us, last);
    }

    #[test]
    fn a_window_is_between_one_and_two_steps_long() {
        let (start, window) = (Instant::now(), RateWindow::default());
        assert_eq!(window.rates(start, &counts(1, 0, &[])), RouteRates::default());
        for second in 0..13 {
            window.sample(start + Duration::from_secs(second), || counts(second * 10, 0, &[]));
            let now = start + Duration::from_secs(second + 1);
            let rates = window.rates(now, &counts((second + 1) * 10, 0, &[]));
            assert_eq!(rates.tenths_per_second(), 100, "second {second}: {rates:?}");
            assert!(rates.window_ms <= 10_000 && (second < 6 || rates.window_ms > 5000), "second {second}: {rates:?}");
        }
    }
}
