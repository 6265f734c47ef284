//! Docker's plugin protocol as types: the parts that are used. Everything optional may come as `null`.

use axum::http::StatusCode;
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Reads the body of a call.
///
/// # Errors
/// It is empty (the engine repeats a call that broke off so, and it must not be taken for a request) or not what belongs there.
pub fn read<T: DeserializeOwned>(call: &str, body: &[u8]) -> Result<T, (StatusCode, String)> {
    if body.is_empty() {
        return Err((
            StatusCode::BAD_REQUEST,
            format!("{call} came without a body; engines do so when a call broke off: it was not carried out"),
        ));
    }
    // By way of a value: a list would pass for a struct.
    let object: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|e| unread(call, &e))?;
    serde_json::from_value(Value::Object(object)).map_err(|e| unread(call, &e))
}

fn unread(call: &str, error: &serde_json::Error) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, format!("{call}: the body is not understood: {error}"))
}

/// `NetworkDriver.CreateNetwork`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetwork {
    /// The engine's id of the network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Driver options and flags.
    pub options: Option<Value>,
    /// Subnets.
    #[serde(rename = "IPv4Data")]
    pub ipv4_data: Option<Vec<IpData>>,
}

/// A subnet of a network.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct IpData {
    /// `10.0.1.0/24`.
    pub pool: String,
    /// `10.0.1.1/32`, as our IPAM answered it.
    pub gateway: Option<String>,
}

/// A call about a network.
#[derive(Deserialize, Debug)]
pub struct NetworkCall {
    /// The engine's id of the network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct CreateEndpoint {
    /// The engine's id of the network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// The engine's id of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// What IPAM gave.
    pub interface: Option<Interface>,
}

/// Addresses of an endpoint.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    /// `10.0.1.5/32`.
    pub address: Option<String>,
}

/// `NetworkDriver.Join`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Join {
    /// The engine's id of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Path of the container's network namespace, in the engine's mount namespace.
    pub sandbox_key: Option<String>,
}

/// A call about an endpoint.
#[derive(Deserialize, Debug)]
pub struct EndpointCall {
    /// The engine's id of the endpoint.
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
    /// IPv6.
    #[serde(default)]
    pub v6: bool,
}

/// `IpamDriver.RequestAddress`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct RequestAddress {
    /// As answered to `RequestPool`.
    #[serde(rename = "PoolID")]
    pub pool_id: Option<String>,
    /// The address wanted; empty lets the driver choose.
    pub address: Option<String>,
    /// What it is for.
    pub options: Option<Value>,
}

/// Route through another host.
const NEXT_HOP: u8 = 0;
/// Route to what is on the link.
const ON_LINK: u8 = 1;

/// Answer to `Join`: the gateway on-link, the network through it. No default gateway, so that the engine adds its own bridge
/// for everything else; for an internal network not even that.
#[must_use]
pub fn joined(link: &str, subnet: Ipv4Net, gateway: Ipv4Addr, internal: bool) -> Value {
    json!({
        "InterfaceName": { "SrcName": link, "DstPrefix": "eth" },
        "StaticRoutes": [
            { "Destination": format!("{gateway}/32"), "RouteType": ON_LINK },
            { "Destination": subnet.trunc().to_string(), "RouteType": NEXT_HOP, "NextHop": gateway.to_string() },
        ],
        "DisableGatewayService": internal,
    })
}
