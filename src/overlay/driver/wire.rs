//! Docker's plugin protocol as types: the parts that are used. The engine sends `null` for any optional field.

use crate::model::NetworkV6;
use crate::model::network::FurtherSubnet;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// A call of the engine.
#[derive(Debug)]
pub enum DriverCall {
    Activate,
    NetworkCapabilities,
    IpamCapabilities,
    DefaultAddressSpaces,
    RequestPool(RequestPool),
    RequestAddress(RequestAddress),
    ReleaseAddress(ReleaseAddress),
    CreateNetwork(CreateNetwork),
    DeleteNetwork(NetworkCall),
    CreateEndpoint(CreateEndpoint),
    DeleteEndpoint(EndpointCall),
    Join(Join),
    Leave(EndpointCall),
    EndpointOperInfo(EndpointCall),
    /// A notification that this driver has nothing to do for: the managers announce nodes, and the routing mesh serves
    /// published ports.
    Notification,
}

/// Why a request is not a call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("skep's network driver has no call {0:?}")]
    UnknownCall(String),
    /// An engine repeats a call without its body when the connection broke.
    #[error("{0} arrived without a body; engines send that after a broken connection: it was not carried out")]
    MissingBody(String),
    #[error("{call}: the body is not understood: {error}")]
    MalformedBody { call: String, error: serde_json::Error },
}

impl CallError {
    /// The HTTP status of the reply.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCall(_) => StatusCode::NOT_FOUND,
            Self::MissingBody(_) | Self::MalformedBody { .. } => StatusCode::BAD_REQUEST,
        }
    }
}

impl DriverCall {
    /// Parses the call `name`, as in `NetworkDriver.Join`, with its body.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, CallError> {
        Ok(match name {
            // These four have no body.
            "Plugin.Activate" => Self::Activate,
            "NetworkDriver.GetCapabilities" => Self::NetworkCapabilities,
            "IpamDriver.GetCapabilities" => Self::IpamCapabilities,
            "IpamDriver.GetDefaultAddressSpaces" => Self::DefaultAddressSpaces,
            "IpamDriver.RequestPool" => Self::RequestPool(parse_body(name, body)?),
            "IpamDriver.RequestAddress" => Self::RequestAddress(parse_body(name, body)?),
            "NetworkDriver.CreateNetwork" => Self::CreateNetwork(parse_body(name, body)?),
            "NetworkDriver.DeleteNetwork" => Self::DeleteNetwork(parse_body(name, body)?),
            "NetworkDriver.CreateEndpoint" => Self::CreateEndpoint(parse_body(name, body)?),
            "NetworkDriver.DeleteEndpoint" => Self::DeleteEndpoint(parse_body(name, body)?),
            "NetworkDriver.Join" => Self::Join(parse_body(name, body)?),
            "NetworkDriver.Leave" => Self::Leave(parse_body(name, body)?),
            "NetworkDriver.EndpointOperInfo" => Self::EndpointOperInfo(parse_body(name, body)?),
            "IpamDriver.ReleaseAddress" => Self::ReleaseAddress(parse_body(name, body)?),
            "IpamDriver.ReleasePool"
            | "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity" => {
                parse_body::<IgnoredAny>(name, body)?;
                Self::Notification
            }
            other => return Err(CallError::UnknownCall(other.to_owned())),
        })
    }
}

fn parse_body<T: DeserializeOwned>(call: &str, body: &[u8]) -> Result<T, CallError> {
    if body.is_empty() {
        return Err(CallError::MissingBody(call.to_owned()));
    }
    let malformed = |error| CallError::MalformedBody { call: call.to_owned(), error };
    // Parsed as an object first: serde would also accept an array for a struct.
    let object: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(malformed)?;
    serde_json::from_value(Value::Object(object)).map_err(malformed)
}

/// `NetworkDriver.CreateNetwork`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Flags of the network, and under `com.docker.network.generic` the driver's options.
    pub options: Option<Value>,
    #[serde(rename = "IPv4Data")]
    pub ipv4_data: Option<Vec<IpData>>,
    #[serde(rename = "IPv6Data")]
    pub ipv6_data: Option<Vec<IpData>>,
}

/// A subnet of a network.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct IpData {
    /// `10.0.1.0/24`.
    pub pool: String,
    /// `10.0.1.1/32`, as the IPAM half returned it.
    pub gateway: Option<String>,
}

/// A call about a network.
#[derive(Deserialize, Debug)]
pub struct NetworkCall {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// With the address that IPAM returned.
    pub interface: Option<Interface>,
}

/// Addresses of an endpoint.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    /// `10.0.1.5/32`.
    pub address: Option<String>,
    /// `fd00::5/128`; empty on a network without IPv6.
    #[serde(rename = "AddressIPv6")]
    pub address6: Option<String>,
}

/// `NetworkDriver.Join`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Join {
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Path of the container's network namespace, in the engine's mount namespace.
    pub sandbox_key: Option<String>,
}

/// A call about an endpoint.
#[derive(Deserialize, Debug)]
pub struct EndpointCall {
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
}

/// `IpamDriver.RequestPool`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct RequestPool {
    /// `10.0.1.0/24`; empty lets the driver choose.
    pub pool: Option<String>,
    /// A range within it.
    pub sub_pool: Option<String>,
    #[serde(default)]
    pub v6: bool,
}

/// `IpamDriver.RequestAddress`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct RequestAddress {
    /// `PoolID` of the reply to `RequestPool`.
    #[serde(rename = "PoolID")]
    pub pool_id: Option<String>,
    /// Empty lets the driver choose.
    pub address: Option<String>,
    /// `RequestAddressType` tells what the address is for.
    pub options: Option<Value>,
}

/// `IpamDriver.ReleaseAddress`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct ReleaseAddress {
    #[serde(rename = "PoolID")]
    pub pool_id: Option<String>,
    pub address: Option<String>,
}

/// `RouteType` of a route through a gateway.
const NEXT_HOP: u8 = 0;
/// `RouteType` of a route to an address on the link.
const ON_LINK: u8 = 1;

/// Reply to `Join`: the gateway on-link, and all subnets of the network through it. No default gateway, so that the engine adds its own
/// bridge for all other destinations; on an internal network not even that.
#[must_use]
pub fn join_reply(link: &str, subnets: &[FurtherSubnet], gateway: Ipv4Addr, v6: Option<NetworkV6>, internal: bool) -> Value {
    let through = |destination: String, hop: String| json!({ "Destination": destination, "RouteType": NEXT_HOP, "NextHop": hop });
    let mut routes = vec![json!({ "Destination": format!("{gateway}/32"), "RouteType": ON_LINK })];
    routes.extend(subnets.iter().map(|one| through(one.subnet.trunc().to_string(), gateway.to_string())));
    if let Some(NetworkV6 { subnet, gateway }) = v6 {
        routes.push(json!({ "Destination": format!("{gateway}/128"), "RouteType": ON_LINK }));
        routes.push(through(subnet.trunc().to_string(), gateway.to_string()));
    }
    json!({
        "InterfaceName": { "SrcName": link, "DstPrefix": "eth" },
        "StaticRoutes": routes,
        "DisableGatewayService": internal,
    })
}
