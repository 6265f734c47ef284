//! Names and versions that skep and Docker Engine have in common.

/// Newest version of the engine's API that skep supports: major, minor.
pub const API_NEWEST: (u32, u32) = (1, 51);
/// Driver option of an engine's network that belongs to a swarm network; its value is the swarm network's id.
pub const NETWORK_OPTION: &str = "skep.network";
