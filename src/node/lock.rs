//! Keeps this manager's files encrypted, and as the swarm's lock requires. Every manager follows the store by itself, so that a key that
//! is rotated while a manager is down reaches it once it is up again.

use super::environment::Environment;
use super::keyring::{KeyOwner, SealedLog};
use crate::backoff::Backoff;
use crate::manager::ApplyOutcome;
use crate::raft::Raft;
use crate::store::{Store, StoreHandle};
use crate::trust::UnlockKey;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Name of a change that failed among the blockers.
const NAME: &str = "lock";
/// Pauses after changes that failed: each writes the whole log.
const RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(1));

#[async_trait]
impl SealedLog for Raft<ApplyOutcome> {
    async fn seal_again(&self) -> anyhow::Result<()> {
        Ok(Raft::seal_again(self).await?)
    }
}

/// Level from which on logs are encrypted also where the swarm locks no managers: earlier builds do not read such a file, and may be
/// installed again until then.
const ENCRYPTED: u32 = 2;

/// The key that the swarm's managers are locked with; the outer `None`: nothing is to be done, as by a manager that has no state yet.
fn wanted(store: &Store, has_keys: bool) -> Option<Result<Option<UnlockKey>, String>> {
    let cluster = store.cluster()?;
    let key = cluster.unlock_key.as_ref().map(|text| text.expose().parse::<UnlockKey>());
    if key.is_none() && !has_keys && store.feature_level() < ENCRYPTED {
        return None;
    }
    Some(key.transpose().map_err(|_| "the swarm's unlock key cannot be read".to_owned()))
}

/// What was tried last, and when it is tried again.
struct LockAttempts<W> {
    last: Option<W>,
    failures: u32,
    /// `None`: it is done.
    again: Option<Instant>,
}

impl<W: PartialEq> LockAttempts<W> {
    const fn none() -> Self {
        Self { last: None, failures: 0, again: None }
    }

    /// Whether this is to be tried now. What was not tried last is, at once; other changes of the store bring no attempt forward.
    fn is_due(&self, wanted: &W, now: Instant) -> bool {
        self.last.as_ref() != Some(wanted) || self.again.is_some_and(|again| now >= again)
    }

    fn ended(&mut self, wanted: W, is_done: bool, now: Instant) {
        let earlier = if self.last.as_ref() == Some(&wanted) { self.failures } else { 0 };
        self.failures = if is_done { 0 } else { earlier.saturating_add(1) };
        self.again = (!is_done).then(|| now + RETRY.pause(self.failures));
        self.last = Some(wanted);
    }
}

/// Runs until it is dropped, or the store is.
pub(super) async fn follow(env: Arc<Environment>, owner: KeyOwner, store: StoreHandle, raft: Raft<ApplyOutcome>) {
    let mut view = store.watch();
    let mut attempts = LockAttempts::none();
    loop {
        let store = view.borrow_and_update().clone();
        let revision = store.revision();
        // After a power cut the store may be older than the keys: the leader brings it up to them, and this is woken then.
        let wanted = if env.keyring.obeys(revision) { wanted(&store, env.keyring.has_keys()) } else { None };
        drop(store);
        let mut again = None;
        if let Some(wanted) = wanted {
            if attempts.is_due(&wanted, Instant::now()) {
                let changed = match &wanted {
                    Ok(key) => env.keyring.change((key.as_ref(), revision), &owner, &env.certificates, &raft).await,
                    Err(why) => Err(anyhow::anyhow!(why.clone())),
                };
                attempts.ended(wanted, changed.is_ok(), Instant::now());
                match changed {
                    Ok(()) => env.blockers.clear(NAME),
                    Err(error) => {
                        let reason = format!("{error:#}; this manager's files are not locked as the swarm requires");
                        tracing::warn!(reason, "it is tried again");
                        env.blockers.set(NAME, reason);
                    }
                }
            }
            again = attempts.again;
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now).into()), if again.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again_after_longer_and_longer_pauses_and_another_key_at_once() {
        let start = Instant::now();
        let (mut attempts, mut now) = (LockAttempts::none(), start);
        let seconds = Duration::from_secs;
        for pause in [5, 10, 20, 40, 60, 60] {
            assert!(attempts.is_due(&"one", now));
            attempts.ended("one", false, now);
            // The store changes meanwhile.
            assert!(!attempts.is_due(&"one", now) && !attempts.is_due(&"one", now + seconds(pause - 1)));
            now += seconds(pause);
        }
        assert!(attempts.is_due(&"two", start));
        attempts.ended("two", false, now);
        assert!(attempts.is_due(&"one", now), "the key of before is another one again");
        assert!(!attempts.is_due(&"two", now) && attempts.is_due(&"two", now + seconds(5)), "from the first pause");
        attempts.ended("two", true, now);
        assert_eq!(attempts.again, None);
        assert!(!attempts.is_due(&"two", now + seconds(1000)) && attempts.is_due(&"one", now));
    }
}
