//! The process that outlives the daemon: adopted, replaced, started again, taken down.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_started_again_and_the_transfer_goes_on() -> anyhow::Result<()> {
    let pair = Pair::new("kill").await?;
    let (a, b) = (&pair.a, &pair.b);
    pair.ping().await?;
    let index = a.mesh(&format!("cat /sys/class/net/{}/ifindex", a.config.device)).await.ok();
    let routes = a.mesh(&format!("ip -o route show dev {}", a.config.device)).await?;
    let progress = Arc::new(AtomicU64::new(0));
    let transfer = transfer(a, (b, b.v6()), 60 << 20, Arc::clone(&progress)).await?;
    eventually("a running transfer", SOON, || async {
        ensure!(progress.load(Ordering::Relaxed) > 4 << 20);
        Ok(())
    })
    .await?;
    let first = a.pid().context("no pid file")?;
    a.kill();
    let second = eventually("another process", SOON, || async {
        pair.tunnel_a.observe().await?;
        let pid = a.pid().context("no pid file")?;
        ensure!(pid != first);
        Ok(pid)
    })
    .await?;
    assert_ne!(first, second);
    assert_eq!(transfer.await??, 60 << 20);
    assert_eq!(a.mesh(&format!("ip -o route show dev {}", a.config.device)).await?, routes);
    assert_eq!(a.mesh(&format!("cat /sys/class/net/{}/ifindex", a.config.device)).await.ok(), index);
    assert_eq!(pair.b_from_a().await?.peer.allowed_ips, b.peer().allowed_ips);
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_process_is_adopted_unless_it_does_not_fit() -> anyhow::Result<()> {
    let mut pair = Pair::new("adopt").await?;
    pair.ping().await?;
    let first = pair.a.pid();
    // The daemon goes and comes back; the tunnel did not notice.
    pair.tunnel_a = pair.b.open().await?;
    pair.tunnel_a = pair.a.open().await?;
    assert_eq!(pair.a.pid(), first);
    assert_eq!(pair.b_from_a().await?.peer, pair.b.peer());
    pair.ping().await?;

    let smaller = TunnelConfig { mtu: 1380, ..pair.a.config.clone() };
    pair.tunnel_a = pair.a.open_as(smaller).await?;
    assert_eq!((pair.a.pid(), pair.tunnel_a.observe().await?.mtu), (first, 1380));

    // Another key is another node: replaced, on the same device.
    pair.a.key = tunnel::generate_key(&pair.a.config.private_key_file)?;
    pair.tunnel_a = pair.a.open().await?;
    assert_ne!(pair.a.pid(), first);
    assert!(pair.tunnel_a.observe().await?.peers.is_empty());
    pair.tunnel_a.apply(&[pair.b.set()]).await?;
    pair.tunnel_b.apply(&[pair.a.set()]).await?;
    pair.ping().await?;

    pair.a.close().await?;
    pair.a.close().await?;
    let links = pair.a.mesh("ip -o link").await?;
    assert!(!links.contains(&pair.a.config.device), "{links}");
    assert!(pair.tunnel_a.observe().await.is_err(), "a closed tunnel is not started again");
    assert!(!pair.a.config.run_dir.join("tunnel.sock").exists());
    pair.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_before_it_has_peers_and_answers_without_knowing_where_they_are() -> anyhow::Result<()> {
    let (lab, a, b) = sides("first").await?;
    // `swarm init`: nobody else is there yet.
    let tunnel_a = a.open().await?;
    assert!(a.host.run("ss -Hnul sport = 2377").await?.contains(":2377"), "no socket");
    let tunnel_b = b.open_as(TunnelConfig { kernel: KernelChoice::Auto, ..b.config.clone() }).await?;
    a.address().await?;
    b.address().await?;
    // A knows B's key only; B knows where A is.
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
    let mut pair = Pair::new("sock").await?;
    pair.ping().await?;
    let first = pair.a.pid();
    // The daemon dies, and its watch over the process with it: two watches over one process would race.
    pair.tunnel_a = pair.tunnel_b.clone();
    std::fs::remove_file(pair.a.config.run_dir.join("tunnel.sock"))?;
    // The daemon comes back and finds nobody to talk to, but a port and a device that are taken.
    pair.tunnel_a = pair.a.open().await?;
    assert_ne!(pair.a.pid(), first);
    pair.tunnel_a.apply(&[pair.b.set()]).await?;
    pair.ping().await?;
    pair.tunnel_a = pair.tunnel_b.clone();
    std::fs::remove_file(pair.a.config.run_dir.join("tunnel.sock"))?;
    pair.a.close().await?;
    assert!(!pair.a.mesh("ip -o link").await?.contains(&pair.a.config.device));
    pair.end().await
}
