//! Flows outlive an upgrade from an earlier layout of the maps and a change of their size.
#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use super::load::{DATAPATH, dir_of, end, open};
use crate::bpf::Attr;
use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, HOST_END, Hook, MESH_END, ProgramLink};
use skep_ebpf::packet::{TCP, UDP};
use skep_ebpf::{SocketPeer, Tuple, convert};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_OBJ_PIN: i64 = 6;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;

const CLIENT: &str = "203.0.113.9:40000";
const CLIENT6: &str = "[2001:db8::9]:40000";
const CONTAINER: &str = "10.0.0.11:80";
const CONTAINER6: &str = "[fd02::a00:b]:80";
const PORT: &str = "192.0.2.1:8080";
const PORT6: &str = "[2001:db8::1]:8080";
const OTHER_NODE: [u32; 2] = [0xfd01, 7];

fn tuple(from: &str, to: &str, protocol: u8) -> Tuple {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("address"), to.parse().expect("address"));
    Tuple {
        source: convert::address(from.ip()),
        destination: convert::address(to.ip()),
        source_port: convert::port(from.port()),
        destination_port: convert::port(to.port()),
        protocol,
        ..Tuple::default()
    }
}

/// Makes and pins a map as earlier layouts had it.
fn pin<K>(path: &Path, entries: &[(K, Vec<u8>)]) -> OwnedFd {
    let key_size = u32::try_from(size_of::<K>()).expect("small");
    let value_size = u32::try_from(entries[0].1.len()).expect("small");
    let create = Attr::new().word(0, BPF_MAP_TYPE_LRU_HASH).word(4, key_size).word(8, value_size).word(12, 131_072);
    // SAFETY: the command reads no pointer.
    let map: OwnedFd = unsafe { { create }.open(BPF_MAP_CREATE) }.expect("a map");
    for (key, value) in entries {
        set(&map, key, value);
    }
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder of the bpf file system");
    let path = CString::new(path.to_str().expect("text")).expect("no zero");
    // SAFETY: the path ends with a zero and outlives the call.
    unsafe { Attr::new().pointer(0, path.as_ptr()).fd(8, map.as_raw_fd()).call(BPF_OBJ_PIN) }.expect("a pin");
    map
}

/// Writes an entry as a program of the earlier layout does.
fn set<K>(map: &OwnedFd, key: &K, value: &[u8]) {
    let update = Attr::new().fd(0, map.as_raw_fd()).pointer(8, key).pointer(16, value.as_ptr());
    // SAFETY: key and value have the sizes of the map.
    unsafe { { update }.call(BPF_MAP_UPDATE_ELEM) }.expect("an entry");
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Seconds of the kernel's monotonic clock.
fn now() -> u32 {
    u32::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec).expect("some years")
}

/// The value of a flow entry: of layout 3, of layout 4 with an age.
fn flow(layout: u32, backend: u32, seen: u32) -> Vec<u8> {
    let port = u32::from_ne_bytes([0, 80, 0, 0]) | u32::from(convert::port(40_000)) << 16;
    let words_of_3 = [backend, port, 2];
    if layout == 3 { words(&words_of_3) } else { words(&[&words_of_3[..], &[77, seen]].concat()) }
}

/// The value of a reply entry of layouts 3 and 4.
fn reply(to: &str, entry: [u32; 2]) -> Vec<u8> {
    let to: SocketAddr = to.parse().expect("address");
    let ports = u32::from(convert::port(to.port())) | u32::from(convert::port(40_000)) << 16;
    words(&[&convert::address(to.ip())[..], &entry, &[ports, 0]].concat())
}

/// The tables of flows and of reply entries, and of what sockets asked for.
fn pin_layout(bpf: &Path, layout: u32, seen: u32) -> [OwnedFd; 3] {
    let folder = bpf.join(format!("maps{layout}"));
    let backend = convert::v4([10, 0, 0, 11].into());
    let flows = [
        (tuple(CLIENT, PORT, TCP), flow(layout, backend, seen)),
        (tuple(CLIENT6, PORT6, TCP), flow(layout, backend, seen)),
        (tuple("203.0.113.9:443", PORT, TCP), flow(layout, 0, seen)),
        (tuple(CLIENT, PORT, UDP), flow(layout, backend, seen)),
    ];
    let replies = [
        (tuple(CONTAINER, CLIENT, TCP), reply(PORT, [0; 2])),
        (tuple(CONTAINER6, CLIENT6, TCP), reply(PORT6, [0; 2])),
        (tuple(CONTAINER, "198.51.100.7:40000", TCP), reply("0.0.0.0:0", OTHER_NODE)),
        (tuple(CONTAINER, CLIENT, UDP), reply(PORT, [0; 2])),
    ];
    let socket = SocketPeer { cookie: 0xffff_0001, address: backend, port: convert::port(53), flags: 0 };
    let vip = vec![10, 0, 9, 2];
    [
        pin(&folder.join("FLOWS"), &flows),
        pin(&folder.join("REPLIES"), &replies),
        pin(&folder.join("DATAGRAM_PEERS"), &[(socket, vip)]),
    ]
}

