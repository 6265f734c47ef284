//! UDP through published ports: flows, their backends, their ends, and what is no request.

use super::*;
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// UDP servers that say who they are and repeat what they hear.
#[derive(Default)]
struct Echoes {
    loops: BTreeMap<u8, JoinSet<()>>,
    sources: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Echoes {
    fn start(net: Net, which: &[u8]) -> Self {
        let mut all = Self::default();
        for n in which {
            all.add(net, *n, Duration::ZERO);
        }
        all
    }
    fn add(&mut self, net: Net, n: u8, think: Duration) {
        let socket = UdpSocket::from_std(HereSockets.udp((net.host(n), TARGET).into()).unwrap()).unwrap();
        let sources = Arc::clone(&self.sources);
        let mut loops = JoinSet::new();
        loops.spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
                sources.lock().unwrap().push(peer);
                tokio::time::sleep(think).await;
                let mut said = vec![n];
                said.extend(&buffer[..len]);
                said.truncate(65_507);
                let _ = socket.send_to(&said, peer).await;
            }
        });
        self.loops.insert(n, loops);
    }
    async fn kill(&mut self, n: u8) {
        if let Some(mut loops) = self.loops.remove(&n) {
            loops.shutdown().await;
        }
    }
    fn heard(&self) -> usize {
        self.sources.lock().unwrap().len()
    }
}

fn udp(net: Net, published: u16, backends: &[u8]) -> PublishedPort {
    PublishedPort { protocol: Protocol::Udp, ..port(net, published, backends) }
}

/// A socket that takes answers from the address only that it asks.
async fn client(to: SocketAddr) -> UdpSocket {
    let any: SocketAddr = if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn hear(client: &UdpSocket) -> io::Result<(u8, Vec<u8>)> {
    let mut buffer = vec![0; 65_536];
    let len = tokio::time::timeout(5 * SECOND, client.recv(&mut buffer)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok((buffer[0], buffer[1..len].to_vec()))
}

async fn ask(client: &UdpSocket, word: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    client.send(word).await?;
    hear(client).await
}

fn here(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[tokio::test]
async fn a_client_keeps_its_backend_clients_are_spread_and_both_families_and_protocols_answer() {
    let net = Net::new();
    let (echoes, _tcp) = (Echoes::start(net, &[11, 12, 13]), Backends::start(net, &[11]));
    let published = free_port();
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![port(net, published, &[11]), udp(net, published, &[11, 12, 13])]).await;
    let addresses = [here(published), (net.host(200), published).into(), (Ipv6Addr::LOCALHOST, published).into()];
    let mut served = BTreeMap::new();
    for round in 0..30 {
        let client = client(addresses[round % 3]).await;
        let (who, echo) = ask(&client, b"hello").await.unwrap();
        assert_eq!(echo, b"hello");
        for _ in 0..5 {
            assert_eq!(ask(&client, b"again").await.unwrap(), (who, b"again".to_vec()), "a flow keeps its backend");
        }
        *served.entry(who).or_insert(0) += 1;
    }
    assert_eq!(served, BTreeMap::from([(11, 10), (12, 10), (13, 10)]));
    assert!(echoes.sources.lock().unwrap().iter().all(|s| s.ip() == net.ingress()), "backends see the node's own address");
    assert_eq!(visit(published, b"tcp").await.unwrap(), (11, b"tcp".to_vec()), "the same number on TCP");
    let all = balance.status.wait_for(|all| all.iter().any(|s| s.protocol == Protocol::Udp && s.connections == 30));
    let all = tokio::time::timeout(5 * SECOND, all).await.expect("30 flows are counted").unwrap().clone();
    assert!(all.iter().all(|s| s.state == PortState::Listening && s.errors == 0), "{all:?}");
    balance.stop().await;
}

#[tokio::test]
async fn datagrams_of_every_size_come_through_whole() {
    let net = Net::new();
    let _echoes = Echoes::start(net, &[11]);
    let published = free_port();
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![udp(net, published, &[11])]).await;
    for to in [here(published), (Ipv6Addr::LOCALHOST, published).into()] {
        let client = client(to).await;
        for len in [0, 1, 1472, 1473, 9000, 65_506, 65_507] {
            let word: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let (who, echo) = ask(&client, &word).await.unwrap();
            assert_eq!(who, 11);
            assert!(echo == word[..len.min(65_506)], "{len} bytes");
        }
    }
    balance.stop().await;
}

#[tokio::test]
async fn flows_move_at_once_when_their_backend_goes_and_its_last_answer_still_comes() {
    let net = Net::new();
    let mut echoes = Echoes::default();
    echoes.add(net, 11, Duration::from_millis(300));
    let published = free_port();
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![udp(net, published, &[11])]).await;
    let client = client(here(published)).await;
    client.send(b"slow").await.unwrap();
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    while echoes.heard() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the backend hears it");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    echoes.add(net, 12, Duration::ZERO);
    balance.show(vec![udp(net, published, &[12])]).await;
    assert_eq!(ask(&client, b"next").await.unwrap(), (12, b"next".to_vec()), "moved at once");
    assert_eq!(hear(&client).await.unwrap(), (11, b"slow".to_vec()), "what was under way arrives");
    assert_eq!(ask(&client, b"after").await.unwrap().0, 12);
    balance.stop().await;
}

