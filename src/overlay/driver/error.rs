//! Why the driver refuses a call. The engine shows the text to the user.

use super::attachments::AttachError;
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
    #[error("endpoint {endpoint} has no IPv4 address ({requested:?}): the engine did not ask skep for one")]
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
        "no network of the swarm has the subnet {0} on this node: remove the engine's network that has it (docker network rm)"
    )]
    UnknownSubnet(Ipv4Net),
    /// The managers do not let the container attach: Docker's words, in which newer engines wrap theirs.
    #[error("Could not attach to network {network}: rpc error: code = PermissionDenied desc = {source}")]
    NotAttachable { network: String, source: AttachError },
    #[error(transparent)]
    NoAddressGiven(AttachError),
    #[error("{0:?} is not an IPv4 address")]
    NotAnAddress(String),
}
