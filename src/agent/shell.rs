//! Does what the [`Core`] says and tells it what came of it. Holds no decision of its own beyond how often to try the
//! engine's stream of events again.

use super::AgentConfig;
use super::core::{Core, CoreConfig, Effect, Event, Job};
use super::task_record;
use crate::clock::Clock;
use crate::model::{NodeId, NodeView, Revision, TaskId, TaskState, TaskStatus, Timestamp};
use crate::runtime::{Engine, EngineError};
use futures_util::StreamExt as _;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Between two looks at everything, in case an event was lost.
const SLOW_TICK: Duration = Duration::from_secs(15);
/// Between two looks at the clock.
const TICK: Duration = Duration::from_secs(5);
/// Stops at the same time: they mostly wait, so many.
const STOPS: usize = 64;
/// Events replayed around the start of a stream, in seconds; a look too much does no harm.
const OVERLAP: i64 = 2;

/// Runs the node's tasks until shut down; containers keep running then. Never fails: an engine that is gone is waited for.
///
/// `applied` is set to a view's revision once the agent acts on it (not when every container is up).
pub async fn run(
    config: AgentConfig,
    engine: Arc<dyn Engine>,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    status: mpsc::Sender<(TaskId, TaskStatus)>,
    applied: watch::Sender<Revision>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut core = Core::new(CoreConfig {
        me: config.me.clone(),
        engine_socket: config.engine_socket.clone(),
        skep_socket: config.skep_socket.clone(),
        stranger_grace: config.stranger_grace,
    });
    let hands = EngineWorker {
        engine: engine.clone(),
        events: events.clone(),
        pulls: Arc::new(Semaphore::new(config.pulls.max(1))),
        steps: Arc::new(Semaphore::new(config.steps.max(1))),
        stops: Arc::new(Semaphore::new(STOPS)),
    };
    let watcher = tokio::spawn(watch_engine(config.me.clone(), engine, clock.clone(), events));
    let mut running: BTreeMap<(TaskId, u64), AbortHandle> = BTreeMap::new();
    let mut outbox: VecDeque<(TaskId, TaskStatus)> = VecDeque::new();
    let mut wake: Option<Timestamp> = None;
    let mut reports_open = true;
    let mut view_open = true;
    view.mark_changed();
    loop {
        let until = wake.map_or(TICK, |at| at.since(clock.now()).min(TICK));
        let event = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(event) = inbox.recv() => event,
            changed = view.changed(), if view_open => {
                view_open = changed.is_ok();
                match view.borrow_and_update().clone() {
                    Some(view) if view_open => Event::View(view),
                    _ => continue,
                }
            }
            permit = status.reserve(), if !outbox.is_empty() && reports_open => {
                match (permit, outbox.pop_front()) {
                    (Ok(permit), Some(report)) => permit.send(report),
                    _ => reports_open = false,
                }
                continue;
            }
            () = tokio::time::sleep(until) => {
                wake = None;
                Event::Tick
            }
        };
        if let Event::Done(task, number, _) = &event {
            running.remove(&(task.clone(), *number));
        }
        core.set_mtu(*config.mtu.borrow());
        for effect in core.handle(clock.now(), event) {
            match effect {
                Effect::Report(task, status) => {
                    say(&task, &status);
                    // A slow listener gets the last word on each task, not every word.
                    outbox.retain(|(waiting, _)| *waiting != task);
                    outbox.push_back((task, status));
                }
                Effect::Run(task, number, job) => {
                    tracing::debug!(%task, job = job.name(), "step");
                    let handle = tokio::spawn(hands.clone().run(task.clone(), number, job)).abort_handle();
                    running.insert((task, number), handle);
                }
                Effect::Cancel(task, number) => {
                    if let Some(handle) = running.remove(&(task, number)) {
                        handle.abort();
                    }
                }
                Effect::List(number) => drop(tokio::spawn(hands.clone().list(config.me.clone(), number))),
                Effect::Look(number, id) => drop(tokio::spawn(hands.clone().look(number, id))),
                Effect::ListNetworks(number) => drop(tokio::spawn(hands.clone().list_networks(number))),
                Effect::RemoveNetwork(id) => drop(tokio::spawn(hands.clone().remove_network(id))),
                Effect::Wake(at) => wake = Some(wake.map_or(at, |w| w.min(at))),
                Effect::Applied(revision) => {
                    applied.send_if_modified(|have| std::mem::replace(have, revision) != revision);
                }
                Effect::SayLost(reason) => tracing::warn!(%reason, "engine lost; tasks keep their last state, trying again"),
                Effect::SayBack => tracing::info!("engine is back"),
                Effect::SayRetry(task, verb, error) => tracing::info!(%task, ?verb, %error, "step failed, will be repeated"),
            }
        }
    }
    watcher.abort();
    for handle in running.into_values() {
        handle.abort();
    }
}

