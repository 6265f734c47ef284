//! Published ports in user space: a listener per port on every node, wherever the tasks run. TCP and UDP, no SCTP. Knows
//! nothing of services beyond the ports they publish.
//!
//! `plan` (what must change), `allow` (which sources may use a port), `room` (how many connections a port and a client may have), `rotation` (which backend is next) and `flows` (which
//! backend a UDP client uses) are pure. `port_state` is what the listeners of a port share; `proxy` carries one TCP
//! connection, `datagrams` the UDP flows; `listener` opens and closes a port; `reconciler` is the loop.

pub mod allow;
mod datagrams;
pub mod flows;
mod listener;
pub mod plan;
mod port_state;
mod proxy;
mod reconciler;
pub mod room;
pub mod rotation;

pub use reconciler::run;

use super::waiting::WAIT;
use super::{HeldPorts, PortStatus, WaitingRoom};
use crate::datapath::Sockets;
use crate::model::{NodeView, Revision};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Limits and timeouts of published ports.
#[derive(Clone, Debug)]
pub struct UserspaceSettings {
    /// How long a backend may take to accept a connection before the next one is tried.
    pub connect_timeout: Duration,
    /// How long a backend that did not accept is tried last. Longer than the managers need to notice a dead node.
    pub suspect_for: Duration,
    /// Open connections, all ports together; see [`room::Shares`] for who gets how many. Further clients of a port wait in the
    /// kernel's backlog, further ones of one client are reset.
    pub max_connections: usize,
    /// Open connections of one port at most.
    pub max_connections_per_port: usize,
    /// UDP flows, all ports together. When this is reached, a new flow ends the one that was idle longest.
    pub max_flows: usize,
    /// UDP flows of one port.
    pub max_flows_per_port: usize,
    /// UDP flows of one client, all ports together. When this is reached, a new flow ends its own one that was idle longest.
    pub max_flows_per_source: usize,
    /// A UDP flow ends after so long without a datagram in either direction.
    pub flow_idle: Duration,
    /// How long replies of a backend are still forwarded after its flows moved to another backend.
    pub flow_linger: Duration,
    /// How long a connection waits for a task of a service that may have none.
    pub hold: Duration,
    /// Idle time after which the kernel sends TCP keepalive probes. An idle connection is closed only if an end is gone.
    pub keepalive: Duration,
    /// The slow tick: failed listeners are tried again, counters published.
    pub tick: Duration,
}

impl Default for UserspaceSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            suspect_for: Duration::from_secs(5),
            max_connections: 16_384,
            max_connections_per_port: 8_192,
            max_flows: 16_384,
            max_flows_per_port: 8_192,
            max_flows_per_source: 4_096,
            flow_idle: Duration::from_mins(1),
            flow_linger: Duration::from_secs(2),
            hold: WAIT,
            keepalive: Duration::from_mins(1),
            tick: Duration::from_secs(1),
        }
    }
}

/// What the loop reads and publishes.
pub struct UserspaceChannels {
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Revision of the view that new connections follow. A port whose listener failed does not hold it back.
    pub applied: watch::Sender<Revision>,
    /// One entry for each published port.
    pub status: watch::Sender<Vec<PortStatus>>,
    /// `None` until the listeners of a first view were opened.
    pub held: watch::Sender<Option<Arc<HeldPorts>>>,
    /// Where connections wait for a task of their service.
    pub waiting: Arc<WaitingRoom>,
}

/// Makes sockets in the two network namespaces.
pub struct UserspaceSockets {
    /// The host's: listeners.
    pub host: Arc<dyn Sockets>,
    /// The mesh namespace: connections to containers.
    pub mesh: Arc<dyn Sockets>,
}
