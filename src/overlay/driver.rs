//! Docker's remote network and IPAM driver, as the engine sees it: a container gets the address that was allocated to its
//! task, or one that the managers give for it ([`attachments`]), and a veth. Knows endpoints only; the managers allocate
//! addresses, the datapath creates links.
//!
//! The engine does not announce live containers again after a restart of its own or of the daemon. So every endpoint is kept
//! on disk ([`endpoint_file`]), and every call may be repeated or name an object that was removed already.

use crate::datapath::{LinkNetwork, Links, Sandbox, Sandboxes};
use crate::model::network::FurtherSubnet;
use crate::model::{NetworkId, NetworkV6, docker, dual_stack};
use crate::sync::{lock, replace_if_changed};
use attachments::{AttachError, Attachments};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use endpoint_file::{EndpointFile, EngineEndpoint, EngineNetwork, EngineObjects};
use error::DriverError;
use ipam::WantedAddress;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use wire::DriverCall;

mod attachment_set;
pub mod attachments;
pub mod endpoint_file;
mod error;
mod ipam;
#[cfg(test)]
mod tests;
pub mod wire;

/// Largest body that is read, in bytes; the engine's are below 10 KiB.
const MAX_BODY: usize = 256 << 10;

/// The driver of one engine.
pub struct Driver {
    links: Arc<dyn Links>,
    mtu: watch::Receiver<u32>,
    file: EndpointFile,
    /// Held while a link is created or removed: a late `Leave` and a `Join` may concern the same address.
    links_lock: Mutex<()>,
    sandboxes: Arc<dyn Sandboxes>,
    joined: watch::Sender<Vec<Sandbox>>,
    /// Addresses of plain containers; `None`: there are tasks only.
    attachments: Option<Arc<Attachments>>,
    given: std::sync::Mutex<GivenAddresses>,
}

/// IPv4 addresses given last, by network and by the MAC address of the container: the request for its IPv6 address follows, and
/// names nothing else.
type GivenAddresses = VecDeque<(NetworkId, String, Ipv4Addr)>;

/// How many of them are kept: containers that may begin at the same time.
const MOST_GIVEN: usize = 512;

/// A container's address on a network, as the engine has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacedEndpoint {
    pub network: NetworkId,
    /// The engine's id of its network.
    pub engine_network: String,
    pub address: Ipv4Addr,
}

impl Driver {
    /// Of the endpoints in `file`, which is not read yet: [`Self::load`]. `mtu` is the MTU in bytes of links created from now on.
    pub fn new(links: Arc<dyn Links>, sandboxes: Arc<dyn Sandboxes>, file: PathBuf, mtu: watch::Receiver<u32>) -> Self {
        Self {
            links,
            mtu,
            file: EndpointFile::new(file),
            links_lock: Mutex::new(()),
            sandboxes,
            joined: watch::channel(Vec::new()).0,
            attachments: None,
            given: std::sync::Mutex::default(),
        }
    }

    /// Reads the endpoints that an earlier run wrote, unless they were read. Until then every change of one is refused.
    ///
    /// # Errors
    /// The file is damaged, of another format or cannot be read.
    pub fn load(&self) -> anyhow::Result<()> {
        if self.file.load()? {
            replace_if_changed(&self.joined, self.file.read(sandboxes_of));
        }
        Ok(())
    }

    /// Gives plain containers addresses from here.
    #[must_use]
    pub fn with_attachments(mut self, attachments: Arc<Attachments>) -> Self {
        self.attachments = Some(attachments);
        self
    }

    /// Every endpoint on a network of the swarm.
    pub fn placed(&self) -> Vec<PlacedEndpoint> {
        let placed = |objects: &EngineObjects| {
            let endpoints = objects.endpoints.values();
            let place = endpoints.filter_map(|endpoint| {
                let network = objects.networks.get(&endpoint.network)?.swarm_network.as_str().into();
                Some(PlacedEndpoint { network, engine_network: endpoint.network.clone(), address: endpoint.address })
            });
            place.collect()
        };
        self.file.read(placed)
    }

    /// The namespaces that have an address on an overlay network, sorted; updated with each join and leave.
    pub fn joined(&self) -> watch::Receiver<Vec<Sandbox>> {
        self.joined.subscribe()
    }

