//! The swarm harness of the integration tests.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/swarm/kit.rs"]
pub mod kit;
