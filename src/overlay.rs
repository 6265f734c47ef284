//! The overlay: which peers, addresses, rules and routes this node shall have, and the loop that makes it so.
//!
//! `plan` says what shall be (pure), `diff` what to do about what is (pure), `reconcile` does it; `dead` ends connections to nodes that died. Knows nothing of
//! containers and engines: a container is an address and, if it runs here, a veth.

pub mod connection_reset;
mod diff;
pub mod driver;
mod peers;
mod plan;
mod reconcile;
#[cfg(test)]
mod tests;

pub use diff::mesh_steps;
pub use peers::{HANDSHAKE_OLD, KEEPALIVE, peer_steps};
pub use plan::{Desired, desired};
pub use reconcile::Overlay;

use crate::datapath::mesh::{MeshState, MeshStep};
use crate::datapath::{TunnelState, TunnelStep};
use crate::model::{NodeId, NodeView};
use std::fmt;

/// What is there.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Actual {
    /// In the mesh namespace.
    pub mesh: MeshState,
    /// The tunnel's peers; `None` while it cannot be asked.
    pub tunnel: Option<TunnelState>,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub enum Step {
    /// In the mesh namespace.
    Mesh(MeshStep),
    /// To the tunnel's peers.
    Tunnel(TunnelStep),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(step) => step.fmt(f),
            Self::Tunnel(TunnelStep::Remove(key)) => write!(f, "peer del {}", key.to_base64()),
            Self::Tunnel(TunnelStep::Set(key, peer)) => {
                write!(f, "peer set {}", key.to_base64())?;
                if let Some(endpoint) = peer.endpoint {
                    write!(f, " endpoint {endpoint}")?;
                }
                if let Some(seconds) = peer.keepalive {
                    write!(f, " keepalive {seconds}")?;
                }
                write!(f, " allowed-ips")?;
                peer.allowed_ips.iter().try_for_each(|net| write!(f, " {net}"))
            }
        }
    }
}

/// What to do so that `actual` becomes what `view` wants of node `me`; nothing if it is so. `mtu` is the tunnel's, in
/// bytes; 0 if it is not known: MTUs are then left alone.
#[must_use]
pub fn plan(view: &NodeView, me: &NodeId, actual: &Actual, mtu: u32) -> Vec<Step> {
    plan_with(view, me, actual, mtu, Some(KEEPALIVE))
}

/// [`plan`] with the seconds between keep-alives.
#[must_use]
pub fn plan_with(view: &NodeView, me: &NodeId, actual: &Actual, mtu: u32, keepalive: Option<u16>) -> Vec<Step> {
    let peers = actual.tunnel.as_ref().map(|tunnel| peer_steps(&view.cluster, me, tunnel, keepalive)).unwrap_or_default();
    let mesh = mesh_steps(&desired(view, me, &actual.mesh, mtu), &actual.mesh);
    peers.into_iter().map(Step::Tunnel).chain(mesh.into_iter().map(Step::Mesh)).collect()
}
