//! Programs, maps and links without any packet: the kernel accepts them, a second run takes them over.

use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, HOST_END, Hook, MESH_END, ProgramLink, object_is_current};
use skep::datapath::mesh::Mesh;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Locked by a test that uses the machine's network namespace: a namespace holds one eBPF datapath.
pub static DATAPATH: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A mesh namespace and an eBPF datapath in this run directory.
pub async fn open(dir: &Path) -> (Arc<Mesh>, Arc<EbpfDatapath>) {
    let mesh = Mesh::open(&dir.join("mesh")).await.expect("a mesh namespace (root needed)");
    let ebpf = EbpfDatapath::open(dir, mesh.clone(), 0).await.expect("loads");
    (mesh, ebpf)
}

pub fn dir_of(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("skep-ebpf-{}-{test}", std::process::id()))
}

/// Removes the mesh namespace and the directory, which must have nothing else in it.
pub fn end(dir: &Path, mesh: Arc<Mesh>) {
    mesh.remove().expect("removes the mesh");
    std::fs::remove_dir_all(dir).expect("nothing else is left");
}

/// Needs no tool, so that a forgotten `make ebpf` fails on every machine.
#[test]
fn the_built_object_is_current() {
    object_is_current(&Path::new(env!("CARGO_MANIFEST_DIR")).join("ebpf")).unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_passes_the_kernels_verifier() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("load");
    let (mesh, ebpf) = open(&dir).await;
    assert!(ebpf.unavailable().is_empty(), "{:#?}", ebpf.unavailable());
    let state = ebpf.observe().await.expect("observes");
    assert!(state.links.is_empty() && state.stale.is_empty(), "{state:?}");
    ebpf.remove().await.expect("removes");
    drop(ebpf);
    end(&dir, mesh);
}

/// Kernel memory of all maps, in bytes.
fn memory(dir: &Path) -> u64 {
    let pins = std::fs::read_dir(dir.join(format!("bpf/maps{}", skep_ebpf::LAYOUT))).expect("pins");
    let maps = pins.map(|pin| aya::maps::MapData::from_pin(pin.expect("a pin").path()).expect("a map"));
    let bytes = |map: aya::maps::MapData| {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).expect("fdinfo");
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).expect("a size");
        line.trim().parse::<u64>().expect("a number")
    };
    maps.map(bytes).sum()
}

/// Kernel memory of a node without services, and with a hundred. (A machine with more than eight processors takes more: the
/// kernel keeps entries aside for each.)
#[tokio::test(flavor = "multi_thread")]
async fn kernel_memory_grows_with_use() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("memory");
    let (mesh, ebpf) = open(&dir).await;
    let idle = ebpf.occupancy().expect("counts");
    for (name, map) in &idle {
        eprintln!("{name:16} {:>8} kB idle, room for {}{}", map.bytes / 1000, map.room, if map.forgets { ", LRU" } else { "" });
        // A prefix tree takes memory for its entries only.
        assert!(map.bytes > 0 || matches!(name.as_str(), "SOURCES" | "SUBNETS6"), "{name}");
    }
    let at_first = memory(&dir);
    eprintln!("{} kB idle", at_first / 1000);
    let processors = aya::util::nr_cpus().expect("processors") as u64;
    let goal = 4_800_000 + 500_000 * processors.saturating_sub(8);
    let address = |third: u8, last: u8| skep_ebpf::convert::v4([10, 1, third, last].into());
    let (mut steps, mut base) = (Vec::new(), 0);
    for service in 0..100 {
        let tasks: Vec<_> = (1..=3).map(|task| address(service, task)).collect();
        let slots: Vec<_> = tasks.iter().copied().cycle().take(521).collect();
        let backend = skep_ebpf::Backend { serving: 1, prefix: [1, 2], owner: 1, ..Default::default() };
        steps.extend(tasks.iter().map(|task| EbpfStep::SetBackend(*task, backend)));
        steps.push(EbpfStep::Slots(base, slots.into()));
        let vip = skep_ebpf::Vip { network: address(service, 0), mask: u32::MAX, base, size: 521, owner: 1 };
        steps.push(EbpfStep::SetVip(address(service, 9), vip));
        let port = skep_ebpf::Port { protocol: 6, family: 4, port: (8000 + u16::from(service)).to_be() };
        steps.push(EbpfStep::SetPort(port, skep_ebpf::Frontend { base, size: 521, target: 80, flags: 0, owner: 1 }));
        base += 521;
    }
    ebpf.apply(&steps).await.expect("applies");
    let with_services = memory(&dir);
    eprintln!("{} kB with 100 services of 3 tasks", with_services / 1000);
    assert!(with_services > at_first && with_services <= goal, "{at_first} {with_services}");
    // Their memory comes back with the blocks.
    let blocks = ebpf.observe().await.expect("observes").tables.blocks;
    let free: Vec<EbpfStep> = blocks.into_iter().map(EbpfStep::FreeBlock).collect();
    ebpf.apply(&free).await.expect("applies");
    assert_eq!(ebpf.occupancy().expect("counts")["SLOTS"].bytes, idle["SLOTS"].bytes);
    ebpf.remove().await.expect("removes");
    drop(ebpf);
    end(&dir, mesh);
}

/// Maps and links of a killed daemon are taken over by the next one; a damaged link is reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_takes_over_what_the_first_left() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("adopt");
    let (mesh, first) = open(&dir).await;
    let devices = first.observe().await.expect("observes").host_devices;
    let link =
        |hook, device: &str, index: Option<u32>| ProgramLink { hook, device: device.to_owned(), index: index.unwrap_or(0) };
    let links = [
        link(Hook::Connect4, "", None),
        link(Hook::ToUplink, HOST_END, devices.host_end),
        link(Hook::FromHost, MESH_END, devices.mesh_end),
    ];
    let attach: Vec<EbpfStep> = links.iter().cloned().map(EbpfStep::Attach).collect();
    let backend = skep_ebpf::Backend { ifindex: 7, serving: 1, prefix: [1, 2], owner: 1, flags: 0 };
    let address = skep_ebpf::convert::v4([10, 0, 0, 7].into());
    first.apply(&attach).await.expect("attaches");
    first.apply(&[EbpfStep::SetBackend(address, backend)]).await.expect("sets");
    assert_eq!(first.observe().await.expect("observes").links, links.iter().cloned().collect());
    drop(first);

    let second = EbpfDatapath::open(&dir, mesh.clone(), 0).await.expect("loads beside");
    let left = second.observe().await.expect("observes");
    assert_eq!((left.links.len(), left.stale.len()), (0, 3), "{left:?}");
    assert_eq!(left.tables.backends.get(&address), Some(&backend), "maps are shared");
    second.apply(&attach).await.expect("replaces them");
    let now = second.observe().await.expect("observes");
    assert_eq!((now.links.len(), now.stale.len()), (3, 0), "{now:?}");

    let pin = dir.join("bpf/links").join(links[2].pin());
    // On kernels without links the pin is a directory.
    let removed = if pin.is_dir() { std::fs::remove_dir(&pin) } else { std::fs::remove_file(&pin) };
    removed.expect("removed");
    let damaged = second.observe().await.expect("observes");
    assert!(!damaged.links.contains(&links[2]) && damaged.links.len() == 2, "{damaged:?}");
    second.apply(&attach).await.expect("attaches again");
    assert_eq!(second.observe().await.expect("observes").links.len(), 3);

    second.remove().await.expect("removes");
    drop(second);
    end(&dir, mesh);
}
