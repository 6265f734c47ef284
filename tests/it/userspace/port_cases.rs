//! The cases of both datapaths, on listeners and backends of loopback. Clients have addresses that the namespace answers for and no
//! device has: to an allow-list they are other machines.
#![expect(unsafe_code, reason = "unshare has no safe form")]

use super::super::port_cases::{CASES, Client, PortCase, PortDatapath, run};
use super::udp::UdpBackends;
use super::*;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::BTreeMap;
use tokio::net::{TcpSocket, UdpSocket};

/// How long an answer may take that must not come. (One that must come is waited for by the listeners' order.)
const SILENCE: Duration = Duration::from_millis(300);

struct Listeners {
    userspace: UserspaceLoop,
    net: Net,
    protocol: Protocol,
    published: u16,
    /// The client's last socket.
    last: BTreeMap<Client, UdpSocket>,
    /// The client's last connection, and its task.
    connection: Option<(TcpStream, u8)>,
    tcp: Backends,
    udp: UdpBackends,
}

impl Listeners {
    fn address(client: Client) -> Ipv4Addr {
        match client {
            Client::A => Ipv4Addr::new(203, 0, 113, 9),
            Client::B => Ipv4Addr::new(203, 0, 113, 10),
            Client::Range | Client::Network => unreachable!("the programs decide on these"),
        }
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
        let allow = case.allow.iter().map(|client| std::net::IpAddr::from(Self::address(*client)).into()).collect();
        let port = PublishedPort {
            protocol: self.protocol,
            affinity: case.affinity,
            allow,
            ..port(self.net, self.published, case.tasks)
        };
        self.userspace.publish(vec![port]).await;
    }

    fn decides_who_is_a_client(&self) -> bool {
        false
    }

    async fn visit(&mut self, client: Client, again: bool) -> Option<u8> {
        let from = Self::address(client);
        if self.protocol == Protocol::Tcp {
            return tokio::time::timeout(5 * SECOND, self.connect(from)).await.expect("an answer or a refusal").ok();
        }
        if !again {
            let socket = UdpSocket::bind((from, 0)).await.unwrap();
            // Receives from there only.
            socket.connect((Ipv4Addr::LOCALHOST, self.published)).await.unwrap();
            self.last.insert(client, socket);
        }
        self.ask(self.last.get(&client).expect("a socket")).await.ok()
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

    async fn make_deaf(&mut self, task: u8) {
        self.udp.kill(task).await;
    }
}

/// Runs in a network namespace of its own, which ends with it.
fn in_namespace(test: impl AsyncFnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: file descriptors stay shared; only this thread's namespace changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
            for line in ["ip link set lo up", "ip route add local 203.0.113.0/24 dev lo"] {
                let done = std::process::Command::new("ip").args(line.split(' ').skip(1)).status().expect(line);
                assert!(done.success(), "{line}");
            }
            // Its threads are made by this one, in the same namespace.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(test());
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_listeners_do_what_both_datapaths_do() {
    in_namespace(all_cases);
}

async fn all_cases() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (name, steps) in CASES {
            let net = Net::new();
            let tasks = [1, 2, 3];
            let (tcp, udp) = (Backends::start(net, &tasks), UdpBackends::start(net, &tasks));
            let published = free_port();
            let userspace = UserspaceLoop::start(net, |_| {});
            let mut listeners =
                Listeners { userspace, net, protocol, published, last: BTreeMap::new(), connection: None, tcp, udp };
            run(name, steps, protocol, &mut listeners).await;
            listeners.userspace.stop().await;
        }
    }
}
