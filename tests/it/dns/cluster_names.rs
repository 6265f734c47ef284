//! Names of the cluster, the sockets that follow the view, and when a view counts as applied.

use super::*;
use std::io;
use std::sync::atomic::AtomicUsize;

#[tokio::test]
async fn a_service_is_resolved_over_udp_and_tcp_and_an_unknown_client_is_refused() {
    let net = LoopbackNet::new();
    let mut server = Server::start(net, |_| {});
    server
        .show(view(
            1,
            vec![network(net, "front", vec![member(net, "web", 1, 11), member(net, "app", 1, 21), member(net, "app", 2, 22)])],
        ))
        .await;
    let web = Client { from: net.host(11), gateway: net.gateway() };
    let app = vec![net.host(21), net.host(22)];
    assert_eq!(web.addresses("app").await, app);
    assert_eq!(web.addresses("tasks.APP").await, app);
    assert_eq!(web.addresses("app.2.front").await, [net.host(22)]);
    assert_eq!(addresses(&web.ask_tcp(&query_bytes(5, "app", RecordType::A, None)).await), app);
    let v6 = web.ask("app", RecordType::AAAA).await;
    assert_eq!((v6.metadata.response_code, v6.answers.len()), (ResponseCode::NoError, 0));
    let [a, b, c] = net.0;
    let pointer = web.ask(&format!("21.{c}.{b}.{a}.in-addr.arpa"), RecordType::PTR).await;
    assert!(matches!(&pointer.answers[0].data, RData::PTR(name) if name.to_ascii() == "app.1.app1id.front."), "{pointer:?}");
    let unknown = Client { from: net.host(99), gateway: net.gateway() };
    assert_eq!(unknown.code("app").await, ResponseCode::Refused);
    let refused = unknown.ask_tcp(&query_bytes(5, "app", RecordType::A, None)).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    server.stop().await;
}

#[tokio::test]
async fn answers_and_sockets_follow_the_view() {
    let (one, two) = (LoopbackNet::new(), LoopbackNet::new());
    let mut server = Server::start(one, |_| {});
    server.show(view(1, vec![network(one, "one", vec![member(one, "web", 1, 11)])])).await;
    let client = Client { from: one.host(11), gateway: one.gateway() };
    assert_eq!(client.addresses("web").await, [one.host(11)]);
    // Another task, and a second network.
    let first = network(one, "one", vec![member(one, "web", 1, 11), member(one, "web", 2, 12)]);
    server.show(view(2, vec![first.clone(), network(two, "two", vec![member(two, "web", 1, 11)])])).await;
    assert_eq!(client.addresses("web").await, [one.host(11), one.host(12)]);
    assert_eq!(Client { from: two.host(11), gateway: two.gateway() }.addresses("web.two").await, [two.host(11)]);
    // A task that is no backend any more is removed from its name with that revision.
    let mut second = first.clone();
    Arc::make_mut(&mut second.members[1]).backend = false;
    server.show(view(3, vec![second.clone()])).await;
    assert_eq!(client.addresses("web").await, [one.host(11)]);
    // A removed network has no server, and its address is free.
    assert!(std::net::UdpSocket::bind((two.gateway(), 53)).is_ok());
    assert!(std::net::TcpListener::bind((two.gateway(), 53)).is_ok());
    // A service without a running task is empty, not unknown.
    second.members.iter_mut().for_each(|m| Arc::make_mut(m).backend = false);
    server.show(view(4, vec![second])).await;
    assert_eq!(client.code("web").await, ResponseCode::NoError);
    // Without a view (the node has left) no client is answered.
    server.view.send_replace(None);
    until("closed", || async { std::net::UdpSocket::bind((one.gateway(), 53)).is_ok() }).await;
    server.show(view(5, vec![first])).await;
    assert_eq!(client.code("web").await, ResponseCode::NoError);
    server.stop().await;
    assert!(std::net::UdpSocket::bind((one.gateway(), 53)).is_ok(), "the socket is closed");
}

/// Refuses the first attempts, as the kernel does until the address is added, and counts all.
#[derive(Default)]
struct DelayedSockets {
    failing: AtomicUsize,
    attempts: AtomicUsize,
}

impl Sockets for DelayedSockets {
    fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        HereSockets.udp(address)
    }
    fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        HereSockets.listen(address)
    }
    fn stream(&self, source: SocketAddr) -> io::Result<TcpSocket> {
        HereSockets.stream(source)
    }
}

#[tokio::test]
async fn a_gateway_address_that_is_not_added_yet_is_waited_for() {
    let net = LoopbackNet::new();
    let sockets = Arc::new(DelayedSockets { failing: AtomicUsize::new(5), ..DelayedSockets::default() });
    let mut server = Server::start_with(net, Arc::clone(&sockets) as Arc<dyn Sockets>, |_| {});
    server.view.send_replace(Some(Arc::new(view(1, vec![network(net, "front", vec![member(net, "web", 1, 11)])]))));
    until("a first attempt", || async { sockets.attempts.load(Ordering::Relaxed) > 0 }).await;
    assert_eq!(*server.applied.borrow(), Revision::default(), "not applied while no server is open");
    tokio::time::timeout(5 * SECOND, server.applied.wait_for(|r| r.index == 1)).await.unwrap().unwrap();
    assert_eq!(Client { from: net.host(11), gateway: net.gateway() }.addresses("web").await, [net.host(11)]);
    server.stop().await;
}

#[tokio::test]
async fn a_taken_tcp_port_leaves_no_udp_server_and_is_bound_when_free() {
    let net = LoopbackNet::new();
    let blocker = std::net::TcpListener::bind((net.gateway(), 53)).unwrap();
    let sockets = Arc::new(DelayedSockets::default());
    let mut server = Server::start_with(net, Arc::clone(&sockets) as Arc<dyn Sockets>, |_| {});
    server.view.send_replace(Some(Arc::new(view(1, vec![network(net, "front", vec![member(net, "web", 1, 11)])]))));
    until("a second attempt", || async { sockets.attempts.load(Ordering::Relaxed) > 1 }).await;
    assert_eq!(server.applied.borrow().index, 0);
    drop(blocker);
    tokio::time::timeout(5 * SECOND, server.applied.wait_for(|r| r.index == 1)).await.unwrap().unwrap();
    server.stop().await;
}
