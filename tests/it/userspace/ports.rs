//! Ports that are opened, closed, and already bound by another process.

use super::*;

fn reason(state: &PortState) -> Option<&str> {
    if let PortState::Taken(reason) = state { Some(reason) } else { None }
}

#[tokio::test]
async fn a_port_that_is_in_use_is_reported_and_opened_once_it_is_free() {
    let net = Net::new();
    let _backends = Backends::start(net, &[11]);
    let (taken, good) = (free_port(), free_port());
    let other_process = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, taken)).unwrap();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, taken, &[11]), port(net, good, &[11])]).await;
    let status = userspace.status(taken, "reported as taken", |s| reason(&s.state).is_some()).await;
    let error = reason(&status.state).unwrap();
    assert!(error.contains(&format!("0.0.0.0:{taken}")) && error.contains("in use"), "{error}");
    assert!(!error.contains("[::]"), "IPv6 is free and served: {error}");
    assert_eq!((status.service.as_str(), status.backends, status.protocol), ("web", 1, Protocol::Tcp));
    userspace.status(good, "the other port listens", |s| s.state == PortState::Listening).await;
    visit(good, b"x").await.unwrap();
    visit_at((Ipv6Addr::LOCALHOST, taken).into(), b"x").await.unwrap();
    drop(other_process);
    userspace.status(taken, "opened when free", |s| s.state == PortState::Listening).await;
    visit(taken, b"x").await.unwrap();
    userspace.stop().await;
}

#[tokio::test]
async fn a_removed_port_closes_at_once_and_its_connections_continue() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    let mut client = connect(published).await;
    assert_eq!(client.read_u8().await.unwrap(), 11);
    userspace.publish(Vec::new()).await;
    assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, published)).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(TcpStream::connect((Ipv6Addr::LOCALHOST, published)).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(userspace.status.borrow().is_empty());
    client.write_all(b"still").await.unwrap();
    let mut still = [0; 5];
    client.read_exact(&mut still).await.unwrap();
    assert_eq!(&still, b"still");
    // The port can be published again at once.
    userspace.publish(vec![port(net, published, &[11])]).await;
    assert_eq!(userspace.status.borrow()[0].state, PortState::Listening);
    visit(published, b"x").await.unwrap();
    userspace.stop().await;
}

#[tokio::test]
async fn a_port_may_change_its_service_without_closing() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11, 12]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    let mut old = connect(published).await;
    assert_eq!(old.read_u8().await.unwrap(), 11);
    let other = PublishedPort { service_id: "api".into(), service_name: "api".to_owned(), ..port(net, published, &[12]) };
    userspace.publish(vec![other]).await;
    assert_eq!(visit(published, b"x").await.unwrap().0, 12);
    assert_eq!(userspace.status(published, "the new name", |s| s.service == "api").await.state, PortState::Listening);
    old.write_all(b"o").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'o');
    userspace.stop().await;
}

#[tokio::test]
async fn other_protocols_are_reported_as_unsupported() {
    let net = Net::new();
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![PublishedPort { protocol: Protocol::Sctp, ..port(net, published, &[11]) }]).await;
    userspace.status(published, "unsupported", |s| s.state == PortState::Unsupported && s.protocol == Protocol::Sctp).await;
    userspace.stop().await;
}

#[tokio::test]
async fn a_node_that_leaves_closes_its_ports_and_a_shutdown_resets_open_connections() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    let mut client = connect(published).await;
    assert_eq!(client.read_u8().await.unwrap(), 11);
    userspace.view.send_replace(None);
    tokio::time::timeout(5 * SECOND, userspace.status.wait_for(Vec::is_empty)).await.expect("the ports are closed").unwrap();
    assert!(HereSockets.listen((Ipv4Addr::UNSPECIFIED, published).into()).is_ok());
    client.write_all(b"z").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'z');
    userspace.stop().await;
    assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
