//! The lifetime of the process: adopted, replaced, restarted, stopped.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_restarted_and_the_transfer_continues() -> anyhow::Result<()> {
    let fixture = Fixture::new("kill").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    let index = a.mesh(&format!("cat /sys/class/net/{}/ifindex", a.config.device)).await.ok();
    let routes = a.mesh(&format!("ip -o route show dev {}", a.config.device)).await?;
    let progress = Arc::new(AtomicU64::new(0));
    let transfer = transfer(a, (b, b.v6()), 60 << 20, Arc::clone(&progress)).await?;
    eventually("a running transfer", SOON, || async {
        ensure!(progress.load(Ordering::Relaxed) > 4 << 20);
        Ok(())
    })
    .await?;
    let tunnel = fixture.tunnel_a.clone();
    let kept = tokio::spawn(async move { tunnel.keep_running().await });
    let first = a.pid().context("no pid file")?;
    a.kill();
    // No call of the tunnel starts it.
    let second = eventually("another process", SOON, || async {
        let pid = a.pid().context("no pid file")?;
        ensure!(pid != first);
        Ok(pid)
    })
    .await?;
    assert_ne!(first, second);
    assert_eq!(transfer.await??, 60 << 20);
    assert_eq!(a.mesh(&format!("ip -o route show dev {}", a.config.device)).await?, routes);
    assert_eq!(a.mesh(&format!("cat /sys/class/net/{}/ifindex", a.config.device)).await.ok(), index);
    assert_eq!(fixture.b_from_a().await?.peer.allowed_ips, b.peer().allowed_ips);
    kept.abort();
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_process_is_adopted_unless_it_does_not_fit() -> anyhow::Result<()> {
    let mut fixture = Fixture::new("adopt").await?;
    fixture.ping().await?;
    let first = fixture.a.pid();
    // The daemon restarts; the process continues.
    fixture.tunnel_a = fixture.b.open().await?;
    fixture.tunnel_a = fixture.a.open().await?;
    assert_eq!(fixture.a.pid(), first);
    assert_eq!(fixture.b_from_a().await?.peer, fixture.b.peer());
    fixture.ping().await?;

    let smaller = TunnelConfig { mtu: 1380, ..fixture.a.config.clone() };
    fixture.tunnel_a = fixture.a.open_as(smaller).await?;
    assert_eq!((fixture.a.pid(), fixture.tunnel_a.observe().await?.mtu), (first, 1380));

    // With another key it is the same process, with the peers that it has.
    fixture.a.key = tunnel::generate_key(&fixture.a.config.private_key_file)?;
    fixture.tunnel_a = fixture.a.open().await?;
    let tunnel = fixture.tunnel_a.clone();
    let kept = tokio::spawn(async move { tunnel.keep_running().await });
    assert_eq!(fixture.a.pid(), first);
    assert_eq!(fixture.b_from_a().await?.peer, fixture.b.peer());
    fixture.tunnel_b.apply(&[fixture.a.set()]).await?;
    fixture.ping().await?;

    fixture.a.close().await?;
    fixture.a.close().await?;
    let links = fixture.a.mesh("ip -o link").await?;
    assert!(!links.contains(&fixture.a.config.device), "{links}");
    assert!(fixture.tunnel_a.observe().await.is_err(), "a closed tunnel is not restarted");
    assert!(!fixture.a.config.run_dir.join("tunnel.sock").exists());
    kept.abort();
    fixture.end().await
}

/// An upgrade replaces the program file: the daemon of the new build replaces the process of the old one on the same device. The same
/// build installed again changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_another_build_is_replaced_and_connections_continue() -> anyhow::Result<()> {
    let mut fixture = Fixture::new("build").await?;
    let installed = fixture.a.config.run_dir.join("skep");
    let install = |more: &[u8]| -> anyhow::Result<()> {
        let new = installed.with_extension("new");
        std::fs::copy(program(), &new)?;
        std::io::Write::write_all(&mut File::options().append(true).open(&new)?, more)?;
        Ok(std::fs::rename(new, &installed)?)
    };
    install(b"")?;
    fixture.ping().await?;
    fixture.a.config.program = installed.clone();
    fixture.tunnel_a = fixture.a.open().await?;
    let first = fixture.a.pid();
    install(b"")?;
    fixture.tunnel_a = fixture.a.open().await?;
    assert_eq!(fixture.a.pid(), first, "the same content in another file");

    let index = fixture.a.mesh(&format!("ip -o link show {}", fixture.a.config.device)).await?;
    let (a, b) = (&fixture.a, &fixture.b);
    let transfer = transfer(a, (b, b.v6()), 60 << 20, Arc::default()).await?;
    install(b"another build")?;
    fixture.tunnel_a = a.open().await?;
    assert_ne!(a.pid(), first);
    assert_eq!(transfer.await??, 60 << 20);
    let number = |link: &str| link.split(':').next().map(str::to_owned);
    let now = a.mesh(&format!("ip -o link show {}", a.config.device)).await?;
    assert_eq!(number(&now), number(&index), "the device is kept");
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_without_peers_and_answers_a_peer_without_an_endpoint() -> anyhow::Result<()> {
    let (lab, a, b) = hosts("first").await?;
    // As after `swarm init`: no peer yet.
    let tunnel_a = a.open().await?;
    assert!(a.host.run("ss -Hnul sport = 2377").await?.contains(":2377"), "no socket");
    let tunnel_b = b.open_as(TunnelConfig { kernel: KernelChoice::Auto, ..b.config.clone() }).await?;
    a.configure_addresses().await?;
    b.configure_addresses().await?;
    // A has B's key only; B has A's endpoint.
    tunnel_a.apply(&[TunnelStep::Set(b.key, TunnelPeer { endpoint: None, ..b.peer() })]).await?;
    tunnel_b.apply(&[a.set()]).await?;
    b.mesh(&format!("busybox ping -c 1 -W 5 {}", a.v6())).await?;
    assert_eq!(peer_of(&tunnel_a.observe().await?, b.key)?.peer.endpoint, Some(b.endpoint()));
    a.close().await?;
    b.close().await?;
    finish(lab, a, b).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_socket_was_deleted_is_replaced() -> anyhow::Result<()> {
    let mut fixture = Fixture::new("sock").await?;
    fixture.ping().await?;
    let first = fixture.a.pid();
    // Drops the daemon's tunnel, which restarts the process when it dies: two of them would race.
    fixture.tunnel_a = fixture.tunnel_b.clone();
    std::fs::remove_file(fixture.a.config.run_dir.join("tunnel.sock"))?;
    // The next daemon gets no answer, and finds the port and the device in use.
    fixture.tunnel_a = fixture.a.open().await?;
    assert_ne!(fixture.a.pid(), first);
    fixture.tunnel_a.apply(&[fixture.b.set()]).await?;
    fixture.ping().await?;
    fixture.tunnel_a = fixture.tunnel_b.clone();
    std::fs::remove_file(fixture.a.config.run_dir.join("tunnel.sock"))?;
    fixture.a.close().await?;
    assert!(!fixture.a.mesh("ip -o link").await?.contains(&fixture.a.config.device));
    fixture.end().await
}
