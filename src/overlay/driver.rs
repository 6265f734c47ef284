//! Docker's remote network and IPAM driver, as the engine sees it: gives a container the address that its task was given,
//! and its veth. Knows endpoints only; addresses are the managers' business, links the datapath's.
//!
//! The engine does not repeat itself: after a restart of its own or of ours, live containers are not announced again. So
//! every endpoint is kept on disk ([`state`]), and every call may come twice or for something that is gone already.

use crate::datapath::{Links, Sandbox, Sandboxes};
use crate::model::docker;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use state::{Endpoint, Ledger, Network};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};

mod ipam;
pub mod state;
#[cfg(test)]
mod tests;
pub mod wire;

/// Largest body that is read, in bytes; the engine's are below 10 KiB.
const MAX_BODY: usize = 256 << 10;

/// Why a call was not carried out; the engine passes the sentence on to the user.
pub type Refusal = String;

/// The driver and what it knows.
pub struct Driver {
    links: Arc<dyn Links>,
    mtu: watch::Receiver<u32>,
    ledger: Ledger,
    /// Links are made and taken down one at a time: a late farewell and a join may mean the same address.
    turn: Mutex<()>,
    sandboxes: Arc<dyn Sandboxes>,
    joined: watch::Sender<Vec<Sandbox>>,
}

impl Driver {
    /// With the endpoints that an earlier run left in `ledger` (a file that need not be there yet). `mtu` is the MTU in
    /// bytes of links made from now on.
    ///
    /// # Errors
    /// The file is damaged, of a newer skep or cannot be read.
    pub fn open(
        links: Arc<dyn Links>,
        sandboxes: Arc<dyn Sandboxes>,
        ledger: PathBuf,
        mtu: watch::Receiver<u32>,
    ) -> anyhow::Result<Self> {
        let ledger = Ledger::open(ledger)?;
        let (joined, _) = watch::channel(ledger.look(sandboxes_of));
        Ok(Self { links, mtu, ledger, turn: Mutex::new(()), sandboxes, joined })
    }

    /// The namespaces that have an address of ours, as they come and go, sorted.
    pub fn joined(&self) -> watch::Receiver<Vec<Sandbox>> {
        self.joined.subscribe()
    }

