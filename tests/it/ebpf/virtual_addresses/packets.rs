//! Packets to virtual addresses whose destination no program at a socket call has translated.

use super::super::packet;
use super::*;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read as _;
use std::net::SocketAddrV4;

/// Packets of raw sockets: no program at a socket call has translated them.
#[test]
fn packets_without_a_socket_call_reach_a_task() {
    VIRTUAL_ADDRESSES.concurrent_case(async |fixture| {
        let services = &fixture.services;
        for caller in &services.callers {
            let raw = caller.namespace.raw();
            let vip = SocketAddrV4::new(services.vip, TARGET);
            let socket = caller.namespace.inside(|| UdpSocket::bind((caller.address, 4444))).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            let from = SocketAddrV4::new(caller.address, 4444);
            let (seen, sender) = within(15, "an answer to a datagram without a call", || async {
                raw.send_to(&packet::udp(from, vip, b"raw"), &SocketAddr::from(vip).into())?;
                let mut buffer = [0; 200];
                let (length, sender) = socket.recv_from(&mut buffer)?;
                Ok((parse_answer(&buffer[..length], b"raw")?, sender))
            })
            .await;
            assert_eq!((sender, seen.client), (vip.into(), from.into()), "from the virtual address, to the caller");

            let replies =
                caller.namespace.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))).expect("a raw socket");
            replies.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            let next = std::sync::atomic::AtomicU16::new(4600);
            within(15, "an answer to a SYN without a call", || async {
                let port = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let from = SocketAddrV4::new(caller.address, port);
                raw.send_to(&packet::tcp(from, vip, 2, 1000, b""), &SocketAddr::from(vip).into())?;
                let until = Instant::now() + Duration::from_secs(2);
                let mut others = Vec::new();
                while Instant::now() < until {
                    let mut packet = [0; 200];
                    let Ok(length) = (&replies).read(&mut packet) else { break };
                    let addresses = [&packet[12..16], &packet[20..24]];
                    let wanted = [&services.vip.octets()[..], &[TARGET.to_be_bytes(), port.to_be_bytes()].concat()[..]];
                    // SYN and ACK, with the number that was sent plus 1.
                    if length >= 40 && addresses == wanted && packet[33] == 0x12 && packet[28..32] == 1001_u32.to_be_bytes() {
                        return Ok(());
                    }
                    others.push(packet[12..34].to_vec());
                }
                anyhow::bail!("none from {vip}, but {others:?}")
            })
            .await;
        }
    });
}

/// Packets of the inner containers are masqueraded by the outer one: no socket call of theirs is translated.
#[test]
fn containers_of_an_engine_inside_a_container_reach_the_virtual_address() {
    VIRTUAL_ADDRESSES.concurrent_case(async |fixture| {
        let services = &fixture.services;
        for caller in &services.callers {
            let nested = caller.namespace.nested().await;
            caller.namespace.run(&format!("ip link add in0 type veth peer name out0 netns {}", nested.holder())).await;
            for line in [
                "ip addr add 172.31.9.1/30 dev in0",
                "ip link set in0 up",
                "sysctl -qw net.ipv4.ip_forward=1",
                "iptables -t nat -A POSTROUTING -s 172.31.9.0/30 -j MASQUERADE",
            ] {
                caller.namespace.run(line).await;
            }
            for line in [
                "ip link set lo up",
                "ip addr add 172.31.9.2/30 dev out0",
                "ip link set out0 up",
                "ip route add default via 172.31.9.1",
            ] {
                nested.run(line).await;
            }
            let to = services.target();
            let mut servers = BTreeSet::new();
            for _ in 0..12 {
                let mut connection =
                    within(15, "a nested container to reach a virtual address", || async { Connection::open(&nested, to) }).await;
                let seen = connection.identify().unwrap_or_else(|e| panic!("from inside {}: {e:#}", caller.namespace.name));
                assert_eq!((seen.client.ip(), connection.peer_addr()), (IpAddr::V4(caller.address), to));
                connection.download(300_000).unwrap_or_else(|e| panic!("from inside {}: {e:#}", caller.namespace.name));
                let socket = nested.udp(None, to).expect("a socket");
                let seen =
                    within(10, "a nested container's datagram to be answered", || async { exchange(&socket, b"hello") }).await;
                assert_eq!(seen.client.ip(), IpAddr::V4(caller.address));
                servers.insert(seen.server);
            }
            assert_eq!(servers.len(), 2, "both tasks answer: {servers:?}");
            // A service without a task refuses at once here too.
            let to = SocketAddr::new(services.empty.into(), TARGET);
            within(15, "a nested container to be refused", || async {
                let error = nested.tcp(None, to).map(drop).expect_err("no task runs");
                ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{to}: {error}");
                let socket = nested.udp(None, to)?;
                socket.send(b"hello")?;
                let error = socket.recv(&mut [0; 16]).expect_err("no task runs");
                ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "a datagram to {to}: {error}");
                Ok(())
            })
            .await;
            nested.run(&format!("busybox ping -c 1 -W 3 {}", services.vip)).await;
        }
    });
}