    /// The current endpoints, sorted by id: for `/dump`.
    pub fn endpoints(&self) -> Vec<EngineEndpoint> {
        self.file.read(|objects| objects.endpoints.values().cloned().collect())
    }

    /// The address of the gateway, of a task, or for a plain container.
    async fn request_address(&self, call: wire::RequestAddress) -> Result<Value, DriverError> {
        let (subnet, wanted) = ipam::address_request(&call)?;
        let requested = match wanted {
            WantedAddress::Gateway(address) => return Ok(ipam::reply(address)),
            WantedAddress::Exact(address) => Some(address),
            WantedAddress::Any => None,
        };
        let mac = ipam::mac(&call);
        let Some((id, network)) = self.network_with(subnet) else {
            return match (requested, &self.attachments) {
                // There are tasks only, with addresses of their own.
                (Some(address), None) => Ok(ipam::reply(address)),
                _ => Err(DriverError::UnknownSubnet(subnet)),
            };
        };
        match (requested, subnet) {
            // The creation of the endpoint checks that it belongs to the IPv4 address.
            (Some(address @ IpAddr::V6(_)), _) => Ok(ipam::reply(address)),
            (None, IpNet::V6(_)) => self.second_address(&id, &network, mac.as_deref()).map(ipam::reply),
            (Some(IpAddr::V4(address)), _) => self.first_address(id, Some(address), mac).await,
            // Users' containers get addresses from the managers only.
            (None, IpNet::V4(_)) if self.attachments.is_none() => Err(DriverError::UnknownSubnet(subnet)),
            (None, IpNet::V4(_)) => self.first_address(id, None, mac).await,
        }
    }

    /// The IPv4 address of a task, or for a plain container.
    async fn first_address(
        &self,
        network: NetworkId,
        requested: Option<Ipv4Addr>,
        mac: Option<String>,
    ) -> Result<Value, DriverError> {
        let claimed = match (&self.attachments, requested) {
            (Some(attachments), Some(address)) if attachments.is_of_task(&network, address) => Ok(address),
            (None, Some(address)) => Ok(address),
            (None, None) => return Err(DriverError::NoPool),
            (Some(attachments), _) => attachments.claim(&network, requested).await,
        };
        match claimed {
            Ok(address) => {
                if let Some(mac) = mac {
                    let mut given = lock(&self.given);
                    given.retain(|(of, other, _)| *of != network || *other != mac);
                    given.push_back((network, mac, address));
                    if given.len() > MOST_GIVEN {
                        given.pop_front();
                    }
                }
                Ok(ipam::reply(address.into()))
            }
            Err(source @ AttachError::Refused(_)) => Err(DriverError::NotAttachable { network: network.to_string(), source }),
            Err(error) => Err(DriverError::NoAddressGiven(error)),
        }
    }

    /// The IPv6 address that belongs to the IPv4 address which the interface with this MAC address was given.
    fn second_address(&self, id: &NetworkId, network: &EngineNetwork, mac: Option<&str>) -> Result<IpAddr, DriverError> {
        let mac = mac.ok_or(DriverError::NoMac)?;
        let given = lock(&self.given);
        let first = given.iter().find(|(of, other, _)| of == id && mac == other).map(|(_, _, address)| *address);
        first.and_then(|address| network.to_v6(address)).map(IpAddr::V6).ok_or(DriverError::NoFirstAddress)
    }

    async fn release_address(&self, call: wire::ReleaseAddress) -> Result<Value, DriverError> {
        let subnet = ipam::pool(call.pool_id.as_deref())?;
        let address = call.address.as_deref().and_then(ipam::address);
        if let (Some(attachments), Some((network, _)), Some(IpAddr::V4(address))) =
            (&self.attachments, self.network_with(subnet), address)
        {
            attachments.release(&network, address).await;
        }
        Ok(json!({}))
    }

    /// The swarm network with this subnet, of those that the engine has.
    fn network_with(&self, subnet: IpNet) -> Option<(NetworkId, EngineNetwork)> {
        let has = |network: &EngineNetwork| match subnet {
            IpNet::V4(subnet) => network.subnets().iter().any(|one| one.subnet.trunc() == subnet.trunc()),
            IpNet::V6(subnet) => network.v6.is_some_and(|v6| v6.subnet.trunc() == subnet.trunc()),
        };
        self.file.read(|objects| {
            let found = objects.networks.values().find(|network| has(network));
            found.map(|network| (network.swarm_network.as_str().into(), network.clone()))
        })
    }

