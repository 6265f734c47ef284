//! An address moves from one node to another: connections to it go on, though the new node has never seen them begin.

use super::servers::Talk;
use super::*;

pub async fn address(stage: &Stage) {
    // Three backends, so that the new node must find out which one it is.
    let spots = stage.publish("moved", &[0, 1, 2], &[(8062, TARGET)], json!({})).await;
    for spot in &spots {
        serve(spot, TARGET, Ipv6Addr::UNSPECIFIED.into());
    }
    stage.served(&[8062]).await;
    let (a, b) = (&stage.swarm.hosts[0], &stage.swarm.hosts[1]);
    for six in [false, true] {
        let (float, length) = (super::address(50, six), if six { 64 } else { 24 });
        let flags = if six { " nodad" } else { "" };
        let to = SocketAddr::new(float, 8062);
        a.run(&format!("ip addr add {float}/{length} dev eth0{flags}")).await.expect("an address");
        leads(&stage.clients[0], float, a).await;
        let client = stage.client(0);
        let mut talks = Vec::new();
        for _ in 0..12 {
            talks.push(kept(&client, to).await);
        }
        let before: Vec<_> = talks.iter_mut().map(|talk| talk.who().expect("answers")).collect();
        let tasks: BTreeSet<&String> = before.iter().map(|seen| &seen.who).collect();
        assert!(tasks.len() > 1, "connections to several tasks: {tasks:?}");

        // The new node has it before the old one gives it up, as such programs see to it.
        b.run(&format!("ip addr add {float}/{length} dev eth0{flags}")).await.expect("an address");
        leads(&stage.clients[1], float, b).await;
        drop(kept(&stage.client(1), to).await);
        leads(&stage.clients[0], float, b).await;
        a.run(&format!("ip addr del {float}/{length} dev eth0")).await.expect("gone");
        for (talk, before) in talks.iter_mut().zip(&before) {
            let after = talk.who().unwrap_or_else(|e| panic!("{before:?} after the address moved: {e:#}"));
            assert_eq!(after, *before, "the same connection to the same task");
            talk.down(1_000_000).unwrap_or_else(|e| panic!("{before:?} after the address moved: {e:#}"));
            talk.up(1_000_000).unwrap_or_else(|e| panic!("{before:?} after the address moved: {e:#}"));
        }
        b.run(&format!("ip addr del {float}/{length} dev eth0")).await.expect("gone");
    }
}

/// A connection over the eBPF datapath, once there is one.
async fn kept(client: &Spot, to: SocketAddr) -> Talk {
    within(30, "the eBPF datapath to know the address", || async {
        let mut talk = Talk::open(client, to)?;
        let seen = talk.who()?;
        anyhow::ensure!(seen.peer == talk.own(), "{} is seen as {}", talk.own(), seen.peer);
        Ok(talk)
    })
    .await
}

/// What a gratuitous announcement does to a client's table of neighbours.
async fn leads(client: &Host, to: IpAddr, node: &Host) {
    let shown = node.run("ip -o link show eth0").await.expect("a device");
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("its address");
    client.run(&format!("ip neigh replace {to} lladdr {mac} dev eth0 nud permanent")).await.expect("a neighbour");
}
