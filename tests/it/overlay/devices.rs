//! The eBPF datapath on a host whose devices change. Its tick is an hour: what is served was noticed at once.

use super::fixture::{Namespace, PATIENCE, ip, net, test_dir};
use skep::datapath::ebpf::{EbpfDatapath, Hook, VipReadiness};
use skep::datapath::mesh::Mesh;
use skep::ingress::ebpf::{EbpfChannels, EbpfStatus, EbpfTiming, run};
use skep::lab::eventually;
use skep::model::fixture;
use skep::model::{NodeId, Revision};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The devices of the host that clients' packets are taken from.
async fn served(ebpf: &EbpfDatapath) -> Vec<String> {
    let links = ebpf.observe().await.expect("observe").links;
    links.into_iter().filter(|link| link.hook == Hook::FromUplink).map(|link| link.device).collect()
}

async fn serves(ebpf: &EbpfDatapath, devices: &[&str], what: &str) {
    eventually(what, PATIENCE, || async {
        let found = served(ebpf).await;
        anyhow::ensure!(found == devices, "{found:?}");
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_cards_and_addresses_are_served_without_waiting_for_the_tick() {
    let dir = test_dir();
    let host = Namespace::create(&dir.0, "host");
    host.run("ip link set lo up").await;
    let mesh = host.block_on(Mesh::open(&dir.0.join("mesh"))).expect("open");
    let ebpf = host.block_on(EbpfDatapath::open(&dir.0.join("run"), Arc::clone(&mesh), 0)).expect("open (kernel 5.15 or newer)");
    let me = NodeId::from("node1");
    let part = fixture::network_part("ingress", net("10.0.0.0/24"), Vec::new());
    let cluster = fixture::cluster_part(vec![fixture::peer(1)]);
    let (_view, view) = watch::channel(Some(Arc::new(fixture::node_view(1, vec![part], cluster))));
    let (_sandboxes, sandboxes) = watch::channel(Vec::new());
    let (_mtu, mtu) = watch::channel(1420);
    let (_held, held) = watch::channel(None);
    let (status, seen) = watch::channel(EbpfStatus::default());
    let channels = EbpfChannels {
        view,
        lost: watch::channel(std::collections::BTreeSet::new()).1,
        sandboxes,
        prepared: watch::channel(Vec::new()).0,
        mtu,
        held,
        applied: watch::channel(Revision::default()).0,
        ready: watch::channel(VipReadiness::default()).0,
        status,
    };
    let stop = CancellationToken::new();
    let timing = EbpfTiming { tick: Duration::from_hours(1), udp_idle: Duration::from_mins(1), tcp_idle: Duration::MAX };
    let looped = tokio::spawn(run(channels, me, Arc::clone(&ebpf), timing, stop.clone()));
    eventually("a first pass", PATIENCE, || async {
        anyhow::ensure!(seen.borrow().up, "{:?}", *seen.borrow());
        Ok(())
    })
    .await
    .expect("up");
    serves(&ebpf, &[], "no card yet").await;

    host.run("ip link add eth7 type veth peer name wire7").await;
    host.run("ip link set eth7 up").await;
    host.run("ip address add 10.77.0.5/16 dev eth7").await;
    serves(&ebpf, &["eth7"], "a new card").await;
    assert!(ebpf.observe().await.expect("observe").host_devices.locals.contains(&ip("10.77.0.5").into()));
    host.run("ip address add 2001:db8:7::5/64 dev eth7").await;
    eventually("a further address", PATIENCE, || async {
        let tables = ebpf.observe().await?.tables;
        anyhow::ensure!(tables.locals.len() == 2, "{:?}", tables.locals);
        Ok(())
    })
    .await
    .expect("served");

    // The address moves to a bridge that the card becomes a port of, as an installer of virtual machines does it.
    host.run("ip link add br7 type bridge").await;
    host.run("ip link set eth7 master br7").await;
    host.run("ip link set br7 up").await;
    serves(&ebpf, &["br7"], "an address of a port is reached by the bridge").await;

    // A device without an Ethernet header is named.
    host.run("ip tuntap add dev tun7 mode tun").await;
    host.run("ip link set tun7 up").await;
    host.run("ip address add 100.64.7.1/32 dev tun7").await;
    eventually("the device to be named", PATIENCE, || async {
        let unserved = seen.borrow().unserved_devices.clone();
        anyhow::ensure!(unserved.get("tun7").is_some_and(|why| why.contains("no Ethernet header")), "{unserved:?}");
        Ok(())
    })
    .await
    .expect("named");
    host.run("ip link del br7").await;
    host.run("ip link del eth7").await;
    serves(&ebpf, &[], "the card is gone").await;
    stop.cancel();
    looped.await.expect("the loop ends");
    ebpf.remove().await.expect("removed");
    drop(ebpf);
    mesh.remove().expect("removed");
}
