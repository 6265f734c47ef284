//! Invalid input on 2377: the server answers with the reason where it can, closes the connection, and serves others.

use super::fixture::{Manager, Setup, Trust, eventually, join, options, side, tls};
use skep::model::{ClusterId, Role};
use skep::protocol::{FORMAT, FORMATS};
use skep::rpc::ListenerKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn frame(document: &[u8]) -> Vec<u8> {
    [&u32::try_from(document.len()).unwrap().to_be_bytes()[..], document].concat()
}

/// Sends the bytes and reads until the server closes. With `end` the client closes its sending side first.
async fn answer(manager: &Manager, alpn: &str, bytes: &[u8], end: bool) -> String {
    let mut stream = tls(manager.address, alpn, None).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    if end {
        stream.shutdown().await.unwrap();
    }
    read_all(&mut stream).await
}

async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
    assert!(read.is_ok(), "the server did not close; it sent {}", String::from_utf8_lossy(&all));
    String::from_utf8_lossy(&all).into_owned()
}

async fn still_serves(trust: &Trust, manager: &Manager) {
    join(manager.address, trust.tokens.of(Role::Worker), &side(manager), &options(Duration::from_secs(15)))
        .await
        .expect("still serves");
}

#[tokio::test]
async fn garbage_on_the_bare_port_is_closed() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.limits.handshake = Duration::from_millis(300);
    let manager = setup.start();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[22, 3, 1, 255, 255], b""] {
        let mut stream = TcpStream::connect(manager.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
        read.expect("closed").ok();
    }
    still_serves(&trust, &manager).await;
    let refused = manager.refused.read();
    assert_eq!(refused["handshake"] + refused["handshake_time"], 4, "{refused:?}");
    assert_eq!(refused.values().sum::<u64>(), 4, "{refused:?}");
}

#[tokio::test]
async fn an_invalid_frame_is_answered_with_the_reason() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.limits.first_message = Duration::from_millis(300);
    let manager = setup.start();
    let future = frame(br#"{"Request":{"format":99,"wishes":[]}}"#);
    let whole = frame(br#"{"Proof":{"received":1}}"#);
    for (bytes, end, expected) in [
        (frame(b"hello"), false, "not understood"),
        (frame(b""), false, "not understood"),
        (frame(&[0xff; 64]), false, "not understood"),
        (frame(format!(r#"{{"Request":{{"format":{FORMAT}}}}}"#).as_bytes()), false, "not understood"),
        (future, false, &format!(r#"{{"Refused":{{"Format":{{"manager":{FORMAT},"joiner":99,"#)),
        (whole.clone(), false, "begins with a request"),
        (whole[..9].to_vec(), true, "in the middle of a frame"),
        ((2_u32 << 20).to_be_bytes().to_vec(), false, "a frame of 2097152 bytes; 1048576 are allowed"),
        (vec![0xff; 4], false, "are allowed"),
        (frame(b"hello")[..6].to_vec(), false, ""), // then silence: it is closed
    ] {
        let answer = answer(&manager, "skep-join/1", &bytes, end).await;
        assert!(answer.contains(expected), "{:?}: {answer}", String::from_utf8_lossy(&bytes));
    }
    let answer = answer(&manager, "", b"", false).await;
    assert_eq!(answer, "", "a client without ALPN");
    assert!(tls(manager.address, "h2", None).await.is_err());
    assert!(!manager.journal.has("admit"));
    still_serves(&trust, &manager).await;
    manager.has_refused(&[("frame", 7), ("protocol", 2), ("handshake", 1)]).await;
}

#[tokio::test]
async fn unauthenticated_connections_are_bounded() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.limits.unauthenticated_per_source = 3;
    setup.limits.handshake = Duration::from_mins(1);
    let manager = setup.start();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(manager.address).await.unwrap());
    }
    let mut fourth = TcpStream::connect(manager.address).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(10), fourth.read(&mut byte)).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)));
    drop(held);
    // The permits are returned once the server sees the connections close.
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let (side, options) = (side(&manager), options(Duration::from_secs(15)));
    while join(manager.address, trust.tokens.of(Role::Worker), &side, &options).await.is_err() {
        assert!(std::time::Instant::now() < end, "the permits were not returned");
    }
}

#[tokio::test]
async fn unauthenticated_connections_from_outside_do_not_keep_members_out() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.limits.unauthenticated = 3;
    setup.limits.handshake = Duration::from_mins(1);
    let manager = setup.start();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(manager.address).await.unwrap());
    }
    let mut fourth = TcpStream::connect(manager.address).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(10), fourth.read(&mut [0])).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)), "the outer listener is full");
    let member = trust.identity(Role::Worker);
    let mut session = tls(manager.other_address, "skep-session/1", Some(&member)).await.expect("a member is accepted");
    session.write_all(&frame(b"{}")).await.unwrap();
    session.flush().await.unwrap();
    let answer = read_all(&mut session).await;
    assert!(answer.contains("a hello that is not understood"), "{answer}");
}

