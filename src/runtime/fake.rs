//! An engine in memory, for tests: containers start at once and do what the test tells them.

use super::{Container, ContainerEvent, ContainerPlan, ContainerState, Engine, EngineError, Health, LocalNetwork, NetworkPlan};
use crate::model::{NodeId, node::NodeDescription};
use async_trait::async_trait;
use futures_util::stream::{BoxStream, StreamExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// What the fake has and how it behaves; tests read and change it.
#[derive(Default, Debug)]
pub struct World {
    /// Nobody answers.
    pub down: bool,
    /// Images that are there.
    pub images: BTreeSet<String>,
    /// Images that can be pulled.
    pub registry: BTreeSet<String>,
    /// Containers by id, with the plan that they were made from.
    pub containers: BTreeMap<String, (ContainerPlan, Container)>,
    /// Networks of our driver by id.
    pub networks: BTreeMap<String, NetworkPlan>,
    /// Names of networks of other drivers.
    pub foreign_networks: BTreeSet<String>,
    /// Images whose containers do not start, with the engine's words.
    pub broken: BTreeMap<String, String>,
    /// Images whose containers have a health check.
    pub checked: BTreeSet<String>,
    /// Every call that changed something, in order.
    pub calls: Vec<String>,
    /// Time that a pull takes.
    pub pull_time: Duration,
    /// Time that a stop takes.
    pub stop_time: Duration,
    made: u64,
}

/// The engine.
#[derive(Debug)]
pub struct FakeEngine {
    world: Mutex<World>,
    events: broadcast::Sender<Option<ContainerEvent>>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self { world: Mutex::default(), events: broadcast::Sender::new(1024) }
    }
}

impl FakeEngine {
    /// Its world.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops answering; streams of events break off.
    pub fn go_down(&self) {
        self.world().down = true;
        let _ = self.events.send(None);
    }

    /// Answers again.
    pub fn come_back(&self) {
        self.world().down = false;
    }

    /// A container's process ends by itself.
    pub fn end(&self, container_id: &str, exit_code: i64) {
        if let Some((_, c)) = self.world().containers.get_mut(container_id) {
            (c.state, c.exit_code, c.pid) = (ContainerState::Exited, exit_code, 0);
        }
        self.tell(container_id, "die");
    }

    /// A container's health changes.
    pub fn set_health(&self, container_id: &str, health: Health) {
        if let Some((_, c)) = self.world().containers.get_mut(container_id) {
            c.health = Some(health);
        }
        self.tell(container_id, "health_status: changed");
    }

    /// Somebody removes a container behind the agent's back.
    pub fn vanish(&self, container_id: &str) {
        self.world().containers.remove(container_id);
        self.tell(container_id, "destroy");
    }

    fn tell(&self, container_id: &str, action: &str) {
        let _ = self.events.send(Some(ContainerEvent { container_id: container_id.to_owned(), action: action.to_owned() }));
    }

    fn up(&self) -> Result<MutexGuard<'_, World>, EngineError> {
        let world = self.world();
        if world.down { Err(unavailable()) } else { Ok(world) }
    }
}

