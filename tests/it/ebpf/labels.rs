//! What a service's labels say of its ports: clients that stick to a task, and who may come.

use super::servers::{Seen, Talk, say};
use super::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// All connections of one client address get one task, through every node; other addresses get others.
pub async fn affinity(stage: &Stage) {
    let spots = stage.publish("stick", &[0, 1, 2], &[(8060, TARGET)], json!({ "skep.affinity": "source" })).await;
    for spot in &spots {
        serve(spot, TARGET, Ipv6Addr::UNSPECIFIED.into());
    }
    stage.served(&[8060]).await;
    for port in ["8060/tcp", "8060/udp", "8060/tcp6", "8060/udp6"] {
        stand_behind(&stage.swarm.hosts, port, 3).await;
    }
    let client = stage.client(1);
    for number in 101..=112 {
        stage.clients[1].run(&format!("ip addr add 192.0.2.{number}/24 dev eth0")).await.expect("an address");
        stage.clients[1].run(&format!("ip addr add {}/64 dev eth0 nodad", v6(number))).await.expect("an address");
    }
    for six in [false, true] {
        let mut tasks: BTreeMap<(&str, IpAddr), BTreeSet<String>> = BTreeMap::new();
        for number in 101..=112 {
            let own = SocketAddr::new(address(number, six), 0);
            for node in 0..stage.swarm.hosts.len() {
                let to = at(node, six, 8060);
                for _ in 0..3 {
                    let seen = within(20, "an answer with the own address", || async {
                        let mut talk = Talk::from(&client, Some(own), to)?;
                        let seen = talk.who()?;
                        anyhow::ensure!(seen.peer == talk.own(), "{} is seen as {}", talk.own(), seen.peer);
                        Ok(seen)
                    });
                    tasks.entry(("tcp", own.ip())).or_default().insert(seen.await.who);
                    let seen = within(20, "an answer by UDP with the own address", || async {
                        let socket = client.udp(Some(own), to)?;
                        let seen = say(&socket, b"hello")?;
                        anyhow::ensure!(seen.peer == socket.local_addr()?, "{own} is seen as {}", seen.peer);
                        Ok(seen)
                    });
                    tasks.entry(("udp", own.ip())).or_default().insert(seen.await.who);
                }
            }
        }
        assert!(tasks.values().all(|tasks| tasks.len() == 1), "a client changes its task: {tasks:#?}");
        let used: BTreeSet<&String> = tasks.values().flatten().collect();
        assert!(used.len() > 1, "all clients stick to one task: {tasks:#?}");
    }
    for number in 101..=112 {
        let _ = stage.clients[1].run(&format!("ip addr del 192.0.2.{number}/24 dev eth0")).await;
        let _ = stage.clients[1].run(&format!("ip addr del {}/64 dev eth0", v6(number))).await;
    }
}

/// Who is on the list is served through every node, others are by none, whichever plane would do it.
pub async fn allow(stage: &Stage) {
    let list = format!("{},{}/128", address(11, false), address(11, true));
    let spots = stage.publish("gate", &[0, 1], &[(8061, TARGET)], json!({ "skep.allow": list })).await;
    let servers: Vec<Server> = spots.iter().map(|spot| serve(spot, TARGET, Ipv6Addr::UNSPECIFIED.into())).collect();
    stage.served(&[8061]).await;
    let tries = |at_client: usize, six: bool, node: usize| {
        let (client, to) = (stage.client(at_client), at(node, six, 8061));
        let tcp = Talk::open(&client, to).and_then(|mut talk| talk.who());
        let socket = client.udp(None, to).expect("a socket");
        // Nobody waits long for what shall not come: the servers tell in the end.
        let patience = if at_client == 0 { 2000 } else { 200 };
        socket.set_read_timeout(Some(Duration::from_millis(patience))).expect("a time");
        (tcp, say(&socket, &[servers::MARK, format!("client {at_client}").as_bytes()].concat()))
    };
    for node in 0..stage.swarm.hosts.len() {
        for six in [false, true] {
            let own = address(11, six);
            within(20, "a client on the list to be served", || async {
                let (tcp, udp): (anyhow::Result<Seen>, anyhow::Result<Seen>) = tries(0, six, node);
                let (tcp, udp) = (tcp?, udp?);
                anyhow::ensure!(tcp.peer.ip() == own && udp.peer.ip() == own, "{own} is seen as {tcp:?} and {udp:?}");
                Ok(())
            })
            .await;
            let (tcp, udp) = tries(1, six, node);
            assert!(tcp.is_err() && udp.is_err(), "n{} serves who is not on the list: {tcp:?} {udp:?}", node + 1);
        }
    }
    within(20, "a client on the list to be served", || async { tries(0, false, 0).1 }).await;
    let heard: Vec<_> = servers.iter().flat_map(Server::heard).collect();
    assert!(heard.iter().any(|(_, word)| word.ends_with(b"client 0")), "a server hears what it may hear");
    assert!(!heard.iter().any(|(_, word)| word.ends_with(b"client 1")), "a datagram came through: {heard:?}");
}
