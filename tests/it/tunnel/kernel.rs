//! Kernel WireGuard behind the same trait. `make test-vm` runs these on a kernel that has it; elsewhere they are ignored.

use super::*;
use ipnet::IpNet;

/// B with so many allowed-ips that they take several netlink messages each way.
fn many(b: &TunnelHost, count: u32) -> TunnelPeer {
    let mut peer = b.peer();
    let v4 = (0..count).map(|n| IpNet::new(std::net::Ipv4Addr::from(0x0a43_0000 + n).into(), 32).unwrap());
    let v6 = (0..count).map(|n| IpNet::new(std::net::Ipv6Addr::from((0xfd5f_u128 << 112) + u128::from(n)).into(), 128).unwrap());
    peer.allowed_ips.extend(v4.chain(v6));
    peer.allowed_ips.sort();
    peer
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn it_carries_traffic_while_a_thousand_addresses_are_added_and_removed() -> anyhow::Result<()> {
    let fixture = Fixture::with_kernel("kern", KernelChoice::Auto).await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v4())).await?;
    let before = fixture.b_from_a().await?;
    let state = fixture.tunnel_a.observe().await?;
    assert_eq!((state.implementation.as_str(), state.port, state.mtu), ("kernel", 2377, 1420));
    assert_eq!(before.peer, b.peer());
    let started = tokio::time::Instant::now();

    let transfer = transfer(a, (b, b.v6()), 4 << 20, Arc::default()).await?;
    for count in [1, 1000, 400, 401, 0] {
        let peer = many(b, count);
        fixture.tunnel_a.apply(&[TunnelStep::Set(b.key, peer.clone())]).await?;
        let state = fixture.tunnel_a.observe().await?;
        assert_eq!(state.peers.len(), 1, "only the peer remains: {:?}", state.peers.keys());
        assert_eq!(peer_of(&state, b.key)?.peer, peer, "{count}");
    }
    assert_eq!(transfer.await??, 4 << 20);
    let after = fixture.b_from_a().await?;
    let (then, now) = (before.handshake_age.unwrap(), after.handshake_age.unwrap());
    assert!(now + Duration::from_secs(1) >= then + started.elapsed(), "a new handshake: {then:?}, now {now:?}");
    assert!(after.rx_bytes > 4 << 20, "{after:?}");

    let mut peer = b.peer();
    peer.keepalive = Some(25);
    fixture.tunnel_a.apply(&[TunnelStep::Set(b.key, peer.clone())]).await?;
    assert_eq!(fixture.b_from_a().await?.peer, peer);
    fixture.tunnel_a.apply(&[b.set()]).await?;
    assert_eq!(fixture.b_from_a().await?.peer, b.peer());
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn addresses_move_and_endpoints_are_learned() -> anyhow::Result<()> {
    let fixture = Fixture::with_kernel("kmov", KernelChoice::Always).await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    let other = WgKey([7; 32]);
    let net = "10.66.2.1/32".parse()?;
    let holder = TunnelPeer { endpoint: None, allowed_ips: vec![net], keepalive: None };
    let mut without = b.peer();
    without.allowed_ips.retain(|have| *have != net);
    let move_away = [TunnelStep::Set(other, holder), TunnelStep::Set(b.key, without)];
    fixture.tunnel_a.apply(&move_away).await?;
    assert!(
        a.mesh(&format!("busybox ping -c 1 -W 1 {}", b.v4())).await.is_err(),
        "the address is in the allowed-ips of another peer"
    );
    fixture.tunnel_a.apply(&[TunnelStep::Remove(other), b.set()]).await?;
    a.mesh(&format!("busybox ping -c 1 -W 5 {}", b.v4())).await?;

    a.host.run("ip addr del 192.0.2.1/24 dev eth0").await?;
    a.host.run("ip addr add 192.0.2.101/24 dev eth0").await?;
    fixture.ping().await?;
    fixture.tunnel_b.apply(&[TunnelStep::Set(a.key, TunnelPeer { endpoint: None, ..a.peer() })]).await?;
    let learned = peer_of(&fixture.tunnel_b.observe().await?, a.key)?;
    assert_eq!(learned.peer.endpoint, Some("192.0.2.101:2377".parse()?), "a step without an endpoint keeps it");
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn the_device_is_adopted_changed_in_place_and_taken_down() -> anyhow::Result<()> {
    let mut fixture = Fixture::with_kernel("kado", KernelChoice::Auto).await?;
    fixture.ping().await?;
    let index = async |host: &TunnelHost| host.mesh(&format!("ip -o link show dev {}", host.config.device)).await;
    let first = index(&fixture.a).await?;
    // The UDP socket is in the host's namespace.
    assert!(std::fs::read_to_string(format!("/proc/{}/net/udp", fixture.a.host.pid()))?.contains(":0949 "));

    fixture.tunnel_a = fixture.a.open().await?;
    assert_eq!(index(&fixture.a).await?, first);
    assert_eq!(fixture.b_from_a().await?.peer, fixture.b.peer());
    fixture.ping().await?;

    fixture.a.config.mtu = 1380;
    fixture.a.config.listen = "0.0.0.0:2378".parse()?;
    fixture.a.key = tunnel::generate_key(&fixture.a.config.private_key_file)?;
    fixture.tunnel_a = fixture.a.open().await?;
    let state = fixture.tunnel_a.observe().await?;
    assert_eq!((state.port, state.mtu), (2378, 1380));
    let mut peer = fixture.a.peer();
    peer.endpoint = Some((fixture.a.host.address(), 2378).into());
    fixture.tunnel_b.apply(&[TunnelStep::Set(fixture.a.key, peer)]).await?;
    fixture.ping().await?;

    let holder = inside(Path::new(&format!("/proc/{}/ns/net", fixture.a.host.pid())), || Ok(UdpSocket::bind("0.0.0.0:2399")?));
    let holder = holder.await??;
    let config = TunnelConfig { listen: "0.0.0.0:2399".parse()?, ..fixture.a.config.clone() };
    let error = fixture.a.open_as(config).await.err().context("it opened on a taken port")?;
    assert!(format!("{error:#}").contains("UDP port 2399 is taken by process"), "{error:#}");
    drop(holder);

    fixture.a.close().await?;
    fixture.a.close().await?;
    let links = fixture.a.mesh("ip -o link").await?;
    assert!(!links.contains(&fixture.a.config.device), "{links}");
    fixture.tunnel_a = fixture.a.open().await?;
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn kernel_and_process_interoperate_and_replace_each_other() -> anyhow::Result<()> {
    let mut fixture = Fixture::with_kernel("kmix", KernelChoice::Auto).await?;
    let implementation = async |tunnel: &Arc<dyn Tunnel>| anyhow::Ok(tunnel.observe().await?.implementation);
    let check_traffic = async |fixture: &Fixture| {
        fixture.tunnel_a.apply(&[fixture.b.set()]).await?;
        fixture.ping().await?;
        whole_transfer(&fixture.a, (&fixture.b, fixture.b.v6()), 1 << 20).await
    };
    fixture.a.config.kernel = KernelChoice::Never;
    fixture.tunnel_a = fixture.a.open().await?;
    assert_eq!(implementation(&fixture.tunnel_a).await?, "skep tunnel");
    fixture.a.configure_addresses().await?;
    check_traffic(&fixture).await?;

    // `Auto` keeps the running one, `Always` replaces it.
    fixture.a.config.kernel = KernelChoice::Auto;
    fixture.tunnel_a = fixture.a.open().await?;
    assert_eq!(implementation(&fixture.tunnel_a).await?, "skep tunnel");
    fixture.ping().await?;
    fixture.a.config.kernel = KernelChoice::Always;
    fixture.tunnel_a = fixture.a.open().await?;
    assert_eq!(implementation(&fixture.tunnel_a).await?, "kernel");
    fixture.a.configure_addresses().await?;
    check_traffic(&fixture).await?;
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs WireGuard in the kernel: make test-vm"]
async fn a_change_of_the_key_loses_no_byte() -> anyhow::Result<()> {
    let longest = super::rekey::change_key_under_load("krek", KernelChoice::Always).await?;
    eprintln!("longest pause {longest:?}");
    // Without KVM everything is slow; a handshake that is not answered would be repeated after 5 s.
    assert!(longest < Duration::from_secs(4), "{longest:?}");
    Ok(())
}
