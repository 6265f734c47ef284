//! Carries out the effects of the [`Core`] and feeds it the results. Decides nothing but how often to subscribe again to the
//! engine's stream of events.

use super::AgentConfig;
use super::core::{Core, CoreConfig, Effect, Event, Job};
use super::image_fetch::{ImageFetch, TagLooks};
use super::task_record::RETRY;
use crate::clock::Clock;
use crate::model::node::NodeDescription;
use crate::model::template::TemplateContext;
use crate::model::{NodeId, NodeView, PullAuth, Revision, Task, TaskId, TaskState, TaskStatus, Timestamp};
use crate::runtime::mounts::mount_error;
use crate::runtime::{ContainerEvent, Engine, EngineError, FilePlan, TaskFiles, deadlines};
use crate::sync::{panic_text, replace_if_changed};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Time between two lists of everything, in case an event was lost.
const SLOW_TICK: Duration = Duration::from_secs(15);
/// Longest time between two ticks of the core.
const TICK: Duration = Duration::from_secs(5);
/// Stops at the same time: each mostly waits for its container, so many are cheap.
const STOPS: usize = 64;
/// Calls that have taken long and keep no permit any more.
const HUNG: usize = 64;
/// Engine events replayed around the start of a stream, in seconds; one inspection too many does no harm.
const OVERLAP: i64 = 2;
/// Events queued for the core; a full queue makes the calls and the engine's event stream wait.
const QUEUE: usize = 256;

/// The agent's channels.
pub struct AgentChannels {
    /// Desired state; `None` until there is a first view.
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Reports for the managers.
    pub status: mpsc::Sender<(TaskId, TaskStatus)>,
    /// Set to a view's revision once the agent acts on it, which is before every container runs.
    pub applied: watch::Sender<Revision>,
    /// Whether the engine answers.
    pub engine_answers: watch::Sender<bool>,
    /// Whether a session with the leader is open.
    pub session: watch::Receiver<bool>,
}

/// Runs the node's tasks until shut down; containers keep running then. Never fails: it waits for an engine that does not
/// answer.
pub async fn run(
    config: AgentConfig,
    channels: AgentChannels,
    engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let AgentChannels { mut view, status, applied, engine_answers, mut session } = channels;
    let (events, mut queue) = mpsc::channel(QUEUE);
    let mut watcher = tokio::spawn(watch_engine(config.me.clone(), engine.clone(), clock.clone(), events.clone()));
    let mut shell = AgentShell::new(config, engine, events, applied, engine_answers);
    let mut reports_open = true;
    let mut view_open = true;
    let mut session_open = true;
    view.mark_changed();
    session.mark_changed();
    loop {
        let until = shell.wake.map_or(TICK, |at| at.since(clock.now()).min(TICK));
        let event = tokio::select! {
            () = shutdown.cancelled() => break,
            // It never ends by itself: this loop is started again with another one.
            ended = &mut watcher => {
                tracing::error!(error = ended.err().map(|error| error.to_string()), "the watcher of the engine has ended");
                break;
            }
            Some(event) = queue.recv() => event,
            changed = view.changed(), if view_open => {
                view_open = changed.is_ok();
                match view.borrow_and_update().clone() {
                    Some(view) if view_open => Event::View(view),
                    _ => continue,
                }
            }
            changed = session.changed(), if session_open => {
                session_open = changed.is_ok();
                Event::Session(*session.borrow_and_update())
            }
            permit = status.reserve(), if !shell.outbox.is_empty() && reports_open => {
                match (permit, shell.outbox.pop_front()) {
                    (Ok(permit), Some(report)) => permit.send(report),
                    _ => reports_open = false,
                }
                continue;
            }
            () = tokio::time::sleep(until) => {
                shell.wake = None;
                Event::Tick
            }
        };
        shell.handle(clock.now(), event);
    }
    watcher.abort();
    shell.abort();
}

/// The core and what is in flight for it.
struct AgentShell {
    config: AgentConfig,
    core: Core,
    worker: EngineWorker,
    applied: watch::Sender<Revision>,
    engine_answers: watch::Sender<bool>,
    /// Calls that may be cancelled or aborted, by task and number.
    running: BTreeMap<(TaskId, u64), AbortHandle>,
    /// Reports that the receiver has not taken yet; at most one per task.
    outbox: VecDeque<(TaskId, TaskStatus)>,
    /// When the core wants its next tick.
    wake: Option<Timestamp>,
}

