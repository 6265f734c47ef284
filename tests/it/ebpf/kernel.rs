//! The eBPF datapath on kernels before 6.6, which have no tcx links. `make test-vm` runs these on Debian's 6.1; elsewhere
//! they are ignored.

use super::load::{DATAPATH, dir_of, end, open};
use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, HOST_END, Hook, MESH_END, ProgramLink, remove_leftovers};
use skep::datapath::mesh::Mesh;
use skep::lab::output;
use tokio::process::Command;

/// An uplink with a dot in its name, as VLAN devices have.
const UPLINK: &str = "up.5";

async fn sh(line: &str) -> String {
    output(Command::new("sh").args(["-c", line])).await.unwrap_or_else(|e| panic!("{e:#}"))
}

/// Filters of a device in both directions: those that run a program, and the number of all.
async fn filters(mesh: Option<&Mesh>, device: &str) -> (Vec<String>, usize) {
    let enter = mesh.map(|mesh| format!("nsenter --net={} ", mesh.pin().display())).unwrap_or_default();
    let all = sh(&format!("{enter}tc filter show dev {device} ingress && {enter}tc filter show dev {device} egress")).await;
    let heads: Vec<&str> = all.lines().filter(|line| line.starts_with("filter ") && line.contains(" handle ")).collect();
    let skep = heads.iter().filter(|line| line.contains("direct-action")).map(|line| (*line).to_owned()).collect();
    (skep, heads.len())
}

async fn links(ebpf: &EbpfDatapath) -> Vec<ProgramLink> {
    let state = ebpf.observe().await.expect("observes");
    let uplink = std::fs::read_to_string(format!("/sys/class/net/{UPLINK}/ifindex")).expect("the uplink");
    let uplink = uplink.trim().parse().expect("a number");
    let link = |hook, device: &str, index| ProgramLink { hook, device: device.to_owned(), index };
    vec![
        link(Hook::Connect4, "", 0),
        link(Hook::ToUplink, HOST_END, state.host_devices.host_end.expect("the pair")),
        link(Hook::FromHost, MESH_END, state.host_devices.mesh_end.expect("the pair")),
        link(Hook::FromUplink, UPLINK, uplink),
        link(Hook::OutUplink, UPLINK, uplink),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel without tcx links: make test-vm"]
async fn filters_are_replaced_by_the_next_run_repaired_and_removed() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("clsact");
    sh(&format!("ip link add {UPLINK} type veth peer name up && ip link set {UPLINK} up")).await;
    sh(&format!("tc qdisc add dev {UPLINK} clsact && tc filter add dev {UPLINK} ingress pref 7 matchall classid 1:1")).await;

    let (mesh, first) = open(&dir).await;
    let wanted = links(&first).await;
    let attach: Vec<EbpfStep> = wanted.iter().cloned().map(EbpfStep::Attach).collect();
    first.apply(&attach).await.expect("attaches");
    first.apply(&attach).await.expect("a repeated attach changes nothing");
    assert_eq!(first.observe().await.expect("observes").links, wanted.iter().cloned().collect());
    let before = [filters(None, HOST_END).await, filters(Some(&mesh), MESH_END).await, filters(None, UPLINK).await];
    let numbers = before.each_ref().map(|(skep, all)| (skep.len(), *all));
    assert_eq!(numbers, [(1, 1), (1, 1), (2, 3)], "one of skep's in each direction, beside the foreign one: {before:#?}");
    drop(first);

    let second = EbpfDatapath::open(&dir, mesh.clone(), 0).await.expect("loads beside");
    let left = second.observe().await.expect("observes");
    assert_eq!((left.links.len(), left.stale.len()), (0, 5), "{left:?}");
    second.apply(&attach).await.expect("replaces them");
    let now = second.observe().await.expect("observes");
    assert_eq!((now.links.len(), now.stale.len()), (5, 0), "{now:?}");
    let after = [filters(None, HOST_END).await, filters(Some(&mesh), MESH_END).await, filters(None, UPLINK).await];
    assert_eq!(after.each_ref().map(|(skep, all)| (skep.len(), *all)), numbers, "replaced, not added: {after:#?}");
    for (old, new) in before.iter().zip(&after) {
        assert_ne!(old.0, new.0, "the programs are the second run's");
    }

    sh(&format!("tc filter del dev {HOST_END} ingress")).await;
    let damaged = second.observe().await.expect("observes");
    assert!(!damaged.links.contains(&wanted[1]) && damaged.links.len() == 4, "{damaged:?}");
    second.apply(&attach).await.expect("attaches again");
    assert_eq!(second.observe().await.expect("observes").links.len(), 5);

    second.apply(&[EbpfStep::Detach(wanted[3].clone())]).await.expect("detaches");
    let (skep, all) = filters(None, UPLINK).await;
    assert_eq!((skep.len(), all), (1, 2), "the foreign one stays, and that of the other direction");
    second.apply(&attach).await.expect("attaches");

    second.remove().await.expect("removes");
    let (skep, all) = filters(None, UPLINK).await;
    assert_eq!((skep.len(), all), (0, 1), "the foreign one stays");
    drop(second);
    end(&dir, mesh);
    sh(&format!("ip link del {UPLINK}")).await;
}

/// A daemon without the eBPF datapath removes the filters of one that was killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel without tcx links: make test-vm"]
async fn filters_of_a_killed_run_are_removed_without_loading() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("left");
    sh(&format!("ip link add {UPLINK} type veth peer name up && ip link set {UPLINK} up")).await;
    let (mesh, killed) = open(&dir).await;
    let attach: Vec<EbpfStep> = links(&killed).await.into_iter().map(EbpfStep::Attach).collect();
    killed.apply(&attach).await.expect("attaches");
    drop(killed);
    assert_eq!(filters(None, UPLINK).await.0.len(), 2, "they outlive their daemon");
    remove_leftovers(&dir, &mesh).await.expect("removes");
    for (mesh, device) in [(None, UPLINK), (None, HOST_END), (Some(&*mesh), MESH_END)] {
        assert_eq!(filters(mesh, device).await, (Vec::new(), 0), "{device}");
    }
    remove_leftovers(&dir, &mesh).await.expect("nothing to remove");
    end(&dir, mesh);
    sh(&format!("ip link del {UPLINK}")).await;
}
