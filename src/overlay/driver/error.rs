//! Why the driver refuses a call. The engine shows the text to the user.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// A call that the driver understood and refuses, or could not carry out.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(
        "a network of driver skep has exactly one IPv4 subnet, not {0}: skep creates them itself, for the networks of the \
         swarm (docker network create -d overlay)"
    )]
    SubnetCount(usize),
    #[error("{0:?} is not an IPv4 subnet")]
    NotASubnet(String),
    #[error("the network has no gateway")]
    NoGateway,
    #[error("endpoint {endpoint} has no IPv4 address ({requested:?}): only tasks get addresses on overlay networks")]
    NoAddress {
        /// The engine's id.
        endpoint: String,
        /// What the engine sent instead.
        requested: Option<String>,
    },
    #[error(
        "network {0} is not known to skep (its file of endpoints was lost): remove it from the engine (docker network rm), \
         skep creates it again"
    )]
    UnknownNetwork(String),
    #[error("endpoint {0} is not known to skep: it was not created")]
    UnknownEndpoint(String),
    #[error("address {address} is not in the subnet {subnet}")]
    OutsideSubnet { address: Ipv4Addr, subnet: Ipv4Net },
    #[error("cannot create the link of {address}")]
    Attach { address: Ipv4Addr, source: anyhow::Error },
    #[error("cannot remove the link of {address}")]
    Detach { address: Ipv4Addr, source: anyhow::Error },
    /// The file of endpoints could not be written.
    #[error(transparent)]
    File(anyhow::Error),
    #[error("overlay networks of skep are IPv4; leave --ipv6 out")]
    Ipv6,
    #[error("skep allocates addresses itself; leave --ip-range out")]
    AddressRange,
    #[error("networks of driver skep are created by skep, for the networks of the swarm: docker network create -d overlay")]
    NoPool,
    #[error("pool {0:?} is not one of skep's")]
    UnknownPool(String),
    #[error(
        "no address on {0} without a task: only tasks of the swarm get addresses on overlay networks (docker service create \
         --network …); attaching plain containers is not built yet"
    )]
    NoTask(Ipv4Net),
    #[error("{0:?} is not an IPv4 address")]
    NotAnAddress(String),
}
