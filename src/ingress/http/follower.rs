//! The loop that keeps the process with the table of the view.

use super::client::{HttpProcess, HttpProcessConfig};
use super::state::HttpStatus;
use super::table::{HttpOptions, HttpTable, table};
use crate::backoff::Backoff;
use crate::model::{NodeId, NodeView, Revision};
use crate::sync::replace_if_changed;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Time between reads of the process's counters.
const TICK: Duration = Duration::from_secs(2);
/// Between attempts to start the process or to send it the table.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// What the loop reads and publishes.
pub struct HttpChannels {
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    pub applied: watch::Sender<Revision>,
    pub status: watch::Sender<HttpStatus>,
}

/// Follows the view until `shutdown`; the process stays.
pub async fn run(
    mut channels: HttpChannels,
    me: NodeId,
    config: HttpProcessConfig,
    options: HttpOptions,
    shutdown: CancellationToken,
) {
    let mut follower = TableFollower { config, process: None, sent: None, looked: false, problems: Vec::new() };
    let mut failures = 0;
    loop {
        let view = channels.view.borrow_and_update().clone();
        if let Some(view) = &view {
            let made = table(view, &me, &options);
            follower.log_problems(&made.problems);
            match follower.follow(&made).await {
                Ok(mut status) => {
                    failures = 0;
                    status.certificate_failures.clone_from(&view.cluster.acme.failures);
                    replace_if_changed(&channels.status, status);
                    replace_if_changed(&channels.applied, view.revision);
                }
                Err(error) => {
                    failures += 1;
                    let error = format!("{error:#}");
                    warn!(error, "the HTTP process does not follow the view");
                    // A process that is not there sends no request to a task that stops.
                    if follower.config.running().await.is_none() {
                        replace_if_changed(&channels.applied, view.revision);
                    }
                    let problems = made.problems.clone();
                    replace_if_changed(&channels.status, HttpStatus { error, problems, ..HttpStatus::default() });
                }
            }
        }
        let pause = if failures > 0 { RETRY.pause(failures) } else { TICK };
        let process = follower.process.clone();
        let waits = async {
            match &process {
                Some(process) => process.waiting_changed().await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match &process {
                Some(process) => process.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = channels.view.changed() => if changed.is_err() { return },
            () = ended => follower.process = None,
            () = waits => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct TableFollower {
    config: HttpProcessConfig,
    process: Option<HttpProcess>,
    /// What the process has.
    sent: Option<HttpTable>,
    /// A process of an earlier run has been looked for.
    looked: bool,
    problems: Vec<String>,
}

impl TableFollower {
    async fn follow(&mut self, wanted: &HttpTable) -> anyhow::Result<HttpStatus> {
        if !wanted.is_wanted() {
            return self.end().await;
        }
        let process = if let Some(process) = &self.process {
            process.clone()
        } else {
            let process = self.config.ensure().await?;
            info!(pid = process.pid, "HTTP routes are served");
            self.sent = None;
            self.process = Some(process.clone());
            process
        };
        self.looked = true;
        let result = if self.sent.as_ref() == Some(wanted) { process.status().await } else { process.apply(wanted).await };
        match result {
            Ok(status) => {
                self.sent = Some(wanted.clone());
                Ok(status)
            }
            Err(error) => {
                // The next attempt looks whether it is there.
                self.process = None;
                Err(error)
            }
        }
    }

    /// Without a route there is no process. One of an earlier run is looked for once.
    async fn end(&mut self) -> anyhow::Result<HttpStatus> {
        let process = match self.process.take() {
            None if !self.looked => self.config.running().await,
            process => process,
        };
        self.looked = true;
        self.sent = None;
        if let Some(process) = process {
            process.drain().await?;
            info!(pid = process.pid, "no HTTP route is left: the HTTP process ends");
        }
        Ok(HttpStatus::default())
    }

    /// Each once, when it comes up.
    fn log_problems(&mut self, now: &[String]) {
        for problem in now.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!(problem, "an HTTP route is not served as its labels say");
        }
        self.problems = now.to_vec();
    }
}
