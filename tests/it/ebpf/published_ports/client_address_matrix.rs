//! Every client through every node over both protocols and both families, with the backend on that node and on another: the
//! container sees the client's address and port, and the kernel carries the traffic.

use super::*;
use anyhow::ensure;

#[test]
fn containers_see_the_clients_address_through_every_node() {
    PUBLISHED_PORTS.exclusive_case(async |fixture| {
        let new = fixture.counter("port_new").await;
        let mut open = Vec::new();
        let mut cells = BTreeSet::new();
        for (number, client) in fixture.clients.iter().enumerate() {
            let client = Namespace::of_host(client);
            for (node, six, backend) in paths(fixture.swarm.hosts.len()) {
                let to = at(node, six, port_of(backend));
                let (want, own_address) = (format!("n{}", backend + 1), address(11 + number, six));
                let connection = within(20, "the client's address to be kept over TCP", || async {
                    let mut connection = Connection::open(&client, to)?;
                    let seen = connection.identify()?;
                    ensure!(connection.peer_addr() == to, "{} answered", connection.peer_addr());
                    ensure!(
                        seen.client == connection.local_addr() && seen.client.ip() == own_address,
                        "{to} saw {} as {}",
                        connection.local_addr(),
                        seen.client
                    );
                    ensure!(seen.server == want, "{} answered, not {want}", seen.server);
                    Ok(connection)
                })
                .await;
                open.push(connection);
                within(20, "the client's address to be kept over UDP", || async {
                    let (seen, from) = exchange_once(&client, to, b"hello")?;
                    ensure!(seen.client == from && seen.client.ip() == own_address, "{to} saw {from} as {}", seen.client);
                    ensure!(seen.server == want, "{} answered, not {want}", seen.server);
                    Ok(())
                })
                .await;
                cells.insert((number, node, six, backend == node));
            }
        }
        assert_eq!(cells.len() * 2, 2 * 36, "client, node, family, backend on this node or another; each over TCP and UDP");
        // All these connections are still open.
        let numbers: BTreeSet<u16> = (0..fixture.swarm.hosts.len()).map(port_of).collect();
        // Connections from before the eBPF datapath had its tables were refused above; user space closes them later.
        within(40, "user space to carry nothing", || async {
            let carried = fixture.userspace_connections(&numbers).await;
            ensure!(carried.is_empty(), "{carried:#?}");
            Ok(())
        })
        .await;
        fixture.wait_for_counter("port_new", new + 72).await;
        for connection in &mut open {
            connection.identify().expect("still answers");
        }
    });
}

/// Node that the client uses, whether over IPv6, and the backend's node.
fn paths(nodes: usize) -> impl Iterator<Item = (usize, bool, usize)> {
    (0..nodes).flat_map(move |node| {
        [false, true].into_iter().flat_map(move |six| [node, (node + 1) % nodes].map(|backend| (node, six, backend)))
    })
}

/// An IPv6 client of a server that listens on IPv4 only is served in user space, and the status names the reason.
#[test]
fn an_ipv4_only_server_serves_clients_of_both_families() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let client = fixture.client(0);
        for node in 0..fixture.swarm.hosts.len() {
            let port = port_of(0) - 10;
            let seen = within(20, "an IPv4 client of an IPv4 server", || async {
                let mut connection = Connection::open(&client, at(node, false, port))?;
                let seen = connection.identify()?;
                ensure!(seen.client == connection.local_addr(), "{} is seen as {}", connection.local_addr(), seen.client);
                Ok(seen)
            });
            assert_eq!(seen.await.server, "n1");
            let served = within(20, "an IPv6 client of an IPv4 server", || async {
                Connection::open(&client, at(node, true, port))?.identify()
            });
            let seen = served.await;
            assert!(seen.server == "n1" && seen.client.is_ipv4(), "{seen:?}");
            within(10, "the status to name the reason", || async {
                let ebpf = status(&fixture.swarm.hosts[node]).await["ebpf"].take();
                let why = ebpf["left"][format!("{port}/tcp6")].as_str().unwrap_or_default().to_owned();
                let left = why.contains("over IPv6") && ebpf["ports"].to_string().contains(&format!("\"{port}/tcp\""));
                ensure!(left, "not named in {}", ebpf["left"]);
                Ok(())
            })
            .await;
        }
    });
}
