//! What happens to one connection.

use super::*;
use std::collections::BTreeMap;

#[tokio::test]
async fn every_backend_gets_its_share_and_sees_the_nodes_ingress_address() {
    let net = Net::new();
    let (backends, published) = (Backends::start(net, &[11, 12, 13, 14]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11, 12, 13, 14])]).await;
    for _ in 0..100 {
        assert_eq!(visit(published, b"hello").await.unwrap().1, b"hello");
    }
    assert_eq!(backends.visits(), BTreeMap::from([(11, 25), (12, 25), (13, 25), (14, 25)]));
    assert!(backends.seen.lock().unwrap().sources.iter().all(|s| s.ip() == net.ingress()));
    userspace.stop().await;
}

#[tokio::test]
async fn ipv6_clients_are_served_by_the_same_backends() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    assert_eq!(visit_at((Ipv6Addr::LOCALHOST, published).into(), b"six").await.unwrap(), (11, b"six".to_vec()));
    userspace.stop().await;
}

#[tokio::test]
async fn a_half_close_is_passed_on_and_the_other_direction_stays_open() {
    let net = Net::new();
    let published = free_port();
    let listener = tokio::net::TcpListener::bind((net.host(11), TARGET)).await.unwrap();
    let mut userspace = UserspaceLoop::start(net, |s| {
        (s.connect_timeout, s.flow_idle, s.flow_linger) = (SECOND / 4, SECOND * 3 / 2, SECOND / 4);
        (s.suspect_for, s.keepalive) = (SECOND / 4, SECOND);
    });
    let datagrams = tokio::net::UdpSocket::bind((net.host(11), TARGET)).await.unwrap();
    let udp = PublishedPort { protocol: Protocol::Udp, ..port(net, published, &[11]) };
    userspace.publish(vec![port(net, published, &[11]), udp]).await;
    let mut client = connect(published).await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    server.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"request", "the server sees the close while its own side is open");
    // Every timeout of the datapath passes meanwhile, as the end of a flow that began later shows. (Docker's NAT forgets a
    // half-closed connection after a minute of silence.)
    let datagram = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    datagram.send_to(b"x", (Ipv4Addr::LOCALHOST, published)).await.unwrap();
    let flows = |n: usize| move |s: &PortStatus| s.protocol == Protocol::Udp && s.connections == n;
    userspace.status(published, "a flow", flows(1)).await;
    userspace.status(published, "its end", flows(0)).await;
    let long = vec![0xa5; 3_000_000];
    let (sent, received) = tokio::join!(
        async {
            server.write_all(&long).await.unwrap();
            drop(server);
        },
        async {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        }
    );
    let () = sent;
    assert!(received == long, "{} of {} bytes", received.len(), long.len());
    let closed = |s: &PortStatus| s.protocol == Protocol::Tcp && s.connections == 0;
    userspace.status(published, "no connection is open", closed).await;
    drop(datagrams);
    userspace.stop().await;
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side() {
    let net = Net::new();
    let published = free_port();
    let listener = tokio::net::TcpListener::bind((net.host(11), TARGET)).await.unwrap();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    let mut client = connect(published).await;
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    server.write_all(b"half of").await.unwrap();
    let mut half = [0; 7];
    client.read_exact(&mut half).await.unwrap();
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "an orderly close would mean that all bytes arrived");
    userspace.status(published, "no connection is open", |s| s.connections == 0).await;
    userspace.stop().await;
}

#[tokio::test]
async fn dead_and_silent_backends_are_skipped_and_tried_last_afterwards() {
    let net = Net::new();
    let (backends, published) = (Backends::start(net, &[11, 12]), free_port());
    // Nothing listens at .13; .14 has a full backlog, so that its kernel drops the SYN.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((net.host(14), TARGET)).into()).unwrap();
    socket.listen(0).unwrap();
    let mut filling = Vec::new();
    while filling.len() < 16 {
        let attempt = TcpStream::connect((net.host(14), TARGET));
        match tokio::time::timeout(Duration::from_millis(200), attempt).await {
            Ok(stream) => filling.push(stream.unwrap()),
            Err(_) => break,
        }
    }
    let mut userspace = UserspaceLoop::start(net, |settings| {
        settings.connect_timeout = Duration::from_millis(500);
        settings.suspect_for = 60 * SECOND;
    });
    userspace.publish(vec![port(net, published, &[11, 12, 13, 14])]).await;
    let began = tokio::time::Instant::now();
    for _ in 0..60 {
        visit(published, b"hello").await.unwrap();
    }
    assert!(began.elapsed() < 3 * SECOND, "the silent backend is waited for once, not each time: {:?}", began.elapsed());
    assert_eq!(backends.visits().values().sum::<usize>(), 60);
    assert!(backends.visits().values().all(|n| (25..=35).contains(n)), "{:?}", backends.visits());
    let status = userspace.status(published, "any status", |_| true).await;
    assert_eq!(status.errors, 0, "no client was affected");
    userspace.stop().await;
}

#[tokio::test]
async fn if_no_backend_accepts_the_client_is_reset_at_once() {
    let net = Net::new();
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11, 12])]).await;
    assert_eq!(visit(published, b"hello").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    userspace.status(published, "it is counted", |s| s.errors == 1 && s.backends == 2).await;
    userspace.stop().await;
}

#[tokio::test]
async fn the_local_port_is_selected_at_connect() {
    let socket = HereSockets.stream((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    assert_eq!(socket.local_addr().unwrap().port(), 0, "otherwise 28,000 connections would exhaust a source address");
    assert_ne!(HereSockets.stream((Ipv6Addr::LOCALHOST, 0).into()).unwrap().local_addr().unwrap().port(), 0);
}
