//! UDP through published ports: flows and their backends, their end, and datagrams that are no requests.

use super::*;
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// UDP backends: each replies with its number and the datagram.
#[derive(Default)]
pub struct UdpBackends {
    loops: BTreeMap<u8, JoinSet<()>>,
    sources: Arc<Mutex<Vec<SocketAddr>>>,
}

impl UdpBackends {
    pub fn start(net: Net, numbers: &[u8]) -> Self {
        let mut all = Self::default();
        for n in numbers {
            all.add(net, *n, Duration::ZERO);
        }
        all
    }
    fn add(&mut self, net: Net, n: u8, delay: Duration) {
        let socket = UdpSocket::from_std(HereSockets.udp((net.host(n), TARGET).into()).unwrap()).unwrap();
        let sources = Arc::clone(&self.sources);
        let mut loops = JoinSet::new();
        loops.spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
                sources.lock().unwrap().push(peer);
                tokio::time::sleep(delay).await;
                let mut reply = vec![n];
                reply.extend(&buffer[..len]);
                reply.truncate(65_507);
                let _ = socket.send_to(&reply, peer).await;
            }
        });
        self.loops.insert(n, loops);
    }
    pub async fn kill(&mut self, n: u8) {
        if let Some(mut loops) = self.loops.remove(&n) {
            loops.shutdown().await;
        }
    }
    fn received(&self) -> usize {
        self.sources.lock().unwrap().len()
    }
}

fn udp(net: Net, published: u16, backends: &[u8]) -> PublishedPort {
    PublishedPort { protocol: Protocol::Udp, ..port(net, published, backends) }
}

/// A connected socket: receives replies only from the address that it sends to.
async fn client(to: SocketAddr) -> UdpSocket {
    let any: SocketAddr = if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn receive(client: &UdpSocket) -> io::Result<(u8, Vec<u8>)> {
    let mut buffer = vec![0; 65_536];
    let len = tokio::time::timeout(5 * SECOND, client.recv(&mut buffer)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok((buffer[0], buffer[1..len].to_vec()))
}

async fn request(client: &UdpSocket, payload: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    client.send(payload).await?;
    receive(client).await
}

fn localhost(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[tokio::test]
async fn a_client_keeps_its_backend_and_clients_are_spread_over_all_on_both_families() {
    let net = Net::new();
    let (backends, _tcp) = (UdpBackends::start(net, &[11, 12, 13]), Backends::start(net, &[11]));
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11]), udp(net, published, &[11, 12, 13])]).await;
    let addresses = [localhost(published), (net.host(200), published).into(), (Ipv6Addr::LOCALHOST, published).into()];
    let mut served = BTreeMap::new();
    for round in 0..30 {
        let client = client(addresses[round % 3]).await;
        let (backend, echo) = request(&client, b"hello").await.unwrap();
        assert_eq!(echo, b"hello");
        for _ in 0..5 {
            assert_eq!(request(&client, b"again").await.unwrap(), (backend, b"again".to_vec()), "a flow keeps its backend");
        }
        *served.entry(backend).or_insert(0) += 1;
    }
    assert_eq!(served, BTreeMap::from([(11, 10), (12, 10), (13, 10)]));
    assert!(backends.sources.lock().unwrap().iter().all(|s| s.ip() == net.ingress()), "backends see the node's own address");
    assert_eq!(visit(published, b"tcp").await.unwrap(), (11, b"tcp".to_vec()), "the same number on TCP");
    let all = userspace.status.wait_for(|all| all.iter().any(|s| s.protocol == Protocol::Udp && s.connections == 30));
    let all = tokio::time::timeout(5 * SECOND, all).await.expect("30 flows are counted").unwrap().clone();
    assert!(all.iter().all(|s| s.state == PortState::Listening && s.errors == 0), "{all:?}");
    userspace.stop().await;
}

#[tokio::test]
async fn datagrams_of_every_size_are_forwarded_whole() {
    let net = Net::new();
    let _backends = UdpBackends::start(net, &[11]);
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![udp(net, published, &[11])]).await;
    for to in [localhost(published), (Ipv6Addr::LOCALHOST, published).into()] {
        let client = client(to).await;
        for len in [0, 1, 1472, 1473, 9000, 65_506, 65_507] {
            let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let (backend, echo) = request(&client, &payload).await.unwrap();
            assert_eq!(backend, 11);
            assert!(echo == payload[..len.min(65_506)], "{len} bytes");
        }
    }
    userspace.stop().await;
}

#[tokio::test]
async fn flows_move_at_once_when_their_backend_is_removed_and_its_last_reply_still_arrives() {
    let net = Net::new();
    let mut backends = UdpBackends::default();
    backends.add(net, 11, Duration::from_millis(300));
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![udp(net, published, &[11])]).await;
    let client = client(localhost(published)).await;
    client.send(b"slow").await.unwrap();
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    while backends.received() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the backend receives the datagram");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    backends.add(net, 12, Duration::ZERO);
    userspace.publish(vec![udp(net, published, &[12])]).await;
    assert_eq!(request(&client, b"next").await.unwrap(), (12, b"next".to_vec()), "moved at once");
    assert_eq!(receive(&client).await.unwrap(), (11, b"slow".to_vec()), "the reply that was on its way arrives");
    assert_eq!(request(&client, b"after").await.unwrap().0, 12);
    userspace.stop().await;
}

