//! Maps take memory as they are used: larger ones replace them while the programs run, and lose nothing.

use super::load::{DATAPATH, dir_of, end, open};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, HOST_END, Hook, MESH_END, Occupancy, ProgramLink, TableNeeds};
use skep_ebpf::packet::{UDP, mapped};
use skep_ebpf::{
    Backend, Flow, Frontend, LAYOUT, NAMESPACE_MARKS, NetnsMembership, Port, Reply, SocketPeer, Target, Tuple, V4, Vip, convert,
    namespace_mark,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const UDP_IDLE: Duration = Duration::from_mins(1);

fn pinned(dir: &Path, name: &str) -> Map {
    let pin: PathBuf = dir.join(format!("bpf/maps{LAYOUT}")).join(name);
    Map::from_map_data(MapData::from_pin(pin).expect(name)).expect(name)
}

/// A map as the programs that are attached now see it.
fn table<K: Pod, V: Pod>(dir: &Path, name: &str) -> HashMap<MapData, K, V> {
    pinned(dir, name).try_into().expect(name)
}

/// Seconds of the kernel's monotonic clock.
fn now() -> u32 {
    u32::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec).expect("some years")
}

fn room(dir: &Path, name: &str) -> u32 {
    MapData::from_pin(dir.join(format!("bpf/maps{LAYOUT}")).join(name)).and_then(|map| map.info()).expect(name).max_entries()
}

async fn measure(ebpf: &EbpfDatapath, needs: TableNeeds) -> bool {
    ebpf.make_room(needs, Some(UDP_IDLE)).await.expect("loads")
}

/// Attaches programs that see packets.
async fn attach(ebpf: &EbpfDatapath) {
    let devices = ebpf.observe().await.expect("observes").host_devices;
    let link = |hook, device: &str, index: Option<u32>| {
        EbpfStep::Attach(ProgramLink { hook, device: device.to_owned(), index: index.expect("the pair") })
    };
    let steps = [link(Hook::ToUplink, HOST_END, devices.host_end), link(Hook::FromHost, MESH_END, devices.mesh_end)];
    ebpf.apply(&steps).await.expect("attaches");
}

