//! The overlay: the WireGuard peers, addresses, rules and routes of this node, and the loop that configures them.
//!
//! [`desired_mesh`] computes the contents of the mesh namespace from the view, [`mesh_steps`] and [`peer_steps`] the
//! difference from what is configured; all three are pure. [`Overlay`] observes and applies; `down_nodes` tells
//! which nodes that are down are lost, `connection_reset` asks them and resets connections to the lost ones. Knows nothing of containers and engines: a container is an address and, if it runs on this
//! node, a veth. `driver` is Docker's network and IPAM plugin, which creates those veths.

pub mod connection_reset;
mod desired;
mod diff;
mod down_nodes;
pub mod driver;
mod path_mtus;
mod peers;
mod plan;
mod reconcile;
#[cfg(test)]
mod tests;

pub use desired::{DesiredMesh, desired_mesh};
pub use diff::mesh_steps;
pub use path_mtus::{NodePath, PathMtus};
pub use peers::{Attempts, KEEPALIVE, SESSION_LIFETIME, key_in_use, peer_steps};
pub use plan::{OverlayState, OverlayStep, plan};
pub use reconcile::{MtuChannels, Overlay};
