//! The IPv6 half of the network `back`: addresses, names, virtual addresses, and isolation from the network `other`, which has one too.

use super::servers::MARK;
use super::*;
use skep::lab::output;

/// A datagram that no server may receive.
const FORGED: &[u8] = b"MARK forged6";

impl NetworkServices {
    /// The IPv6 address that belongs to an address on `back`.
    fn v6(&self, address: Ipv4Addr) -> Ipv6Addr {
        self.pair.to_v6(address).expect("on the network")
    }
}

/// Direct connections between containers of the two nodes, and through the virtual address: the server sees the caller's IPv6
/// address, the caller no other one than it asked for.
#[test]
fn containers_reach_each_other_and_virtual_addresses_over_ipv6() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let services = &fixture.services;
        for caller in &services.callers {
            let own = IpAddr::V6(services.v6(caller.address));
            for web in &services.web {
                let to = SocketAddr::new(services.v6(web.address).into(), TARGET);
                let label = format!("from {} to {to}", caller.namespace.name);
                let identify = || async { Connection::open(&caller.namespace, to)?.identify() };
                let seen = within(20, &label, identify).await;
                assert_eq!((seen.server, seen.client.ip()), (web.namespace.name.clone(), own), "{label}");
            }
            let to = SocketAddr::new(services.v6(services.vip).into(), TARGET);
            let mut servers = BTreeSet::new();
            for round in 0..12 {
                let label = format!("round {round} from {}", caller.namespace.name);
                let mut connection = Connection::open(&caller.namespace, to).unwrap_or_else(|e| panic!("TCP {label}: {e:#}"));
                let seen = connection.identify().unwrap_or_else(|e| panic!("TCP {label}: {e:#}"));
                assert_eq!((connection.peer_addr(), seen.client.ip()), (to, own), "TCP {label}");
                servers.insert(seen.server);
                let socket = caller.namespace.udp(None, to).unwrap_or_else(|e| panic!("UDP {label}: {e}"));
                let seen = within(10, "an answer by UDP", || async { exchange(&socket, b"hello") }).await;
                assert_eq!((socket.peer_addr().expect("connected"), seen.client.ip()), (to, own), "UDP {label}");
                servers.insert(seen.server);
            }
            assert_eq!(servers.len(), 2, "both tasks answer: {servers:?}");
            let mut connection = Connection::open(&caller.namespace, to).expect("connects");
            connection.download(5_000_000).expect("down");
            connection.upload(5_000_000).expect("up");
        }
        let empty = SocketAddr::new(services.v6(services.empty).into(), TARGET);
        let error = services.callers[0].namespace.tcp(None, empty).map(drop).expect_err("no task runs");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

/// What users see of it: AAAA records, addresses in the API and in the container, an answer to ping.
#[test]
fn names_and_the_api_show_both_families() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let services = &fixture.services;
        let host = &fixture.swarm.hosts[0];
        let network = get(host, "/networks/back").await;
        assert_eq!(network["EnableIPv6"], true);
        let length = services.pair.v6.prefix_len();
        let shown: BTreeSet<String> = network["Containers"]
            .as_object()
            .expect("containers")
            .values()
            .map(|container| container["IPv6Address"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert!(shown.contains(&format!("{}/{length}", services.v6(services.web[0].address))), "{shown:?}");
        let service = get(host, "/services/web").await;
        let vips = service["Endpoint"]["VirtualIPs"].to_string();
        assert!(vips.contains(&format!("\"{}/{length}\"", services.v6(services.vip))), "{vips}");
        let tasks = get(host, "/tasks?filters=%7B%22service%22%3A%5B%22web%22%5D%7D").await.to_string();
        assert!(tasks.contains(&format!("\"{}/{length}\"", services.v6(services.web[1].address))), "{tasks}");

        let tasks: BTreeSet<String> = services.web.iter().map(|web| services.v6(web.address).to_string()).collect();
        for (host, caller) in fixture.swarm.hosts.iter().zip(&services.callers) {
            for (name, want) in [("web", BTreeSet::from([services.v6(services.vip).to_string()])), ("tasks.web", tasks.clone())] {
                within(20, "a name", || async {
                    let mut command = host.engine_cli();
                    command.args(["exec", &caller.namespace.container, "nslookup", "-type=aaaa", name]);
                    let printed = output(&mut command).await?;
                    let answer = printed.split_once("\nName").map(|(_, answer)| answer).unwrap_or_default();
                    let lines = answer.lines().filter(|line| line.starts_with("Address"));
                    let addresses: BTreeSet<String> =
                        lines.filter_map(|l| l.split_whitespace().last()).map(str::to_owned).collect();
                    ensure!(addresses == want, "{name} is {addresses:?}, not {want:?}: {printed}");
                    Ok(())
                })
                .await;
            }
            let mut command = host.engine_cli();
            let vip = services.v6(services.vip).to_string();
            command.args(["exec", &caller.namespace.container, "ping", "-6", "-c", "1", "-W", "3", &vip]);
            let printed = output(&mut command).await.unwrap_or_else(|e| panic!("from {}: {e:#}", caller.namespace.name));
            assert!(printed.contains(&format!("from {vip}")), "{printed}");
        }
    });
}