    /// Endpoints as known now, sorted by id: for `/dump`.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.ledger.look(|known| known.endpoints.values().cloned().collect())
    }

    async fn create_network(&self, call: wire::CreateNetwork) -> Result<Value, Refusal> {
        let data = call.ipv4_data.unwrap_or_default();
        let [v4] = data.as_slice() else {
            return Err(format!(
                "a network of driver skep has exactly one IPv4 subnet, not {}: skep makes them itself, for the \
                 networks of the swarm (docker network create -d overlay)",
                data.len()
            ));
        };
        let subnet = v4.pool.parse().map_err(|_| format!("{:?} is not an IPv4 subnet", v4.pool))?;
        let gateway = v4.gateway.as_deref().and_then(ipam::address).ok_or("the network has no gateway")?;
        let options = call.options.unwrap_or(Value::Null);
        let network = Network {
            subnet,
            gateway,
            internal: options.get("com.docker.network.internal").and_then(Value::as_bool).unwrap_or(false),
            swarm_network: options
                .get("com.docker.network.generic")
                .and_then(|g| g.get(docker::NETWORK_OPTION))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        };
        self.change(|known| drop(known.networks.insert(call.network_id, network))).await?;
        Ok(json!({}))
    }

    async fn delete_network(&self, call: wire::NetworkCall) -> Result<Value, Refusal> {
        let id = call.network_id;
        let _turn = self.turn.lock().await;
        let left = self.change(|known| {
            known.networks.remove(&id);
            let left: Vec<Endpoint> = known.endpoints.values().filter(|e| e.network == id).cloned().collect();
            known.endpoints.retain(|_, e| e.network != id);
            left
        });
        for endpoint in left.await? {
            self.detach(&endpoint).await?;
        }
        Ok(json!({}))
    }

    fn create_endpoint(&self, call: wire::CreateEndpoint) -> Result<Value, Refusal> {
        let wanted = call.interface.and_then(|i| i.address).filter(|a| !a.is_empty());
        let address = wanted.as_deref().and_then(ipam::address).ok_or_else(|| {
            format!(
                "endpoint {} has no IPv4 address ({wanted:?}): only tasks get addresses on overlay networks",
                call.endpoint_id
            )
        })?;
        let network = self.ledger.look(|known| known.networks.get(&call.network_id).cloned());
        let network = network.ok_or_else(|| unknown_network(&call.network_id))?;
        if !network.subnet.contains(&address) {
            return Err(format!("address {address} is not in the network's subnet {}", network.subnet));
        }
        let endpoint = Endpoint { id: call.endpoint_id, network: call.network_id, address, sandbox: None, link: None };
        // On disk with the join: without one there is nothing to take down.
        self.ledger.note(|known| drop(known.endpoints.insert(endpoint.id.clone(), endpoint)));
        // Nothing to add to the interface that the engine described: an empty object says so.
        Ok(json!({ "Interface": {} }))
    }

    async fn join(&self, call: wire::Join) -> Result<Value, Refusal> {
        let _turn = self.turn.lock().await;
        let endpoint = self.endpoint(&call.endpoint_id);
        let endpoint =
            endpoint.ok_or_else(|| format!("endpoint {} is not known to skep: it was not created", call.endpoint_id))?;
        let network = self.ledger.look(|known| known.networks.get(&endpoint.network).cloned());
        let network = network.ok_or_else(|| unknown_network(&endpoint.network))?;
        let mtu = *self.mtu.borrow();
        let address = endpoint.address;
        let link = self.links.attach(network.subnet, address, mtu).await;
        let link = link.map_err(|e| format!("cannot make the link of {address}: {e:#}"))?;
        let joined = Endpoint { sandbox: call.sandbox_key, link: Some(link.clone()), ..endpoint };
        self.change(|known| {
            // Whoever had the address before is gone: its late `Leave` must not take this link down.
            for other in known.endpoints.values_mut().filter(|e| e.address == address) {
                other.link = None;
            }
            known.endpoints.insert(joined.id.clone(), joined);
        })
        .await?;
        Ok(wire::joined(&link, network.subnet, network.gateway, network.internal))
    }

    async fn leave(&self, call: wire::EndpointCall) -> Result<Value, Refusal> {
        let _turn = self.turn.lock().await;
        if let Some(endpoint) = self.endpoint(&call.endpoint_id) {
            self.detach(&endpoint).await?;
            // On disk with the deletion that follows: taking down twice does no harm.
            self.ledger.note(|known| {
                if let Some(endpoint) = known.endpoints.get_mut(&call.endpoint_id) {
                    (endpoint.sandbox, endpoint.link) = (None, None);
                }
            });
        }
        Ok(json!({}))
    }

    async fn delete_endpoint(&self, call: wire::EndpointCall) -> Result<Value, Refusal> {
        let _turn = self.turn.lock().await;
        if let Some(endpoint) = self.endpoint(&call.endpoint_id) {
            self.detach(&endpoint).await?;
            self.change(|known| drop(known.endpoints.remove(&call.endpoint_id))).await?;
        }
        Ok(json!({}))
    }

    fn endpoint(&self, id: &str) -> Option<Endpoint> {
        self.ledger.look(|known| known.endpoints.get(id).cloned())
    }

    /// Takes the link down, if the endpoint still has one.
    async fn detach(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        if endpoint.link.is_none() {
            return Ok(());
        }
        let address = endpoint.address;
        self.links.detach(address).await.map_err(|e| format!("cannot take down the link of {address}: {e:#}"))
    }

    /// Changes what is known, here and on disk.
    async fn change<T>(&self, change: impl FnOnce(&mut state::Known) -> T) -> Result<T, Refusal> {
        let value = self.ledger.change(change).await.map_err(|e| format!("{e:#}"))?;
        self.joined.send_if_modified(|before| {
            let now = self.ledger.look(sandboxes_of);
            let changed = *before != now;
            *before = now;
            changed
        });
        Ok(value)
    }

    /// The container's interfaces are there, its process has not started yet.
    async fn oper_info(&self, call: &wire::EndpointCall) -> Result<Value, Refusal> {
        let sandbox =
            self.ledger.look(|known| known.endpoints.get(&call.endpoint_id).and_then(|endpoint| sandbox_of(known, endpoint)));
        if let Some(sandbox) = sandbox
            && let Err(error) = self.sandboxes.enter(&sandbox).await
        {
            // Without it the container is served by the userspace datapath.
            tracing::warn!(address = %sandbox.address, error = format!("{error:#}"), "the container's namespace stays as the engine made it");
        }
        Ok(json!({ "Value": {} }))
    }
}

