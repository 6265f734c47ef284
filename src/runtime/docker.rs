//! The Docker Engine through bollard. The API version is agreed with the engine at first use and again after every loss
//! of it, because the engine that comes back may be another one.

use super::{
    Container, ContainerEvent, ContainerPlan, ContainerState, DRIVER, Engine, EngineError, Health, LABEL_NODE, LABEL_TASK_ID,
    LocalNetwork, NetworkPlan, container,
};
use crate::http::UnixClient;
use crate::model::docker;
use crate::model::{NetworkId, NodeId, TaskId, node::NodeDescription};
use async_trait::async_trait;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum, LocalNodeState, Network, NetworkConnectRequest,
    SystemInfo,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, EventsOptions, InspectContainerOptions, ListContainersOptions,
    ListNetworksOptions, RemoveContainerOptions, StartContainerOptions, StopContainerOptions,
};
use bollard::{ClientVersion, Docker};
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bound on the agreement of a version.
const HELLO: Duration = Duration::from_secs(10);
/// Bound on the first byte of an answer. Long: a start waits for network plugins, a pull for registries.
const ANSWER: Duration = Duration::from_mins(10);
/// Containers looked at at the same time.
const INSPECTIONS: usize = 8;

/// A Docker Engine on a unix socket. It need not be there yet.
pub struct DockerEngine {
    url: String,
    socket: PathBuf,
    client: Mutex<Option<Docker>>,
    /// Networks one at a time: engines before API 1.44 make two of the same name.
    networks: tokio::sync::Mutex<()>,
}

