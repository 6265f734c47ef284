//! Socket calls to virtual addresses, and what names resolve to.

use super::*;
use skep::lab::output;

/// Connected and unconnected sockets, in containers of both nodes: both tasks are reached, and the caller sees no other
/// address than the virtual one.
#[test]
fn every_kind_of_call_reaches_both_tasks() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let services = &fixture.services;
        let before = fixture.counter("vip_connect").await;
        for caller in &services.callers {
            let mut servers = BTreeSet::new();
            within(20, "the virtual address to answer", || async {
                Connection::open(&caller.namespace, services.target())?.identify()
            })
            .await;
            for round in 0..12 {
                for to in [services.target(), services.mapped_target()] {
                    let label = format!("round {round} from {} to {to}", caller.namespace.name);
                    let mut connection = Connection::open(&caller.namespace, to).unwrap_or_else(|e| panic!("TCP {label}: {e:#}"));
                    let seen = connection.identify().unwrap_or_else(|e| panic!("TCP {label}: {e:#}"));
                    assert_eq!(connection.peer_addr(), to, "getpeername, TCP {label}");
                    assert_eq!(seen.client.ip(), IpAddr::V4(caller.address), "TCP {label}");
                    servers.insert(seen.server);
                    let socket = caller.namespace.udp(None, to).unwrap_or_else(|e| panic!("UDP {label}: {e}"));
                    let seen = within(10, "an answer by connected UDP", || async { exchange(&socket, b"hello") }).await;
                    assert_eq!(socket.peer_addr().expect("connected"), to, "getpeername, UDP {label}");
                    assert_eq!(seen.client.ip(), IpAddr::V4(caller.address), "UDP {label}");
                    servers.insert(seen.server);
                    let (seen, sender) = within(10, "an answer by unconnected UDP", || async { unconnected(caller, to) }).await;
                    assert_eq!(sender, to, "recvfrom {label}");
                    assert_eq!(seen.client.ip(), IpAddr::V4(caller.address), "unconnected UDP {label}");
                    servers.insert(seen.server);
                }
            }
            assert_eq!(servers.len(), 2, "both tasks answer: {servers:?}");
            // Large transfers.
            let mut connection = Connection::open(&caller.namespace, services.target()).expect("connects");
            connection.download(5_000_000).expect("down");
            connection.upload(5_000_000).expect("up");
        }
        fixture.wait_for_counter("vip_connect", before + 144).await;
    });
}

/// Review finding 15: a client that keeps the address of a service without a task is refused at once, as from a port that no process
/// listens on.
#[test]
fn a_virtual_address_without_a_task_refuses_at_once() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let services = &fixture.services;
        for caller in &services.callers {
            for ip in [IpAddr::V4(services.empty), IpAddr::V6(services.empty.to_ipv6_mapped())] {
                let to = SocketAddr::new(ip, TARGET);
                within(20, "a refusal", || async {
                    let error = caller.namespace.tcp(None, to).map(drop).expect_err("no task runs");
                    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{to}: {error}");
                    Ok(())
                })
                .await;
            }
            let socket = caller.namespace.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
            let error = socket.send_to(b"hello", (services.empty, TARGET)).expect_err("no task runs");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "a datagram: {error}");
        }
    });
}

fn unconnected(caller: &Container, to: SocketAddr) -> anyhow::Result<(Answer, SocketAddr)> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = caller.namespace.inside(|| UdpSocket::bind((any, 0)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"hello", to)?;
    let mut buffer = [0; 200];
    let (length, sender) = socket.recv_from(&mut buffer)?;
    Ok((parse_answer(&buffer[..length], b"hello")?, sender))
}

/// A service with a virtual address resolves to it; one without, to the addresses of its tasks.
#[test]
fn a_name_resolves_to_the_virtual_address_or_to_the_tasks() {
    VIRTUAL_ADDRESSES.concurrent_case(async |fixture| {
        let services = &fixture.services;
        for (host, caller) in fixture.swarm.hosts.iter().zip(&services.callers) {
            for (name, want) in [("web", BTreeSet::from([services.vip.to_string()])), ("plain", services.plain.clone())] {
                within(20, "a name", || async {
                    let mut command = host.engine_cli();
                    command.args(["exec", &caller.namespace.container, "nslookup", "-type=a", name]);
                    let printed = output(&mut command).await?;
                    let answer = printed.split_once("\nName").map(|(_, answer)| answer).unwrap_or_default();
                    let addresses = answer
                        .lines()
                        .filter(|line| line.starts_with("Address"))
                        .filter_map(|line| line.split_whitespace().last());
                    let addresses: BTreeSet<String> = addresses.map(str::to_owned).collect();
                    ensure!(addresses == want, "{name} is {addresses:?}, not {want:?}: {printed}");
                    Ok(())
                })
                .await;
            }
        }
    });
}

#[test]
fn the_virtual_address_answers_ping() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let services = &fixture.services;
        let before = fixture.counter("vip_echo").await;
        for (host, caller) in fixture.swarm.hosts.iter().zip(&services.callers) {
            for size in ["56", "1200"] {
                let mut command = host.engine_cli();
                command.args([
                    "exec",
                    &caller.namespace.container,
                    "ping",
                    "-c",
                    "1",
                    "-W",
                    "3",
                    "-s",
                    size,
                    &services.vip.to_string(),
                ]);
                let printed = output(&mut command).await.unwrap_or_else(|e| panic!("from {}: {e:#}", caller.namespace.name));
                assert!(printed.contains(&format!("from {}", services.vip)), "{printed}");
            }
        }
        fixture.wait_for_counter("vip_echo", before + 4).await;
    });
}
