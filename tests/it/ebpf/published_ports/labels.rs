//! Labels of a service that apply to its ports: affinity and the allow-list.

use super::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// All connections of one client address get one task, through every node; other addresses get others.
#[test]
fn a_client_with_affinity_keeps_its_task_through_every_node() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let containers = fixture.publish("stick", &[0, 1, 2], &[(8060, TARGET)], json!({ "skep.affinity": "source" })).await;
        for container in &containers {
            serve(container, TARGET, Ipv6Addr::UNSPECIFIED.into());
        }
        fixture.wait_for_ports(&[8060]).await;
        for port in ["8060/tcp", "8060/udp", "8060/tcp6", "8060/udp6"] {
            wait_for_backends(&fixture.swarm.hosts, port, 3).await;
        }
        let client = fixture.client(1);
        for number in 101..=112 {
            fixture.clients[1].run(&format!("ip addr add 192.0.2.{number}/24 dev eth0")).await.expect("an address");
            fixture.clients[1].run(&format!("ip addr add {}/64 dev eth0 nodad", v6(number))).await.expect("an address");
        }
        for six in [false, true] {
            let mut tasks: BTreeMap<(&str, IpAddr), BTreeSet<String>> = BTreeMap::new();
            for number in 101..=112 {
                let own = SocketAddr::new(address(number, six), 0);
                for node in 0..fixture.swarm.hosts.len() {
                    let to = at(node, six, 8060);
                    for _ in 0..3 {
                        let seen = within(20, "an answer with the client's address", || async {
                            let mut connection = Connection::from(&client, Some(own), to)?;
                            let seen = connection.identify()?;
                            anyhow::ensure!(
                                seen.client == connection.local_addr(),
                                "{} is seen as {}",
                                connection.local_addr(),
                                seen.client
                            );
                            Ok(seen)
                        });
                        tasks.entry(("tcp", own.ip())).or_default().insert(seen.await.server);
                        let seen = within(20, "an answer by UDP with the client's address", || async {
                            let socket = client.udp(Some(own), to)?;
                            let seen = exchange(&socket, b"hello")?;
                            anyhow::ensure!(seen.client == socket.local_addr()?, "{own} is seen as {}", seen.client);
                            Ok(seen)
                        });
                        tasks.entry(("udp", own.ip())).or_default().insert(seen.await.server);
                    }
                }
            }
            assert!(tasks.values().all(|tasks| tasks.len() == 1), "a client changes its task: {tasks:#?}");
            let used: BTreeSet<&String> = tasks.values().flatten().collect();
            assert!(used.len() > 1, "all clients stick to one task: {tasks:#?}");
        }
        for number in 101..=112 {
            let _ = fixture.clients[1].run(&format!("ip addr del 192.0.2.{number}/24 dev eth0")).await;
            let _ = fixture.clients[1].run(&format!("ip addr del {}/64 dev eth0", v6(number))).await;
        }
    });
}

/// A client on the list is served through every node, another one through none, by either datapath.
#[test]
fn only_clients_on_the_allow_list_are_served() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let list = format!("{},{}/128", address(11, false), address(11, true));
        let containers = fixture.publish("restricted", &[0, 1], &[(8061, TARGET)], json!({ "skep.allow": list })).await;
        let servers: Vec<Server> =
            containers.iter().map(|container| serve(container, TARGET, Ipv6Addr::UNSPECIFIED.into())).collect();
        fixture.wait_for_ports(&[8061]).await;
        let attempt = |at_client: usize, six: bool, node: usize| {
            let (client, to) = (fixture.client(at_client), at(node, six, 8061));
            let tcp = Connection::open(&client, to).and_then(|mut connection| connection.identify());
            let socket = client.udp(None, to).expect("a socket");
            // A short wait for an answer that must not arrive: in the end the servers' records show every datagram.
            let timeout = if at_client == 0 { 2000 } else { 200 };
            socket.set_read_timeout(Some(Duration::from_millis(timeout))).expect("a timeout");
            (tcp, exchange(&socket, &[servers::MARK, format!("client {at_client}").as_bytes()].concat()))
        };
        for node in 0..fixture.swarm.hosts.len() {
            for six in [false, true] {
                let own = address(11, six);
                within(20, "a client on the list to be served", || async {
                    let (tcp, udp): (anyhow::Result<Answer>, anyhow::Result<Answer>) = attempt(0, six, node);
                    let (tcp, udp) = (tcp?, udp?);
                    anyhow::ensure!(tcp.client.ip() == own && udp.client.ip() == own, "{own} is seen as {tcp:?} and {udp:?}");
                    Ok(())
                })
                .await;
                let (tcp, udp) = attempt(1, six, node);
                assert!(tcp.is_err() && udp.is_err(), "n{} serves a client that is not on the list: {tcp:?} {udp:?}", node + 1);
            }
        }
        within(20, "a client on the list to be served", || async { attempt(0, false, 0).1 }).await;
        let received: Vec<_> = servers.iter().flat_map(Server::received).collect();
        assert!(
            received.iter().any(|(_, payload)| payload.ends_with(b"client 0")),
            "the servers record datagrams of the client on the list"
        );
        assert!(!received.iter().any(|(_, payload)| payload.ends_with(b"client 1")), "a datagram came through: {received:?}");
    });
}
