//! Every client through every node over both protocols and both families, with the backend here and elsewhere: the container
//! sees the client's own address and port, and the kernel carries it.

use super::servers::{Talk, ask_udp};
use super::*;
use anyhow::ensure;

pub async fn all(stage: &Stage) {
    let new = stage.counted("port_new").await;
    let mut open = Vec::new();
    let mut cells = BTreeSet::new();
    for (number, client) in stage.clients.iter().enumerate() {
        let spot = Spot::of_host(client);
        for (node, six, backend) in ways(stage.swarm.hosts.len()) {
            let to = at(node, six, port_of(backend));
            let (want, own) = (format!("n{}", backend + 1), address(11 + number, six));
            let talk = within(20, "the client's address to be kept over TCP", || async {
                let mut talk = Talk::open(&spot, to)?;
                let seen = talk.who()?;
                ensure!(talk.peer() == to, "{} answered", talk.peer());
                ensure!(seen.peer == talk.own() && seen.peer.ip() == own, "{to} saw {} as {}", talk.own(), seen.peer);
                ensure!(seen.who == want, "{} answered, not {want}", seen.who);
                Ok(talk)
            })
            .await;
            open.push(talk);
            within(20, "the client's address to be kept over UDP", || async {
                let (seen, from) = ask_udp(&spot, to, b"hello")?;
                ensure!(seen.peer == from && seen.peer.ip() == own, "{to} saw {from} as {}", seen.peer);
                ensure!(seen.who == want, "{} answered, not {want}", seen.who);
                Ok(())
            })
            .await;
            cells.insert((number, node, six, backend == node));
        }
    }
    assert_eq!(cells.len() * 2, 2 * 36, "client, node, family, backend here or elsewhere; each over TCP and UDP");
    // While all these connections are open.
    let ours: BTreeSet<u16> = (0..stage.swarm.hosts.len()).map(port_of).collect();
    // Those that came before the eBPF datapath knew everything have been refused above and are gone by and by.
    within(40, "user space to carry nothing", || async {
        let carried = stage.in_user_space(|port| ours.contains(&port)).await;
        ensure!(carried.is_empty(), "{carried:#?}");
        Ok(())
    })
    .await;
    stage.counts("port_new", new + 72).await;
    for talk in &mut open {
        talk.who().expect("still answers");
    }
}

/// Node, family, and the node that the backend is on.
fn ways(nodes: usize) -> impl Iterator<Item = (usize, bool, usize)> {
    (0..nodes).flat_map(move |node| {
        [false, true].into_iter().flat_map(move |six| [node, (node + 1) % nodes].map(|backend| (node, six, backend)))
    })
}

/// Somebody listens over IPv4 only: clients of both families are served, and the status says by whom.
pub async fn old(stage: &Stage) {
    let client = stage.client(0);
    for node in 0..stage.swarm.hosts.len() {
        let port = port_of(0) - 10;
        let seen = within(20, "an IPv4 client of an IPv4 server", || async {
            let mut talk = Talk::open(&client, at(node, false, port))?;
            let seen = talk.who()?;
            ensure!(seen.peer == talk.own(), "{} is seen as {}", talk.own(), seen.peer);
            Ok(seen)
        });
        assert_eq!(seen.await.who, "n1");
        let served =
            within(20, "an IPv6 client of an IPv4 server", || async { Talk::open(&client, at(node, true, port))?.who() });
        let seen = served.await;
        assert!(seen.who == "n1" && seen.peer.is_ipv4(), "{seen:?}");
        within(10, "the status to say so", || async {
            let ebpf = status(&stage.swarm.hosts[node]).await["ebpf"].take();
            let why = ebpf["unavailable_ports"][format!("{port}/tcp6")].as_str().unwrap_or_default().to_owned();
            let left = why.contains("over IPv6") && ebpf["ports"].to_string().contains(&format!("\"{port}/tcp\""));
            ensure!(left, "not named in {}", ebpf["unavailable_ports"]);
            Ok(())
        })
        .await;
    }
}
