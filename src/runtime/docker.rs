//! The Docker Engine through bollard. The API version is negotiated at first use and again whenever the engine did not
//! answer, because it may have been replaced by another version.

use super::deadlines::{INSPECT, LIST, NETWORK, progress_within, within};
use super::{
    Container, ContainerEvent, ContainerPlan, ContainerState, Deadlines, Engine, EngineError, Health, LABEL_NODE, LABEL_TASK_ID,
    ListedContainer, LocalNetwork, LogPieces, NetworkPlan, api_needs, container, logs, plain_containers, private_pull,
};
use crate::http::UnixClient;
use crate::model::docker::{API_VERSION_HEADER, ApiVersion, DRIVER, NETWORK_OPTION};
use crate::model::task::GenericResource;
use crate::model::{AttachedContainer, LogOptions, NetworkId, NodeId, PullAuth, TaskId, node::NodeDescription};
use crate::sync::lock;
use async_trait::async_trait;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, GenericResourcesInner, HealthStatusEnum,
    LocalNodeState, Network, NetworkConnectRequest, NetworkDisconnectRequest, SystemInfo,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, EventsOptions, InspectContainerOptions, InspectNetworkOptions,
    ListContainersOptions, ListNetworksOptions, RemoveContainerOptions, StartContainerOptions, StopContainerOptions,
};
use bollard::{ClientVersion, Docker};
use futures_util::stream::{BoxStream, StreamExt as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Bound on the ping that negotiates the API version.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on the first byte of a reply. Long, because a start waits for network plugins and a pull for registries.
const REPLY_TIMEOUT: Duration = Duration::from_mins(10);

/// A Docker Engine on a unix socket, which need not exist yet.
pub struct DockerEngine {
    url: String,
    socket: PathBuf,
    client: Mutex<Option<Docker>>,
    deadlines: Deadlines,
    /// Held while a network is created: engines before API 1.44 create a second one of the same name.
    network_creation: tokio::sync::Mutex<()>,
}

impl DockerEngine {
    /// For the engine at `unix:///path`. Does not connect yet.
    ///
    /// # Errors
    /// The URL has another scheme.
    pub fn connect(url: &str) -> anyhow::Result<Self> {
        let socket = match url.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => PathBuf::from(path),
            _ => {
                anyhow::bail!("engine URL {url:?} is not supported: give the engine's own socket, as unix:///var/run/docker.sock")
            }
        };
        let (client, network_creation) = (Mutex::new(None), tokio::sync::Mutex::new(()));
        Ok(Self { url: url.to_owned(), socket, client, deadlines: Deadlines::default(), network_creation })
    }

    /// The same engine with other deadlines, for tests.
    #[cfg(test)]
    pub(super) fn with_deadlines(self, deadlines: Deadlines) -> Self {
        Self { deadlines, ..self }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the engine is part of a Docker swarm, or joining one; skep cannot share the engine with it.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn in_swarm(&self) -> Result<bool, EngineError> {
        let state = self.info().await?.swarm.and_then(|s| s.local_node_state);
        Ok(!matches!(state, None | Some(LocalNodeState::EMPTY | LocalNodeState::INACTIVE)))
    }

    async fn info(&self) -> Result<SystemInfo, EngineError> {
        let client = self.client().await?;
        within(INSPECT, "describe its host", async { client.info().await.map_err(|e| self.error(e)) }).await
    }

    /// The client; negotiates the API version if there is none.
    async fn client(&self) -> Result<Docker, EngineError> {
        if let Some(client) = lock(&self.client).clone() {
            return Ok(client);
        }
        // Bollard's own negotiation has the version in the path, which an older engine refuses.
        let http = UnixClient::new(&self.socket);
        let reply = tokio::time::timeout(PING_TIMEOUT, http.get("/_ping"))
            .await
            .map_err(|_| self.unavailable(format!("no reply to a ping within {} s", PING_TIMEOUT.as_secs())))?
            .map_err(|e| self.unavailable(format!("{e:#}")))?;
        let newest = reply
            .headers
            .get(API_VERSION_HEADER)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| ApiVersion::parse(v.trim()))
            .ok_or_else(|| self.unavailable(format!("its reply to a ping has status {} and no API version", reply.status)))?;
        let api = newest.negotiate();
        let version = ClientVersion { major_version: api.major as usize, minor_version: api.minor as usize };
        let path = self.socket.display().to_string();
        let client = Docker::connect_with_unix(&path, REPLY_TIMEOUT.as_secs(), &version).map_err(|e| self.error(e))?;
        tracing::debug!(engine = %self.url, %api, "negotiated the API version");
        *lock(&self.client) = Some(client.clone());
        Ok(client)
    }

    /// Drops the client too: the engine may have another version when it answers again.
    fn unavailable(&self, reason: String) -> EngineError {
        *lock(&self.client) = None;
        EngineError::Unavailable { engine: self.url.clone(), reason }
    }

    fn error(&self, error: Error) -> EngineError {
        match error {
            Error::DockerResponseServerError { status_code: 404, message } => EngineError::NotFound(message),
            Error::DockerResponseServerError { message, .. } => EngineError::Refused(message),
            Error::DockerStreamError { error } => EngineError::Refused(error),
            Error::RequestTimeoutError => self.unavailable(format!("no reply within {} s", REPLY_TIMEOUT.as_secs())),
            Error::SocketNotFoundError(path) => self.unavailable(format!("there is no socket at {path}")),
            Error::IOError { .. } | Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } => {
                self.unavailable(format!("{:#}", anyhow::Error::from(error)))
            }
            other => EngineError::Refused(format!("the engine's reply cannot be read: {other}")),
        }
    }

    async fn inspect_raw(&self, container: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let client = self.client().await?;
        within(INSPECT, "inspect a container", async {
            match client.inspect_container(container, None::<InspectContainerOptions>).await {
                Ok(found) => Ok(Some(found)),
                Err(e) => ignore_missing(self.error(e)).map(|()| None),
            }
        })
        .await
    }

    async fn network_named(&self, name: &str) -> Result<Option<Network>, EngineError> {
        let found = self.networks_that("name", name).await?;
        // The filter also matches parts of names.
        Ok(found.into_iter().find(|n| n.name.as_deref() == Some(name)))
    }

    /// The container of a task.
    async fn container_of(&self, task: &TaskId) -> Result<Option<String>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_TASK_ID}={task}")])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let client = self.client().await?;
        let found =
            within(LIST, "list the containers", async { client.list_containers(Some(options)).await.map_err(|e| self.error(e)) });
        Ok(found.await?.into_iter().find_map(|container| container.id))
    }

    /// The networks that a filter of the engine selects.
    async fn networks_that(&self, filter: &str, value: &str) -> Result<Vec<Network>, EngineError> {
        let filters = HashMap::from([(filter.to_owned(), vec![value.to_owned()])]);
        let client = self.client().await?;
        let options = ListNetworksOptions { filters: Some(filters) };
        within(LIST, "list the networks", async { client.list_networks(Some(options)).await.map_err(|e| self.error(e)) }).await
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn describe(&self) -> Result<NodeDescription, EngineError> {
        Ok(description(self.info().await?))
    }

    async fn containers(&self, me: &NodeId) -> Result<Vec<ListedContainer>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_NODE}={me}")])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let client = self.client().await?;
        let found =
            within(LIST, "list the containers", async { client.list_containers(Some(options)).await.map_err(|e| self.error(e)) });
        let listed = |found: ContainerSummary| {
            let task_id = found.labels.and_then(|labels| labels.get(LABEL_TASK_ID).map(|id| TaskId::from(id.as_str())));
            Some(ListedContainer { id: found.id?, task_id })
        };
        let mut all: Vec<ListedContainer> = found.await?.into_iter().filter_map(listed).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    async fn inspect(&self, container_id: &str) -> Result<Option<Container>, EngineError> {
        Ok(self.inspect_raw(container_id).await?.map(container_of))
    }

    async fn has_image(&self, reference: &str) -> Result<bool, EngineError> {
        let client = self.client().await?;
        within(INSPECT, "inspect an image", async {
            match client.inspect_image(reference).await {
                Ok(_) => Ok(true),
                Err(e) => ignore_missing(self.error(e)).map(|()| false),
            }
        })
        .await
    }

    async fn pull(&self, reference: &str, auth: Option<&PullAuth>) -> Result<(), EngineError> {
        let (image, tag) = split_reference(reference);
        let idle = self.deadlines.pull_idle;
        if let Some(auth) = auth {
            return private_pull::pull(&UnixClient::new(&self.socket), &self.url, &image, tag.as_deref(), auth, idle).await;
        }
        let options = CreateImageOptions { from_image: Some(image), tag, ..Default::default() };
        let mut progress = self.client().await?.create_image(Some(options), None, None);
        while let Some(line) = progress_within(idle, progress.next()).await? {
            line.map_err(|e| match self.error(e) {
                EngineError::NotFound(message) => EngineError::Refused(message),
                other => other,
            })?;
        }
        Ok(())
    }

    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), EngineError> {
        let _creating = self.network_creation.lock().await;
        if let Some(found) = self.network_named(&network.name).await? {
            if found.driver.as_deref() != Some(DRIVER) {
                return Err(EngineError::Refused(format!(
                    "network {name} cannot be created on this node: its engine already has a network {name} of driver {driver}; \
                     remove that one: docker network rm {name}",
                    name = network.name,
                    driver = found.driver.unwrap_or_default(),
                )));
            }
            if swarm_id(&found) == network.id {
                return Ok(());
            }
            tracing::info!(network = %network.name, "replacing the engine's network: it belongs to an earlier swarm network of that name");
            self.remove_network(&found.id.unwrap_or_default()).await?;
        }
        let client = self.client().await?;
        within(NETWORK, "create a network", async {
            client.create_network(container::network_body(network)).await.map(|_| ()).map_err(|e| self.error(e))
        })
        .await
    }

    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        let found = self.networks_that("driver", DRIVER).await?;
        let mut networks: Vec<LocalNetwork> = found
            .into_iter()
            .map(|n| LocalNetwork { network_id: swarm_id(&n), id: n.id.unwrap_or_default(), name: n.name.unwrap_or_default() })
            .collect();
        networks.sort();
        Ok(networks)
    }

    async fn plain_containers(&self, network: &str) -> Result<BTreeMap<Ipv4Addr, AttachedContainer>, EngineError> {
        let client = self.client().await?;
        let found = within(NETWORK, "inspect a network", async {
            match client.inspect_network(network, None::<InspectNetworkOptions>).await {
                Ok(found) => Ok(Some(found)),
                Err(e) => ignore_missing(self.error(e)).map(|()| None),
            }
        });
        let Some(found) = found.await? else { return Ok(BTreeMap::new()) };
        let mut described = BTreeMap::new();
        for (id, endpoint) in found.containers.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>() {
            let address = endpoint.ipv4_address.as_deref().and_then(|text| text.split('/').next()?.parse().ok());
            let (Some(address), Some(container)) = (address, self.inspect_raw(&id).await?) else { continue };
            described.extend(plain_containers::described(container, network).map(|container| (address, container)));
        }
        Ok(described)
    }

    async fn is_referenced(&self, network: &str) -> Result<bool, EngineError> {
        // A container that was never started knows the network by its name alone.
        let name = self.networks_that("id", network).await?.into_iter().find_map(|found| found.name);
        let filters = HashMap::from([("network".to_owned(), std::iter::once(network.to_owned()).chain(name).collect())]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let client = self.client().await?;
        let found =
            within(LIST, "list the containers", async { client.list_containers(Some(options)).await.map_err(|e| self.error(e)) });
        let is_plain = |found: &ContainerSummary| !found.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_TASK_ID));
        Ok(found.await?.iter().any(is_plain))
    }

    async fn disconnect_all(&self, network: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let found = match client.inspect_network(network, None::<InspectNetworkOptions>).await {
            Ok(found) => found,
            Err(e) => return ignore_missing(self.error(e)),
        };
        for container in found.containers.unwrap_or_default().into_keys().collect::<BTreeSet<_>>() {
            let request = NetworkDisconnectRequest { container, force: Some(true) };
            client.disconnect_network(network, request).await.or_else(|e| ignore_missing(self.error(e)))?;
        }
        Ok(())
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        within(NETWORK, "remove a network", async {
            match client.remove_network(id).await {
                Err(Error::DockerResponseServerError { status_code: 403 | 409, message }) => Err(EngineError::Busy(message)),
                other => other.or_else(|e| ignore_missing(self.error(e))),
            }
        })
        .await
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, EngineError> {
        let name = plan.task.container_name();
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        let client = self.client().await?;
        if let Some(why) = api_needs::unsupported(&plan.task.spec.container_spec, api_of(&client)) {
            return Err(EngineError::Refused(why));
        }
        match client.create_container(Some(options), container::create_body(plan)).await {
            Ok(created) => Ok(created.id),
            // Created by an earlier call, perhaps of an earlier run of the daemon.
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
            .ok_or_else(|| EngineError::NotFound(format!("container {container_id} was removed before its start")))?;
        let connected = found.network_settings.and_then(|s| s.networks).unwrap_or_default();
        let client = self.client().await?;
        for (network, address) in &plan.networks {
            if connected.contains_key(&network.name) {
                continue;
            }
            let request = NetworkConnectRequest {
                container: container_id.to_owned(),
                endpoint_config: Some(container::endpoint(network, *address)),
            };
            client.connect_network(&network.name, request).await.map_err(|e| self.error(e))?;
        }
        client.start_container(container_id, None::<StartContainerOptions>).await.map_err(|e| self.error(e))
    }

    async fn stop(&self, container_id: &str, grace: Option<Duration>) -> Result<(), EngineError> {
        let seconds = grace.map(|g| i32::try_from(container::grace_seconds(g)).unwrap_or(i32::MAX));
        let client = self.client().await?.with_timeout(REPLY_TIMEOUT + grace.unwrap_or_default());
        let options = StopContainerOptions { t: seconds, ..Default::default() };
        client.stop_container(container_id, Some(options)).await.or_else(|e| ignore_missing(self.error(e)))
    }

    async fn remove(&self, container_id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { v: true, force: true, ..Default::default() };
        match self.client().await?.remove_container(container_id, Some(options)).await {
            Err(Error::DockerResponseServerError { status_code: 409, message }) => Err(EngineError::Busy(message)),
            other => other.or_else(|e| ignore_missing(self.error(e))),
        }
    }

    async fn logs(&self, task: &TaskId, tty: bool, options: &LogOptions) -> Result<Option<LogPieces>, EngineError> {
        let Some(container) = self.container_of(task).await? else { return Ok(None) };
        match logs::read(&UnixClient::new(&self.socket), &self.url, &container, tty, options).await {
            // Removed meanwhile.
            Err(EngineError::NotFound(_)) => Ok(None),
            read => read.map(Some),
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
                    reason: format!("its event stream was interrupted: {:#}", anyhow::Error::from(e)),
                })),
            };
            std::future::ready(event)
        });
        Ok(events.boxed())
    }
}

