//! Tuples of a connection in its two directions.

use skep_ebpf::{Reply, Tuple};

/// The tuple of the client's packets, of a client that entered by this node.
pub(super) fn client(container: &Tuple, reply: &Reply) -> Tuple {
    Tuple {
        source: container.destination,
        destination: reply.address,
        source_port: reply.client_port,
        destination_port: reply.port,
        ..*container
    }
}
