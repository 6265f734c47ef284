//! Errors find their way back: what refuses, refuses at once, and a narrow hop is learned of.

use super::servers::Talk;
use super::*;
use skep::lab::output;
use std::io::ErrorKind;
use tokio::process::Command;

/// A container refuses, with RST or by ICMP: the client is told so, over both protocols, by a backend here and elsewhere.
/// (By a firewall: where nobody listens, no task is a backend.)
pub async fn closed(stage: &Stage, per_node: &PerNode) {
    let client = stage.client(2);
    let rules = |change: &str| {
        let rule = |tool: &str, protocol: &str, with: &str| {
            format!("{tool} {change} INPUT -p {protocol} --dport {CLOSED} -j REJECT --reject-with {with}")
        };
        [
            rule("iptables", "udp", "icmp-port-unreachable"),
            rule("ip6tables", "udp", "icmp6-port-unreachable"),
            rule("iptables", "tcp", "icmp-port-unreachable"),
            rule("ip6tables", "tcp", "tcp-reset"),
        ]
    };
    for spot in &per_node.spots[..2] {
        for rule in rules("-A") {
            spot.run(&rule).await;
        }
    }
    for (six, backend) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let to = at(0, six, port_of(backend) + 10);
        let error = client.tcp(None, to).expect_err("the container refuses");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP to {to} of n{}: {error}", backend + 1);
        within(10, "a datagram to be refused", || async {
            let socket = client.udp(None, to)?;
            socket.send(b"anybody?")?;
            let error = socket.recv(&mut [0; 16]).expect_err("the container refuses");
            anyhow::ensure!(error.kind() == ErrorKind::ConnectionRefused, "UDP to {to} of n{}: {error}", backend + 1);
            Ok(())
        })
        .await;
    }
    for spot in &per_node.spots[..2] {
        for rule in rules("-D") {
            spot.run(&rule).await;
        }
    }
}

/// A client behind a router whose wire to it takes less than the router's other one: both kinds of backend learn of it.
pub async fn narrow(stage: &Stage) {
    let router = stage.swarm.lab.host("router", 20).await.expect("router");
    second_family(&router, 20).await;
    let far = stage.swarm.lab.host("far", 21).await.expect("client");
    far.run("ip addr flush dev eth0").await.expect("no other way");
    let (inner, outer) = (far.pid().to_string(), router.pid().to_string());
    let wire = ["link", "add", "narrow", "netns", &outer, "type", "veth", "peer", "name", "far", "netns", &inner];
    output(Command::new("ip").args(wire)).await.expect("a wire");
    for (host, line) in [
        (&router, "ip addr add 198.51.100.1/24 dev narrow"),
        (&router, "ip addr add fd98::1/64 dev narrow nodad"),
        // What the client's end takes is what anybody believes who asks it alone.
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
    for host in &stage.swarm.hosts {
        host.run("ip route add 198.51.100.0/24 via 192.0.2.20").await.expect("a route");
        host.run("ip -6 route add fd98::/64 via fd99::14").await.expect("a route");
    }
    let client = Spot::of_host(&far);
    for (six, backend) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let to = at(0, six, port_of(backend));
        let mut talk = within(10, "the far client to be served", || async { Talk::open(&client, to) }).await;
        assert_eq!(talk.who().expect("answers").peer, talk.own());
        talk.down(10_000_000).unwrap_or_else(|e| panic!("down from {to} of n{} over a narrow hop: {e:#}", backend + 1));
    }
    far.stop().await;
    router.stop().await;
}
