//! Small helpers over locks, watched values, timers and panics.

use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::Poll;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Locks; a panic of another holder does not spread. For values that no panic leaves half-changed.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], to read.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], to write.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces a watched value and wakes its receivers, unless it is the same. Says whether it was replaced.
pub fn replace_if_changed<T: PartialEq>(sender: &watch::Sender<T>, value: T) -> bool {
    sender.send_if_modified(|current| {
        let changed = *current != value;
        if changed {
            *current = value;
        }
        changed
    })
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Panics as soon as one of the loops has, so that their owner, which waits for this, ends with it. Never returns otherwise.
pub async fn panic_of(mut loops: Vec<&mut JoinSet<()>>) {
    std::future::poll_fn(|context| {
        for set in &mut loops {
            while let Poll::Ready(Some(ended)) = set.poll_join_next(context) {
                if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
                    std::panic::resume_unwind(panic);
                }
            }
        }
        Poll::<()>::Pending
    })
    .await;
}

/// Sleeps until `deadline`; for ever without one.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_any_loop_is_passed_on_and_other_ends_are_not() {
        let (mut runs, mut ends, mut panics) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        runs.spawn(std::future::pending());
        ends.spawn(async {});
        panics.spawn(async { panic!("a bug") });
        let passed_on = tokio::spawn(async move { panic_of(vec![&mut runs, &mut ends, &mut panics]).await }).await;
        assert_eq!(panic_text(&*passed_on.unwrap_err().into_panic()), "a bug");
        let mut ends = JoinSet::new();
        ends.spawn(async {});
        let none = tokio::time::timeout(std::time::Duration::from_millis(20), panic_of(vec![&mut ends])).await;
        assert!(none.is_err(), "none panics");
    }
}