fn unavailable() -> EngineError {
    EngineError::Unavailable { engine: "fake".to_owned(), reason: "told to be down".to_owned() }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn describe(&self) -> Result<NodeDescription, EngineError> {
        self.up().map(|_| NodeDescription { hostname: "fake".to_owned(), ..Default::default() })
    }

    async fn list(&self, me: &NodeId) -> Result<Vec<Container>, EngineError> {
        Ok(self.up()?.containers.values().filter(|(plan, _)| plan.node_id == *me).map(|(_, c)| c.clone()).collect())
    }

    async fn inspect(&self, container_id: &str) -> Result<Option<Container>, EngineError> {
        Ok(self.up()?.containers.get(container_id).map(|(_, c)| c.clone()))
    }

    async fn has_image(&self, reference: &str) -> Result<bool, EngineError> {
        Ok(self.up()?.images.contains(reference))
    }

    async fn pull(&self, reference: &str) -> Result<(), EngineError> {
        let time = self.up()?.pull_time;
        tokio::time::sleep(time).await;
        let mut world = self.up()?;
        if !world.registry.contains(reference) {
            return Err(EngineError::Refused(format!("pull access denied for {reference}")));
        }
        world.calls.push(format!("pull {reference}"));
        world.images.insert(reference.to_owned());
        Ok(())
    }

    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), EngineError> {
        let mut world = self.up()?;
        if world.foreign_networks.contains(&network.name) {
            return Err(EngineError::Refused(format!("network {} is there with another driver", network.name)));
        }
        if !world.networks.values().any(|n| n.id == network.id) {
            world.calls.push(format!("network {}", network.name));
            world.networks.insert(format!("engine-{}", network.id), network.clone());
        }
        Ok(())
    }

    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        let local =
            |(id, n): (&String, &NetworkPlan)| LocalNetwork { id: id.clone(), name: n.name.clone(), network_id: n.id.clone() };
        Ok(self.up()?.networks.iter().map(local).collect())
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        let mut world = self.up()?;
        if let Some(network) = world.networks.get(id) {
            let on_it = |(plan, c): &(ContainerPlan, Container)| {
                c.state == ContainerState::Running && plan.networks.iter().any(|(n, _)| n.id == network.id)
            };
            if world.containers.values().any(on_it) {
                return Err(EngineError::Busy(format!("network {id} has active endpoints")));
            }
            world.calls.push(format!("rm-network {id}"));
            world.networks.remove(id);
        }
        Ok(())
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, EngineError> {
        let mut world = self.up()?;
        let image = plan.task.spec.container_spec.image.clone();
        if !world.images.contains(&image) {
            return Err(EngineError::Refused(format!("No such image: {image}")));
        }
        if let Some((id, _)) = world.containers.iter().find(|(_, (p, _))| p.task.id == plan.task.id) {
            return Ok(id.clone());
        }
        world.made += 1;
        let id = format!("c{}", world.made);
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
        world.calls.push(format!("create {}", plan.task.container_name()));
        world.containers.insert(id.clone(), (plan.clone(), container));
        Ok(id)
    }

    async fn start(&self, container_id: &str, plan: &ContainerPlan) -> Result<(), EngineError> {
        {
            let mut world = self.up()?;
            let image = &plan.task.spec.container_spec.image;
            if let Some(words) = world.broken.get(image) {
                return Err(EngineError::Refused(words.clone()));
            }
            let checked = world.checked.contains(image);
            let pid = i64::try_from(1000 + world.calls.len()).unwrap_or_default();
            world.calls.push(format!("start {container_id}"));
            let Some((_, c)) = world.containers.get_mut(container_id) else {
                return Err(EngineError::NotFound(format!("No such container: {container_id}")));
            };
            (c.state, c.pid, c.health) = (ContainerState::Running, pid, checked.then_some(Health::Starting));
        }
        self.tell(container_id, "start");
        Ok(())
    }

    async fn stop(&self, container_id: &str, _grace: Option<Duration>) -> Result<(), EngineError> {
        let time = self.up()?.stop_time;
        tokio::time::sleep(time).await;
        {
            let mut world = self.up()?;
            world.calls.push(format!("stop {container_id}"));
            if let Some((_, c)) = world.containers.get_mut(container_id)
                && c.state == ContainerState::Running
            {
                (c.state, c.exit_code, c.pid) = (ContainerState::Exited, 143, 0);
            }
        }
        self.tell(container_id, "die");
        Ok(())
    }

    async fn remove(&self, container_id: &str) -> Result<(), EngineError> {
        {
            let mut world = self.up()?;
            world.calls.push(format!("rm {container_id}"));
            world.containers.remove(container_id);
        }
        self.tell(container_id, "destroy");
        Ok(())
    }

    async fn events(
        &self,
        _me: &NodeId,
        _since: i64,
    ) -> Result<BoxStream<'static, Result<ContainerEvent, EngineError>>, EngineError> {
        drop(self.up()?);
        let heard = tokio_stream(self.events.subscribe());
        Ok(heard.boxed())
    }
}

/// Events until the engine goes down.
fn tokio_stream(
    heard: broadcast::Receiver<Option<ContainerEvent>>,
) -> impl futures_util::Stream<Item = Result<ContainerEvent, EngineError>> {
    futures_util::stream::unfold(heard, |mut heard| async move {
        match heard.recv().await {
            Ok(Some(event)) => Some((Ok(event), heard)),
            Ok(None) | Err(_) => None,
        }
    })
}
