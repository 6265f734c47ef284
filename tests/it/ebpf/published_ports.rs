//! Published ports, packet by packet, on one swarm of three nodes with three clients.
//!
//! Tests run in the order of their names. `transfer`, which takes half of the time, is late in it, so that tests of the next
//! module run beside it and none that is exclusive waits for it.

mod client_address_matrix;
mod errors;
mod failover;
mod host_connections;
mod labels;
mod room;
mod spoofing;
mod transfer;
mod tuple_collision;

use super::servers::{self, Answer, Connection, exchange, exchange_once};
use super::*;

static PUBLISHED_PORTS: SharedFixture<EbpfFixture<PerNodeServices>> = SharedFixture::new(module_path!());

impl Fixture for EbpfFixture<PerNodeServices> {
    async fn set_up() -> Self {
        let fixture = EbpfFixture::new("fp", 3, 3).await;
        let services = PerNodeServices::start(&fixture).await;
        fixture.with(services)
    }
    async fn take_down(self) {
        self.stop().await;
    }
}

/// One service per node, so that a port number selects the backend's node: [`port_of`] the node, and 100 more for the same
/// server; 10 more lead to [`FIREWALLED`], 10 less to [`IPV4_ONLY`].
struct PerNodeServices {
    /// By node: the server at [`TARGET`], and its container.
    servers: Vec<Server>,
    containers: Vec<Namespace>,
}

/// The port whose backend is on this node, counted from 0: 8081, 8082, 8083.
fn port_of(node: usize) -> u16 {
    8081 + u16::try_from(node).expect("few")
}

impl PerNodeServices {
    async fn start(fixture: &EbpfFixture<()>) -> Self {
        let (mut servers, mut containers) = (Vec::new(), Vec::new());
        let nodes = 0..fixture.swarm.hosts.len();
        for node in nodes.clone() {
            let port = port_of(node);
            let ports = [(port, TARGET), (port + 100, TARGET), (port + 10, FIREWALLED), (port - 10, IPV4_ONLY)];
            let container = fixture.publish(&format!("on{}", node + 1), &[node], &ports, json!({})).await.remove(0);
            servers.push(serve(&container, TARGET, Ipv6Addr::UNSPECIFIED.into()));
            serve(&container, IPV4_ONLY, Ipv4Addr::UNSPECIFIED.into());
            serve(&container, FIREWALLED, Ipv6Addr::UNSPECIFIED.into());
            containers.push(container);
        }
        let all: Vec<u16> = nodes.flat_map(|node| [0, 10, 100].map(|more| port_of(node) + more)).collect();
        fixture.wait_for_ports(&all).await;
        Self { servers, containers }
    }
}
