//! Errors reach the client: refusals at once, and the MTU of a narrow link on the path.

use super::*;
use skep::lab::output;
use std::io::ErrorKind;
use tokio::process::Command;

/// A container refuses with RST or ICMP: the client gets the error over both protocols, from a backend on the node that it
/// uses and from one on another. A firewall refuses: a task that does not listen is no backend.
#[test]
fn a_refusal_by_the_container_reaches_the_client() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let client = fixture.client(2);
        let rules = |change: &str| {
            let rule = |tool: &str, protocol: &str, with: &str| {
                format!("{tool} {change} INPUT -p {protocol} --dport {FIREWALLED} -j REJECT --reject-with {with}")
            };
            [
                rule("iptables", "udp", "icmp-port-unreachable"),
                rule("ip6tables", "udp", "icmp6-port-unreachable"),
                rule("iptables", "tcp", "icmp-port-unreachable"),
                rule("ip6tables", "tcp", "tcp-reset"),
            ]
        };
        for container in &fixture.services.containers[..2] {
            for rule in rules("-A") {
                container.run(&rule).await;
            }
        }
        for (six, backend) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let to = at(0, six, port_of(backend) + 10);
            let error = client.tcp(None, to).expect_err("the container refuses");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP to {to} of n{}: {error}", backend + 1);
            within(10, "a datagram to be refused", || async {
                let socket = client.udp(None, to)?;
                socket.send(b"hello")?;
                let error = socket.recv(&mut [0; 16]).expect_err("the container refuses");
                anyhow::ensure!(error.kind() == ErrorKind::ConnectionRefused, "UDP to {to} of n{}: {error}", backend + 1);
                Ok(())
            })
            .await;
        }
        for container in &fixture.services.containers[..2] {
            for rule in rules("-D") {
                container.run(&rule).await;
            }
        }
    });
}

/// A client behind a router whose link to the client has a smaller MTU than its other one: backends on both nodes learn it.
#[test]
fn the_mtu_of_a_narrow_link_is_learned() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let router = fixture.swarm.lab.host("router", 20).await.expect("router");
        add_ipv6(&router, 20).await;
        let far = fixture.swarm.lab.host("far", 21).await.expect("client");
        far.run("ip addr flush dev eth0").await.expect("only the narrow link stays");
        let (inner, outer) = (far.pid().to_string(), router.pid().to_string());
        let veth = ["link", "add", "narrow", "netns", &outer, "type", "veth", "peer", "name", "far", "netns", &inner];
        output(Command::new("ip").args(veth)).await.expect("a veth pair");
        for (host, line) in [
            (&router, "ip addr add 198.51.100.1/24 dev narrow"),
            (&router, "ip addr add fd98::1/64 dev narrow nodad"),
            // The client's end keeps 1500: only the router knows of the smaller MTU.
            (&router, "ip link set narrow mtu 1300 up"),
            (&router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"),
            (&far, "ip addr add 198.51.100.2/24 dev far"),
            (&far, "ip addr add fd98::2/64 dev far nodad"),
            (&far, "ip link set far up"),
            (&far, "ip route add default via 198.51.100.1"),
            (&far, "ip -6 route add default via fd98::1"),
        ] {
            host.run(line).await.unwrap_or_else(|e| panic!("{e:#}"));
        }
        for host in &fixture.swarm.hosts {
            host.run("ip route add 198.51.100.0/24 via 192.0.2.20").await.expect("a route");
            host.run("ip -6 route add fd98::/64 via fd99::14").await.expect("a route");
        }
        let client = Namespace::of_host(&far);
        for (six, backend) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let to = at(0, six, port_of(backend));
            let mut connection = within(10, "the far client to be served", || async { Connection::open(&client, to) }).await;
            assert_eq!(connection.identify().expect("answers").client, connection.local_addr());
            connection
                .download(10_000_000)
                .unwrap_or_else(|e| panic!("down from {to} of n{} over a narrow link: {e:#}", backend + 1));
        }
        far.stop().await;
        router.stop().await;
    });
}