impl DockerEngine {
    /// For the engine at `unix:///path`. Does not talk to it yet.
    ///
    /// # Errors
    /// The URL is of another kind.
    pub fn connect(url: &str) -> anyhow::Result<Self> {
        let socket = match url.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => PathBuf::from(path),
            _ => {
                anyhow::bail!("engine URL {url:?} is not supported: give the engine's own socket, as unix:///var/run/docker.sock")
            }
        };
        Ok(Self { url: url.to_owned(), socket, client: Mutex::new(None), networks: tokio::sync::Mutex::new(()) })
    }

    /// Path of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the engine itself is (or is about to be) a member of a Docker swarm, which shuts skep out.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn in_swarm(&self) -> Result<bool, EngineError> {
        let state = self.info().await?.swarm.and_then(|s| s.local_node_state);
        Ok(!matches!(state, None | Some(LocalNodeState::EMPTY | LocalNodeState::INACTIVE)))
    }

    async fn info(&self) -> Result<SystemInfo, EngineError> {
        self.client().await?.info().await.map_err(|e| self.error(e))
    }

    /// The client, after agreeing on a version if there was none.
    async fn client(&self) -> Result<Docker, EngineError> {
        if let Some(client) = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(client);
        }
        // Not bollard's own negotiation: it asks with the version in the path, which an older engine refuses.
        let http = UnixClient::new(&self.socket);
        let reply = tokio::time::timeout(HELLO, http.get("/_ping"))
            .await
            .map_err(|_| self.unavailable(format!("no answer to a ping within {} s", HELLO.as_secs())))?
            .map_err(|e| self.unavailable(format!("{e:#}")))?;
        let theirs = reply
            .headers
            .get("Api-Version")
            .and_then(|v| v.to_str().ok())
            .and_then(parse_version)
            .ok_or_else(|| self.unavailable(format!("it answered a ping with {} and no API version", reply.status)))?;
        let (major_version, minor_version) = theirs.min(docker::API_NEWEST);
        let version = ClientVersion { major_version: major_version as usize, minor_version: minor_version as usize };
        let path = self.socket.display().to_string();
        let client = Docker::connect_with_unix(&path, ANSWER.as_secs(), &version).map_err(|e| self.error(e))?;
        tracing::debug!(engine = %self.url, api = %format!("{major_version}.{minor_version}"), "agreed on an API version");
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    fn unavailable(&self, reason: String) -> EngineError {
        // Whoever answers next may speak another version.
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        EngineError::Unavailable { engine: self.url.clone(), reason }
    }

    fn error(&self, error: Error) -> EngineError {
        match error {
            Error::DockerResponseServerError { status_code: 404, message } => EngineError::NotFound(message),
            Error::DockerResponseServerError { message, .. } => EngineError::Refused(message),
            Error::DockerStreamError { error } => EngineError::Refused(error),
            Error::RequestTimeoutError => self.unavailable(format!("no answer within {} s", ANSWER.as_secs())),
            Error::SocketNotFoundError(path) => self.unavailable(format!("there is no socket at {path}")),
            Error::IOError { .. } | Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } => {
                self.unavailable(format!("{:#}", anyhow::Error::from(error)))
            }
            other => EngineError::Refused(format!("the engine's answer is not understood: {other}")),
        }
    }

    async fn inspect_raw(&self, container: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        match self.client().await?.inspect_container(container, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(e) => gone_is_none(self.error(e)),
        }
    }

    async fn network_named(&self, name: &str) -> Result<Option<Network>, EngineError> {
        let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
        let found = self.client().await?.list_networks(Some(ListNetworksOptions { filters: Some(filters) })).await;
        // The filter matches parts of names too.
        Ok(found.map_err(|e| self.error(e))?.into_iter().find(|n| n.name.as_deref() == Some(name)))
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn describe(&self) -> Result<NodeDescription, EngineError> {
        Ok(description(self.info().await?))
    }

    async fn list(&self, me: &NodeId) -> Result<Vec<Container>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_NODE}={me}")])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = self.client().await?.list_containers(Some(options)).await.map_err(|e| self.error(e))?;
        let mut ids: Vec<String> = found.into_iter().filter_map(|c| c.id).collect();
        ids.sort();
        // The list has neither exit codes nor health on older engines.
        let looked = futures_util::stream::iter(ids).map(|id| async move { self.inspect(&id).await }).buffered(INSPECTIONS);
        let containers: Vec<Option<Container>> = looked.try_collect().await?;
        Ok(containers.into_iter().flatten().collect())
    }

    async fn inspect(&self, container_id: &str) -> Result<Option<Container>, EngineError> {
        Ok(self.inspect_raw(container_id).await?.map(observed))
    }

    async fn has_image(&self, reference: &str) -> Result<bool, EngineError> {
        match self.client().await?.inspect_image(reference).await {
            Ok(_) => Ok(true),
            Err(e) => Ok(gone_is_none::<()>(self.error(e))?.is_some()),
        }
    }

    async fn pull(&self, reference: &str) -> Result<(), EngineError> {
        let (image, tag) = split_reference(reference);
        let options = CreateImageOptions { from_image: Some(image), tag, ..Default::default() };
        let mut progress = self.client().await?.create_image(Some(options), None, None);
        while let Some(line) = progress.next().await {
            line.map_err(|e| match self.error(e) {
                EngineError::NotFound(words) => EngineError::Refused(words),
                other => other,
            })?;
        }
        Ok(())
    }

    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), EngineError> {
        let _one_at_a_time = self.networks.lock().await;
        if let Some(found) = self.network_named(&network.name).await? {
            if found.driver.as_deref() != Some(DRIVER) {
                return Err(EngineError::Refused(format!(
                    "network {name} cannot be made on this node: its engine has a network {name} of driver {driver} already; \
                     remove or rename that one: docker network rm {name}",
                    name = network.name,
                    driver = found.driver.unwrap_or_default(),
                )));
            }
            if swarm_id(&found) == network.id {
                return Ok(());
            }
            tracing::info!(network = %network.name, "replacing the engine's network, it belongs to an earlier one of that name");
            self.remove_network(&found.id.unwrap_or_default()).await?;
        }
        let created = self.client().await?.create_network(container::network_body(network)).await;
        created.map(|_| ()).map_err(|e| self.error(e))
    }

    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        let filters = HashMap::from([("driver".to_owned(), vec![DRIVER.to_owned()])]);
        let found = self.client().await?.list_networks(Some(ListNetworksOptions { filters: Some(filters) })).await;
        let mut networks: Vec<LocalNetwork> = found
            .map_err(|e| self.error(e))?
            .into_iter()
            .map(|n| LocalNetwork { network_id: swarm_id(&n), id: n.id.unwrap_or_default(), name: n.name.unwrap_or_default() })
            .collect();
        networks.sort();
        Ok(networks)
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        match self.client().await?.remove_network(id).await {
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            Err(Error::DockerResponseServerError { status_code: 403 | 409, message }) => Err(EngineError::Busy(message)),
            Err(e) => Err(self.error(e)),
        }
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, EngineError> {
        let name = plan.task.container_name();
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        match self.client().await?.create_container(Some(options), container::create_body(plan)).await {
            Ok(created) => Ok(created.id),
            // An earlier run of the daemon got as far as this.
            Err(Error::DockerResponseServerError { status_code: 409, message }) => match self.inspect(&name).await? {
                Some(found) if found.task_id.as_ref() == Some(&plan.task.id) => Ok(found.id),
                _ => Err(EngineError::Refused(message)),
            },
            Err(e) => Err(self.error(e)),
        }
    }

    async fn start(&self, container_id: &str, plan: &ContainerPlan) -> Result<(), EngineError> {
        let found = self
            .inspect_raw(container_id)
            .await?
            .ok_or_else(|| EngineError::NotFound(format!("container {container_id} vanished before its start")))?;
        let connected = found.network_settings.and_then(|s| s.networks).unwrap_or_default();
        let client = self.client().await?;
        for (network, address) in &plan.networks {
            if connected.contains_key(&network.name) {
                continue;
            }
            let request = NetworkConnectRequest {
                container: container_id.to_owned(),
                endpoint_config: Some(container::endpoint(*address)),
            };
            client.connect_network(&network.name, request).await.map_err(|e| self.error(e))?;
        }
        client.start_container(container_id, None::<StartContainerOptions>).await.map_err(|e| self.error(e))
    }

    async fn stop(&self, container_id: &str, grace: Option<Duration>) -> Result<(), EngineError> {
        let seconds = grace.map(|g| i32::try_from(container::grace_seconds(g)).unwrap_or(i32::MAX));
        let client = self.client().await?.with_timeout(ANSWER + grace.unwrap_or_default());
        let options = StopContainerOptions { t: seconds, ..Default::default() };
        client.stop_container(container_id, Some(options)).await.or_else(|e| gone_is_fine(self.error(e)))
    }

    async fn remove(&self, container_id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { v: true, force: true, ..Default::default() };
        match self.client().await?.remove_container(container_id, Some(options)).await {
            Err(Error::DockerResponseServerError { status_code: 409, message }) => Err(EngineError::Busy(message)),
            other => other.or_else(|e| gone_is_fine(self.error(e))),
        }
    }

    async fn events(
        &self,
        me: &NodeId,
        since: i64,
    ) -> Result<BoxStream<'static, Result<ContainerEvent, EngineError>>, EngineError> {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("label".to_owned(), vec![format!("{LABEL_NODE}={me}")]),
        ]);
        let options = EventsOptions { since: Some(since.to_string()), filters: Some(filters), ..Default::default() };
        let url = self.url.clone();
        let events = self.client().await?.events(Some(options)).filter_map(move |event| {
            let event = match event {
                Ok(event) => event
                    .actor
                    .and_then(|a| a.id)
                    .map(|container_id| Ok(ContainerEvent { container_id, action: event.action.unwrap_or_default() })),
                Err(e) => Some(Err(EngineError::Unavailable {
                    engine: url.clone(),
                    reason: format!("its stream of events broke off: {:#}", anyhow::Error::from(e)),
                })),
            };
            std::future::ready(event)
        });
        Ok(events.boxed())
    }
}

