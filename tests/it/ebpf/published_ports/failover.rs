//! An address moves from one node to another: connections to it continue, though the new node has no flow entry for them.

use super::*;

#[test]
fn connections_continue_when_an_address_moves_to_another_node() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        // Three backends, so that the new node must find out which one has the connection.
        let containers = fixture.publish("moved", &[0, 1, 2], &[(8062, TARGET)], json!({})).await;
        for container in &containers {
            serve(container, TARGET, Ipv6Addr::UNSPECIFIED.into());
        }
        fixture.wait_for_ports(&[8062]).await;
        let (old, new) = (&fixture.swarm.hosts[0], &fixture.swarm.hosts[1]);
        for six in [false, true] {
            let (moving, length) = (address(50, six), if six { 64 } else { 24 });
            let flags = if six { " nodad" } else { "" };
            let to = SocketAddr::new(moving, 8062);
            old.run(&format!("ip addr add {moving}/{length} dev eth0{flags}")).await.expect("an address");
            set_neighbor(&fixture.clients[0], moving, old).await;
            let client = fixture.client(0);
            let mut connections = Vec::new();
            for _ in 0..12 {
                connections.push(connect_over_ebpf(&client, to).await);
            }
            let before: Vec<_> = connections.iter_mut().map(|connection| connection.identify().expect("answers")).collect();
            let tasks: BTreeSet<&String> = before.iter().map(|seen| &seen.server).collect();
            assert!(tasks.len() > 1, "connections to several tasks: {tasks:?}");

            // Both nodes have the address for a moment, as failover programs do it.
            new.run(&format!("ip addr add {moving}/{length} dev eth0{flags}")).await.expect("an address");
            set_neighbor(&fixture.clients[1], moving, new).await;
            drop(connect_over_ebpf(&fixture.client(1), to).await);
            set_neighbor(&fixture.clients[0], moving, new).await;
            old.run(&format!("ip addr del {moving}/{length} dev eth0")).await.expect("removed");
            for (connection, before) in connections.iter_mut().zip(&before) {
                let after = connection.identify().unwrap_or_else(|e| panic!("{before:?} after the address moved: {e:#}"));
                assert_eq!(after, *before, "the same connection to the same task");
                connection.download(1_000_000).unwrap_or_else(|e| panic!("{before:?} after the address moved: {e:#}"));
                connection.upload(1_000_000).unwrap_or_else(|e| panic!("{before:?} after the address moved: {e:#}"));
            }
            new.run(&format!("ip addr del {moving}/{length} dev eth0")).await.expect("removed");
        }
    });
}

/// A connection over the eBPF datapath, once it serves the address.
async fn connect_over_ebpf(client: &Namespace, to: SocketAddr) -> Connection {
    within(30, "the eBPF datapath to know the address", || async {
        let mut connection = Connection::open(client, to)?;
        let seen = connection.identify()?;
        anyhow::ensure!(seen.client == connection.local_addr(), "{} is seen as {}", connection.local_addr(), seen.client);
        Ok(connection)
    })
    .await
}

/// Sets a client's neighbor entry, as a gratuitous ARP or neighbor advertisement does.
async fn set_neighbor(client: &Host, to: IpAddr, node: &Host) {
    let shown = node.run("ip -o link show eth0").await.expect("a device");
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a MAC address");
    client.run(&format!("ip neigh replace {to} lladdr {mac} dev eth0 nud permanent")).await.expect("a neighbor entry");
}