    async fn create_network(&self, call: wire::CreateNetwork) -> Result<Value, DriverError> {
        let data = call.ipv4_data.unwrap_or_default();
        let subnets: Vec<FurtherSubnet> = data.iter().map(subnet_of).collect::<Result<_, _>>()?;
        let [FurtherSubnet { subnet, gateway }, further @ ..] = &subnets[..] else { return Err(DriverError::NoSubnet) };
        let v6 = network_v6(&subnets, &call.ipv6_data.unwrap_or_default())?;
        let options = call.options.unwrap_or(Value::Null);
        let network = EngineNetwork {
            subnet: *subnet,
            gateway: *gateway,
            further: further.to_vec(),
            v6,
            internal: options.get("com.docker.network.internal").and_then(Value::as_bool).unwrap_or(false),
            swarm_network: option(&options, docker::NETWORK_OPTION).unwrap_or_default().to_owned(),
            most_mtu: option(&options, docker::MOST_MTU_OPTION).and_then(|mtu| mtu.parse().ok()),
        };
        self.update(|objects| drop(objects.networks.insert(call.network_id, network))).await?;
        Ok(json!({}))
    }

    async fn delete_network(&self, call: wire::NetworkCall) -> Result<Value, DriverError> {
        let id = call.network_id;
        let _lock = self.links_lock.lock().await;
        let removed = self.update(|objects| {
            objects.networks.remove(&id);
            let removed: Vec<EngineEndpoint> = objects.endpoints.values().filter(|e| e.network == id).cloned().collect();
            objects.endpoints.retain(|_, e| e.network != id);
            removed
        });
        for endpoint in removed.await? {
            self.detach(&endpoint).await?;
        }
        Ok(json!({}))
    }

    fn create_endpoint(&self, call: wire::CreateEndpoint) -> Result<Value, DriverError> {
        let (requested, requested6) = call.interface.map(|i| (i.address, i.address6)).unwrap_or_default();
        let requested = requested.filter(|a| !a.is_empty());
        let Some(address) = requested.as_deref().and_then(ipam::address::<Ipv4Addr>) else {
            return Err(DriverError::NoAddress { endpoint: call.endpoint_id, requested });
        };
        let network = self.network(&call.network_id)?;
        if !network.subnets().iter().any(|one| one.subnet.contains(&address)) {
            return Err(DriverError::OutsideSubnet { address: address.into(), subnet: network.subnet.into() });
        }
        let belongs = network.to_v6(address);
        if let (Some(wanted), Some(belongs)) = (requested6.as_deref().and_then(ipam::address), belongs)
            && wanted != belongs
        {
            return Err(DriverError::OtherNumber { wanted, address, belongs });
        }
        let endpoint = EngineEndpoint { id: call.endpoint_id, network: call.network_id, address, sandbox: None, link: None };
        // The join writes it to the file: before, there is no link to remove after a restart.
        self.file.update_in_memory(|objects| drop(objects.endpoints.insert(endpoint.id.clone(), endpoint)));
        // An empty object: nothing to add to the interface that the engine described.
        Ok(json!({ "Interface": {} }))
    }

    async fn join(&self, call: wire::Join) -> Result<Value, DriverError> {
        let _lock = self.links_lock.lock().await;
        let endpoint = self.endpoint(&call.endpoint_id);
        let endpoint = endpoint.ok_or(DriverError::UnknownEndpoint(call.endpoint_id))?;
        let network = self.network(&endpoint.network)?;
        let mtu = *self.mtu.borrow();
        let mtu = network.most_mtu.map_or(mtu, |most| most.min(mtu));
        let address = endpoint.address;
        let to = link_network(&network, address)?;
        let link = self.links.attach_to(to, address, mtu).await;
        let link = link.map_err(|source| DriverError::Attach { address, source })?;
        let joined = EngineEndpoint { sandbox: call.sandbox_key, link: Some(link.clone()), ..endpoint };
        self.update(|objects| {
            // An earlier endpoint of this address no longer owns the link: its late `Leave` must not remove it.
            for other in objects.endpoints.values_mut().filter(|e| e.address == address) {
                other.link = None;
            }
            objects.endpoints.insert(joined.id.clone(), joined);
        })
        .await?;
        Ok(wire::join_reply(&link, &network.subnets(), to.gateway, network.v6, network.internal))
    }

