//! The maps of flows get more room while connections are under way: none is lost, and new ones are served.

use super::*;
use std::net::UdpSocket;

async fn room(host: &Host) -> u64 {
    status(host).await["ebpf"]["maps"]["UDP_FLOWS"]["room"].as_u64().expect("room")
}

#[test]
fn connections_go_on_while_the_maps_get_more_room() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let (client, entry) = (fixture.client(2), &fixture.swarm.hosts[0]);
        let open = |six, node| Connection::open(&client, at(0, six, port_of(node))).expect("connects");
        let mut idle: Vec<Connection> = [false, true].into_iter().flat_map(|six| [0, 1].map(|node| open(six, node))).collect();
        let before: Vec<Answer> = idle.iter_mut().map(|connection| connection.identify().expect("answers")).collect();
        let first = room(entry).await;
        // One datagram each: flows that the table must keep for a minute.
        let many = first / 2;
        let to = at(0, false, port_of(1));
        client
            .inside(|| {
                for _ in 0..many {
                    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"hello", to)?;
                }
                Ok(())
            })
            .expect("sends");
        within(30, "more room for flows", || async {
            for node in [0, 1] {
                let mut new = Connection::open(&client, at(0, false, port_of(node)))?;
                new.identify()?;
            }
            let now = room(entry).await;
            anyhow::ensure!(now > first, "room for {now}, {first} before {many} flows");
            Ok(())
        })
        .await;
        for (connection, before) in idle.iter_mut().zip(&before) {
            let after = connection.identify().unwrap_or_else(|e| panic!("{before:?} after the maps grew: {e:#}"));
            assert_eq!(after, *before, "the same connection to the same task");
        }
        fixture.wait_for_ports(&[port_of(0), port_of(1)]).await;
    });
}
