//! The time in which a manager renews certificates that have expired. Only an operator opens it (`skep
//! recover-certificates`): without it, a certificate's end is final, so that the key of an old backup is worth nothing.

use crate::sync::lock;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Longest time that may be asked for at once.
pub(super) const LONGEST: Duration = Duration::from_hours(1);

/// Closed at first, and again once the daemon restarts. Measured by a clock that cannot be set.
#[derive(Default)]
pub(super) struct RecoveryWindow(Mutex<Option<Instant>>);

impl RecoveryWindow {
    /// Opens it for this long from now.
    ///
    /// # Errors
    /// Longer than [`LONGEST`], or no time at all.
    pub(super) fn open(&self, time: Duration) -> anyhow::Result<()> {
        anyhow::ensure!(
            !time.is_zero() && time <= LONGEST,
            "expired certificates can be renewed for 1 to {} seconds at a time, not {}",
            LONGEST.as_secs(),
            time.as_secs()
        );
        *lock(&self.0) = Some(Instant::now() + time);
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.0).is_some_and(|end| Instant::now() < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_open_for_the_time_asked_for() {
        let window = RecoveryWindow::default();
        assert!(!window.is_open());
        window.open(Duration::from_millis(1)).unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(!window.is_open());
        window.open(LONGEST).unwrap();
        assert!(window.is_open());
        for wrong in [Duration::ZERO, LONGEST + Duration::from_secs(1)] {
            assert!(window.open(wrong).is_err());
        }
    }
}
