//! An engine in memory, for tests: containers start at once, the test controls everything else.

use super::{
    Container, ContainerEvent, ContainerPlan, ContainerState, Deadlines, Engine, EngineError, Health, ListedContainer,
    LocalNetwork, LogPieces, NetworkPlan,
};
use crate::model::{LogOptions, LogPiece, NodeId, PullAuth, TaskId, node::NodeDescription};
use crate::sync::lock;
use async_trait::async_trait;
use futures_util::stream::{BoxStream, StreamExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::broadcast;

/// Contents and behaviour of the fake; tests read and change both.
#[derive(Default, Debug)]
pub struct FakeEngineState {
    /// Every call fails as unavailable.
    pub down: bool,
    /// Images that the engine has.
    pub images: BTreeSet<String>,
    /// Images that can be pulled.
    pub registry: BTreeSet<String>,
    /// Of these, images that need credentials.
    pub private: BTreeMap<String, PullAuth>,
    /// Containers by id, with the plan that they were created from.
    pub containers: BTreeMap<String, (ContainerPlan, Container)>,
    /// Networks of skep's driver by id.
    pub networks: BTreeMap<String, NetworkPlan>,
    /// Names of networks of other drivers.
    pub foreign_networks: BTreeSet<String>,
    /// Images whose containers do not start, with the engine's message.
    pub broken: BTreeMap<String, String>,
    /// Images whose containers have a health check.
    pub checked: BTreeSet<String>,
    /// Images whose containers cannot be created: the call panics.
    pub panics: BTreeSet<String>,
    /// The next list panics.
    pub list_panics: bool,
    /// What tasks have written.
    pub logs: BTreeMap<TaskId, Vec<LogPiece>>,
    /// Every call that changed the state, in order.
    pub calls: Vec<String>,
    /// Containers whose inspection is never answered.
    pub hung: BTreeSet<String>,
    /// Images whose containers are never created: the call hangs.
    pub hung_images: BTreeSet<String>,
    /// Lists are never answered.
    pub lists_hang: bool,
    pub deadlines: Deadlines,
    /// Lists so far.
    pub lists: usize,
    /// Duration of a pull.
    pub pull_time: Duration,
    /// Duration of a stop.
    pub stop_time: Duration,
    /// Containers created so far, for their ids.
    created: u64,
}

#[derive(Debug)]
pub struct FakeEngine {
    state: Mutex<FakeEngineState>,
    /// `None` ends the streams.
    events: broadcast::Sender<Option<ContainerEvent>>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self { state: Mutex::default(), events: broadcast::Sender::new(1024) }
    }
}

impl FakeEngine {
    pub fn state(&self) -> MutexGuard<'_, FakeEngineState> {
        lock(&self.state)
    }

    /// Stops answering; event streams end.
    pub fn go_down(&self) {
        self.state().down = true;
        let _ = self.events.send(None);
    }

    /// Answers again.
    pub fn come_back(&self) {
        self.state().down = false;
    }

    /// Lets a container's process exit.
    pub fn exit(&self, container_id: &str, exit_code: i64) {
        if let Some((_, c)) = self.state().containers.get_mut(container_id) {
            (c.state, c.exit_code, c.pid) = (ContainerState::Exited, exit_code, 0);
        }
        self.emit(container_id, "die");
    }

    /// Changes a container's health.
    pub fn set_health(&self, container_id: &str, health: Health) {
        if let Some((_, c)) = self.state().containers.get_mut(container_id) {
            c.health = Some(health);
        }
        self.emit(container_id, "health_status: changed");
    }

    /// Removes a container without the agent, as a user does.
    pub fn remove_behind_agent(&self, container_id: &str) {
        self.state().containers.remove(container_id);
        self.emit(container_id, "destroy");
    }

    fn emit(&self, container_id: &str, action: &str) {
        let _ = self.events.send(Some(ContainerEvent { container_id: container_id.to_owned(), action: action.to_owned() }));
    }

    /// The state, unless the engine is down.
    fn up(&self) -> Result<MutexGuard<'_, FakeEngineState>, EngineError> {
        let state = self.state();
        if state.down { Err(unavailable()) } else { Ok(state) }
    }
}

