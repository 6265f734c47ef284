//! Kernel WireGuard behind the same trait. `make test-vm` runs these on a kernel that has it; elsewhere they are ignored.

use super::*;
use ipnet::IpNet;

/// Many: several netlink messages each way.
fn many(b: &Side, count: u32) -> TunnelPeer {
    let mut peer = b.peer();
    let v4 = (0..count).map(|n| IpNet::new(std::net::Ipv4Addr::from(0x0a43_0000 + n).into(), 32).unwrap());
    let v6 = (0..count).map(|n| IpNet::new(std::net::Ipv6Addr::from((0xfd5f_u128 << 112) + u128::from(n)).into(), 128).unwrap());
    peer.allowed_ips.extend(v4.chain(v6));
    peer.allowed_ips.sort();
    peer
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn it_carries_traffic_while_a_thousand_addresses_come_and_go() -> anyhow::Result<()> {
    let pair = Pair::of("kern", KernelChoice::Auto).await?;
    let (a, b) = (&pair.a, &pair.b);
    pair.ping().await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v4())).await?;
    let before = pair.b_from_a().await?;
    let state = pair.tunnel_a.observe().await?;
    assert_eq!((state.plane.as_str(), state.port, state.mtu), ("kernel", 2377, 1420));
    assert_eq!(before.peer, b.peer());
    let started = tokio::time::Instant::now();

    let transfer = transfer(a, (b, b.v6()), 4 << 20, Arc::default()).await?;
    for count in [1, 1000, 400, 401, 0] {
        let peer = many(b, count);
        pair.tunnel_a.apply(&[TunnelStep::Set(b.key, peer.clone())]).await?;
        let state = pair.tunnel_a.observe().await?;
        assert_eq!(state.peers.len(), 1, "nothing but the peer stays: {:?}", state.peers.keys());
        assert_eq!(peer_of(&state, b.key)?.peer, peer, "{count}");
    }
    assert_eq!(transfer.await??, 4 << 20);
    let after = pair.b_from_a().await?;
    let (then, now) = (before.handshake_age.unwrap(), after.handshake_age.unwrap());
    assert!(now + Duration::from_secs(1) >= then + started.elapsed(), "a new handshake: {then:?}, now {now:?}");
    assert!(after.rx_bytes > 4 << 20, "{after:?}");

    let mut peer = b.peer();
    peer.keepalive = Some(25);
    pair.tunnel_a.apply(&[TunnelStep::Set(b.key, peer.clone())]).await?;
    assert_eq!(pair.b_from_a().await?.peer, peer);
    pair.tunnel_a.apply(&[b.set()]).await?;
    assert_eq!(pair.b_from_a().await?.peer, b.peer());
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn addresses_move_and_endpoints_are_learned() -> anyhow::Result<()> {
    let pair = Pair::of("kmov", KernelChoice::Always).await?;
    let (a, b) = (&pair.a, &pair.b);
    pair.ping().await?;
    let other = WgKey([7; 32]);
    let net = "10.66.2.1/32".parse()?;
    let holder = TunnelPeer { endpoint: None, allowed_ips: vec![net], keepalive: None };
    let mut without = b.peer();
    without.allowed_ips.retain(|have| *have != net);
    let forth = [TunnelStep::Set(other, holder), TunnelStep::Set(b.key, without)];
    pair.tunnel_a.apply(&forth).await?;
    assert!(a.mesh(&format!("busybox ping -c 1 -W 1 {}", b.v4())).await.is_err(), "the address is another peer's now");
    pair.tunnel_a.apply(&[TunnelStep::Remove(other), b.set()]).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 {}", b.v4())).await?;

    a.host.run("ip addr del 192.0.2.1/24 dev eth0").await?;
    a.host.run("ip addr add 192.0.2.101/24 dev eth0").await?;
    pair.ping().await?;
    pair.tunnel_b.apply(&[a.set()]).await?;
    let learned = peer_of(&pair.tunnel_b.observe().await?, a.key)?;
    assert_eq!(learned.peer.endpoint, Some("192.0.2.101:2377".parse()?), "the old hint must not undo it");
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn the_device_is_adopted_changed_in_place_and_taken_down() -> anyhow::Result<()> {
    let mut pair = Pair::of("kado", KernelChoice::Auto).await?;
    pair.ping().await?;
    let index = async |side: &Side| side.mesh(&format!("ip -o link show dev {}", side.config.device)).await;
    let first = index(&pair.a).await?;
    // The socket is in the host's namespace.
    assert!(std::fs::read_to_string(format!("/proc/{}/net/udp", pair.a.host.pid()))?.contains(":0949 "));

    pair.tunnel_a = pair.a.open().await?;
    assert_eq!(index(&pair.a).await?, first);
    assert_eq!(pair.b_from_a().await?.peer, pair.b.peer());
    pair.ping().await?;

    pair.a.config.mtu = 1380;
    pair.a.config.listen = "0.0.0.0:2378".parse()?;
    pair.a.key = tunnel::generate_key(&pair.a.config.private_key_file)?;
    pair.tunnel_a = pair.a.open().await?;
    let state = pair.tunnel_a.observe().await?;
    assert_eq!((state.port, state.mtu), (2378, 1380));
    let mut peer = pair.a.peer();
    peer.endpoint = Some((pair.a.host.address(), 2378).into());
    pair.tunnel_b.apply(&[TunnelStep::Set(pair.a.key, peer)]).await?;
    pair.ping().await?;

    let holder = inside(Path::new(&format!("/proc/{}/ns/net", pair.a.host.pid())), || Ok(UdpSocket::bind("0.0.0.0:2399")?));
    let holder = holder.await??;
    let config = TunnelConfig { listen: "0.0.0.0:2399".parse()?, ..pair.a.config.clone() };
    let error = pair.a.open_as(config).await.err().context("it opened on a taken port")?;
    assert!(format!("{error:#}").contains("UDP port 2399 is taken by process"), "{error:#}");
    drop(holder);

    pair.a.close().await?;
    pair.a.close().await?;
    let links = pair.a.mesh("ip -o link").await?;
    assert!(!links.contains(&pair.a.config.device), "{links}");
    pair.tunnel_a = pair.a.open().await?;
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn kernel_and_process_speak_to_each_other_and_replace_each_other() -> anyhow::Result<()> {
    let mut pair = Pair::of("kmix", KernelChoice::Auto).await?;
    let plane = async |tunnel: &Arc<dyn Tunnel>| anyhow::Ok(tunnel.observe().await?.plane);
    let speak = async |pair: &Pair| {
        pair.tunnel_a.apply(&[pair.b.set()]).await?;
        pair.ping().await?;
        whole_transfer(&pair.a, (&pair.b, pair.b.v6()), 1 << 20).await
    };
    pair.a.config.kernel = KernelChoice::Never;
    pair.tunnel_a = pair.a.open().await?;
    assert_eq!(plane(&pair.tunnel_a).await?, "skep tunnel");
    pair.a.address().await?;
    speak(&pair).await?;

    // With a choice the running one is kept; with an order it is not.
    pair.a.config.kernel = KernelChoice::Auto;
    pair.tunnel_a = pair.a.open().await?;
    assert_eq!(plane(&pair.tunnel_a).await?, "skep tunnel");
    pair.ping().await?;
    pair.a.config.kernel = KernelChoice::Always;
    pair.tunnel_a = pair.a.open().await?;
    assert_eq!(plane(&pair.tunnel_a).await?, "kernel");
    pair.a.address().await?;
    speak(&pair).await?;
    pair.end().await
}
