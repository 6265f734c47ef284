//! Required connectivity: containers of one network reach each other on every host, the gateway answers, the node reaches
//! containers from its own address, nodes reach each other; also after changes.

use super::fixture::{A, B, Fixture, INGRESS, PATIENCE, PORT, arrives, ip, net};
use skep::datapath::{Links, Sockets};
use skep::lab::eventually;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ANY: [u8; 4] = [0, 0, 0, 0];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_network_on_every_host() {
    let mut fixture = Fixture::new(2).await;
    let a1 = fixture.container(0, A, "10.0.1.11").await;
    let a2 = fixture.container(1, A, "10.0.1.12").await;
    let a3 = fixture.container(0, A, "10.0.1.13").await;
    let i1 = fixture.container(0, INGRESS, "10.0.0.21").await;
    let i2 = fixture.container(1, INGRESS, "10.0.0.22").await;
    // Reachable on this host before any view contains them.
    let (at1, at2, at3) = (a1.udp(ip("10.0.1.11"), PORT), a2.udp(ip("10.0.1.12"), PORT), a3.udp(ip("10.0.1.13"), PORT));
    arrives(&at1, ip("10.0.1.13"), &at3).await;
    fixture.publish().await;
    for (from, to) in [(&at1, &at2), (&at2, &at1), (&at3, &at2), (&at2, &at3)] {
        arrives(from, to.local_addr().expect("bound").ip(), to).await;
    }

    // Each host's own gateway sees the client's address and replies, bound to its address or to the wildcard.
    for (node, container, port) in [(0, &at1, 53), (1, &at2, 53), (0, &at1, 54)] {
        let bind = if port == 53 { ip("10.0.1.1") } else { ip("0.0.0.0") };
        let server = fixture.nodes[node].mesh_namespace.udp(bind, port);
        arrives(container, ip("10.0.1.1"), &server).await;
        server.send_to(b"answer", container.local_addr().expect("bound")).expect("sent");
        expect(container, b"answer", ip("10.0.1.1")).await;
    }

    // The node connects from its own address on ingress to local and remote containers, which see that address.
    for target in [&i1, &i2] {
        let address = if target.name.ends_with("21") { ip("10.0.0.21") } else { ip("10.0.0.22") };
        let listener = target.inside(|| std::net::TcpListener::bind((address, 80))).expect("listener");
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let stream = fixture.nodes[0].mesh.stream("10.0.0.2:0".parse().expect("address")).expect("socket");
        let (client, server) = tokio::join!(stream.connect((address, 80).into()), listener.accept());
        let (mut client, (mut server, seen)) = (client.expect("connects"), server.expect("accepts"));
        assert_eq!(seen.ip(), ip("10.0.0.2"));
        let sent = vec![7; 300_000];
        let ((), got) = tokio::join!(
            async {
                client.write_all(&sent).await.expect("write");
                client.shutdown().await.expect("shutdown");
            },
            async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.expect("read");
                got
            }
        );
        assert_eq!(got, sent);
    }

    // Nodes reach each other by their mesh addresses.
    let far = fixture.nodes[1].peer.address();
    let raft = fixture.nodes[1].mesh.udp(SocketAddr::new(far.into(), 7000)).expect("raft");
    let near = fixture.nodes[0].mesh.udp(SocketAddr::new(fixture.nodes[0].peer.address().into(), 0)).expect("peer");
    arrives(&near, far, &raft).await;

    // ICMP errors of the mesh namespace arrive, from the gateway.
    let traced = a1.try_run("busybox traceroute -n -q 1 -w 2 -m 2 10.0.1.13").await.unwrap_or_default();
    assert!(traced.contains(" 10.0.1.1 "), "TTL exceeded is lost: {traced}");

    // A container moves to the other host with its address.
    fixture.nodes[0].mesh.detach(ip("10.0.1.13")).await.expect("detach");
    drop((at3, a3));
    fixture.forget(A, "10.0.1.13");
    let moved = fixture.container(1, A, "10.0.1.13").await;
    fixture.publish().await;
    let at3 = moved.udp(ip("10.0.1.13"), PORT);
    arrives(&at1, ip("10.0.1.13"), &at3).await;
    arrives(&at3, ip("10.0.1.11"), &at1).await;

    // The loop repairs a rule that was deleted.
    fixture.nodes[0].mesh_namespace.run("ip rule del priority 121920 from 10.0.1.0/24").await;
    eventually("the rule to be repaired", PATIENCE, || async {
        let rules = fixture.nodes[0].mesh_namespace.try_run("ip rule").await?;
        anyhow::ensure!(rules.contains("from 10.0.1.0/24 lookup"), "{rules}");
        Ok(())
    })
    .await
    .expect("repaired");
    arrives(&at1, ip("10.0.1.12"), &at2).await;
    drop((a1, a2, moved, i1, i2));
    fixture.stop().await;
}

/// With strict reverse-path filters, as many distributions set them, a container on two networks is reached on both by clients
/// that send first: the source of the kernel's ARP request is the gateway of the right network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_networks_and_strict_filters() {
    let mut fixture = Fixture::new(2).await;
    let both = fixture.container(0, A, "10.0.1.11").await;
    let a = fixture.container(1, A, "10.0.1.12").await;
    let b = fixture.container(1, B, "10.0.2.12").await;
    let b_near = fixture.container(0, B, "10.0.2.13").await;
    let end = fixture.nodes[0].mesh.attach(net(B), ip("10.0.2.11"), 1420).await.expect("attach");
    for container in [&both, &a, &b, &b_near] {
        container.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1").await;
    }
    super::fixture::plug(&fixture.nodes[0].namespace, &end, &both, "eth2", net(B), ip("10.0.2.11")).await;
    fixture.add(0, B, "10.0.2.11");
    fixture.publish().await;
    let (in_a, in_b) = (both.udp(ip("10.0.1.11"), PORT), both.udp(ip("10.0.2.11"), PORT));
    arrives(&b_near.udp(ip("10.0.2.13"), 0), ip("10.0.2.11"), &in_b).await;
    arrives(&a.udp(ip("10.0.1.12"), 0), ip("10.0.1.11"), &in_a).await;
    arrives(&b.udp(ip("10.0.2.12"), 0), ip("10.0.2.11"), &in_b).await;
    arrives(&both.udp(ANY, 0), ip("10.0.2.12"), &b.udp(ip("10.0.2.12"), PORT)).await;
    drop((both, a, b, b_near));
    fixture.stop().await;
}

async fn expect(socket: &std::net::UdpSocket, what: &[u8], from: std::net::Ipv4Addr) {
    eventually("an answer", PATIENCE, || async {
        let mut buffer = [0; 64];
        let (length, source) = socket.recv_from(&mut buffer)?;
        anyhow::ensure!(&buffer[..length] == what && source.ip() == from, "{source}: {:?}", &buffer[..length]);
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}"));
}
