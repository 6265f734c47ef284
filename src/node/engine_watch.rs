//! The engine as a part of the node: describes the host again and again, and says when the engine has been away for too
//! long. A node whose engine does not answer is connected, forwards traffic and answers names, but cannot run tasks.

use crate::model::node::NodeDescription;
use crate::sync::replace_if_changed;
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
/// `report` describes the host, or finds that its engine does not answer.
pub(super) async fn run<F: Future<Output = Option<NodeDescription>> + Send>(
    report: impl Fn() -> F + Send,
    mut watch: EngineWatch,
    mut answers: watch::Receiver<bool>,
    reports: EngineReports,
    stop: CancellationToken,
) {
    loop {
        let Some(described) = stop.run_until_cancelled(report()).await else { return };
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

    #[tokio::test(start_paused = true)]
    async fn an_engine_is_asked_again_at_intervals_and_what_has_changed_is_published() {
        let engine = watch::Sender::new(Some(host("28.5.0")));
        let (description, mut published) = watch::channel(host(""));
        let (trouble, known) = (watch::Sender::default(), watch::Sender::default());
        let (answers, answer) = watch::channel(true);
        let (stop, asked) = (CancellationToken::new(), engine.subscribe());
        let report = move || std::future::ready(asked.borrow().clone());
        let reports = EngineReports { description, trouble, known: known.clone() };
        let watch = EngineWatch::new(host(""), Duration::from_secs(2));
        let running = tokio::spawn(run(report, watch, answer, reports, stop.clone()));
        // A pause of the test lets the clock run to it, and no further.
        let within = async |published: &mut watch::Receiver<NodeDescription>, seconds| {
            let changed = tokio::time::timeout(Duration::from_secs(seconds), published.changed()).await;
            changed.is_ok_and(|open| open.is_ok()).then(|| published.borrow_and_update().engine_version.clone())
        };
        assert_eq!(within(&mut published, 1).await.as_deref(), Some("28.5.0"));
        engine.send_replace(Some(host("28.5.1")));
        assert_eq!(within(&mut published, 19).await, None, "not all the time");
        assert_eq!(within(&mut published, 2).await.as_deref(), Some("28.5.1"));
        assert_eq!(known.borrow().as_ref().map(|known| known.engine_version.clone()).as_deref(), Some("28.5.1"));
        assert_eq!(within(&mut published, 50).await, None, "what is the same is not published again");
        // One that is away is asked each second.
        engine.send_replace(None);
        answers.send_replace(false);
        assert_eq!(within(&mut published, 12).await.as_deref(), Some(""));
        engine.send_replace(Some(host("28.5.2")));
        assert_eq!(within(&mut published, 2).await.as_deref(), Some("28.5.2"));
        stop.cancel();
        running.await.unwrap();
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