/// What people want to know at INFO, the way there at DEBUG.
fn say(task: &TaskId, status: &TaskStatus) {
    let (state, message, err) = (status.state.as_str(), &status.message, &status.err);
    if status.state >= TaskState::Running {
        tracing::info!(%task, state, message, err, "task");
    } else {
        tracing::debug!(%task, state, message, err, "task");
    }
}

/// Calls the engine, each call in a spawned future of its own, and reports back.
#[derive(Clone)]
struct EngineWorker {
    engine: Arc<dyn Engine>,
    events: mpsc::UnboundedSender<Event>,
    pulls: Arc<Semaphore>,
    steps: Arc<Semaphore>,
    stops: Arc<Semaphore>,
}

impl EngineWorker {
    async fn run(self, task: TaskId, number: u64, job: Job) {
        let result = self.call(job).await;
        let _ = self.events.send(Event::Done(task, number, result));
    }

    async fn call(&self, job: Job) -> Result<Option<String>, EngineError> {
        let bound = match &job {
            Job::Stop(..) => &self.stops,
            // Waits for its place only if there is something to pull.
            Job::Fetch(image) => {
                if self.engine.has_image(image).await? {
                    return Ok(None);
                }
                &self.pulls
            }
            _ => &self.steps,
        };
        let _place = bound.acquire().await;
        match job {
            Job::Fetch(image) => {
                // Another task may have brought it meanwhile.
                if !self.engine.has_image(&image).await? {
                    self.engine.pull(&image).await?;
                }
            }
            Job::Connect(networks) => {
                for network in &networks {
                    self.engine.ensure_network(network).await?;
                }
            }
            Job::Create(plan) => return self.engine.create(&plan).await.map(Some),
            Job::Start(container, plan) => self.engine.start(&container, &plan).await?,
            Job::Stop(container, grace) => self.engine.stop(&container, grace).await?,
            Job::Remove(container) => self.engine.remove(&container).await?,
        }
        Ok(None)
    }

    async fn list(self, me: NodeId, number: u64) {
        let found = async {
            let containers = self.engine.list(&me).await?;
            Ok((containers, self.engine.networks().await?))
        };
        let _ = self.events.send(Event::Listed(number, found.await));
    }

    async fn look(self, number: u64, id: String) {
        let found = self.engine.inspect(&id).await;
        let _ = self.events.send(Event::Looked(number, id, found));
    }

    async fn list_networks(self, number: u64) {
        let found = self.engine.networks().await;
        let _ = self.events.send(Event::NetworksListed(number, found));
    }

    async fn remove_network(self, id: String) {
        let result = self.engine.remove_network(&id).await;
        let _ = self.events.send(Event::NetworkRemoved(id, result));
    }
}

impl Job {
    fn name(&self) -> &'static str {
        match self {
            Self::Fetch(_) => "fetch",
            Self::Connect(_) => "connect",
            Self::Create(_) => "create",
            Self::Start(..) => "start",
            Self::Stop(..) => "stop",
            Self::Remove(_) => "remove",
        }
    }
}

/// Follows the engine's events; subscribes before everything is listed, so that nothing falls in between.
async fn watch_engine(me: NodeId, engine: Arc<dyn Engine>, clock: Arc<dyn Clock>, events: mpsc::UnboundedSender<Event>) {
    let mut failures = 0;
    loop {
        let since = clock.now().0 / 1_000_000_000 - OVERLAP;
        let reason = match engine.events(&me, since).await {
            Err(error) => error.to_string(),
            Ok(mut stream) => {
                failures = 0;
                if events.send(Event::EngineBack).is_err() {
                    return;
                }
                follow(&mut stream, &events).await
            }
        };
        if events.send(Event::EngineLost(reason)).is_err() {
            return;
        }
        failures += 1;
        tokio::time::sleep(task_record::pause(failures)).await;
    }
}

/// Until the stream ends; why it did.
async fn follow(
    stream: &mut (impl futures_util::Stream<Item = Result<crate::runtime::ContainerEvent, EngineError>> + Unpin),
    events: &mpsc::UnboundedSender<Event>,
) -> String {
    let mut slow = tokio::time::interval(SLOW_TICK);
    slow.tick().await;
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = slow.tick() => {
                let _ = events.send(Event::EngineBack);
                continue;
            }
        };
        match event {
            // Health checks run by exec; they say nothing until their verdict.
            Some(Ok(event)) if event.action.starts_with("exec_") => {}
            Some(Ok(event)) => drop(events.send(Event::Changed(event.container_id))),
            Some(Err(error)) => return error.to_string(),
            None => return "its stream of events ended".to_owned(),
        }
    }
}
