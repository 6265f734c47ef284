//! What is not ours stays as it is: connections from a port number that happens to be published, other people's programs.

use super::foreign::{Counting, Program};
use super::servers::{Talk, ask_udp, say};
use super::*;
use skep::lab::output;
use std::path::PathBuf;

/// Connections to a server on a client's host, from the node itself and from a plain container behind the node's address,
/// with a published port as their own.
pub async fn connections(stage: &Stage) {
    let far = stage.client(2);
    serve(&far, 9000, Ipv6Addr::UNSPECIFIED.into());
    // Another one for what is masqueraded: with the same at the other end the number would be the node's own connection's.
    serve(&far, 9001, Ipv6Addr::UNSPECIFIED.into());
    let beside = SocketAddr::new(address(13, false), 9001);
    let server = |six| SocketAddr::new(address(13, six), 9000);
    let node = stage.node(0);
    let host = &stage.swarm.hosts[0];
    // Of the node itself: begun before the port is published, since nobody can take a number that somebody listens on.
    let own = |six| SocketAddr::new(address(1, six), 8063);
    let mut talks = [false, true].map(|six| Talk::from(&node, Some(own(six)), server(six)).expect("connects"));
    let sockets = [false, true].map(|six| node.udp(Some(own(six)), server(six)).expect("a socket"));
    let spots = stage.publish("late", &[1], &[(8063, TARGET)], json!({})).await;
    for spot in &spots {
        serve(spot, TARGET, Ipv6Addr::UNSPECIFIED.into());
    }
    stage.served(&[8063]).await;
    let client = stage.client(0);
    for six in [false, true] {
        within(30, "the port to be served", || async { Talk::open(&client, at(0, six, 8063))?.who() }).await;
    }
    for (talk, six) in talks.iter_mut().zip([false, true]) {
        let seen = talk.who().unwrap_or_else(|e| panic!("the node's own connection from {}: {e:#}", own(six)));
        assert_eq!((seen.who.as_str(), seen.peer), ("c3", own(six)));
        talk.down(1_000_000).unwrap_or_else(|e| panic!("the node's own connection from {}: {e:#}", own(six)));
    }

    for (socket, six) in sockets.iter().zip([false, true]) {
        let seen = within(10, "the node's own datagrams", || async { say(socket, b"hello") }).await;
        assert_eq!((seen.who.as_str(), seen.peer), ("c3", own(six)));
    }
    drop(sockets);

    // Of a plain container: the engine's masquerade keeps the number.
    let id = output(host.engine_cli().args(["run", "-d", "--name", "plain", WHOAMI_IMAGE])).await.expect("a plain container");
    let pid = output(host.engine_cli().args(["inspect", "-f", "{{.State.Pid}}", id.trim()])).await.expect("inspect");
    let plain = Spot::at("plain", &format!("/proc/{}/root/proc/{}/ns/net", host.pid(), pid.trim()));
    for port in [8081, 8082, 8063] {
        let own = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let mut talk = within(10, "a plain container's connection", || async { Talk::from(&plain, Some(own), beside) }).await;
        let seen = talk.who().unwrap_or_else(|e| panic!("a plain container's connection from {port}: {e:#}"));
        assert_eq!(seen.peer, SocketAddr::new(address(1, false), port), "masqueraded, with its number");
        talk.down(1_000_000).unwrap_or_else(|e| panic!("a plain container's connection from {port}: {e:#}"));
        let socket = plain.udp(Some(own), beside).expect("a socket");
        let seen = within(10, "a plain container's datagrams", || async {
            say(&socket, b"hello").map_err(|e| e.context(format!("from {port} to {beside}")))
        });
        assert_eq!(seen.await.peer, SocketAddr::new(address(1, false), port), "masqueraded, with its number");
    }
    // Meanwhile the same client is served by the same numbers.
    let (seen, from) = within(10, "the far host as a client", || async { ask_udp(&far, at(0, false, 8082), b"hello") }).await;
    assert_eq!((seen.who.as_str(), seen.peer), ("n2", from));
}

/// Filters of others on the uplink, and programs of others at the cgroup tree, see what they saw before.
pub async fn programs(stage: &Stage) {
    let host = &stage.swarm.hosts[0];
    let (_counting, filter, beside, calls) =
        (Counting::start(), Program::of_device(), Program::of_device(), Program::of_connect());
    host.run("mkdir /run/foreign").await.expect("a folder");
    host.run("mount -t bpf none /run/foreign").await.expect("a place to pin at");
    filter.pin(&PathBuf::from(format!("/proc/{}/root/run/foreign/filter", host.pid())));
    // In the host's own mount namespace, and gone with it.
    let _ = host.run("tc qdisc add dev eth0 clsact").await;
    host.run("tc filter add dev eth0 ingress prio 7 handle 7 bpf da object-pinned /run/foreign/filter").await.expect("a filter");
    let shown = host.run("ip -o link show eth0").await.expect("a device");
    let index: u32 = shown.split(':').next().and_then(|n| n.trim().parse().ok()).expect("its number");
    // 46: at the ingress of a device, after those who are there.
    let _link = stage.node(0).inside(|| Ok(beside.at(index, 46))).expect("in the host");
    let _calls = calls.at_cgroup();

    let client = stage.client(0);
    client.run("busybox ping -c 3 -W 2 192.0.2.1").await;
    assert!(filter.runs() >= 3, "a filter saw {} packets of 3 echo requests", filter.runs());
    assert!(beside.runs() >= 3, "a program beside ours saw {} packets of 3 echo requests", beside.runs());
    let before = calls.runs();
    let mut talk = Talk::open(&client, at(0, false, 8081)).expect("the port is served beside them");
    assert_eq!(talk.who().expect("answers").peer, talk.own());
    assert!(calls.runs() > before, "a program at the cgroup tree does not run beside ours");
    host.run("tc filter del dev eth0 ingress prio 7 handle 7 bpf").await.expect("gone");
}
