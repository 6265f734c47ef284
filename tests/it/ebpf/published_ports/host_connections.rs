//! What is not the datapath's stays as it is: connections from a port number that is also published, other programs.

use super::super::foreign_program::{Program, RunCounting};
use super::*;
use skep::lab::output;
use std::path::PathBuf;

/// Connections to a server on a client's host, from the node and from a container of the engine behind the node's address, whose
/// source port is a published number.
#[test]
fn connections_from_a_published_number_are_left_alone() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let far = fixture.client(2);
        serve(&far, 9000, Ipv6Addr::UNSPECIFIED.into());
        // Another one for masqueraded connections: the node's own connections have the tuples to the first one.
        serve(&far, 9001, Ipv6Addr::UNSPECIFIED.into());
        let second_server = SocketAddr::new(address(13, false), 9001);
        let server = |six| SocketAddr::new(address(13, six), 9000);
        let node = fixture.node(0);
        let host = &fixture.swarm.hosts[0];
        // From the node: opened before the port is published, since a port that a listener has cannot be bound.
        let own = |six| SocketAddr::new(address(1, six), 8063);
        let mut connections = [false, true].map(|six| Connection::from(&node, Some(own(six)), server(six)).expect("connects"));
        let sockets = [false, true].map(|six| node.udp(Some(own(six)), server(six)).expect("a socket"));
        let containers = fixture.publish("late", &[1], &[(8063, TARGET)], json!({})).await;
        for container in &containers {
            serve(container, TARGET, Ipv6Addr::UNSPECIFIED.into());
        }
        let client = fixture.client(0);
        for six in [false, true] {
            within(30, "the port to be served", || async { Connection::open(&client, at(0, six, 8063))?.identify() }).await;
        }
        // The node's UDP sockets have the number: its listener cannot have it, so the programs leave it alone.
        within(10, "the status to name it", || async {
            let ebpf = status(host).await["ebpf"].take();
            for port in ["8063/udp", "8063/udp6"] {
                let why = ebpf["unavailable_ports"][port].as_str().unwrap_or_default();
                anyhow::ensure!(why.contains("another program of this node has the port"), "{port}: {ebpf:#}");
            }
            Ok(())
        })
        .await;
        for (connection, six) in connections.iter_mut().zip([false, true]) {
            let seen = connection.identify().unwrap_or_else(|e| panic!("the node's own connection from {}: {e:#}", own(six)));
            assert_eq!((seen.server.as_str(), seen.client), ("c3", own(six)));
            connection.download(1_000_000).unwrap_or_else(|e| panic!("the node's own connection from {}: {e:#}", own(six)));
        }

        for (socket, six) in sockets.iter().zip([false, true]) {
            let seen = within(10, "the node's own datagrams", || async { exchange(socket, b"hello") }).await;
            assert_eq!((seen.server.as_str(), seen.client), ("c3", own(six)));
        }
        drop(sockets);
        fixture.wait_for_ports(&[8063]).await;

        // From a plain container: the engine's masquerade keeps the port number.
        let id = output(host.engine_cli().args(["run", "-d", "--name", "plain", WHOAMI_IMAGE])).await.expect("a plain container");
        let pid = output(host.engine_cli().args(["inspect", "-f", "{{.State.Pid}}", id.trim()])).await.expect("inspect");
        let plain = Namespace::at("plain", &format!("/proc/{}/root/proc/{}/ns/net", host.pid(), pid.trim()));
        for port in [8081, 8082, 8063] {
            let own = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            let mut connection =
                within(10, "a plain container's connection", || async { Connection::from(&plain, Some(own), second_server) })
                    .await;
            let seen = connection.identify().unwrap_or_else(|e| panic!("a plain container's connection from {port}: {e:#}"));
            assert_eq!(seen.client, SocketAddr::new(address(1, false), port), "masqueraded, with its number");
            connection.download(1_000_000).unwrap_or_else(|e| panic!("a plain container's connection from {port}: {e:#}"));
            let socket = plain.udp(Some(own), second_server).expect("a socket");
            let seen = within(10, "a plain container's datagrams", || async {
                exchange(&socket, b"hello").map_err(|e| e.context(format!("from {port} to {second_server}")))
            });
            assert_eq!(seen.await.client, SocketAddr::new(address(1, false), port), "masqueraded, with its number");
        }
        // The same host is served as a client by the same numbers.
        let (seen, from) =
            within(10, "the far host as a client", || async { exchange_once(&far, at(0, false, 8082), b"hello") }).await;
        assert_eq!((seen.server.as_str(), seen.client), ("n2", from));
    });
}

/// Filters on the uplink and programs at the cgroup tree that are not skep's still see all packets and calls.
#[test]
fn programs_of_others_run_beside_ours() {
    PUBLISHED_PORTS.exclusive_case(async |fixture| {
        let host = &fixture.swarm.hosts[0];
        let (_counting, filter, link_program, connect_program) =
            (RunCounting::start(), Program::for_device(), Program::for_device(), Program::for_connect());
        host.run("mkdir /run/foreign").await.expect("a folder");
        host.run("mount -t bpf none /run/foreign").await.expect("a bpffs");
        filter.pin(&PathBuf::from(format!("/proc/{}/root/run/foreign/filter", host.pid())));
        // The mount above ends with the host's mount namespace.
        let _ = host.run("tc qdisc add dev eth0 clsact").await;
        host.run("tc filter add dev eth0 ingress prio 7 handle 7 bpf da object-pinned /run/foreign/filter")
            .await
            .expect("a filter");
        let shown = host.run("ip -o link show eth0").await.expect("a device");
        let index: u32 = shown.split(':').next().and_then(|n| n.trim().parse().ok()).expect("an index");
        // 46: BPF_TCX_INGRESS, after the programs that are attached.
        let _link = fixture.node(0).inside(|| Ok(link_program.attach(index, 46))).expect("in the host");
        let _connect_link = connect_program.attach_to_cgroup();

        let client = fixture.client(0);
        client.run("busybox ping -c 3 -W 2 192.0.2.1").await;
        assert!(filter.runs() >= 3, "a filter saw {} packets of 3 echo requests", filter.runs());
        assert!(link_program.runs() >= 3, "a program beside ours saw {} packets of 3 echo requests", link_program.runs());
        let before = connect_program.runs();
        let mut connection = Connection::open(&client, at(0, false, 8081)).expect("the port is served beside them");
        assert_eq!(connection.identify().expect("answers").client, connection.local_addr());
        assert!(connect_program.runs() > before, "a program at the cgroup tree does not run beside ours");
        host.run("tc filter del dev eth0 ingress prio 7 handle 7 bpf").await.expect("removed");
    });
}