fn gone_is_none<T>(error: EngineError) -> Result<Option<T>, EngineError> {
    if matches!(error, EngineError::NotFound(_)) { Ok(None) } else { Err(error) }
}

fn gone_is_fine(error: EngineError) -> Result<(), EngineError> {
    gone_is_none::<()>(error).map(|_| ())
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Image and tag as the engine wants them: without a tag it would fetch every one there is.
fn split_reference(reference: &str) -> (String, Option<String>) {
    if reference.contains('@') {
        return (reference.to_owned(), None);
    }
    match reference.rsplit_once(':') {
        // A colon before a slash is a registry's port.
        Some((image, tag)) if !tag.contains('/') => (image.to_owned(), Some(tag.to_owned())),
        _ => (reference.to_owned(), Some("latest".to_owned())),
    }
}

fn swarm_id(network: &Network) -> NetworkId {
    let id = network.options.as_ref().and_then(|o| o.get(docker::NETWORK_OPTION)).map(String::as_str);
    NetworkId::from(id.unwrap_or_default())
}

fn observed(found: ContainerInspectResponse) -> Container {
    let labels = found.config.and_then(|c| c.labels).unwrap_or_default();
    let state = found.state.unwrap_or_default();
    Container {
        id: found.id.unwrap_or_default(),
        task_id: labels.get(LABEL_TASK_ID).map(|id| TaskId::from(id.as_str())),
        state: match state.status {
            None | Some(ContainerStateStatusEnum::EMPTY | ContainerStateStatusEnum::CREATED) => ContainerState::Created,
            Some(
                ContainerStateStatusEnum::RUNNING
                | ContainerStateStatusEnum::PAUSED
                | ContainerStateStatusEnum::RESTARTING
                | ContainerStateStatusEnum::STOPPING,
            ) => ContainerState::Running,
            Some(ContainerStateStatusEnum::EXITED) => ContainerState::Exited,
            Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD) => ContainerState::Removing,
        },
        health: match state.health.and_then(|h| h.status) {
            None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) => None,
            Some(HealthStatusEnum::STARTING) => Some(Health::Starting),
            Some(HealthStatusEnum::HEALTHY) => Some(Health::Healthy),
            Some(HealthStatusEnum::UNHEALTHY) => Some(Health::Unhealthy),
        },
        pid: state.pid.unwrap_or_default(),
        exit_code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
        ports: container::bound_ports(found.network_settings.and_then(|s| s.ports).unwrap_or_default()),
    }
}

