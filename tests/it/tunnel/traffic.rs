//! Packets through the tunnel while its peers change.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_exchange_packets_over_v4_and_v6() -> anyhow::Result<()> {
    let fixture = Fixture::new("talk").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    a.mesh(&format!("busybox ping -c 1 -W 5 {}", b.v6())).await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v4())).await?;
    // One packet of the size of the MTU, and larger ones that are fragmented.
    a.mesh(&format!("busybox ping -c 1 -W 5 -s 1392 {}", b.v4())).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 -s 9000 {}", b.v4())).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 -s 9000 {}", b.v6())).await?;
    whole_transfer(a, (b, b.v6()), 20 << 20).await?;
    whole_transfer(b, (a, a.v4()), 20 << 20).await?;

    let state = fixture.tunnel_a.observe().await?;
    assert_eq!((state.implementation.as_str(), state.port, state.mtu), ("skep tunnel", 2377, 1420));
    let peer = peer_of(&state, b.key)?;
    assert_eq!(peer.peer, b.peer());
    assert!(peer.handshake_age.is_some_and(|age| age < Duration::from_mins(1)), "{peer:?}");
    assert!(peer.rx_bytes > 20 << 20 && peer.tx_bytes > 20 << 20, "{peer:?}");

    let shown = a.mesh(&format!("wg show {}", a.config.device)).await?;
    assert!(shown.contains(&b.key.to_base64()) && shown.contains("latest handshake"), "{shown}");
    let refused = a.mesh(&format!("wg set {} peer {} remove", a.config.device, b.key.to_base64())).await;
    assert!(refused.is_err(), "writing through `wg` must be refused");
    fixture.ping().await?;
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_addresses_are_added_and_removed_during_a_transfer() -> anyhow::Result<()> {
    let fixture = Fixture::new("many").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    let before = fixture.b_from_a().await?;
    let started = tokio::time::Instant::now();
    let progress = Arc::new(AtomicU64::new(0));
    let transfer = transfer(a, (b, b.v6()), 60 << 20, Arc::clone(&progress)).await?;

    for number in 0..100u8 {
        let mut peer = b.peer();
        peer.allowed_ips.extend((0..=number).map(|n| format!("10.67.0.{n}/32").parse::<ipnet::IpNet>().unwrap()));
        peer.allowed_ips.sort();
        fixture.tunnel_a.apply(&[TunnelStep::Set(b.key, peer.clone())]).await?;
        if number == 99 {
            assert_eq!(fixture.b_from_a().await?.peer.allowed_ips, peer.allowed_ips);
        }
    }
    let at_peak = progress.load(Ordering::Relaxed);
    for number in (0..100u8).rev() {
        let mut peer = b.peer();
        peer.allowed_ips.extend((0..number).map(|n| format!("10.67.0.{n}/32").parse::<ipnet::IpNet>().unwrap()));
        peer.allowed_ips.sort();
        fixture.tunnel_a.apply(&[TunnelStep::Set(b.key, peer)]).await?;
    }
    assert!(at_peak < 60 << 20, "the transfer was over before the changes were");
    assert_eq!(transfer.await??, 60 << 20);

    let after = fixture.b_from_a().await?;
    assert_eq!(after.peer, b.peer());
    // It is still the same handshake, and the counters were never reset.
    let (then, now) = (before.handshake_age.unwrap(), after.handshake_age.unwrap());
    assert!(now + Duration::from_secs(1) >= then + started.elapsed(), "a new handshake: {then:?}, now {now:?}");
    assert!(after.rx_bytes > 60 << 20, "{after:?}");
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_moves_to_another_peer_and_a_removed_peer_is_unreachable() -> anyhow::Result<()> {
    let fixture = Fixture::new("move").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    let other = WgKey([7; 32]);
    let net = "10.66.2.1/32".parse()?;
    let holder = TunnelPeer { endpoint: None, allowed_ips: vec![net], keepalive: None };
    let mut without = b.peer();
    without.allowed_ips.retain(|have| *have != net);
    // In both orders, since the plan may contain either.
    let move_away = [TunnelStep::Set(other, holder), TunnelStep::Set(b.key, without)];
    fixture.tunnel_a.apply(&move_away).await?;
    assert!(
        a.mesh(&format!("busybox ping -c 1 -W 1 {}", b.v4())).await.is_err(),
        "the address is in the allowed-ips of another peer"
    );
    fixture.ping().await?;
    fixture.tunnel_a.apply(&[TunnelStep::Remove(other), b.set()]).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 {}", b.v4())).await?;

    fixture.tunnel_a.apply(&[TunnelStep::Remove(b.key), TunnelStep::Remove(b.key)]).await?;
    assert!(fixture.tunnel_a.observe().await?.peers.is_empty());
    assert!(a.mesh(&format!("busybox ping -c 1 -W 1 {}", b.v4())).await.is_err());
    fixture.tunnel_a.apply(&[b.set()]).await?;
    fixture.ping().await?;
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_of_a_peer_that_moves_is_learned_and_only_a_step_with_an_endpoint_changes_it() -> anyhow::Result<()> {
    let fixture = Fixture::new("roam").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    a.host.run("ip addr add 192.0.2.101/24 dev eth0").await?;
    a.host.run("ip addr del 192.0.2.1/24 dev eth0").await?;
    // The kernel deletes the second address with the first one unless it promotes it.
    let _ = a.host.run("ip addr add 192.0.2.101/24 dev eth0").await;
    fixture.ping().await?;
    let learned = peer_of(&fixture.tunnel_b.observe().await?, a.key)?;
    assert_eq!(learned.peer.endpoint, Some("192.0.2.101:2377".parse()?));
    // A step without an endpoint keeps the learned one.
    let kept = TunnelPeer { endpoint: None, keepalive: Some(25), ..a.peer() };
    fixture.tunnel_b.apply(&[TunnelStep::Set(a.key, kept.clone())]).await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v6())).await?;
    let state = peer_of(&fixture.tunnel_b.observe().await?, a.key)?;
    assert_eq!((state.peer.keepalive, state.peer.endpoint), (Some(25), Some("192.0.2.101:2377".parse()?)));
    // A step with an endpoint sets it, also during a live session: the decision is the overlay's.
    let unused = Some("192.0.2.250:2377".parse()?);
    fixture.tunnel_b.apply(&[TunnelStep::Set(a.key, TunnelPeer { endpoint: unused, ..kept })]).await?;
    assert_eq!(peer_of(&fixture.tunnel_b.observe().await?, a.key)?.peer.endpoint, unused);
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_over_ipv6_and_over_a_path_with_a_smaller_mtu() -> anyhow::Result<()> {
    let fixture = Fixture::new("six").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    for host in [a, b] {
        host.host.run(&format!("ip addr add 2001:db8::{}/64 dev eth0 nodad", host.number)).await?;
    }
    let mut peer = b.peer();
    peer.endpoint = Some("[2001:db8::2]:2377".parse()?);
    fixture.tunnel_b.apply(&[TunnelStep::Set(a.key, TunnelPeer { endpoint: None, ..a.peer() })]).await?;
    fixture.tunnel_a.apply(&[TunnelStep::Remove(b.key), TunnelStep::Set(b.key, peer)]).await?;
    fixture.ping().await?;
    let learned = peer_of(&fixture.tunnel_b.observe().await?, a.key)?;
    assert_eq!(learned.peer.endpoint, Some("[2001:db8::1]:2377".parse()?));
    whole_transfer(a, (b, b.v6()), 4 << 20).await?;
    // The datagrams exceed the MTU and are fragmented.
    a.host.run("ip link set eth0 mtu 1300").await?;
    b.host.run("ip link set eth0 mtu 1300").await?;
    whole_transfer(a, (b, b.v6()), 4 << 20).await?;
    whole_transfer(b, (a, a.v4()), 4 << 20).await?;
    fixture.end().await
}

/// The outer header carries the ECN bits of the inner one, and a mark that a router sets on the way arrives inside (RFC 6040).
#[tokio::test(flavor = "multi_thread")]
async fn a_congestion_mark_on_the_way_arrives_inside() -> anyhow::Result<()> {
    let fixture = Fixture::new("ecn").await?;
    fixture.ping().await?;
    // A router that is congested marks what can be marked.
    for line in [
        "nft add table ip router",
        "nft add chain ip router in { type filter hook prerouting priority -300 ; }",
        "nft add rule ip router in udp dport 2377 ip ecn ect0 ip ecn set ce",
    ] {
        fixture.b.host.run(line).await?;
    }
    for line in [
        "nft add table ip seen",
        "nft add chain ip seen in { type filter hook input priority 0 ; }",
        "nft add rule ip seen in udp dport 7 ip ecn ce counter",
    ] {
        fixture.b.mesh(line).await?;
    }
    let to = fixture.b.v4();
    eventually("a marked packet", SOON, || async {
        let send = inside(&fixture.a.config.mesh_pin, move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket2::SockRef::from(&socket).set_tos_v4(2)?;
            Ok(socket.send_to(b"mark", (to, 7))?)
        });
        send.await??;
        let seen = fixture.b.mesh("nft list table ip seen").await?;
        ensure!(seen.contains("counter packets") && !seen.contains("counter packets 0 "), "{seen}");
        Ok(())
    })
    .await?;
    fixture.ping().await?;
    fixture.end().await
}
