//! The whole plan of a node's overlay: first the tunnel's peers, then the mesh namespace. Pure.

use super::desired::desired_mesh;
use super::diff::mesh_steps;
use super::path_mtus::PathMtus;
use super::peers::{Attempts, peer_steps};
use crate::datapath::mesh::{MeshState, MeshStep};
use crate::datapath::{TunnelState, TunnelStep};
use crate::model::{NodeId, NodeView};
use std::fmt;
use std::time::Instant;

/// What is configured on this node, as observed.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct OverlayState {
    pub mesh: MeshState,
    /// `None` if the tunnel did not answer: its peers are then left as they are.
    pub tunnel: Option<TunnelState>,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub enum OverlayStep {
    /// In the mesh namespace.
    Mesh(MeshStep),
    /// To the tunnel's peers.
    Tunnel(TunnelStep),
}

impl fmt::Display for OverlayStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(step) => step.fmt(f),
            Self::Tunnel(TunnelStep::Remove(key)) => write!(f, "peer del {}", key.to_base64()),
            Self::Tunnel(TunnelStep::Succeed { old, new }) => {
                write!(f, "peer {} takes over from {}", new.to_base64(), old.to_base64())
            }
            Self::Tunnel(TunnelStep::Redirect(key, redirect)) => {
                write!(f, "peer redirect {} endpoint {}", key.to_base64(), redirect.to)
            }
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

/// The steps from `actual` to what `view` asks of node `me`; none if nothing differs. With a
/// device MTU of 0 (not known yet) that of the tunnel device is left as it is.
#[must_use]
pub fn plan(
    view: &NodeView,
    me: &NodeId,
    actual: &OverlayState,
    mtus: &PathMtus,
    attempts: &mut Attempts,
    now: Instant,
) -> Vec<OverlayStep> {
    let peers = actual.tunnel.as_ref().map(|tunnel| peer_steps(&view.cluster, me, tunnel, attempts, now)).unwrap_or_default();
    let mesh = mesh_steps(&desired_mesh(view, me, &actual.mesh, mtus), &actual.mesh);
    peers.into_iter().map(OverlayStep::Tunnel).chain(mesh.into_iter().map(OverlayStep::Mesh)).collect()
}
