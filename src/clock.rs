//! The only file that reads the wall clock. All other code gets the time as an argument or from a [`Clock`].

use crate::model::Timestamp;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// A source of the current time. Tests and simulations implement it with a virtual clock.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
    /// Waits for so long, by a clock that cannot be set.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// The machine's real-time clock.
#[derive(Clone, Copy, Default, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the only reader of the wall clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// A clock that another one is behind by a fixed time.
#[derive(Clone)]
pub struct AheadClock {
    clock: Arc<dyn Clock>,
    by: Duration,
}

impl AheadClock {
    /// Ahead of `clock` by what that one lacks to this time; equal to it if it lacks nothing.
    pub fn not_before(clock: Arc<dyn Clock>, time: Timestamp) -> Self {
        let by = time.since(clock.now());
        Self { clock, by }
    }
    pub fn is_ahead_by(&self) -> Duration {
        self.by
    }
}

impl Clock for AheadClock {
    fn now(&self) -> Timestamp {
        self.clock.now().plus(self.by)
    }
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(time)
    }
}

/// Longest wait of [`reached`] between two looks at the clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until the clock shows `time` or later.
pub async fn reached(clock: &dyn Clock, time: Timestamp) {
    loop {
        let left = time.since(clock.now());
        if left.is_zero() {
            return;
        }
        clock.sleep(left.min(LOOK)).await;
    }
}
