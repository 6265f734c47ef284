//! The clock that the programs read.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time since an arbitrary moment, without suspensions of the machine.
pub(super) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), u32::try_from(now.tv_nsec).unwrap_or_default())
}