impl AgentShell {
    fn new(
        config: AgentConfig,
        engine: Arc<dyn Engine>,
        events: mpsc::Sender<Event>,
        applied: watch::Sender<Revision>,
        engine_answers: watch::Sender<bool>,
    ) -> Self {
        let core = Core::new(CoreConfig {
            me: config.me.clone(),
            engine_socket: config.engine_socket.clone(),
            skep_socket: config.skep_socket.clone(),
            files: config.files.clone(),
            unassigned_grace: config.unassigned_grace,
        });
        let worker = EngineWorker {
            engine,
            events,
            pulls: Arc::new(Semaphore::new(config.pulls.max(1))),
            looks: Arc::default(),
            steps: Arc::new(Semaphore::new(config.steps.max(1))),
            hung: Arc::new(Semaphore::new(HUNG)),
            stops: Arc::new(Semaphore::new(STOPS)),
            me: config.me.clone(),
            files: Arc::new(TaskFiles::new(config.files.clone())),
            node: Arc::default(),
        };
        Self { config, core, worker, applied, engine_answers, running: BTreeMap::new(), outbox: VecDeque::new(), wake: None }
    }

    /// Passes an event to the core and carries out the effects.
    fn handle(&mut self, now: Timestamp, event: Event) {
        if let Event::Done(task, number, _) = &event {
            self.running.remove(&(task.clone(), *number));
        }
        self.core.set_mtu(*self.config.mtu.borrow());
        for effect in self.core.handle(now, event) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let worker = || self.worker.clone();
        match effect {
            Effect::Report(task, status) => self.report(task, status),
            Effect::Run(task, number, job) => {
                tracing::debug!(%task, job = job.name(), "step");
                let handle = tokio::spawn(worker().run(task.clone(), number, job)).abort_handle();
                self.running.insert((task, number), handle);
            }
            Effect::Cancel(task, number) => {
                if let Some(handle) = self.running.remove(&(task, number)) {
                    handle.abort();
                }
            }
            Effect::List(number) => drop(tokio::spawn(worker().list(self.config.me.clone(), number))),
            Effect::Inspect(number, id) => drop(tokio::spawn(worker().inspect(number, id))),
            Effect::ListNetworks(number) => drop(tokio::spawn(worker().list_networks(number))),
            Effect::RemoveNetwork(id) => drop(tokio::spawn(worker().remove_network(id))),
            Effect::KeepFiles(tasks) => {
                self.worker.files.keep(tasks);
                drop(tokio::spawn(worker().sweep_files()));
            }
            Effect::Wake(at) => self.wake = Some(self.wake.map_or(at, |w| w.min(at))),
            Effect::Applied(revision) => drop(replace_if_changed(&self.applied, revision)),
            Effect::LogEngineLost(reason) => {
                tracing::warn!(%reason, "engine lost; tasks keep their last state, trying again");
                replace_if_changed(&self.engine_answers, false);
            }
            Effect::LogEngineBack => {
                tracing::info!("engine is back");
                replace_if_changed(&self.engine_answers, true);
            }
            Effect::LogPullFailed(task, error) => tracing::info!(%task, %error, "the image cannot be pulled"),
            Effect::LogLocalRestart(task) => {
                tracing::warn!(%task, "its container has ended: started again by this node, no manager can be reached");
            }
            Effect::LogRetry(task, kind, error) => tracing::info!(%task, ?kind, %error, "step failed, will be retried"),
        }
    }

    /// Queues a report. A slow receiver gets the last status of each task, not every one.
    fn report(&mut self, task: TaskId, status: TaskStatus) {
        log_status(&task, &status);
        self.outbox.retain(|(waiting, _)| *waiting != task);
        self.outbox.push_back((task, status));
    }

    fn abort(self) {
        for handle in self.running.into_values() {
            handle.abort();
        }
    }
}

/// INFO from `running` on, DEBUG for the states before it.
fn log_status(task: &TaskId, status: &TaskStatus) {
    let (state, message, err) = (status.state.as_str(), &status.message, &status.err);
    if status.state >= TaskState::Running {
        tracing::info!(%task, state, message, err, "task");
    } else {
        tracing::debug!(%task, state, message, err, "task");
    }
}

/// The result of a call that waits for a permit. One that takes long hangs, as at a mount that does not answer, and keeps its permit
/// from the others no longer.
async fn within_permit<T>(permits: &Semaphore, hung: &Semaphore, patience: Duration, call: impl Future<Output = T> + Send) -> T {
    let permit = permits.acquire().await;
    let mut call = std::pin::pin!(call);
    tokio::select! {
        done = &mut call => return done,
        () = tokio::time::sleep(patience) => {}
    }
    // As many as that hang: then the engine itself is slow, and is given no more work.
    tokio::select! {
        done = &mut call => done,
        _hung = hung.acquire() => {
            drop(permit);
            call.await
        }
    }
}