#[tokio::test]
async fn a_backend_that_refuses_is_skipped_and_the_datagram_is_not_lost() {
    let net = Net::new();
    let mut backends = UdpBackends::start(net, &[12]);
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    // Nothing listens at .11 and .13.
    userspace.publish(vec![udp(net, published, &[11, 12, 13])]).await;
    for _ in 0..12 {
        assert_eq!(request(&client(localhost(published)).await, b"x").await.unwrap(), (12, b"x".to_vec()));
    }
    // A flow whose backend stops moves to another one.
    let client = client(localhost(published)).await;
    assert_eq!(request(&client, b"x").await.unwrap().0, 12);
    backends.kill(12).await;
    backends.add(net, 11, Duration::ZERO);
    let mut moved = None;
    for _ in 0..20 {
        client.send(b"y").await.unwrap();
        if let Ok(Ok((backend, _))) = tokio::time::timeout(Duration::from_millis(200), receive(&client)).await {
            moved = Some(backend);
            break;
        }
    }
    assert_eq!(moved, Some(11));
    backends.kill(11).await;
    let _ = client.send(b"z").await;
    let errors = |all: &Vec<PortStatus>| all.iter().any(|s| s.errors > 0);
    for _ in 0..100 {
        let _ = client.send(b"z").await;
        if tokio::time::timeout(Duration::from_millis(50), userspace.status.wait_for(errors)).await.is_ok() {
            break;
        }
    }
    assert!(errors(&userspace.status.borrow()), "no backend accepts it: counted");
    userspace.stop().await;
}

#[tokio::test]
async fn flows_are_bounded_and_expire_with_their_sockets() {
    let net = Net::new();
    let _backends = UdpBackends::start(net, &[11]);
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |s| (s.max_flows_per_port, s.flow_idle) = (8, Duration::from_millis(600)));
    userspace.publish(vec![udp(net, published, &[11])]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = client(localhost(published)).await;
        request(&client, b"x").await.unwrap();
        clients.push(client);
    }
    userspace.status(published, "8 flows at most", |s| s.connections == 8).await;
    // The first client's flow was evicted; its next datagram opens another one.
    assert_eq!(request(&clients[0], b"back").await.unwrap().1, b"back");
    userspace.status(published, "idle flows expire", |s| s.connections == 0).await;
    let to = net.host(11);
    let open = || {
        let table = std::fs::read_to_string("/proc/net/udp").unwrap();
        let remote = format!("{:08X}:{TARGET:04X}", u32::from_ne_bytes(to.octets()));
        table.lines().filter(|l| l.split_whitespace().nth(2) == Some(&remote)).count()
    };
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    while open() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "{} sockets are still open", open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    userspace.stop().await;
}

#[tokio::test]
async fn a_closed_port_is_free_at_once_even_with_open_flows() {
    let net = Net::new();
    let _backends = UdpBackends::start(net, &[11]);
    let published = free_port();
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![udp(net, published, &[11])]).await;
    let client = client(localhost(published)).await;
    request(&client, b"x").await.unwrap();
    userspace.publish(Vec::new()).await;
    drop(HereSockets.udp(localhost(published)).expect("free"));
    userspace.publish(vec![udp(net, published, &[11])]).await;
    userspace.status(published, "open again", |s| s.state == PortState::Listening).await;
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    // The first attempt may still report the refusal from the time when the port was closed.
    while request(&client, b"x").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "answers again");
    }
    userspace.stop().await;
}

#[tokio::test]
async fn datagrams_from_published_ports_and_broadcasts_are_dropped() {
    let net = Net::new();
    let backends = UdpBackends::start(net, &[11]);
    let (one, other) = (free_port(), free_port());
    let mut userspace = UserspaceLoop::start(net, |_| {});
    // A source with the number of a published port, as a forged datagram would have.
    let forged = UdpSocket::bind((Ipv4Addr::LOCALHOST, other)).await.unwrap();
    // And with addresses of another node: that of its tunnel, the one that it advertises, a further one of its host.
    let [tunnel, advertised, further] = [101, 102, 103].map(|last| net.host(last).into());
    let (endpoints, addresses) = (vec![SocketAddr::new(tunnel, 2377)], vec![further]);
    let node = Peer { endpoints, advertised: Some(advertised), addresses, ..peer(2) };
    userspace.publish_beside(vec![node], vec![udp(net, one, &[11]), udp(net, other, &[11])]).await;
    forged.send_to(b"loop", localhost(one)).await.unwrap();
    for address in [tunnel, advertised, further] {
        let forged = UdpSocket::bind((address, other)).await.unwrap();
        forged.send_to(b"loop", localhost(one)).await.unwrap();
    }
    let broadcasting = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    broadcasting.set_broadcast(true).unwrap();
    broadcasting.send_to(b"all", ("127.255.255.255", one)).await.unwrap();
    // The socket queue is read in order, so a reply to this one proves that the others were read.
    let client = client(localhost(one)).await;
    assert_eq!(request(&client, b"x").await.unwrap().0, 11);
    assert_eq!(backends.received(), 1, "only the last one was a request");
    userspace.stop().await;
}
