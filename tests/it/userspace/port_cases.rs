//! The cases of both datapaths, on listeners and backends of loopback. Clients there are the node itself, so those of allow-lists
//! are left out: `ports::allow` has them, on a swarm.

use super::super::port_cases::{CASES, Client, PortCase, PortDatapath, run};
use super::udp::UdpBackends;
use super::*;
use tokio::net::{TcpSocket, UdpSocket};

/// How long an answer may take that must not come. (One that must come is waited for by the listeners' order.)
const SILENCE: Duration = Duration::from_millis(300);

struct Listeners {
    userspace: UserspaceLoop,
    net: Net,
    protocol: Protocol,
    published: u16,
    /// The client's last socket.
    last: Option<UdpSocket>,
    /// The client's last connection, and its task.
    connection: Option<(TcpStream, u8)>,
    tcp: Backends,
    udp: UdpBackends,
}

impl Listeners {
    fn address(&self, client: Client) -> Ipv4Addr {
        self.net.host(match client {
            Client::A => 101,
            Client::B => 102,
            Client::Range | Client::Network => unreachable!("a client outside"),
        })
    }

    async fn connect(&mut self, from: Ipv4Addr) -> io::Result<u8> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let mut stream = socket.connect((Ipv4Addr::LOCALHOST, self.published).into()).await?;
        let task = stream.read_u8().await?;
        self.connection = Some((stream, task));
        Ok(task)
    }

    async fn ask(&self, socket: &UdpSocket) -> io::Result<u8> {
        socket.send(b"x").await?;
        let mut buffer = [0; 8];
        match tokio::time::timeout(SILENCE, socket.recv(&mut buffer)).await {
            Ok(received) => received.map(|_| buffer[0]),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl PortDatapath for Listeners {
    async fn publish(&mut self, case: PortCase) {
        let allow = case.allow.iter().map(|client| std::net::IpAddr::from(self.address(*client)).into()).collect();
        let port = PublishedPort {
            protocol: self.protocol,
            affinity: case.affinity,
            allow,
            ..port(self.net, self.published, case.tasks)
        };
        self.userspace.publish(vec![port]).await;
    }

    fn has_clients_outside(&self) -> bool {
        false
    }

    async fn visit(&mut self, client: Client, again: bool) -> Option<u8> {
        let from = self.address(client);
        if self.protocol == Protocol::Tcp {
            return tokio::time::timeout(5 * SECOND, self.connect(from)).await.expect("an answer or a refusal").ok();
        }
        if !again {
            let socket = UdpSocket::bind((from, 0)).await.unwrap();
            // Receives from there only.
            socket.connect((Ipv4Addr::LOCALHOST, self.published)).await.unwrap();
            self.last = Some(socket);
        }
        self.ask(self.last.as_ref().expect("a socket")).await.ok()
    }

    async fn go_on(&mut self) -> Option<u8> {
        let (stream, task) = self.connection.as_mut().expect("a connection");
        let echo = async {
            stream.write_u8(77).await?;
            stream.read_u8().await
        };
        let echoed = tokio::time::timeout(5 * SECOND, echo).await.expect("an answer or a reset").ok()?;
        assert_eq!(echoed, 77);
        Some(*task)
    }

    async fn end(&mut self, task: u8) {
        self.tcp.kill(task).await;
        self.udp.kill(task).await;
    }
}

#[tokio::test]
async fn the_listeners_do_what_both_datapaths_do() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (name, steps) in CASES {
            let net = Net::new();
            let tasks = [1, 2, 3];
            let (tcp, udp) = (Backends::start(net, &tasks), UdpBackends::start(net, &tasks));
            let published = free_port();
            let userspace = UserspaceLoop::start(net, |_| {});
            let mut listeners = Listeners { userspace, net, protocol, published, last: None, connection: None, tcp, udp };
            run(name, steps, protocol, &mut listeners).await;
            listeners.userspace.stop().await;
        }
    }
}