/// Calls the engine, each call in a spawned future, and sends the result as an event.
#[derive(Clone)]
struct EngineWorker {
    engine: Arc<dyn Engine>,
    events: mpsc::Sender<Event>,
    pulls: Arc<Semaphore>,
    looks: Arc<TagLooks>,
    steps: Arc<Semaphore>,
    hung: Arc<Semaphore>,
    stops: Arc<Semaphore>,
    me: NodeId,
    files: Arc<TaskFiles>,
    /// The node as its engine described it when the first template was expanded.
    node: Arc<OnceCell<NodeDescription>>,
}

impl EngineWorker {
    async fn run(self, task: TaskId, number: u64, job: Job) {
        let result = caught(job.name(), self.call(job)).await;
        let _ = self.events.send(Event::Done(task, number, result)).await;
    }

    async fn call(&self, job: Job) -> Result<Option<String>, EngineError> {
        match &job {
            Job::Stop(..) => {
                let _permit = self.stops.acquire().await;
                self.carry_out(job).await
            }
            Job::Fetch(fetch) => {
                // An image that the engine has needs no permit.
                if self.looks.takes_present(fetch) && self.engine.has_image(&fetch.image).await? {
                    return Ok(None);
                }
                let _permit = self.pulls.acquire().await;
                self.carry_out(job).await
            }
            _ => {
                let patience = self.engine.deadlines().permit;
                within_permit(&self.steps, &self.hung, patience, self.carry_out(job)).await
            }
        }
    }

    async fn carry_out(&self, job: Job) -> Result<Option<String>, EngineError> {
        match job {
            Job::Fetch(fetch) => self.fetch(&fetch).await?,
            Job::Connect(networks) => {
                for network in &networks {
                    self.engine.ensure_network(network).await?;
                }
            }
            Job::Files(plan) => self.write_files(*plan).await?,
            Job::Create(mut plan) => {
                if plan.task.spec.container_spec.has_templates() {
                    self.expand(&mut plan.task).await?;
                }
                return self.engine.create(&plan).await.map(Some);
            }
            Job::Start(container, plan) => self.engine.start(&container, &plan).await?,
            Job::Stop(container, grace) => self.engine.stop(&container, grace).await?,
            Job::Remove(container) => self.engine.remove(&container).await?,
        }
        Ok(None)
    }

    async fn fetch(&self, fetch: &ImageFetch) -> Result<(), EngineError> {
        let ImageFetch { image, auth, .. } = fetch;
        // Another task may have pulled it meanwhile, or looked for it.
        if self.looks.takes_present(fetch) && self.engine.has_image(image).await? {
            return Ok(());
        }
        if auth.as_ref().is_some_and(PullAuth::is_withheld) {
            return Err(EngineError::Busy(format!("the credentials to pull {image} come with the next session")));
        }
        let began = tokio::time::Instant::now();
        let pulled = self.engine.pull(image, auth.as_ref()).await;
        match pulled {
            Err(error) if self.engine.has_image(image).await? => {
                self.looks.note(fetch, began, true);
                tracing::warn!(%image, %error, "cannot pull an image, the one that the node has is used");
                Ok(())
            }
            Ok(()) => {
                self.looks.note(fetch, began, false);
                Ok(())
            }
            failed => failed,
        }
    }

    async fn template_context(&self, task: &Task) -> Result<TemplateContext, EngineError> {
        let node = self.node.get_or_try_init(|| self.engine.describe()).await?;
        Ok(TemplateContext::of(task, &self.me, node))
    }

    /// Replaces the placeholders of the task's container.
    async fn expand(&self, task: &mut Task) -> Result<(), EngineError> {
        let context = self.template_context(task).await?;
        let expanded = task.spec.container_spec.expanded(&context).map_err(EngineError::Refused)?;
        Arc::make_mut(&mut task.spec).container_spec = expanded;
        mount_error(&task.spec.container_spec).map_or(Ok(()), |why| Err(EngineError::Refused(why)))
    }

    async fn write_files(&self, mut plan: FilePlan) -> Result<(), EngineError> {
        let context = self.template_context(&plan.task).await?;
        // Their templates may read the environment.
        self.expand(&mut plan.task).await?;
        let files = self.files.clone();
        let written = tokio::task::spawn_blocking(move || files.write(&plan, &context)).await;
        written.unwrap_or_else(|error| Err(EngineError::Busy(error.to_string())))
    }

