//! Reads logs from the nodes into one queue for a client. A node that is lost while its logs are followed is asked again from the
//! last line on; tasks that start later join.

use super::format::{LineOrigin, LogFormat};
use super::targets::{LogSelector, LogTarget, targets};
use crate::api::control::{ControlError, NodeControl};
use crate::clock::Clock;
use crate::model::{LogOptions, LogPiece, LogRequest, NodeId, NodeState, TaskId, TaskLog, Timestamp};
use crate::store::{Store, StoreHandle};
use crate::sync::sleep_until;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Pieces that wait for the client.
const QUEUE: usize = 16;
/// Tasks of a node that one request may name.
const MAX_TASKS: usize = 16_384;
/// Pause between two looks at the store.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Pause before what was lost is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A request for logs that is being answered.
pub struct LogFeed {
    pub control: Arc<dyn NodeControl>,
    pub clock: Arc<dyn Clock>,
    pub store: StoreHandle,
    pub selector: LogSelector,
    pub parameters: LogOptions,
    pub format: LogFormat,
}

/// How far the log of a task is read.
struct Progress {
    target: LogTarget,
    state: Reading,
    /// The time of its last line.
    last: Option<Timestamp>,
    /// It was there when the client asked: the client's `tail` is about its lines.
    is_first: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    Now,
    /// To be asked for again.
    Lost,
    Done,
}

/// What a feed has open.
struct Readers {
    nodes: BTreeMap<NodeId, mpsc::Sender<LogRequest>>,
    running: JoinSet<(NodeId, Result<(), ControlError>)>,
    logs: mpsc::Sender<(TaskId, TaskLog)>,
}

