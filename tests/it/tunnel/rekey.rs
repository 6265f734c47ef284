//! A host gets another key while bytes flow in both directions.

use super::*;
use tokio::time::Instant;

/// A's key changes during transfers both ways, which lose no byte; the longest time without progress.
pub(super) async fn change_key_under_load(name: &str, kernel: KernelChoice) -> anyhow::Result<Duration> {
    const BYTES: u64 = 96 << 20;
    let mut fixture = Fixture::with_kernel(name, kernel).await?;
    fixture.ping().await?;
    let progress = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let both = [
        transfer(&fixture.a, (&fixture.b, fixture.b.v6()), BYTES, Arc::clone(&progress[0])).await?,
        transfer(&fixture.b, (&fixture.a, fixture.a.v4()), BYTES, Arc::clone(&progress[1])).await?,
    ];
    let seen = || progress.each_ref().map(|one| one.load(Ordering::Relaxed));
    eventually("both run", SOON, || async {
        ensure!(seen().iter().all(|bytes| *bytes > 2 << 20), "{:?}", seen());
        Ok(())
    })
    .await?;
    let (old, configured) = (fixture.a.key, fixture.a.peer());
    let new = tunnel::generate_key(&fixture.a.config.private_key_file)?;
    let staged = TunnelPeer { allowed_ips: Vec::new(), ..configured.clone() };
    fixture.tunnel_b.apply(&[TunnelStep::Set(new, staged), TunnelStep::Succeed { old, new }]).await?;
    let begin = Instant::now();
    fixture.tunnel_a.rekey().await?;
    // As the overlay does.
    loop {
        let state = fixture.tunnel_b.observe().await?;
        let peer = peer_of(&state, new)?;
        if !peer.peer.allowed_ips.is_empty() {
            break;
        }
        if kernel != KernelChoice::Never && peer.handshake_age.is_some() {
            fixture.tunnel_b.apply(&[TunnelStep::Set(new, configured.clone())]).await?;
        }
        ensure!(begin.elapsed() < SOON, "no handshake with the new key: {state:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("{name}: the addresses have moved after {:?}", begin.elapsed());
    let state = fixture.tunnel_b.observe().await?;
    assert_eq!(peer_of(&state, new)?.peer.allowed_ips, configured.allowed_ips);
    assert!(peer_of(&state, old)?.peer.allowed_ips.is_empty());
    fixture.tunnel_b.apply(&[TunnelStep::Remove(old)]).await?;
    let (mut last, mut at, mut longest) = (seen(), begin, Duration::ZERO);
    while !both.iter().all(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = seen();
        if now.iter().zip(&last).all(|(now, last)| now > last || *now == BYTES) {
            (longest, last, at) = (longest.max(at.elapsed()), now, Instant::now());
        }
        ensure!(at.elapsed() < SOON, "a transfer stands still: {now:?}");
    }
    for one in both {
        ensure!(one.await?? == BYTES);
    }
    fixture.a.key = new;
    // Both can begin, and the key before opens nothing.
    whole_transfer(&fixture.a, (&fixture.b, fixture.b.v6()), 1 << 20).await?;
    std::fs::write(&fixture.a.config.private_key_file, WgKey([5; 32]).to_base64())?;
    fixture.tunnel_a.rekey().await?;
    let line = format!("busybox ping -c 1 -W 2 {}", fixture.b.v6());
    // With the sessions that there are, a host with a key that is no member's may still send; it gets no new one.
    let stranger = tunnel::public_key(&fixture.a.config.private_key_file)?;
    let _ = fixture.a.mesh(&line).await;
    let state = fixture.tunnel_b.observe().await?;
    ensure!(!state.peers.contains_key(&stranger) && state.peers.len() == 1, "{state:?}");
    fixture.end().await?;
    Ok(longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_key_loses_no_byte() -> anyhow::Result<()> {
    let longest = change_key_under_load("rkey", KernelChoice::Never).await?;
    eprintln!("longest pause {longest:?}");
    // TCP would send a lost packet again after 200 ms at the earliest, and a handshake that is not answered is repeated after 5 s.
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    Ok(())
}