/// Entries of the tables of flows and reply entries, and of connected UDP sockets.
fn entries(ebpf: &EbpfDatapath) -> [u64; 7] {
    let all = ebpf.occupancy().expect("reads");
    ["TCP_FLOWS", "TCP_REPLIES", "SYN_FLOWS", "SYN_REPLIES", "UDP_FLOWS", "UDP_REPLIES", "DATAGRAM_PEERS"]
        .map(|map| all[map].entries)
}

/// Attaches programs that see packets.
async fn attach(ebpf: &EbpfDatapath) -> Vec<EbpfStep> {
    let devices = ebpf.observe().await.expect("observes").host_devices;
    let link = |hook, device: &str, index: Option<u32>| {
        EbpfStep::Attach(ProgramLink { hook, device: device.to_owned(), index: index.expect("the pair") })
    };
    let steps = vec![link(Hook::ToUplink, HOST_END, devices.host_end), link(Hook::FromHost, MESH_END, devices.mesh_end)];
    ebpf.apply(&steps).await.expect("attaches");
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_of_earlier_layouts_and_of_tables_of_another_size_are_carried_over() {
    let _datapath = DATAPATH.lock().await;
    for layout in [3, 4] {
        let dir = dir_of(&format!("migrate{layout}"));
        let (mesh, first) = open(&dir).await;
        let bpf = dir.join("bpf");
        let seen = now().wrapping_sub(200);
        let attached = attach(&first).await;
        let [flows, replies, _sockets] = pin_layout(&bpf, layout, seen);
        drop(first);

        let second = EbpfDatapath::open(&dir, mesh.clone(), 0).await.expect("loads beside");
        let expected = [2, 3, 1, 0, 1, 1, 1];
        assert_eq!(entries(&second), expected, "of layout {layout}: connections of clients are established ones");

        // The earlier programs run on, for as long as these are loaded: a connection begins, and one goes to another backend.
        let (late, other) = ("203.0.113.10:40000", convert::v4([10, 0, 0, 12].into()));
        set(&flows, &tuple(late, PORT, TCP), &flow(layout, other, seen));
        set(&replies, &tuple("10.0.0.12:80", late, TCP), &reply(PORT, [0; 2]));
        set(&flows, &tuple(CLIENT, PORT, UDP), &flow(layout, other, seen));
        second.apply(&[]).await.expect("nothing to do");
        assert!(bpf.join(format!("maps{layout}")).exists(), "the earlier programs are attached");
        second.apply(&attached).await.expect("replaces them");
        assert!(!bpf.join(format!("maps{layout}")).exists());
        let expected = [3, 4, 1, 0, 1, 1, 1];
        assert_eq!(entries(&second), expected, "what began after the first copy is there, once");
        let dump = second.dump().await.expect("reads");
        let line = format!("tcp {CLIENT} to {PORT}: {CONTAINER}");
        assert!(dump.flows.contains(&line), "{line} in {:#?}", dump.flows);
        let line = format!("udp {CLIENT} to {PORT}: 10.0.0.12:80");
        assert!(dump.flows.contains(&line), "{line} in {:#?}", dump.flows);
        assert!(dump.replies.contains(&format!("tcp {CONTAINER6} to {CLIENT6}: as {PORT6}")), "{:#?}", dump.replies);
        drop(second);

        let third = EbpfDatapath::open(&dir, mesh.clone(), 5_000).await.expect("loads beside");
        third.apply(&attached).await.expect("replaces them");
        assert_eq!(entries(&third), expected);
        let room = third.occupancy().expect("reads");
        assert_eq!((room["TCP_FLOWS"].room, room["TCP_REPLIES"].room), (5_000, 5_000));
        assert!(!room["TCP_FLOWS"].forgets && room["SYN_FLOWS"].forgets && room["UDP_REPLIES"].forgets);
        assert!(!bpf.join("maps-resized").exists());

        // Layout 3 had no ages: its flows are as new, and their container is gone only now.
        let gone = third.age_flows(&BTreeMap::new(), Duration::MAX).expect("ages");
        assert_eq!(gone, if layout == 3 { 0 } else { 6 }, "flows of layout 4 and their reply entries");
        let left = entries(&third);
        assert_eq!((left[0], left[1]), if layout == 3 { (3, 4) } else { (0, 1) });
        third.remove().await.expect("removes");
        drop(third);
        end(&dir, mesh);
    }
}