impl LogFeed {
    /// Starts to read; the feed ends when the receiver is dropped, and gives its slot back.
    pub fn start(self, slot: OwnedSemaphorePermit) -> mpsc::Receiver<Bytes> {
        let (client, lines) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let _slot = slot;
            self.run(client).await;
        });
        lines
    }

    async fn run(self, client: mpsc::Sender<Bytes>) {
        let gone = client.clone();
        tokio::select! {
            () = gone.closed() => {}
            () = self.read(client) => {}
        }
    }

    async fn read(self, client: mpsc::Sender<Bytes>) {
        let (logs, mut arrived) = mpsc::channel(QUEUE);
        let mut readers = Readers { nodes: BTreeMap::new(), running: JoinSet::new(), logs };
        let mut tasks = BTreeMap::<TaskId, Progress>::new();
        let mut reasons = Vec::new();
        let mut watch = self.store.watch();
        let (mut is_over, mut first) = (false, true);
        let mut look = Some(Instant::now());
        loop {
            if look.is_some_and(|at| at <= Instant::now()) {
                look = None;
                let store = watch.borrow_and_update().clone();
                let now = targets(&store, &self.selector);
                is_over = now.is_over;
                if first && !self.parameters.follow {
                    reasons.extend(now.unscheduled.iter().map(|task| format!("task {task} has not been scheduled")));
                }
                for target in now.targets {
                    let new = Progress { state: Reading::Lost, last: None, is_first: first, target };
                    tasks.entry(new.target.task.clone()).and_modify(|known| known.target.runs = new.target.runs).or_insert(new);
                }
                self.ask(&store, &mut tasks, &mut readers, &mut reasons);
                first = false;
                if tasks.values().any(|task| task.state == Reading::Lost) {
                    look = Some(Instant::now() + ASK_AGAIN);
                }
            }
            let is_read = readers.running.is_empty() && arrived.is_empty();
            if is_read && !self.parameters.follow || is_over && tasks.values().all(|task| task.state != Reading::Now) {
                break;
            }
            tokio::select! {
                Some((task, log)) = arrived.recv() => {
                    let Some(progress) = tasks.get_mut(&task) else { continue };
                    let again = match log {
                        TaskLog::Piece(piece) => {
                            if client.send(self.line(progress, &piece)).await.is_err() {
                                return;
                            }
                            None
                        }
                        TaskLog::Ended(reason) => self.ended(progress, reason.as_deref(), &mut reasons),
                    };
                    look = earliest(look, again);
                }
                Some(Ok((node, result))) = readers.running.join_next() => {
                    readers.nodes.remove(&node);
                    // What it has sent before its end is still to be read.
                    while let Ok((task, log)) = arrived.try_recv() {
                        let Some(progress) = tasks.get_mut(&task) else { continue };
                        match log {
                            TaskLog::Piece(piece) => if client.send(self.line(progress, &piece)).await.is_err() { return },
                            TaskLog::Ended(reason) => look = earliest(look, self.ended(progress, reason.as_deref(), &mut reasons)),
                        }
                    }
                    look = earliest(look, self.lost(&node, result, &mut tasks, &mut reasons));
                }
                changed = watch.changed(), if self.parameters.follow && look.is_none() => match changed {
                    Ok(()) => look = Some(Instant::now() + LOOK_AGAIN),
                    // This node is no manager any more.
                    Err(_) => break,
                },
                () = sleep_until(look) => {}
            }
        }
        let lost: BTreeSet<&NodeId> =
            tasks.values().filter(|task| task.state == Reading::Lost).map(|task| &task.target.node).collect();
        reasons.extend(lost.iter().map(|node| format!("node {node} is not available")));
        if !reasons.is_empty() {
            let _ = client.send(self.format.failure(&reasons)).await;
        }
    }

    /// Asks for every log that is not read yet. Nodes that are down are not dialed: that would take seconds.
    fn ask(&self, store: &Store, tasks: &mut BTreeMap<TaskId, Progress>, readers: &mut Readers, reasons: &mut Vec<String>) {
        let mut unavailable = Vec::new();
        for progress in tasks.values_mut().filter(|task| task.state == Reading::Lost) {
            let target = &progress.target;
            if store.node(&target.node).is_none_or(|node| node.status.state != NodeState::Ready) {
                if !self.parameters.follow {
                    progress.state = Reading::Done;
                    unavailable.push(target.node.clone());
                } else if store.node(&target.node).is_none() || store.task(&target.task).is_none() {
                    progress.state = Reading::Done;
                }
                continue;
            }
            let requests = readers.nodes.entry(target.node.clone()).or_insert_with(|| {
                let (requests, requested) = mpsc::channel(MAX_TASKS);
                let (control, node, logs) = (self.control.clone(), target.node.clone(), readers.logs.clone());
                readers.running.spawn(async move {
                    let result = control.read_logs(&node, requested, logs).await;
                    (node, result)
                });
                requests
            });
            progress.state = match requests.try_send(self.request(progress)) {
                Ok(()) => Reading::Now,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    reasons.push(format!("node {} has more than {MAX_TASKS} tasks of it", target.node));
                    Reading::Done
                }
                // Its reader has just ended, and is about to be noticed.
                Err(mpsc::error::TrySendError::Closed(_)) => Reading::Lost,
            };
        }
        unavailable.sort();
        unavailable.dedup();
        reasons.extend(unavailable.iter().map(|node| format!("node {node} is not available")));
        if !self.parameters.follow {
            // Nothing more will be asked for.
            readers.nodes.clear();
        }
    }

    fn request(&self, progress: &Progress) -> LogRequest {
        let (tail, since) = match progress.last {
            // After the last line: the engine's bound includes its own moment.
            Some(last) => (None, seconds(last.plus(Duration::from_nanos(1)))),
            None => (self.parameters.tail.filter(|_| progress.is_first), self.parameters.since.clone()),
        };
        let timestamps = self.is_stamped(&progress.target);
        let options = LogOptions { timestamps, tail, since, ..self.parameters };
        LogRequest { task: progress.target.task.clone(), tty: progress.target.tty, options }
    }

    /// Whether lines come with their time, which is where a lost log goes on. In the text of a terminal it looks like what the
    /// process has written.
    fn is_stamped(&self, target: &LogTarget) -> bool {
        !target.tty || self.parameters.timestamps
    }

    /// A line for the client.
    fn line(&self, progress: &mut Progress, piece: &LogPiece) -> Bytes {
        let LogTarget { node, service, task, .. } = &progress.target;
        let is_stamped = self.is_stamped(&progress.target);
        let (line, time) = self.format.line(piece, &LineOrigin { node, service, task, is_stamped });
        progress.last = time.or_else(|| if is_stamped { progress.last } else { Some(self.clock.now()) });
        line
    }

    /// A log has ended; when to look again.
    fn ended(&self, progress: &mut Progress, reason: Option<&str>, reasons: &mut Vec<String>) -> Option<Instant> {
        progress.state = Reading::Done;
        if let Some(reason) = reason {
            tracing::debug!(task = %progress.target.task, reason, "a log has ended early");
            if !self.parameters.follow {
                reasons.push(format!("task {}: {reason}", progress.target.task));
            }
        }
        let runs = || self.store.read().task(&progress.target.task).is_some_and(|task| !task.status.state.is_final());
        if self.parameters.follow && runs() {
            // The engine was restarted, or the container has ended and its status is on the way.
            progress.state = Reading::Lost;
            return Some(Instant::now() + ASK_AGAIN);
        }
        None
    }

    /// The connection to a node has ended; when to look again.
    fn lost(
        &self,
        node: &NodeId,
        result: Result<(), ControlError>,
        tasks: &mut BTreeMap<TaskId, Progress>,
        reasons: &mut Vec<String>,
    ) -> Option<Instant> {
        let mut open: Vec<&mut Progress> =
            tasks.values_mut().filter(|task| task.target.node == *node && task.state == Reading::Now).collect();
        if open.is_empty() {
            return None;
        }
        let began = open.iter().any(|task| task.last.is_some());
        if let Err(error) = result {
            tracing::debug!(%node, %error, "no logs of a node");
            let what = if began { "disconnected unexpectedly" } else { "is not available" };
            if !self.parameters.follow {
                reasons.push(format!("node {node} {what} ({error})"));
            }
        }
        for task in &mut open {
            task.state = if self.parameters.follow { Reading::Lost } else { Reading::Done };
        }
        self.parameters.follow.then(|| Instant::now() + ASK_AGAIN)
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// A time as the engine takes it.
fn seconds(time: Timestamp) -> String {
    format!("{}.{:09}", time.0.div_euclid(1_000_000_000), time.0.rem_euclid(1_000_000_000))
}
