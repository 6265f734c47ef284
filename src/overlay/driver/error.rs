//! Why the driver refuses a call. The engine shows the text to the user.

use super::attachments::AttachError;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A call that the driver understood and refuses, or could not carry out.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(
        "a network of driver skep has an IPv4 subnet: skep creates them itself, for the networks of the swarm (docker network \
         create -d overlay)"
    )]
    NoSubnet,
    #[error("{0:?} is not a subnet")]
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
    OutsideSubnet { address: IpAddr, subnet: IpNet },
    #[error("cannot create the link of {address}")]
    Attach { address: Ipv4Addr, source: anyhow::Error },
    #[error("cannot remove the link of {address}")]
    Detach { address: Ipv4Addr, source: anyhow::Error },
    /// The file of endpoints could not be written.
    #[error(transparent)]
    File(anyhow::Error),
    #[error("{v6} has fewer addresses than {v4:?}: each container has the same host number in both families")]
    SmallSubnet6 { v4: Vec<Ipv4Net>, v6: Ipv6Net },
    #[error("a network of driver skep has at most one IPv6 subnet, not {0}")]
    Subnet6Count(usize),
    #[error(
        "address {wanted} cannot be had with {address}, to which {belongs} belongs: a container has the same host number in \
         both subnets, so ask for one of the two addresses, or for both with one number"
    )]
    OtherNumber { wanted: Ipv6Addr, address: Ipv4Addr, belongs: Ipv6Addr },
    #[error(
        "the engine asked for an IPv6 address without naming the container's MAC address, by which skep finds its IPv4 address: \
         restart the engine once, it recorded an earlier build of skep"
    )]
    NoMac,
    #[error(
        "the IPv4 address of the container's interface is not known: skep was restarted after it was given; start the container again"
    )]
    NoFirstAddress,
    #[error("skep allocates addresses itself; leave --ip-range out")]
    AddressRange,
    #[error("networks of driver skep are created by skep, for the networks of the swarm: docker network create -d overlay")]
    NoPool,
    #[error("pool {0:?} is not one of skep's")]
    UnknownPool(String),
    #[error(
        "no network of the swarm has the subnet {0} on this node: remove the engine's network that has it (docker network rm)"
    )]
    UnknownSubnet(IpNet),
    /// The managers do not let the container attach: Docker's words, in which newer engines wrap theirs.
    #[error("Could not attach to network {network}: rpc error: code = PermissionDenied desc = {source}")]
    NotAttachable { network: String, source: AttachError },
    #[error(transparent)]
    NoAddressGiven(AttachError),
    #[error("{0:?} is not an address of the network's family")]
    NotAnAddress(String),
}
