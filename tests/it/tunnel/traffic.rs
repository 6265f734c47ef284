//! Packets through the tunnel, and peers that change meanwhile.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_talk_over_v4_and_v6() -> anyhow::Result<()> {
    let pair = Pair::new("talk").await?;
    let (a, b) = (&pair.a, &pair.b);
    a.mesh(&format!("busybox ping -c 1 -W 5 {}", b.v6())).await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v4())).await?;
    // A whole packet of the MTU, and one that is sent in fragments.
    a.mesh(&format!("busybox ping -c 1 -W 5 -s 1392 {}", b.v4())).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 -s 9000 {}", b.v4())).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 -s 9000 {}", b.v6())).await?;
    whole_transfer(a, (b, b.v6()), 20 << 20).await?;
    whole_transfer(b, (a, a.v4()), 20 << 20).await?;

    let state = pair.tunnel_a.observe().await?;
    assert_eq!((state.plane.as_str(), state.port, state.mtu), ("skep tunnel", 2377, 1420));
    let peer = peer_of(&state, b.key)?;
    assert_eq!(peer.peer, b.peer());
    assert!(peer.handshake_age.is_some_and(|age| age < Duration::from_mins(1)), "{peer:?}");
    assert!(peer.rx_bytes > 20 << 20 && peer.tx_bytes > 20 << 20, "{peer:?}");

    let shown = a.mesh(&format!("wg show {}", a.config.device)).await?;
    assert!(shown.contains(&b.key.to_base64()) && shown.contains("latest handshake"), "{shown}");
    let refused = a.mesh(&format!("wg set {} peer {} remove", a.config.device, b.key.to_base64())).await;
    assert!(refused.is_err(), "writing through `wg` must be refused");
    pair.ping().await?;
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_addresses_come_and_go_under_a_transfer() -> anyhow::Result<()> {
    let pair = Pair::new("many").await?;
    let (a, b) = (&pair.a, &pair.b);
    pair.ping().await?;
    let before = pair.b_from_a().await?;
    let started = tokio::time::Instant::now();
    let progress = Arc::new(AtomicU64::new(0));
    let transfer = transfer(a, (b, b.v6()), 60 << 20, Arc::clone(&progress)).await?;

    for number in 0..100u8 {
        let mut peer = b.peer();
        peer.allowed_ips.extend((0..=number).map(|n| format!("10.67.0.{n}/32").parse::<ipnet::IpNet>().unwrap()));
        peer.allowed_ips.sort();
        pair.tunnel_a.apply(&[TunnelStep::Set(b.key, peer.clone())]).await?;
        if number == 99 {
            assert_eq!(pair.b_from_a().await?.peer.allowed_ips, peer.allowed_ips);
        }
    }
    let at_peak = progress.load(Ordering::Relaxed);
    for number in (0..100u8).rev() {
        let mut peer = b.peer();
        peer.allowed_ips.extend((0..number).map(|n| format!("10.67.0.{n}/32").parse::<ipnet::IpNet>().unwrap()));
        peer.allowed_ips.sort();
        pair.tunnel_a.apply(&[TunnelStep::Set(b.key, peer)]).await?;
    }
    assert!(at_peak < 60 << 20, "the transfer was over before the changes were");
    assert_eq!(transfer.await??, 60 << 20);

    let after = pair.b_from_a().await?;
    assert_eq!(after.peer, b.peer());
    // One and the same handshake: its age ran on, and the counters were never reset.
    let (then, now) = (before.handshake_age.unwrap(), after.handshake_age.unwrap());
    assert!(now + Duration::from_secs(1) >= then + started.elapsed(), "a new handshake: {then:?}, now {now:?}");
    assert!(after.rx_bytes > 60 << 20, "{after:?}");
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_moves_to_another_peer_and_removed_ones_are_cut() -> anyhow::Result<()> {
    let pair = Pair::new("move").await?;
    let (a, b) = (&pair.a, &pair.b);
    pair.ping().await?;
    let other = WgKey([7; 32]);
    let net = "10.66.2.1/32".parse()?;
    let holder = TunnelPeer { endpoint: None, allowed_ips: vec![net], keepalive: None };
    let mut without = b.peer();
    without.allowed_ips.retain(|have| *have != net);
    // In both orders, as a planner may give them.
    let forth = [TunnelStep::Set(other, holder), TunnelStep::Set(b.key, without)];
    pair.tunnel_a.apply(&forth).await?;
    assert!(a.mesh(&format!("busybox ping -c 1 -W 1 {}", b.v4())).await.is_err(), "the address is another peer's now");
    pair.ping().await?;
    pair.tunnel_a.apply(&[TunnelStep::Remove(other), b.set()]).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 {}", b.v4())).await?;

    pair.tunnel_a.apply(&[TunnelStep::Remove(b.key), TunnelStep::Remove(b.key)]).await?;
    assert!(pair.tunnel_a.observe().await?.peers.is_empty());
    assert!(a.mesh(&format!("busybox ping -c 1 -W 1 {}", b.v4())).await.is_err());
    pair.tunnel_a.apply(&[b.set()]).await?;
    pair.ping().await?;
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_a_peer_that_moves_is_learned() -> anyhow::Result<()> {
    let pair = Pair::new("roam").await?;
    let (a, b) = (&pair.a, &pair.b);
    pair.ping().await?;
    a.host.run("ip addr add 192.0.2.101/24 dev eth0").await?;
    a.host.run("ip addr del 192.0.2.1/24 dev eth0").await?;
    // Deleting the first address takes the second along unless the kernel promotes it.
    let _ = a.host.run("ip addr add 192.0.2.101/24 dev eth0").await;
    pair.ping().await?;
    let learned = peer_of(&pair.tunnel_b.observe().await?, a.key)?;
    assert_eq!(learned.peer.endpoint, Some("192.0.2.101:2377".parse()?));
    // The old hint, given again with another change, does not undo what was learned.
    let mut peer = a.peer();
    peer.keepalive = Some(25);
    pair.tunnel_b.apply(&[TunnelStep::Set(a.key, peer)]).await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v6())).await?;
    assert_eq!(peer_of(&pair.tunnel_b.observe().await?, a.key)?.peer.keepalive, Some(25));
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_over_ipv6_and_a_path_narrower_than_promised() -> anyhow::Result<()> {
    let pair = Pair::new("six").await?;
    let (a, b) = (&pair.a, &pair.b);
    for side in [a, b] {
        side.host.run(&format!("ip addr add 2001:db8::{}/64 dev eth0 nodad", side.number)).await?;
    }
    let mut peer = b.peer();
    peer.endpoint = Some("[2001:db8::2]:2377".parse()?);
    pair.tunnel_b.apply(&[TunnelStep::Set(a.key, TunnelPeer { endpoint: None, ..a.peer() })]).await?;
    pair.tunnel_a.apply(&[TunnelStep::Remove(b.key), TunnelStep::Set(b.key, peer)]).await?;
    pair.ping().await?;
    let learned = peer_of(&pair.tunnel_b.observe().await?, a.key)?;
    assert_eq!(learned.peer.endpoint, Some("[2001:db8::1]:2377".parse()?));
    whole_transfer(a, (b, b.v6()), 4 << 20).await?;
    // The datagrams no longer fit: they go in fragments.
    a.host.run("ip link set eth0 mtu 1300").await?;
    b.host.run("ip link set eth0 mtu 1300").await?;
    whole_transfer(a, (b, b.v6()), 4 << 20).await?;
    whole_transfer(b, (a, a.v4()), 4 << 20).await?;
    pair.end().await
}