/// The negotiated version of the API.
fn api_of(client: &Docker) -> ApiVersion {
    let version = client.client_version();
    let number = |number: usize| u32::try_from(number).unwrap_or_default();
    ApiVersion { major: number(version.major_version), minor: number(version.minor_version) }
}

/// Success if the error is that the object does not exist.
fn ignore_missing(error: EngineError) -> Result<(), EngineError> {
    if matches!(error, EngineError::NotFound(_)) { Ok(()) } else { Err(error) }
}

/// Image and tag as separate parameters of a pull: without a tag the engine would pull all tags.
fn split_reference(reference: &str) -> (String, Option<String>) {
    if reference.contains('@') {
        return (reference.to_owned(), None);
    }
    match reference.rsplit_once(':') {
        // A colon before a slash separates the port of a registry.
        Some((image, tag)) if !tag.contains('/') => (image.to_owned(), Some(tag.to_owned())),
        _ => (reference.to_owned(), Some("latest".to_owned())),
    }
}

/// The swarm network that an engine's network was created for; empty without the option.
fn swarm_id(network: &Network) -> NetworkId {
    let id = network.options.as_ref().and_then(|o| o.get(NETWORK_OPTION)).map(String::as_str);
    NetworkId::from(id.unwrap_or_default())
}

fn container_of(found: ContainerInspectResponse) -> Container {
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
        // Users see skep's driver as `overlay`.
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
        generic_resources: generic_resources(info.generic_resources.unwrap_or_default()),
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
        ..NodeDescription::default()
    }
}

/// `node-generic-resources` of the engine, sorted; what has neither a name nor a number is left out.
fn generic_resources(found: Vec<GenericResourcesInner>) -> Vec<GenericResource> {
    let resource = |found: GenericResourcesInner| match (found.named_resource_spec, found.discrete_resource_spec) {
        (Some(named), _) => Some(GenericResource::named(&named.kind?, &named.value?)),
        (None, Some(discrete)) => Some(GenericResource::discrete(&discrete.kind?, discrete.value?)),
        (None, None) => None,
    };
    let mut all: Vec<GenericResource> = found.into_iter().filter_map(resource).collect();
    all.sort();
    all
}
