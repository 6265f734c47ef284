//! What must work: containers of one network reach each other on every host, the gateway answers, the node reaches
//! containers as itself, nodes reach each other; and it stays so while things change.

use super::kit::{A, B, INGRESS, PATIENCE, PORT, Site, arrives, ip, net};
use skep::datapath::{Links, Sockets};
use skep::lab::eventually;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ANY: [u8; 4] = [0, 0, 0, 0];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_network_on_every_host() {
    let mut site = Site::new(2).await;
    let a1 = site.container(0, A, "10.0.1.11").await;
    let a2 = site.container(1, A, "10.0.1.12").await;
    let a3 = site.container(0, A, "10.0.1.13").await;
    let i1 = site.container(0, INGRESS, "10.0.0.21").await;
    let i2 = site.container(1, INGRESS, "10.0.0.22").await;
    // Reachable before any view says so, on this host.
    let (at1, at2, at3) = (a1.udp(ip("10.0.1.11"), PORT), a2.udp(ip("10.0.1.12"), PORT), a3.udp(ip("10.0.1.13"), PORT));
    arrives(&at1, ip("10.0.1.13"), &at3).await;
    site.publish().await;
    for (from, to) in [(&at1, &at2), (&at2, &at1), (&at3, &at2), (&at2, &at3)] {
        arrives(from, to.local_addr().expect("bound").ip(), to).await;
    }

    // The gateway, on each host its own, sees the asker's address, and answers, bound to it or to the wildcard.
    for (node, container, port) in [(0, &at1, 53), (1, &at2, 53), (0, &at1, 54)] {
        let bind = if port == 53 { ip("10.0.1.1") } else { ip("0.0.0.0") };
        let server = site.nodes[node].inner.udp(bind, port);
        arrives(container, ip("10.0.1.1"), &server).await;
        server.send_to(b"answer", container.local_addr().expect("bound")).expect("sent");
        expect(container, b"answer", ip("10.0.1.1")).await;
    }

    // The node itself, by its own address on ingress, to containers here and there; they see that address.
    for target in [&i1, &i2] {
        let address = if target.name.ends_with("21") { ip("10.0.0.21") } else { ip("10.0.0.22") };
        let listener = target.inside(|| std::net::TcpListener::bind((address, 80))).expect("listener");
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let stream = site.nodes[0].mesh.stream("10.0.0.2:0".parse().expect("address")).expect("socket");
        let (near, far) = tokio::join!(stream.connect((address, 80).into()), listener.accept());
        let (mut near, (mut far, seen)) = (near.expect("connects"), far.expect("accepts"));
        assert_eq!(seen.ip(), ip("10.0.0.2"));
        let sent = vec![7; 300_000];
        let ((), got) = tokio::join!(
            async {
                near.write_all(&sent).await.expect("write");
                near.shutdown().await.expect("shutdown");
            },
            async {
                let mut got = Vec::new();
                far.read_to_end(&mut got).await.expect("read");
                got
            }
        );
        assert_eq!(got, sent);
    }

    // Nodes by their mesh addresses.
    let far = site.nodes[1].peer.address();
    let raft = site.nodes[1].mesh.udp(SocketAddr::new(far.into(), 7000)).expect("raft");
    let near = site.nodes[0].mesh.udp(SocketAddr::new(site.nodes[0].peer.address().into(), 0)).expect("peer");
    arrives(&near, far, &raft).await;

    // ICMP errors of this namespace come, from the gateway.
    let traced = a1.try_run("busybox traceroute -n -q 1 -w 2 -m 2 10.0.1.13").await.unwrap_or_default();
    assert!(traced.contains(" 10.0.1.1 "), "TTL exceeded is lost: {traced}");

    // A container moves to the other host with its address.
    site.nodes[0].mesh.detach(ip("10.0.1.13")).await.expect("detach");
    drop((at3, a3));
    site.forget(A, "10.0.1.13");
    let moved = site.container(1, A, "10.0.1.13").await;
    site.publish().await;
    let at3 = moved.udp(ip("10.0.1.13"), PORT);
    arrives(&at1, ip("10.0.1.13"), &at3).await;
    arrives(&at3, ip("10.0.1.11"), &at1).await;

    // The loop mends by itself what somebody breaks.
    site.nodes[0].inner.run("ip rule del priority 100 from 10.0.1.0/24").await;
    eventually("the rule to be back", PATIENCE, || async {
        let rules = site.nodes[0].inner.try_run("ip rule").await?;
        anyhow::ensure!(rules.contains("from 10.0.1.0/24 lookup"), "{rules}");
        Ok(())
    })
    .await
    .expect("mended");
    arrives(&at1, ip("10.0.1.12"), &at2).await;
    drop((a1, a2, moved, i1, i2));
    site.stop().await;
}

/// A container on two networks, with strict reverse-path filters as many distributions set them, is reached on both by
/// those who speak first: the kernel asks for its MAC in the name of the right gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_networks_and_strict_filters() {
    let mut site = Site::new(2).await;
    let both = site.container(0, A, "10.0.1.11").await;
    let a = site.container(1, A, "10.0.1.12").await;
    let b = site.container(1, B, "10.0.2.12").await;
    let b_near = site.container(0, B, "10.0.2.13").await;
    let end = site.nodes[0].mesh.attach(net(B), ip("10.0.2.11"), 1420).await.expect("attach");
    for place in [&both, &a, &b, &b_near] {
        place.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1").await;
    }
    super::kit::plug(&site.nodes[0].place, &end, &both, "eth2", net(B), ip("10.0.2.11")).await;
    site.add(0, B, "10.0.2.11");
    site.publish().await;
    let (in_a, in_b) = (both.udp(ip("10.0.1.11"), PORT), both.udp(ip("10.0.2.11"), PORT));
    arrives(&b_near.udp(ip("10.0.2.13"), 0), ip("10.0.2.11"), &in_b).await;
    arrives(&a.udp(ip("10.0.1.12"), 0), ip("10.0.1.11"), &in_a).await;
    arrives(&b.udp(ip("10.0.2.12"), 0), ip("10.0.2.11"), &in_b).await;
    arrives(&both.udp(ANY, 0), ip("10.0.2.12"), &b.udp(ip("10.0.2.12"), PORT)).await;
    drop((both, a, b, b_near));
    site.stop().await;
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
