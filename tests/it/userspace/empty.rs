//! Ports of services without tasks: the kernel refuses clients at once, and the port stays taken.

use super::*;
use std::os::fd::AsFd as _;
use tokio::net::UdpSocket;

fn udp(net: Net, published: u16, backends: &[u8]) -> PublishedPort {
    PublishedPort { protocol: Protocol::Udp, ..port(net, published, backends) }
}

fn loopbacks(port: u16) -> [SocketAddr; 2] {
    [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

/// The error of a connection attempt.
async fn refusal(address: SocketAddr) -> Option<io::ErrorKind> {
    TcpStream::connect(address).await.err().map(|error| error.kind())
}

/// What comes of a datagram: the error that the kernel reports, or `None` if nothing comes back for a moment.
async fn datagram(to: SocketAddr) -> Option<io::ErrorKind> {
    let any: SocketAddr = if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(b"x").await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut [0; 64])).await;
    answer.ok()?.err().map(|error| error.kind())
}

#[tokio::test]
async fn a_port_without_tasks_refuses_at_once_and_serves_as_soon_as_there_is_one() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    // As every port begins; then scaled out, to zero, and out again.
    for round in 0..3 {
        userspace.publish(vec![port(net, published, &[])]).await;
        for address in loopbacks(published) {
            assert_eq!(refusal(address).await, Some(io::ErrorKind::ConnectionRefused), "{address}, round {round}");
        }
        let state = userspace.status(published, "no backend", |s| s.backends == 0).await.state;
        assert_eq!(state, PortState::Listening, "it is this node's port all the same");
        userspace.publish(vec![port(net, published, &[11])]).await;
        for address in loopbacks(published) {
            assert_eq!(visit_at(address, b"x").await.unwrap(), (11, b"x".to_vec()), "{address}, round {round}");
        }
    }
    assert_eq!(userspace.status(published, "closed", |s| s.connections == 0).await.errors, 0);
    userspace.stop().await;
}

fn holding(net: Net, published: u16, backends: &[u8]) -> PublishedPort {
    PublishedPort { holds: true, ..port(net, published, backends) }
}

#[tokio::test]
async fn connections_to_a_service_that_may_have_no_task_wait_for_one_that_accepts() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![holding(net, published, &[])]).await;
    let visits = loopbacks(published).map(|address| tokio::spawn(visit_at(address, b"x")));
    userspace.waiting(2).await;
    let gone = connect(published).await;
    userspace.waiting(3).await;
    drop(gone);
    userspace.waiting(2).await;
    // Its task is there, and does not listen yet.
    userspace.publish(vec![holding(net, published, &[12])]).await;
    userspace.publish(vec![holding(net, published, &[11, 12])]).await;
    for visit in visits {
        assert_eq!(visit.await.unwrap().unwrap(), (11, b"x".to_vec()));
    }
    userspace.waiting(0).await;
    let errors = userspace.status(published, "closed", |s| s.connections == 0).await.errors;
    assert_eq!(errors, 1, "of the client that went away");
    userspace.stop().await;
}

#[tokio::test]
async fn a_connection_that_waits_too_long_for_a_task_is_reset_and_one_without_room_at_once() {
    let net = Net::new();
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |s| s.hold = Duration::from_millis(200));
    userspace.publish(vec![holding(net, published, &[])]).await;
    let late = visit(published, b"x").await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::ConnectionReset);
    userspace.waiting(0).await;
    let full: Vec<_> = std::iter::from_fn(|| userspace.waiting.enter(&"web".into())).collect();
    assert!((100..10_000).contains(&full.len()), "{}", full.len());
    assert_eq!(visit(published, b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(userspace.waiting.read().values().sum::<u64>(), full.len() as u64);
    userspace.status(published, "errors", |s| s.errors == 2).await;
    userspace.stop().await;
}

#[tokio::test]
async fn another_program_cannot_take_the_port_of_a_service_without_tasks() {
    let net = Net::new();
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[]), udp(net, published, &[])]).await;
    let [v4, v6] = loopbacks(published);
    for address in [v4, v6, (Ipv4Addr::UNSPECIFIED, published).into(), (Ipv6Addr::UNSPECIFIED, published).into()] {
        // Listeners set address reuse, as servers do.
        assert_eq!(HereSockets.listen(address).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{address}/tcp");
        assert_eq!(HereSockets.udp(address).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{address}/udp");
    }
    userspace.stop().await;
}

#[tokio::test]
async fn connections_that_are_open_outlive_the_last_backend_of_a_port() {
    let net = Net::new();
    let (_backends, published) = (Backends::start(net, &[11]), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    let mut client = connect(published).await;
    assert_eq!(client.read_u8().await.unwrap(), 11);
    userspace.publish(vec![port(net, published, &[])]).await;
    assert_eq!(refusal(loopbacks(published)[0]).await, Some(io::ErrorKind::ConnectionRefused));
    client.write_all(b"z").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'z');
    userspace.stop().await;
}

#[tokio::test]
async fn a_udp_port_without_tasks_answers_unreachable() {
    let net = Net::new();
    let published = free_port();
    let backend = UdpSocket::from_std(HereSockets.udp((net.host(11), TARGET).into()).unwrap()).unwrap();
    let mut userspace = UserspaceLoop::start(net, |s| s.flow_linger = Duration::from_millis(50));
    userspace.publish(vec![udp(net, published, &[])]).await;
    for address in loopbacks(published) {
        assert_eq!(datagram(address).await, Some(io::ErrorKind::ConnectionRefused), "{address}");
    }
    userspace.publish(vec![udp(net, published, &[11])]).await;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect((Ipv4Addr::LOCALHOST, published)).await.unwrap();
    client.send(b"question").await.unwrap();
    let mut buffer = [0; 64];
    let (len, flow) = tokio::time::timeout(5 * SECOND, backend.recv_from(&mut buffer)).await.expect("served").unwrap();
    assert_eq!(&buffer[..len], b"question");
    // The last reply of a flow is on its way when the service loses its task.
    userspace.publish(vec![udp(net, published, &[])]).await;
    backend.send_to(b"answer", flow).await.unwrap();
    let len = tokio::time::timeout(5 * SECOND, client.recv(&mut buffer)).await.expect("the reply arrives").unwrap();
    assert_eq!(&buffer[..len], b"answer");
    // After the flow has ended it refuses again.
    let refused = async { while datagram(loopbacks(published)[0]).await != Some(io::ErrorKind::ConnectionRefused) {} };
    tokio::time::timeout(10 * SECOND, refused).await.expect("refuses after its flows have ended");
    userspace.stop().await;
}

/// What `set_refusing` relies on, on this kernel: an interface number that does not exist is accepted.
#[tokio::test]
async fn a_refusing_socket_serves_again_with_its_backlog() {
    let listener = HereSockets.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = TcpStream::connect(address).await.unwrap();
    skep::datapath::sockets::set_refusing(&listener.as_fd(), true).unwrap();
    assert_eq!(refusal(address).await, Some(io::ErrorKind::ConnectionRefused));
    skep::datapath::sockets::set_refusing(&listener.as_fd(), false).unwrap();
    assert_eq!(listener.accept().unwrap().1, waiting.local_addr().unwrap(), "connected before, accepted after");
    assert_eq!(refusal(address).await, None);
}