    async fn sweep_files(self) {
        let files = self.files.clone();
        let swept = tokio::task::spawn_blocking(move || files.sweep()).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "files of tasks that have ended cannot be removed");
        }
    }

    async fn list(self, me: NodeId, number: u64) {
        let found = async {
            let containers = deadlines::list(&*self.engine, &me).await?;
            Ok((containers, self.engine.networks().await?))
        };
        let event = Event::Listed(number, caught("list", found).await);
        let _ = self.events.send(event).await;
    }

    async fn inspect(self, number: u64, id: String) {
        let found = caught("inspect", self.engine.inspect(&id)).await;
        let _ = self.events.send(Event::Inspected(number, id, found)).await;
    }

    async fn list_networks(self, number: u64) {
        let found = caught("list networks", self.engine.networks()).await;
        let _ = self.events.send(Event::NetworksListed(number, found)).await;
    }

    async fn remove_network(self, id: String) {
        // A container that has stopped finds its network again when it is started.
        let removed = async {
            if self.engine.is_referenced(&id).await? {
                return Err(EngineError::Busy("a container that is not removed yet refers to it".to_owned()));
            }
            self.engine.remove_network(&id).await
        };
        let result = caught("remove network", removed).await;
        let _ = self.events.send(Event::NetworkRemoved(id, result)).await;
    }
}

/// A call whose panic is an error: otherwise no event would follow, and what waits for one would wait for ever.
async fn caught<T>(call: &'static str, running: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    AssertUnwindSafe(running).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic_text(&*panic);
        tracing::error!(call, panic = text, "a call to the engine has panicked");
        Err(EngineError::Panicked(format!("{call} panicked: {text}")))
    })
}

impl Job {
    fn name(&self) -> &'static str {
        match self {
            Self::Fetch(..) => "fetch",
            Self::Connect(_) => "connect",
            Self::Files(_) => "files",
            Self::Create(_) => "create",
            Self::Start(..) => "start",
            Self::Stop(..) => "stop",
            Self::Remove(_) => "remove",
        }
    }
}

/// Follows the engine's events; subscribes before everything is listed, so that no event is lost in between.
async fn watch_engine(me: NodeId, engine: Arc<dyn Engine>, clock: Arc<dyn Clock>, events: mpsc::Sender<Event>) {
    let mut failures = 0;
    loop {
        let since = clock.now().0 / 1_000_000_000 - OVERLAP;
        let reason = match engine.events(&me, since).await {
            Err(error) => error.to_string(),
            Ok(mut stream) => {
                failures = 0;
                if events.send(Event::EngineBack).await.is_err() {
                    return;
                }
                follow(&mut stream, &events).await
            }
        };
        if events.send(Event::EngineLost(reason)).await.is_err() {
            return;
        }
        failures += 1;
        tokio::time::sleep(RETRY.pause(failures)).await;
    }
}

/// Passes the engine's events on until the stream ends; returns the reason. Reads no further while the queue is full.
async fn follow(
    stream: &mut (impl Stream<Item = Result<ContainerEvent, EngineError>> + Unpin),
    events: &mpsc::Sender<Event>,
) -> String {
    let mut slow = tokio::time::interval(SLOW_TICK);
    slow.tick().await;
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = slow.tick() => {
                let _ = events.send(Event::EngineBack).await;
                continue;
            }
        };
        match event {
            // Health checks run through exec; only their verdict matters, which is an event of its own kind.
            Some(Ok(event)) if event.action.starts_with("exec_") => {}
            Some(Ok(event)) => drop(events.send(Event::Changed(event.container_id)).await),
            Some(Err(error)) => return error.to_string(),
            None => return "its stream of events ended".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_full_queue_stops_reading_the_event_stream() {
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        let mut flood = stream::repeat_with(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(ContainerEvent { container_id: "c1".to_owned(), action: "die".to_owned() })
        });
        let (events, queue) = mpsc::channel(8);
        // Nothing takes events: the reader must wait instead of queueing without bound.
        let followed = tokio::time::timeout(Duration::from_millis(200), follow(&mut flood, &events)).await;
        assert!(followed.is_err(), "it waits");
        assert_eq!(read.load(Ordering::Relaxed), 9, "the queue and the one event that waits for it");
        assert_eq!(queue.len(), 8);
    }
}
