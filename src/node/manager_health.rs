//! What of the leader's loops on this node does not work, for `/healthz`, `skep status` and the API.

use super::supervisor::Blockers;
use crate::manager::LeaderHealth;
use crate::sync::replace_if_changed;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Name of the leader's loops among the blockers.
const NAME: &str = "leader";

/// Publishes the health until `stop`, or until the loops have ended; a panic of the last minute is among the blockers. Then
/// nothing is wrong with loops that do not run.
pub(super) async fn follow(
    mut health: watch::Receiver<LeaderHealth>,
    blockers: Blockers,
    published: watch::Sender<LeaderHealth>,
    stop: CancellationToken,
) {
    loop {
        let now = health.borrow_and_update().clone();
        match &now.panic {
            Some(panic) => blockers.set(
                NAME,
                format!("the leader's loops panicked: {panic}; started again {} times, the log of skep has more", now.restarts),
            ),
            None => blockers.clear(NAME),
        }
        replace_if_changed(&published, now);
        tokio::select! {
            () = stop.cancelled() => break,
            changed = health.changed() => if changed.is_err() { break },
        }
    }
    blockers.clear(NAME);
    published.send_replace(LeaderHealth::default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnwrittenObject;

    #[tokio::test]
    async fn a_panic_is_a_blocker_until_the_loops_have_recovered_and_an_object_that_is_left_out_is_none() {
        let (sender, health) = watch::channel(LeaderHealth::default());
        let (publisher, mut published) = watch::channel(LeaderHealth::default());
        let (blockers, stop) = (Blockers::default(), CancellationToken::new());
        let following = tokio::spawn(follow(health, blockers.clone(), publisher, stop.clone()));
        let unwritten = UnwrittenObject {
            kind: "task".to_owned(),
            id: "t1".to_owned(),
            service_id: Some("s1".into()),
            service_name: "web".to_owned(),
            reason: "it has 9000000 bytes".to_owned(),
        };
        assert_eq!(unwritten.to_string(), "task t1 (service web): it has 9000000 bytes");
        sender.send_modify(|health| {
            (health.restarts, health.panic) = (2, Some("index out of bounds".to_owned()));
            health.left_out = vec![unwritten];
        });
        published.wait_for(|health| health.restarts == 2).await.unwrap();
        let named = blockers.now();
        assert!(named["leader"].contains("index out of bounds") && named["leader"].contains("2 times"), "{named:?}");
        sender.send_modify(|health| health.panic = None);
        let now = published.wait_for(|health| health.panic.is_none()).await.unwrap().clone();
        assert_eq!((now.restarts, now.left_out.len()), (2, 1), "still shown");
        assert!(blockers.now().is_empty());
        stop.cancel();
        following.await.unwrap();
        assert_eq!(*published.borrow(), LeaderHealth::default());
    }
}
