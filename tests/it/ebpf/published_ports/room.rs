//! The maps of flows get more room while connections are under way: none is lost, and new ones are served.

use super::*;
use crate::load::syns_sent_again;
use aya::programs::links::{FdLink, PinnedLink};
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

async fn room(host: &Host, map: &str) -> u64 {
    status(host).await["ebpf"]["maps"][map]["room"].as_u64().expect("room")
}

#[test]
fn connections_go_on_while_the_maps_get_more_room() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let (client, entry) = (fixture.client(2), &fixture.swarm.hosts[0]);
        let open = |six, node| Connection::open(&client, at(0, six, port_of(node))).expect("connects");
        let mut idle: Vec<Connection> = [false, true].into_iter().flat_map(|six| [0, 1].map(|node| open(six, node))).collect();
        let before: Vec<Answer> = idle.iter_mut().map(|connection| connection.identify().expect("answers")).collect();
        let first = room(entry, "UDP_FLOWS").await;
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
            let now = room(entry, "UDP_FLOWS").await;
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

/// Connects again and again until it is to stop; returns how often.
fn connect_until(stop: &AtomicBool, client: &Namespace, to: SocketAddr) -> anyhow::Result<usize> {
    let mut connected = 0;
    while !stop.load(Ordering::Relaxed) {
        // The answer shows that the connection was accepted: the server's queue does not run over.
        Connection::open(client, to)?.identify()?;
        connected += 1;
    }
    Ok(connected)
}

/// Ids of the links on devices, by pin. None where the kernel has filters.
fn links_on_devices(pins: &Path) -> BTreeMap<String, u32> {
    let pins = std::fs::read_dir(pins).expect("pins").map(|pin| pin.expect("a pin").path());
    let on_devices = pins.filter(|pin| pin.to_string_lossy().contains('@') && pin.is_file());
    let id = |pin: &PathBuf| FdLink::from(PinnedLink::from_pin(pin).expect("a link")).info().expect("info").id();
    on_devices.map(|pin| (pin.file_name().expect("a name").to_string_lossy().into_owned(), id(&pin))).collect()
}

/// The next packet of a connection that has just begun may come to a program with the larger tables: it is known there.
#[test]
fn no_connection_waits_while_the_tables_of_new_connections_get_more_room() {
    PUBLISHED_PORTS.exclusive_case(async |fixture| {
        let entry = &fixture.swarm.hosts[0];
        let run_dir = entry.run_dir();
        let run_dir = run_dir.strip_prefix("/").expect("absolute");
        let pins = PathBuf::from(format!("/proc/{}/root", entry.pid())).join(run_dir).join("bpf");
        let replaced = pins.join("maps-resized");
        let first = room(entry, "SYN_FLOWS").await;
        let links = links_on_devices(&pins.join("links"));
        let before = fixture.client(2).inside(syns_sent_again).expect("counts");
        let stop = Arc::new(AtomicBool::new(false));
        let load = [0, 1, 0, 1].map(|node| {
            let (client, stop) = (fixture.client(2), stop.clone());
            std::thread::spawn(move || connect_until(&stop, &client, at(0, false, port_of(node))))
        });
        within(60, "more room for new connections, and no earlier program", || async {
            let now = room(entry, "SYN_FLOWS").await;
            anyhow::ensure!(now > first && !replaced.exists(), "room for {now}, {first} before");
            Ok(())
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        let connected: usize = load.into_iter().map(|thread| thread.join().expect("no panic").expect("connects")).sum();
        let again = fixture.client(2).inside(syns_sent_again).expect("counts") - before;
        // A machine that is busy with other tests delays one by a second now and then; the clients of four threads that wait at each growth
        // of a table would be many more.
        assert!(again <= 8, "{again} SYNs of {connected} connections were sent again");
        // Each program is replaced in its link, so at once. A link that is closed goes on for as long as the kernel likes: answers
        // would come to an earlier program after the next hook's was replaced.
        assert!(links_on_devices(&pins.join("links")) == links, "{links:?}");
    });
}