#[tokio::test]
async fn a_backend_that_refuses_is_passed_over_and_its_datagram_is_not_lost() {
    let net = Net::new();
    let mut echoes = Echoes::start(net, &[12]);
    let published = free_port();
    let mut balance = Balance::start(net, |_| {});
    // Nobody listens at 11 and 13.
    balance.show(vec![udp(net, published, &[11, 12, 13])]).await;
    for _ in 0..12 {
        assert_eq!(ask(&client(here(published)).await, b"x").await.unwrap(), (12, b"x".to_vec()));
    }
    // A flow whose server ends finds another one.
    let client = client(here(published)).await;
    assert_eq!(ask(&client, b"x").await.unwrap().0, 12);
    echoes.kill(12).await;
    echoes.add(net, 11, Duration::ZERO);
    let mut moved = None;
    for _ in 0..20 {
        client.send(b"y").await.unwrap();
        if let Ok(Ok((who, _))) = tokio::time::timeout(Duration::from_millis(200), hear(&client)).await {
            moved = Some(who);
            break;
        }
    }
    assert_eq!(moved, Some(11));
    echoes.kill(11).await;
    let _ = client.send(b"z").await;
    let errors = |all: &Vec<PortStatus>| all.iter().any(|s| s.errors > 0);
    for _ in 0..100 {
        let _ = client.send(b"z").await;
        if tokio::time::timeout(Duration::from_millis(50), balance.status.wait_for(errors)).await.is_ok() {
            break;
        }
    }
    assert!(errors(&balance.status.borrow()), "nobody takes it: counted");
    balance.stop().await;
}

#[tokio::test]
async fn flows_are_bounded_end_when_idle_and_leave_nothing() {
    let net = Net::new();
    let _echoes = Echoes::start(net, &[11]);
    let published = free_port();
    let mut balance = Balance::start(net, |s| (s.max_flows_per_port, s.flow_idle) = (8, Duration::from_millis(600)));
    balance.show(vec![udp(net, published, &[11])]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = client(here(published)).await;
        ask(&client, b"x").await.unwrap();
        clients.push(client);
    }
    balance.status(published, "8 flows at most", |s| s.connections == 8).await;
    // The first client's flow had to make room; it just gets another one.
    assert_eq!(ask(&clients[0], b"back").await.unwrap().1, b"back");
    balance.status(published, "idle flows end", |s| s.connections == 0).await;
    let to = net.host(11);
    let open = || {
        let table = std::fs::read_to_string("/proc/net/udp").unwrap();
        let remote = format!("{:08X}:{TARGET:04X}", u32::from_ne_bytes(to.octets()));
        table.lines().filter(|l| l.split_whitespace().nth(2) == Some(&remote)).count()
    };
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    while open() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "{} sockets stay open", open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    balance.stop().await;
}

#[tokio::test]
async fn a_closed_port_is_free_at_once_even_under_flows() {
    let net = Net::new();
    let _echoes = Echoes::start(net, &[11]);
    let published = free_port();
    let mut balance = Balance::start(net, |_| {});
    balance.show(vec![udp(net, published, &[11])]).await;
    let client = client(here(published)).await;
    ask(&client, b"x").await.unwrap();
    balance.show(Vec::new()).await;
    drop(HereSockets.udp(here(published)).expect("free"));
    balance.show(vec![udp(net, published, &[11])]).await;
    balance.status(published, "open again", |s| s.state == PortState::Listening).await;
    let deadline = tokio::time::Instant::now() + 5 * SECOND;
    // The kernel may still owe the client a refusal.
    while ask(&client, b"x").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "answers again");
    }
    balance.stop().await;
}

#[tokio::test]
async fn two_ports_cannot_be_made_to_talk_to_each_other_and_broadcasts_are_no_requests() {
    let net = Net::new();
    let echoes = Echoes::start(net, &[11]);
    let (one, other) = (free_port(), free_port());
    let mut balance = Balance::start(net, |_| {});
    // Who owns a published port's number speaks as that port would.
    let forged = UdpSocket::bind((Ipv4Addr::LOCALHOST, other)).await.unwrap();
    balance.show(vec![udp(net, one, &[11]), udp(net, other, &[11])]).await;
    forged.send_to(b"loop", here(one)).await.unwrap();
    let shouting = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    shouting.set_broadcast(true).unwrap();
    shouting.send_to(b"all", ("127.255.255.255", one)).await.unwrap();
    // The same socket queue is read in order, so an answer to this one proves that the others were seen.
    let client = client(here(one)).await;
    assert_eq!(ask(&client, b"x").await.unwrap().0, 11);
    assert_eq!(echoes.heard(), 1, "only the last one was a request");
    balance.stop().await;
}
