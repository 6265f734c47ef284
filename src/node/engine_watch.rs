//! The engine as a part of the node: describes the host again and again, and says when the engine has been away for too
//! long. A node whose engine does not answer is connected, forwards traffic and answers names, but cannot run tasks.

use super::environment::Environment;
use crate::model::node::NodeDescription;
use crate::sync::replace_if_changed;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two descriptions, as in Swarm.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(20);
/// The same while the engine does not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// An engine that is away for less is not mentioned: it restarts.
const GRACE: Duration = Duration::from_secs(10);

/// What is known of the engine over time.
#[derive(Debug)]
pub(super) struct EngineWatch {
    known: NodeDescription,
    away_since: Option<Instant>,
    /// Time from [`GRACE`] until its tasks are to run elsewhere.
    down_after: Duration,
}

impl EngineWatch {
    /// With the last description of an earlier run, or one without an engine.
    pub(super) fn new(known: NodeDescription, down_after: Duration) -> Self {
        Self { known, away_since: None, down_after }
    }

    /// The engine has described the host, or not.
    pub(super) fn observe(&mut self, described: Option<NodeDescription>, now: Instant) {
        match described {
            Some(described) => (self.known, self.away_since) = (described, None),
            None => drop(self.away_since.get_or_insert(now)),
        }
    }

    fn is_away(&self, now: Instant, longer_than: Duration) -> bool {
        self.away_since.is_some_and(|since| now.duration_since(since) >= longer_than)
    }

    /// What the managers are to know of the host.
    pub(super) fn description(&self, now: Instant) -> NodeDescription {
        let mut description = self.known.clone();
        if self.is_away(now, GRACE) {
            description.engine_version.clear();
        }
        description.engine_lost = self.is_away(now, GRACE + self.down_after);
        description
    }

    /// The last description with an engine; `None` if there is none.
    pub(super) fn known(&self) -> Option<&NodeDescription> {
        Some(&self.known).filter(|known| !known.engine_version.is_empty())
    }

    /// What people are to know; empty if there is nothing to say.
    pub(super) fn trouble(&self, now: Instant) -> String {
        if self.is_away(now, GRACE + self.down_after) {
            "the Docker Engine does not answer: the tasks of this node run elsewhere (`systemctl status docker`)".to_owned()
        } else if self.is_away(now, GRACE) {
            "the Docker Engine does not answer: no new tasks are assigned here (`systemctl status docker`)".to_owned()
        } else {
            String::new()
        }
    }

    fn pause(&self) -> Duration {
        if self.away_since.is_some() { LOOK_AGAIN } else { DESCRIBE_AGAIN }
    }
}

/// What the watch publishes.
#[derive(Clone)]
pub(super) struct EngineReports {
    pub description: watch::Sender<NodeDescription>,
    pub trouble: watch::Sender<String>,
    /// The last description with an engine, for the next run of the daemon.
    pub known: watch::Sender<Option<NodeDescription>>,
}

/// Looks at the engine until `stop`: at intervals, and when the agent finds that it answers no longer, or again.
pub(super) async fn run(
    env: Arc<Environment>,
    mut watch: EngineWatch,
    mut answers: watch::Receiver<bool>,
    reports: EngineReports,
    stop: CancellationToken,
) {
    loop {
        let Some(described) = stop.run_until_cancelled(env.report()).await else { return };
        let now = Instant::now();
        watch.observe(described, now);
        replace_if_changed(&reports.description, watch.description(now));
        replace_if_changed(&reports.trouble, watch.trouble(now));
        replace_if_changed(&reports.known, watch.known().cloned());
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = answers.changed() => {}
            () = tokio::time::sleep(watch.pause()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(version: &str) -> NodeDescription {
        NodeDescription { hostname: "one".to_owned(), engine_version: version.to_owned(), ..NodeDescription::default() }
    }

    #[test]
    fn an_engine_that_restarts_is_not_mentioned_and_one_that_stays_away_is_lost() {
        let begin = Instant::now();
        let mut watch = EngineWatch::new(host("28.5.0"), Duration::from_secs(2));
        for second in 0..30 {
            let now = begin + Duration::from_secs(second);
            watch.observe(None, now);
            let (seen, trouble) = (watch.description(now), watch.trouble(now));
            assert_eq!(seen.hostname, "one", "the host is known all the same");
            assert_eq!(seen.engine_version.is_empty(), second >= 10, "{second}");
            assert_eq!(seen.engine_lost, second >= 12, "{second}");
            assert_eq!(trouble.contains("no new tasks"), (10..12).contains(&second), "{second}: {trouble}");
            assert_eq!(trouble.contains("run elsewhere"), second >= 12, "{second}: {trouble}");
            assert_eq!(watch.pause(), LOOK_AGAIN);
        }
        let now = begin + Duration::from_secs(31);
        watch.observe(Some(host("28.5.1")), now);
        assert_eq!((watch.description(now), watch.trouble(now)), (host("28.5.1"), String::new()));
        assert_eq!(watch.pause(), DESCRIBE_AGAIN);
        // It counts from there.
        watch.observe(None, now);
        assert_eq!(watch.description(now + Duration::from_secs(9)), host("28.5.1"));
    }

    #[test]
    fn a_host_whose_engine_was_never_seen_has_nothing_to_remember() {
        let mut watch = EngineWatch::new(host(""), Duration::from_secs(2));
        watch.observe(None, Instant::now());
        assert_eq!(watch.known(), None);
        watch.observe(Some(host("20.10.24")), Instant::now());
        assert_eq!(watch.known(), Some(&host("20.10.24")));
    }
}
