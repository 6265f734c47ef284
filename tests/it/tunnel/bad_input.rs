//! Bad input: malformed datagrams and requests, unusable files and ports.

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

#[tokio::test(flavor = "multi_thread")]
async fn malformed_datagrams_do_not_disturb_the_session() -> anyhow::Result<()> {
    let fixture = Fixture::new("junk").await?;
    let (a, b) = (&fixture.a, &fixture.b);
    fixture.ping().await?;
    let before = fixture.b_from_a().await?.handshake_age.unwrap();
    let transfer = transfer(a, (b, b.v6()), 30 << 20, Arc::default()).await?;
    let target = a.endpoint();
    let flood = inside(Path::new(&format!("/proc/{}/ns/net", b.host.pid())), move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut block = vec![0; 1400];
        let mut pattern = Pattern(1);
        for number in 0..20_000usize {
            pattern.fill(&mut block);
            // Each kind of WireGuard message by its first byte, each length, and the empty datagram.
            block[..4].copy_from_slice(&[u8::try_from(number % 6)?, 0, 0, 0]);
            let length = [0, 1, 4, 31, 32, 64, 92, 148, 149, 1400][number / 6 % 10];
            // An error means that a queue is full, as the flood is to achieve.
            let _ = socket.send_to(&block[..length], target);
        }
        Ok(())
    });
    flood.await??;
    assert_eq!(transfer.await??, 30 << 20);
    assert!(fixture.b_from_a().await?.handshake_age.unwrap() >= before, "the session was lost");
    fixture.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_an_error() -> anyhow::Result<()> {
    let (lab, a, b) = hosts("ctl").await?;
    let tunnel = a.open().await?;
    let pid = a.pid();
    let path = a.config.run_dir.join("tunnel.sock");
    let request = |bytes: Vec<u8>| {
        let path = path.clone();
        async move {
            let mut stream = UnixStream::connect(path).await?;
            // The process may close the connection before it has read all.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut reply = String::new();
            let _ = stream.read_to_string(&mut reply).await;
            anyhow::Ok(reply)
        }
    };
    for malformed in [
        &b"\n"[..],
        b"{}\n",
        b"[1,2,3]\n",
        b"\xff\xfe\x00\n",
        b"{\"do\":\"dance\"}\n",
        b"{\"do\":\"apply\"}\n",
        b"{\"do\":\"apply\",\"steps\":[{\"Remove\":\"short\"}]}\n",
        b"{\"do\":\"observe\"",
    ] {
        let reply = request(malformed.to_vec()).await?;
        assert!(reply.starts_with("{\"error\":"), "{:?} was answered with {reply:?}", String::from_utf8_lossy(malformed));
    }
    // A malformed line does not end the connection.
    let reply = request(b"malformed\n{\"do\":\"hello\"}\n".to_vec()).await?;
    assert_eq!(reply.lines().count(), 2, "{reply}");
    // Deeply nested, and above the limit of a line.
    assert!(request([b"[".repeat(100_000), b"\n".to_vec()].concat()).await?.contains("error"));
    let _ = request(vec![b'x'; 9 << 20]).await?;
    drop(UnixStream::connect(&path).await?);

    tunnel.observe().await?;
    assert_eq!(a.pid(), pid, "the process lives");
    a.close().await?;
    finish(lab, a, b).await
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_obstacle() -> anyhow::Result<()> {
    let (lab, a, b) = hosts("way").await?;
    let fails = async |config: TunnelConfig| match a.open_as(config).await {
        Ok(_) => panic!("it opened"),
        Err(error) => format!("{error:#}"),
    };

    let holder = inside(Path::new(&format!("/proc/{}/ns/net", a.host.pid())), || Ok(UdpSocket::bind("0.0.0.0:2377")?)).await??;
    let error = fails(a.config.clone()).await;
    assert!(error.contains("UDP port 2377 is taken by process"), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    drop(holder);

    std::fs::write(&a.config.private_key_file, "not a key")?;
    let error = fails(a.config.clone()).await;
    assert!(error.contains("wg.key"), "{error}");
    tunnel::generate_key(&a.config.private_key_file)?;

    let plain = a.config.run_dir.join("plain");
    File::create(&plain)?;
    let error = fails(TunnelConfig { mesh_pin: plain, ..a.config.clone() }).await;
    assert!(error.contains("plain") && error.contains("namespace"), "{error}");

    let error = fails(TunnelConfig { program: "/nonexistent/skep".into(), ..a.config.clone() }).await;
    assert!(error.contains("/nonexistent/skep"), "{error}");

    let error = fails(TunnelConfig { device: "a/b".into(), ..a.config.clone() }).await;
    assert!(error.contains("a/b"), "{error}");

    let error = fails(TunnelConfig { listen: "198.51.100.7:2377".parse()?, ..a.config.clone() }).await;
    assert!(error.contains("198.51.100.7:2377"), "{error}");

    // Without any of these it opens.
    a.open().await?;
    a.close().await?;
    finish(lab, a, b).await
}
