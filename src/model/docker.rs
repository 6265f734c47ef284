//! What skep and Docker Engine agree on: versions of the API, names of labels and of the driver.

/// Newest version of the engine's API that skep speaks.
pub const API_NEWEST: (u32, u32) = (1, 51);
/// Driver option of an engine's network that belongs to a swarm network; its value is the swarm network's id.
pub const NETWORK_OPTION: &str = "skep.network";