    async fn leave(&self, call: wire::EndpointCall) -> Result<Value, DriverError> {
        let _lock = self.links_lock.lock().await;
        if let Some(endpoint) = self.endpoint(&call.endpoint_id) {
            self.detach(&endpoint).await?;
            // The deletion that follows writes it to the file: to remove the link twice does no harm.
            self.file.update_in_memory(|objects| {
                if let Some(endpoint) = objects.endpoints.get_mut(&call.endpoint_id) {
                    (endpoint.sandbox, endpoint.link) = (None, None);
                }
            });
        }
        Ok(json!({}))
    }

    async fn delete_endpoint(&self, call: wire::EndpointCall) -> Result<Value, DriverError> {
        let _lock = self.links_lock.lock().await;
        if let Some(endpoint) = self.endpoint(&call.endpoint_id) {
            self.detach(&endpoint).await?;
            self.update(|objects| drop(objects.endpoints.remove(&call.endpoint_id))).await?;
        }
        Ok(json!({}))
    }

    /// The engine calls this when the container's interfaces exist and its process has not started yet.
    async fn endpoint_oper_info(&self, call: &wire::EndpointCall) -> Result<Value, DriverError> {
        let sandbox = self.file.read(|objects| sandbox_of(objects, objects.endpoints.get(&call.endpoint_id)?));
        if let Some(sandbox) = sandbox
            && let Err(error) = self.sandboxes.enter(&sandbox).await
        {
            // The userspace datapath serves the container then.
            tracing::warn!(address = %sandbox.address, error = format!("{error:#}"), "the container's namespace stays as the engine made it");
        }
        Ok(json!({ "Value": {} }))
    }

    fn endpoint(&self, id: &str) -> Option<EngineEndpoint> {
        self.file.read(|objects| objects.endpoints.get(id).cloned())
    }

    fn network(&self, id: &str) -> Result<EngineNetwork, DriverError> {
        let network = self.file.read(|objects| objects.networks.get(id).cloned());
        network.ok_or_else(|| DriverError::UnknownNetwork(id.to_owned()))
    }

    /// Removes the link, if the endpoint still has one.
    async fn detach(&self, endpoint: &EngineEndpoint) -> Result<(), DriverError> {
        if endpoint.link.is_none() {
            return Ok(());
        }
        let address = endpoint.address;
        self.links.detach(address).await.map_err(|source| DriverError::Detach { address, source })
    }

    /// Updates the objects, in memory and in the file, and publishes the joined namespaces.
    async fn update<T>(&self, update: impl FnOnce(&mut EngineObjects) -> T) -> Result<T, DriverError> {
        let value = self.file.update(update).await.map_err(DriverError::File)?;
        replace_if_changed(&self.joined, self.file.read(sandboxes_of));
        Ok(value)
    }

    async fn carry_out(&self, call: DriverCall) -> Result<Value, DriverError> {
        match call {
            DriverCall::Activate => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
            DriverCall::NetworkCapabilities => Ok(json!({ "Scope": "local", "ConnectivityScope": "global" })),
            DriverCall::IpamCapabilities => Ok(json!({ "RequiresMACAddress": true, "RequiresRequestReplay": false })),
            DriverCall::DefaultAddressSpaces => {
                Ok(json!({ "LocalDefaultAddressSpace": "skep", "GlobalDefaultAddressSpace": "skep" }))
            }
            DriverCall::RequestPool(call) => ipam::request_pool(call),
            DriverCall::RequestAddress(call) => self.request_address(call).await,
            DriverCall::ReleaseAddress(call) => self.release_address(call).await,
            DriverCall::CreateNetwork(call) => self.create_network(call).await,
            DriverCall::DeleteNetwork(call) => self.delete_network(call).await,
            DriverCall::CreateEndpoint(call) => self.create_endpoint(call),
            DriverCall::DeleteEndpoint(call) => self.delete_endpoint(call).await,
            DriverCall::Join(call) => self.join(call).await,
            DriverCall::Leave(call) => self.leave(call).await,
            DriverCall::EndpointOperInfo(call) => self.endpoint_oper_info(&call).await,
            DriverCall::Notification => Ok(json!({})),
        }
    }
}

/// One of the driver's options, of those that the engine sends with a network.
fn option<'a>(options: &'a Value, name: &str) -> Option<&'a str> {
    options.get("com.docker.network.generic")?.get(name)?.as_str()
}