fn sandbox_of(known: &state::Known, endpoint: &Endpoint) -> Option<Sandbox> {
    let network = known.networks.get(&endpoint.network)?;
    endpoint.link.as_ref()?;
    let path = PathBuf::from(endpoint.sandbox.as_ref()?);
    Some(Sandbox { path, subnet: network.subnet, gateway: network.gateway, address: endpoint.address })
}

fn sandboxes_of(known: &state::Known) -> Vec<Sandbox> {
    let mut all: Vec<Sandbox> = known.endpoints.values().filter_map(|endpoint| sandbox_of(known, endpoint)).collect();
    all.sort();
    all
}

fn unknown_network(id: &str) -> Refusal {
    format!(
        "network {id} is not known to skep (its file of endpoints was lost): remove it from the engine (docker network rm), skep makes it again"
    )
}

/// The plugin protocol, to be served on `<plugin-dir>/skep.sock`.
pub fn router(driver: Arc<Driver>) -> Router {
    Router::new().route("/{call}", post(answer)).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(driver)
}

async fn answer(State(driver): State<Arc<Driver>>, UrlPath(call): UrlPath<String>, body: Bytes) -> Response {
    let result = driver.call(&call, &body).await;
    tracing::debug!(call, body = %String::from_utf8_lossy(&body), ?result, "engine's call");
    match result {
        // As the engine expects it: 200 with a field `Err`, which its IPAM side calls `Error`.
        Ok(Answer::Done(value)) => reply(StatusCode::OK, &value),
        Ok(Answer::Refused(words)) => {
            tracing::warn!(call, error = %words, "refused the engine's call");
            reply(StatusCode::OK, &json!({ "Err": words, "Error": words }))
        }
        Err((status, words)) => {
            tracing::warn!(call, error = %words, "the engine's call is not understood");
            reply(status, &json!({ "Err": words }))
        }
    }
}

enum Answer {
    Done(Value),
    Refused(Refusal),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done(value) => write!(f, "{value}"),
            Self::Refused(words) => write!(f, "refused: {words}"),
        }
    }
}

impl Driver {
    async fn call(&self, call: &str, body: &[u8]) -> Result<Answer, (StatusCode, Refusal)> {
        let result = match call {
            // These come without a body.
            "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
            "NetworkDriver.GetCapabilities" => Ok(json!({ "Scope": "local", "ConnectivityScope": "global" })),
            "IpamDriver.GetCapabilities" => Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })),
            "IpamDriver.GetDefaultAddressSpaces" => {
                Ok(json!({ "LocalDefaultAddressSpace": "skep", "GlobalDefaultAddressSpace": "skep" }))
            }
            "IpamDriver.RequestPool" => ipam::request_pool(wire::read(call, body)?),
            "IpamDriver.RequestAddress" => ipam::request_address(&wire::read(call, body)?),
            "IpamDriver.ReleasePool" | "IpamDriver.ReleaseAddress" => {
                // The managers give and take addresses; the engine only hears of it.
                wire::read::<Value>(call, body)?;
                Ok(json!({}))
            }
            "NetworkDriver.CreateNetwork" => self.create_network(wire::read(call, body)?).await,
            "NetworkDriver.DeleteNetwork" => self.delete_network(wire::read(call, body)?).await,
            "NetworkDriver.CreateEndpoint" => self.create_endpoint(wire::read(call, body)?),
            "NetworkDriver.DeleteEndpoint" => self.delete_endpoint(wire::read(call, body)?).await,
            "NetworkDriver.Join" => self.join(wire::read(call, body)?).await,
            "NetworkDriver.Leave" => self.leave(wire::read(call, body)?).await,
            "NetworkDriver.EndpointOperInfo" => self.oper_info(&wire::read(call, body)?).await,
            "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity" => {
                // Nodes come from the managers, ports go through the routing mesh: nothing to do.
                wire::read::<Value>(call, body)?;
                Ok(json!({}))
            }
            other => return Err((StatusCode::NOT_FOUND, format!("skep's network driver has no call {other:?}"))),
        };
        Ok(result.map_or_else(Answer::Refused, Answer::Done))
    }
}

fn reply(status: StatusCode, value: &Value) -> Response {
    let kind = [("Content-Type", "application/vnd.docker.plugins.v1.2+json")];
    (status, kind, value.to_string()).into_response()
}