/// The flow of a client and its reply entry.
fn flow(client: u32, seen: u32) -> ((Tuple, Flow), (Tuple, Reply)) {
    let (client, port) = (mapped(convert::v4((0xc612_0000 + client).into())), 40_000_u16.to_be());
    let (asked, backend) = (mapped(convert::v4([192, 0, 2, 1].into())), convert::v4([10, 0, 0, 11].into()));
    let there = Tuple {
        source: client,
        destination: asked,
        source_port: port,
        destination_port: 8080_u16.to_be(),
        protocol: UDP,
        ..Tuple::default()
    };
    let back = Tuple {
        source: mapped(backend),
        destination: client,
        source_port: 80_u16.to_be(),
        destination_port: port,
        protocol: UDP,
        ..Tuple::default()
    };
    let flow = Flow { backend, target: 80_u16.to_be(), client_port: port, ifindex: 1, owner: 7, seen };
    ((there, flow), (back, Reply { address: asked, port: 8080_u16.to_be(), client_port: port, ..Reply::default() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_grow_with_their_use_and_lose_nothing() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("growth");
    let (mesh, ebpf) = open(&dir).await;
    attach(&ebpf).await;
    assert!(!measure(&ebpf, TableNeeds::default()).await, "nothing is in use");
    let small = room(&dir, "UDP_FLOWS");

    // What is over, or of clients that are silent, needs no more room.
    let fill = |table: &str, dir: &Path, seen: u32, count: u32| {
        let mut flows = self::table::<Tuple, Flow>(dir, &format!("{table}_FLOWS"));
        let mut replies = self::table::<Tuple, Reply>(dir, &format!("{table}_REPLIES"));
        for client in 0..count {
            let ((there, flow), (back, reply)) = flow(client, seen);
            flows.insert(there, flow, 0).expect("an entry");
            replies.insert(back, reply, 0).expect("an entry");
        }
    };
    let count = small / 2;
    fill("UDP", &dir, now() - 61, count);
    assert!(!measure(&ebpf, TableNeeds::default()).await, "flows that are over");
    fill("UDP", &dir, now(), count);
    // What only the daemon writes, and counters of it.
    let (vip, port) = (Vip { base: 5, size: 3, owner: 7, ..Vip::default() }, Port { protocol: 6, family: 4, port: 80 });
    let frontend = Frontend { base: 5, size: 3, target: 80, flags: 0, owner: 7 };
    let target = Target { owner: 7, port: 80, protocol: 6, zero: 0 };
    let address = convert::v4([10, 0, 0, 11].into());
    let backend = Backend { serving: 1, owner: 7, ..Backend::default() };
    ebpf.apply(&[
        EbpfStep::SetBackend(address, backend),
        EbpfStep::Slots(5, [address; 3].into()),
        EbpfStep::AddTarget(target),
        EbpfStep::SetVip(9, vip),
        EbpfStep::SetPort(port, frontend),
    ])
    .await
    .expect("applies");
    table_of_counts(&dir, port, 3);
    let peer = SocketPeer { cookie: 3, address, port: 80, flags: 0 };
    table::<SocketPeer, V4>(&dir, "DATAGRAM_PEERS").insert(peer, 9, 0).expect("an entry");

    let before = ebpf.observe().await.expect("observes").tables;
    let needs = TableNeeds { backends: 30_000, ports: 20_000, vips: 10_000 };
    assert!(measure(&ebpf, needs).await, "half of the room is in use");
    assert!(room(&dir, "UDP_FLOWS") >= 4 * small && room(&dir, "UDP_REPLIES") == room(&dir, "UDP_FLOWS"));
    for (map, least) in [("BACKENDS", 30_000), ("PORTS", 20_000), ("TARGETS", 20_000), ("VIPS", 10_000), ("VIP_COUNTS", 10_000)] {
        assert!(room(&dir, map) >= least, "{map}");
    }
    assert_eq!(room(&dir, "SYN_FLOWS"), small, "the others stay");
    let state = ebpf.observe().await.expect("observes");
    assert_eq!(state.tables, before, "what the daemon has written is there before any program reads it");
    assert!(state.links.is_empty() && state.stale.len() == 2, "the earlier programs run on: {state:?}");
    assert!(!measure(&ebpf, TableNeeds { backends: 1 << 20, ..needs }).await, "one at a time");

    // A flow that begins at an earlier program meanwhile.
    let late = flow(1 << 15, now());
    let earlier = dir.join("bpf/maps-resized");
    let mut old = HashMap::<MapData, Tuple, Flow>::try_from(
        Map::from_map_data(MapData::from_pin(earlier.join("UDP_FLOWS")).expect("the earlier map")).expect("a map"),
    )
    .expect("a table");
    old.insert(late.0.0, late.0.1, 0).expect("an entry");
    attach(&ebpf).await;
    assert!(!earlier.exists(), "nothing is left of them");
    let flows = table::<Tuple, Flow>(&dir, "UDP_FLOWS");
    let replies = table::<Tuple, Reply>(&dir, "UDP_REPLIES");
    // The earlier table may have forgotten some.
    let kept = (0..count).filter(|client| {
        let ((there, flow), (back, reply)) = flow_of(*client);
        flows.get(&there, 0).is_ok_and(|found| Flow { seen: 0, ..found } == flow)
            && replies.get(&back, 0).is_ok_and(|r| r == reply)
    });
    let kept = kept.count();
    assert!(kept + 300 > count as usize, "{kept} of {count}");
    assert_eq!(flows.get(&late.0.0, 0).ok(), Some(late.0.1));
    assert_eq!(table::<SocketPeer, V4>(&dir, "DATAGRAM_PEERS").get(&peer, 0).ok(), Some(9));
    let (ports, _) = ebpf.connections().expect("reads");
    assert_eq!(ports.get(&port), Some(&3), "counters go on");

    // The next daemon takes the maps as they are.
    let rooms =
        |all: BTreeMap<String, Occupancy>| all.into_iter().map(|(name, map)| (name, map.room)).collect::<BTreeMap<_, _>>();
    let grown = rooms(ebpf.occupancy().expect("reads"));
    drop((ebpf, flows, replies, old));
    let next = EbpfDatapath::open(&dir, mesh.clone(), 0).await.expect("loads beside");
    assert_eq!(rooms(next.occupancy().expect("reads")), grown);
    next.remove().await.expect("removes");
    drop(next);
    end(&dir, mesh);
}

fn flow_of(client: u32) -> ((Tuple, Flow), (Tuple, Reply)) {
    flow(client, 0)
}

/// Connections of a port, as the programs count them.
fn table_of_counts(dir: &Path, port: Port, count: u64) {
    let mut counts = aya::maps::PerCpuHashMap::<MapData, Port, u64>::try_from(pinned(dir, "PORT_COUNTS")).expect("a table");
    let mut values = vec![0; aya::util::nr_cpus().expect("processors")];
    values[0] = count;
    counts.insert(port, aya::maps::PerCpuValues::try_from(values).expect("values"), 0).expect("an entry");
}

/// The programs look a namespace up only if it is marked: marks follow the members, also those that an earlier build left.
#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_containers_are_marked() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("marks");
    let (mesh, ebpf) = open(&dir).await;
    let marked = |dir: &Path| {
        let marks: Array<MapData, u32> = pinned(dir, "NAMESPACES").try_into().expect("an array");
        (0..NAMESPACE_MARKS).filter(|mark| marks.get(mark, 0).expect("a mark") != 0).collect::<Vec<_>>()
    };
    // Two with the same mark, and another one.
    let same = (8..1 << 32).find(|cookie| namespace_mark(*cookie) == namespace_mark(7)).expect("one");
    let other = (8..1 << 32).find(|cookie| namespace_mark(*cookie) != namespace_mark(7)).expect("one");
    let mut both = vec![namespace_mark(7), namespace_mark(other)];
    both.sort_unstable();
    let step = |cookie| EbpfStep::AddMember(NetnsMembership::any(cookie), 0);
    ebpf.apply(&[step(7), step(same), step(other)]).await.expect("adds");
    assert_eq!(marked(&dir), both);
    ebpf.apply(&[EbpfStep::RemoveMember(NetnsMembership::any(7))]).await.expect("removes");
    assert_eq!(marked(&dir), both, "another one has the mark");
    let damage = |dir: &Path| {
        let mut marks: Array<MapData, u32> = pinned(dir, "NAMESPACES").try_into().expect("an array");
        (0..NAMESPACE_MARKS).for_each(|mark| marks.set(mark, u32::from(mark == 9), 0).expect("a mark"));
    };
    damage(&dir);
    ebpf.observe().await.expect("observes");
    assert_eq!(marked(&dir), both, "repaired");
    drop(ebpf);
    damage(&dir);
    let next = EbpfDatapath::open(&dir, mesh.clone(), 0).await.expect("loads beside");
    assert_eq!(marked(&dir), both, "those of the run before");
    next.apply(&[same, other].map(|cookie| EbpfStep::RemoveMember(NetnsMembership::any(cookie)))).await.expect("removes");
    assert!(marked(&dir).is_empty());
    next.remove().await.expect("removes");
    drop(next);
    end(&dir, mesh);
}

/// Review, section B: the look at replies to packets to virtual addresses ends with the flows of such packets.
#[tokio::test(flavor = "multi_thread")]
async fn replies_to_packets_to_virtual_addresses_are_looked_for_while_there_are_such_flows() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("vip-packets");
    let (mesh, ebpf) = open(&dir).await;
    let backends = BTreeMap::from([(convert::v4([10, 0, 0, 11].into()), Backend { owner: 7, ..Backend::default() })]);
    let seen = |dir: &Path| Array::<MapData, u32>::try_from(pinned(dir, "GATE")).expect("an array");
    let after_look = || {
        ebpf.age_flows(&backends, Duration::from_hours(120)).expect("ages");
        seen(&dir).get(&0, 0).expect("a word")
    };
    let long_ago = now().saturating_sub(601).max(1);
    for second in [now(), now() - 1] {
        seen(&dir).set(0, second, 0).expect("sets");
        assert_eq!(after_look(), second, "a moment ago");
    }
    if now() > 700 {
        let ((there, flow), (back, reply)) = flow(1, now());
        let open = Reply { device: 5, ..reply };
        table::<Tuple, Flow>(&dir, "TCP_FLOWS").insert(there, flow, 0).expect("an entry");
        table::<Tuple, Reply>(&dir, "TCP_REPLIES").insert(back, open, 0).expect("an entry");
        seen(&dir).set(0, long_ago, 0).expect("sets");
        assert_eq!(after_look(), long_ago, "an idle connection");
        table::<Tuple, Reply>(&dir, "TCP_REPLIES").insert(back, reply, 0).expect("an entry");
        assert_eq!(after_look(), 0, "none but of published ports");
    }
    ebpf.remove().await.expect("removes");
    drop(ebpf);
    end(&dir, mesh);
}