/// An IPv4 subnet of a network that the engine creates.
fn subnet_of(data: &wire::IpData) -> Result<FurtherSubnet, DriverError> {
    let subnet: Ipv4Net = data.pool.parse().map_err(|_| DriverError::NotASubnet(data.pool.clone()))?;
    let gateway = data.gateway.as_deref().and_then(ipam::address).ok_or(DriverError::NoGateway)?;
    Ok(FurtherSubnet { subnet, gateway })
}

/// The network as the veth of this address needs it.
fn link_network(network: &EngineNetwork, address: Ipv4Addr) -> Result<LinkNetwork, DriverError> {
    let found = network.subnets().into_iter().find(|one| one.subnet.contains(&address));
    let outside = DriverError::OutsideSubnet { address: address.into(), subnet: network.subnet.into() };
    let FurtherSubnet { subnet, gateway } = found.ok_or(outside)?;
    let pair = network.pairs().into_iter().find(|pair| pair.v4 == subnet.trunc());
    let v6 = pair.zip(network.v6).map(|(pair, v6)| NetworkV6 { subnet: pair.v6, gateway: v6.gateway });
    Ok(LinkNetwork { first: network.subnet, subnet, gateway, v6 })
}

/// The IPv6 half of a network that the engine creates.
fn network_v6(subnets: &[FurtherSubnet], data: &[wire::IpData]) -> Result<Option<NetworkV6>, DriverError> {
    let data = match data {
        [] => return Ok(None),
        [data] => data,
        more => return Err(DriverError::Subnet6Count(more.len())),
    };
    let v6: Ipv6Net = data.pool.parse().map_err(|_| DriverError::NotASubnet(data.pool.clone()))?;
    let nets: Vec<Ipv4Net> = subnets.iter().map(|one| one.subnet).collect();
    if dual_stack::pairs(&nets, v6).is_empty() {
        return Err(DriverError::SmallSubnet6 { v4: nets, v6 });
    }
    let gateway = data.gateway.as_deref().and_then(ipam::address).ok_or(DriverError::NoGateway)?;
    Ok(Some(NetworkV6 { subnet: v6.trunc(), gateway }))
}

/// The endpoint's namespace, while it is joined.
fn sandbox_of(objects: &EngineObjects, endpoint: &EngineEndpoint) -> Option<Sandbox> {
    let network = objects.networks.get(&endpoint.network)?;
    endpoint.link.as_ref()?;
    let path = PathBuf::from(endpoint.sandbox.as_ref()?);
    let further = network.further.iter().map(|further| further.subnet).collect();
    Some(Sandbox { path, subnet: network.subnet, further, gateway: network.gateway, address: endpoint.address })
}

fn sandboxes_of(objects: &EngineObjects) -> Vec<Sandbox> {
    let mut all: Vec<Sandbox> = objects.endpoints.values().filter_map(|endpoint| sandbox_of(objects, endpoint)).collect();
    all.sort();
    all
}

/// The plugin protocol, to be served on `<plugin-dir>/skep.sock`.
pub fn router(driver: Arc<Driver>) -> Router {
    Router::new().route("/{call}", post(handle)).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(driver)
}

async fn handle(State(driver): State<Arc<Driver>>, UrlPath(name): UrlPath<String>, body: Bytes) -> Response {
    let call = match DriverCall::parse(&name, &body) {
        Ok(call) => call,
        Err(error) => {
            tracing::warn!(call = name, %error, "the engine's call is not understood");
            return reply(error.status(), &json!({ "Err": error.to_string() }));
        }
    };
    match driver.carry_out(call).await {
        Ok(value) => {
            tracing::debug!(call = name, body = %String::from_utf8_lossy(&body), reply = %value, "engine's call");
            reply(StatusCode::OK, &value)
        }
        // The engine expects status 200 with a field `Err`, which its IPAM side calls `Error`.
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(call = name, body = %String::from_utf8_lossy(&body), error, "refused the engine's call");
            reply(StatusCode::OK, &json!({ "Err": error, "Error": error }))
        }
    }
}

fn reply(status: StatusCode, value: &Value) -> Response {
    let kind = [("Content-Type", "application/vnd.docker.plugins.v1.2+json")];
    (status, kind, value.to_string()).into_response()
}
