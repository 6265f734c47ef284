//! Certificates by ACME without a swarm: the loop of the leader, the process `skep http serve` and a real certificate authority
//! (pebble), alone in a network namespace for each test. A swarm of three hosts is in `swarm::acme`.

mod answers;
mod cluster;
pub mod namespace;
mod orders;
pub mod pebble;
mod takeover;
