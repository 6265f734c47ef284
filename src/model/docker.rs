//! What skep and Docker Engine agree on: versions of the engine's API, the name of skep's driver and its network options.

use std::fmt;

/// A version of the Docker Engine API.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ApiVersion {
    pub major: u32,
    pub minor: u32,
}

impl ApiVersion {
    /// 1.`minor`.
    #[must_use]
    pub const fn v1(minor: u32) -> Self {
        Self { major: 1, minor }
    }
    /// Parses `1.51`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
    /// The version to use with an engine whose newest version is this one.
    #[must_use]
    pub fn negotiate(self) -> Self {
        self.min(API_NEWEST)
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Newest version of the engine's API that skep speaks, as a client and as a server.
pub const API_NEWEST: ApiVersion = ApiVersion::v1(51);
/// Oldest version that skep's API serves, also in front of an engine that refuses it.
pub const API_OLDEST: ApiVersion = ApiVersion::v1(24);
/// Response header in which an engine names its newest API version.
pub const API_VERSION_HEADER: &str = "api-version";

/// Name of skep's network and IPAM driver on the engine.
pub const DRIVER: &str = "skep";
/// Driver option of an engine's network that belongs to a swarm network; its value is the swarm network's id.
pub const NETWORK_OPTION: &str = "skep.network";
/// Driver option with the MTU in bytes at the time of the network's creation, for people to read.
pub const MTU_OPTION: &str = "mtu";

/// Driver option with the largest MTU in bytes that the network's containers may have.
pub const MOST_MTU_OPTION: &str = "skep.mtu";

/// Label of a container with the id of its task.
pub const LABEL_TASK_ID: &str = "com.docker.swarm.task.id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_negotiated_version_is_the_older_of_both() {
        assert_eq!(ApiVersion::parse("1.41").map(ApiVersion::negotiate), Some(ApiVersion::v1(41)));
        assert_eq!(ApiVersion::parse("1.99").map(ApiVersion::negotiate), Some(API_NEWEST));
        assert_eq!(ApiVersion::parse("1"), None);
        assert_eq!(API_NEWEST.to_string(), "1.51");
    }
}