/// A container of another network reaches neither tasks nor virtual address nor gateway, also with addresses that are not its own; a
/// container of the network cannot take another one's address.
#[test]
fn networks_are_isolated_over_ipv6() {
    VIRTUAL_ADDRESSES.concurrent_case(async |fixture| {
        let services = &fixture.services;
        let [outsider, caller] = [&services.outsider, &services.callers[0].namespace];
        let gateway = outsider.run("ip -6 route show").await;
        let gateway = gateway.lines().find_map(|line| line.split_once(" via ")).expect("a route by the gateway").1;
        let device_route = format!("ip -6 route replace {} via {gateway}", services.pair.v6);
        outsider.run(device_route.trim_end()).await;
        let own = outsider.run("ip -o -6 addr show scope global").await;
        let device = own.split_whitespace().nth(1).expect("a device").to_owned();
        let forged = services.v6(services.callers[1].address);
        for source in [None, Some(forged)] {
            if let Some(forged) = source {
                outsider.run(&format!("ip -6 addr add {forged}/128 dev {device} nodad")).await;
                caller.run(&format!("ip -6 addr add {forged}/128 dev lo nodad")).await;
            }
            let targets = services.web.iter().map(|web| web.address).chain([services.vip]);
            for to in targets.map(|address| SocketAddr::new(services.v6(address).into(), TARGET)) {
                let source = source.map(|source| SocketAddr::new(source.into(), 0));
                let reached = outsider.udp(source, to).map_err(anyhow::Error::from).and_then(|socket| exchange(&socket, FORGED));
                assert!(reached.is_err(), "from {source:?} to {to}: {reached:?}");
                // The answer would go to the container that has the address: what arrives is seen at the server.
                if let (Some(_), Ok(socket)) = (source, caller.udp(source, to)) {
                    let _ = socket.send(FORGED);
                }
            }
        }
        for web in &services.web {
            let to = SocketAddr::new(services.v6(web.address).into(), TARGET);
            let socket = caller.udp(None, to).expect("a socket");
            within(15, "an answer", || async { exchange(&socket, &[MARK, b" genuine6"].concat()) }).await;
        }
        for server in &services.servers {
            let received = server.received();
            assert!(received.iter().any(|(_, payload)| payload.ends_with(b"genuine6")), "{received:?}");
            assert!(!received.iter().any(|(_, payload)| payload == FORGED), "{received:?}");
        }
        outsider.run(&format!("ip -6 addr del {forged}/128 dev {device}")).await;
        caller.run(&format!("ip -6 addr del {forged}/128 dev lo")).await;
        // No socket of the mesh namespace is reached by its own addresses.
        let node = status(&fixture.swarm.hosts[0]).await["nodes"][0]["mesh"].as_str().expect("a mesh address").to_owned();
        let node: Ipv6Addr = node.split('/').next().and_then(|a| a.parse().ok()).expect("a mesh address");
        let via = caller.run("ip -6 route show").await;
        let via = via.lines().find_map(|line| line.split_once(" via ")).expect("a route by the gateway").1.to_owned();
        caller.run(format!("ip -6 route replace {node}/128 via {via}").trim_end()).await;
        let reached = caller.tcp(None, SocketAddr::new(node.into(), 2377));
        assert!(reached.is_err(), "a manager's address: {reached:?}");
    });
}