fn unavailable() -> EngineError {
    EngineError::Unavailable { engine: "fake".to_owned(), reason: "set to be down by the test".to_owned() }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn describe(&self) -> Result<NodeDescription, EngineError> {
        self.up().map(|_| NodeDescription { hostname: "fake".to_owned(), ..Default::default() })
    }

    fn deadlines(&self) -> Deadlines {
        self.state().deadlines
    }

    async fn containers(&self, me: &NodeId) -> Result<Vec<ListedContainer>, EngineError> {
        self.state().lists += 1;
        assert!(!std::mem::take(&mut self.state().list_panics), "the list is out of bounds");
        let mine = |(plan, c): &(ContainerPlan, Container)| {
            (plan.node_id == *me).then(|| ListedContainer { id: c.id.clone(), task_id: c.task_id.clone() })
        };
        let listed = self.up()?.containers.values().filter_map(mine).collect();
        if self.state().lists_hang {
            std::future::pending::<()>().await;
        }
        Ok(listed)
    }

    async fn inspect(&self, container_id: &str) -> Result<Option<Container>, EngineError> {
        if self.state().hung.contains(container_id) {
            std::future::pending::<()>().await;
        }
        Ok(self.up()?.containers.get(container_id).map(|(_, c)| c.clone()))
    }

    async fn has_image(&self, reference: &str) -> Result<bool, EngineError> {
        Ok(self.up()?.images.contains(reference))
    }

    async fn pull(&self, reference: &str, auth: Option<&PullAuth>) -> Result<(), EngineError> {
        let time = {
            let state = self.up()?;
            if !state.registry.contains(reference) || state.private.get(reference).is_some_and(|needed| Some(needed) != auth) {
                return Err(EngineError::Refused(format!("pull access denied for {reference}")));
            }
            state.pull_time
        };
        tokio::time::sleep(time).await;
        let mut state = self.up()?;
        state.calls.push(format!("pull {reference}"));
        state.images.insert(reference.to_owned());
        Ok(())
    }

    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), EngineError> {
        let mut state = self.up()?;
        if state.foreign_networks.contains(&network.name) {
            return Err(EngineError::Refused(format!("network {} exists with another driver", network.name)));
        }
        if !state.networks.values().any(|n| n.id == network.id) {
            state.calls.push(format!("network {}", network.name));
            state.networks.insert(format!("engine-{}", network.id), network.clone());
        }
        Ok(())
    }

    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        let local =
            |(id, n): (&String, &NetworkPlan)| LocalNetwork { id: id.clone(), name: n.name.clone(), network_id: n.id.clone() };
        Ok(self.up()?.networks.iter().map(local).collect())
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        let mut state = self.up()?;
        if let Some(network) = state.networks.get(id) {
            let is_attached = |(plan, c): &(ContainerPlan, Container)| {
                c.state == ContainerState::Running && plan.networks.iter().any(|(n, _)| n.id == network.id)
            };
            if state.containers.values().any(is_attached) {
                return Err(EngineError::Busy(format!("network {id} has active endpoints")));
            }
            state.calls.push(format!("rm-network {id}"));
            state.networks.remove(id);
        }
        Ok(())
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, EngineError> {
        let image = plan.task.spec.container_spec.image.clone();
        if self.state().hung_images.contains(&image) {
            std::future::pending::<()>().await;
        }
        let mut state = self.up()?;
        assert!(!state.panics.contains(&image), "the container of {image} is out of bounds");
        if !state.images.contains(&image) {
            return Err(EngineError::Refused(format!("No such image: {image}")));
        }
        if let Some((id, _)) = state.containers.iter().find(|(_, (p, _))| p.task.id == plan.task.id) {
            return Ok(id.clone());
        }
        state.created += 1;
        let id = format!("c{}", state.created);
        let container = Container {
            id: id.clone(),
            task_id: Some(plan.task.id.clone()),
            state: ContainerState::Created,
            health: None,
            pid: 0,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            ports: Vec::new(),
        };
        state.calls.push(format!("create {}", plan.task.container_name()));
        state.containers.insert(id.clone(), (plan.clone(), container));
        Ok(id)
    }

    async fn start(&self, container_id: &str, plan: &ContainerPlan) -> Result<(), EngineError> {
        {
            let mut state = self.up()?;
            let image = &plan.task.spec.container_spec.image;
            if let Some(message) = state.broken.get(image) {
                return Err(EngineError::Refused(message.clone()));
            }
            let checked = state.checked.contains(image);
            let pid = i64::try_from(1000 + state.calls.len()).unwrap_or_default();
            state.calls.push(format!("start {container_id}"));
            let Some((_, c)) = state.containers.get_mut(container_id) else {
                return Err(EngineError::NotFound(format!("No such container: {container_id}")));
            };
            (c.state, c.pid, c.health) = (ContainerState::Running, pid, checked.then_some(Health::Starting));
        }
        self.emit(container_id, "start");
        Ok(())
    }

    async fn stop(&self, container_id: &str, _grace: Option<Duration>) -> Result<(), EngineError> {
        let time = self.up()?.stop_time;
        tokio::time::sleep(time).await;
        {
            let mut state = self.up()?;
            state.calls.push(format!("stop {container_id}"));
            if let Some((_, c)) = state.containers.get_mut(container_id)
                && c.state == ContainerState::Running
            {
                (c.state, c.exit_code, c.pid) = (ContainerState::Exited, 143, 0);
            }
        }
        self.emit(container_id, "die");
        Ok(())
    }

    async fn remove(&self, container_id: &str) -> Result<(), EngineError> {
        {
            let mut state = self.up()?;
            state.calls.push(format!("rm {container_id}"));
            state.containers.remove(container_id);
        }
        self.emit(container_id, "destroy");
        Ok(())
    }

    async fn logs(&self, task: &TaskId, _tty: bool, options: &LogOptions) -> Result<Option<LogPieces>, EngineError> {
        let Some(written) = self.up()?.logs.get(task).cloned() else { return Ok(None) };
        let written = futures_util::stream::iter(written).map(Ok);
        Ok(Some(if options.follow { written.chain(futures_util::stream::pending()).boxed() } else { written.boxed() }))
    }

    async fn events(
        &self,
        _me: &NodeId,
        _since: i64,
    ) -> Result<BoxStream<'static, Result<ContainerEvent, EngineError>>, EngineError> {
        drop(self.up()?);
        Ok(event_stream(self.events.subscribe()).boxed())
    }
}

/// Events until the engine is down.
fn event_stream(
    events: broadcast::Receiver<Option<ContainerEvent>>,
) -> impl futures_util::Stream<Item = Result<ContainerEvent, EngineError>> {
    futures_util::stream::unfold(events, |mut events| async move {
        match events.recv().await {
            Ok(Some(event)) => Some((Ok(event), events)),
            Ok(None) | Err(_) => None,
        }
    })
}