#[tokio::test]
async fn a_source_whose_joins_fail_again_and_again_has_to_wait_unless_it_has_a_token() {
    let trust = Trust::new();
    for (address, source) in [(IpAddr::from([127, 0, 0, 1]), "127.0.0.1"), (IpAddr::from(Ipv6Addr::LOCALHOST), "::1")] {
        let mut setup = Setup::new(&trust, ListenerKind::Outer);
        setup.address = SocketAddr::new(address, 0);
        setup.limits.failed_joins = 3;
        setup.limits.join_forgiven_after = Duration::from_hours(1);
        let manager = setup.start();
        for _ in 0..3 {
            let text = answer(&manager, "skep-join/1", &frame(b"hello"), false).await;
            assert!(text.contains("not understood"), "{text}");
        }
        let (side, options) = (side(&manager), options(Duration::from_secs(15)));
        let token = trust.tokens.of(Role::Worker);
        let wrong = format!("{}{}", &token[..token.len() - 5], "aaaaa");
        let refused = join(manager.address, &wrong, &side, &options).await.expect_err("has to wait").to_string();
        for part in [&format!("too many joins from {source} have failed"), "try again in 3", "docker swarm join-token", "NAT"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(!manager.journal.has("admit"));
        manager.has_refused(&[("frame", 3), ("token", 1)]).await;
        // Another host behind the same address.
        join(manager.address, token, &side, &options).await.expect("a token of the cluster");
    }
}

#[tokio::test]
async fn other_addresses_in_the_mesh_do_not_keep_members_out() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Mesh);
    setup.limits.unauthenticated = 3;
    setup.limits.handshake = Duration::from_mins(1);
    let manager = setup.start();
    let stranger = IpAddr::from([127, 0, 0, 2]);
    manager.dispatcher.not_members.lock().unwrap().push(stranger);
    let connect = async |from: IpAddr| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        socket.connect(manager.address).await.unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connect(stranger).await);
    }
    let mut fourth = connect(stranger).await;
    let read = tokio::time::timeout(Duration::from_secs(10), fourth.read(&mut [0])).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)), "no more of other addresses");
    // More members than that at a time, each from its own address.
    for last in 10..20 {
        held.push(connect(IpAddr::from([127, 0, 0, last])).await);
    }
    let member = trust.identity(Role::Worker);
    let mut session = tls(manager.address, "skep-session/1", Some(&member)).await.expect("a member is accepted");
    session.write_all(&frame(b"{}")).await.unwrap();
    session.flush().await.unwrap();
    assert!(read_all(&mut session).await.contains("a hello that is not understood"));
}

#[tokio::test]
async fn a_session_needs_a_certificate_of_this_cluster() {
    let (trust, other) = (Trust::new(), Trust::new());
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();

    let answer = answer(&manager, "skep-session/1", b"", false).await;
    assert!(answer.contains("a session needs a certificate of this cluster"), "{answer}");

    // Signed by another CA: TLS refuses it, at the latest at the first read.
    let foreign = other.identity(Role::Worker);
    if let Ok(mut stream) = tls(manager.address, "skep-session/1", Some(&foreign)).await {
        let error = stream.read_u8().await.expect_err("refused");
        assert!(error.to_string().contains("UnknownCA") || error.to_string().contains("alert"), "{error}");
    }

    // Signed by this CA, but naming another cluster.
    let mistaken =
        trust.identity_in(Role::Worker, &ClusterId::from("another"), skep::clock::Clock::now(&skep::clock::SystemClock));
    let mut stream = tls(manager.address, "skep-session/1", Some(&mistaken)).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains("names cluster another"), "{answer}");

    // Long expired.
    let old = trust.identity_in(Role::Worker, &trust.cluster, skep::model::Timestamp(1_000_000_000_000_000_000));
    if let Ok(mut stream) = tls(manager.address, "skep-session/1", Some(&old)).await {
        stream.read_u8().await.expect_err("refused");
    }
    assert!(manager.dispatcher.journal.all().is_empty(), "no client reached the dispatcher");
    manager.has_refused(&[("certificate", 2), ("handshake", 2)]).await;
}

#[tokio::test]
async fn garbage_from_a_member_ends_its_session_only() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let node = trust.identity(Role::Worker);
    let rest = r#""description":{},"endpoints":[],"have":{"incarnation":0,"index":0}"#;
    let hello = format!(r#"{{"Hello":{{"format":{FORMAT},{rest}}}}}"#);
    let hello = hello.as_bytes();
    for (bytes, expected) in [
        (frame(b"?"), "a hello that is not understood"),
        (
            frame(br#"{"Hello":{"format":99}}"#),
            &format!("the manager speaks protocol {FORMATS}, this node 99: upgrade skep on the manager"),
        ),
        (frame(br#""Leave""#), "begins with a hello"),
        ([frame(hello), frame(b"?")].concat(), "not understood"),
        ([frame(hello), vec![0xff; 8]].concat(), "are allowed"),
    ] {
        let mut stream = tls(manager.address, "skep-session/1", Some(&node)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.contains(expected), "{:?}: {answer}", String::from_utf8_lossy(&bytes));
    }
    let journal = &manager.dispatcher.journal;
    eventually("closed", || journal.count("closed") == 2).await;
    assert_eq!(journal.count(&format!("open {}", node.node_id())), 2);
    manager.has_refused(&[("frame", 5)]).await;
}

#[tokio::test]
async fn sessions_from_outside_the_mesh_are_refused() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Outer).start();
    let mut stream = tls(manager.address, "skep-session/1", Some(&trust.identity(Role::Worker))).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains("sessions go through the tunnel"), "{answer}");
    still_serves(&trust, &manager).await;
    manager.has_refused(&[("protocol", 1)]).await;
}