fn description(info: SystemInfo) -> NodeDescription {
    let plugins = info.plugins.unwrap_or_default();
    let kinds = [
        ("Volume", plugins.volume),
        ("Network", plugins.network),
        ("Authorization", plugins.authorization),
        ("Log", plugins.log),
    ];
    let mut plugins: Vec<(String, String)> = kinds
        .into_iter()
        .flat_map(|(kind, names)| names.unwrap_or_default().into_iter().map(move |name| (kind.to_owned(), name)))
        // People know our driver as `overlay`.
        .filter(|(kind, name)| !(kind == "Network" && name == DRIVER))
        .chain([("Network".to_owned(), "overlay".to_owned())])
        .collect();
    plugins.sort();
    plugins.dedup();
    NodeDescription {
        hostname: info.name.unwrap_or_default(),
        architecture: info.architecture.unwrap_or_default(),
        os: info.os_type.unwrap_or_default(),
        nano_cpus: info.ncpu.unwrap_or_default().saturating_mul(1_000_000_000),
        memory_bytes: info.mem_total.unwrap_or_default(),
        engine_version: info.server_version.unwrap_or_default(),
        engine_labels: info
            .labels
            .unwrap_or_default()
            .into_iter()
            .map(|label| match label.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (label, String::new()),
            })
            .collect(),
        plugins,
        ebpf_datapath: false,
    }
}
