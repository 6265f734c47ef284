//! Ports that come, go, and are taken by somebody else.

use super::*;

fn reason(state: &PortState) -> Option<&str> {
    if let PortState::Taken(reason) = state { Some(reason) } else { None }
}

#[tokio::test]
async fn a_taken_port_is_named_holds_up_nothing_and_is_opened_when_free() {
    let net = Net::new();
    let _backends = Backends::start(net, &[11]);
    let (taken, good) = (free_port(), free_port());
    let squatter = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, taken)).unwrap();
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![port(net, taken, &[11]), port(net, good, &[11])]).await;
    let status = balance.status(taken, "said to be taken", |s| reason(&s.state).is_some()).await;
    let said = reason(&status.state).unwrap();
    assert!(said.contains(&format!("0.0.0.0:{taken}")) && said.contains("in use"), "{said}");
    assert!(!said.contains("[::]"), "IPv6 is free and served: {said}");
    assert_eq!((status.service.as_str(), status.backends, status.protocol), ("web", 1, Protocol::Tcp));
    balance.status(good, "the other port listens", |s| s.state == PortState::Listening).await;
    visit(good, b"x").await.unwrap();
    visit_at((Ipv6Addr::LOCALHOST, taken).into(), b"x").await.unwrap();
    drop(squatter);
    balance.status(taken, "opened when free", |s| s.state == PortState::Listening).await;
    visit(taken, b"x").await.unwrap();
    balance.stop().await;
}

#[tokio::test]
async fn a_removed_port_closes_at_once_and_its_connections_go_on() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![port(net, published, &[11])]).await;
    let mut client = connect(published).await;
    assert_eq!(client.read_u8().await.unwrap(), 11);
    balance.show(Vec::new()).await;
    assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, published)).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(TcpStream::connect((Ipv6Addr::LOCALHOST, published)).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(balance.status.borrow().is_empty());
    client.write_all(b"still").await.unwrap();
    let mut still = [0; 5];
    client.read_exact(&mut still).await.unwrap();
    assert_eq!(&still, b"still");
    // And the port can come back at once.
    balance.show(vec![port(net, published, &[11])]).await;
    assert_eq!(balance.status.borrow()[0].state, PortState::Listening);
    visit(published, b"x").await.unwrap();
    balance.stop().await;
}

#[tokio::test]
async fn a_port_may_change_its_service_without_closing() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11, 12]), free_port());
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![port(net, published, &[11])]).await;
    let mut old = connect(published).await;
    assert_eq!(old.read_u8().await.unwrap(), 11);
    let other = PublishedPort { service_id: "api".into(), service_name: "api".to_owned(), ..port(net, published, &[12]) };
    balance.show(vec![other]).await;
    assert_eq!(visit(published, b"x").await.unwrap().0, 12);
    assert_eq!(balance.status(published, "the new name", |s| s.service == "api").await.state, PortState::Listening);
    old.write_all(b"o").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'o');
    balance.stop().await;
}

#[tokio::test]
async fn protocols_that_are_not_carried_out_say_so() {
    let net = Net::new();
    let published = free_port();
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![PublishedPort { protocol: Protocol::Sctp, ..port(net, published, &[11]) }]).await;
    balance.status(published, "unsupported", |s| s.state == PortState::Unsupported && s.protocol == Protocol::Sctp).await;
    balance.stop().await;
}

#[tokio::test]
async fn a_node_that_leaves_gives_its_ports_back_and_a_shutdown_cuts_what_is_carried() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![port(net, published, &[11])]).await;
    let mut client = connect(published).await;
    assert_eq!(client.read_u8().await.unwrap(), 11);
    balance.view.send_replace(None);
    tokio::time::timeout(5 * SECOND, balance.status.wait_for(Vec::is_empty)).await.expect("still there").unwrap();
    assert!(HereSockets.listen((Ipv4Addr::UNSPECIFIED, published).into()).is_ok());
    client.write_all(b"z").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'z');
    balance.stop().await;
    assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
