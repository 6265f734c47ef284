//! One mesh namespace: created, adopted, repaired, removed.

use super::fixture::{A, B, MTU, Namespace, PATIENCE, ip, member, net, peer, test_dir};
use skep::datapath::mesh::{Mesh, MeshStep, base};
use skep::datapath::{Links, Sockets, Tunnel, TunnelPeerState, TunnelState, TunnelStep, netns};
use skep::lab::eventually;
use skep::model::view::{ClusterPart, NetworkPart, Networks};
use skep::model::{NodeId, NodeView, Revision, WgKey, fixture};
use skep::overlay::{Attempts, Overlay, OverlayState, OverlayStep, PathMtus, plan};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn mesh_only(steps: Vec<OverlayStep>) -> Vec<MeshStep> {
    steps.into_iter().filter_map(|s| if let OverlayStep::Mesh(step) = s { Some(step) } else { None }).collect()
}

fn view() -> NodeView {
    let me = peer(1, WgKey([1; 32]), "192.0.2.1:2377".parse().expect("address"));
    let part = fixture::network_part("a", net(A), vec![member(&me.node_id, ip("10.0.1.11"))]);
    fixture::node_view(0, vec![part], fixture::cluster_part(vec![me]))
}

/// A tunnel that answers only once `answers` is set.
#[derive(Default)]
struct FakeTunnel {
    answers: std::sync::atomic::AtomicBool,
    state: std::sync::Mutex<TunnelState>,
}

#[async_trait::async_trait]
impl Tunnel for FakeTunnel {
    async fn observe(&self) -> anyhow::Result<TunnelState> {
        anyhow::ensure!(self.answers.load(std::sync::atomic::Ordering::Relaxed), "it does not answer");
        Ok(self.state.lock().expect("lock").clone())
    }
    async fn rekey(&self) -> anyhow::Result<()> {
        Ok(())
    }

    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        let mut state = self.state.lock().expect("lock");
        for step in steps {
            match step.clone() {
                TunnelStep::Set(key, peer) => {
                    state.peers.insert(key, TunnelPeerState { peer, handshake_age: None, rx_bytes: 0, tx_bytes: 0 });
                }
                TunnelStep::Redirect(..) | TunnelStep::Succeed { .. } => {}
                TunnelStep::Remove(key) => drop(state.peers.remove(&key)),
            }
        }
        Ok(())
    }
}

/// While the tunnel does not answer, a node configures the mesh namespace and does not publish the revision; afterwards it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_does_not_answer_delays_the_revision() {
    let dir = test_dir();
    let host = Namespace::create(&dir.0, "host");
    let mesh = host.block_on(Mesh::open(&dir.0.join("mesh"))).expect("open");
    let tunnel = Arc::new(FakeTunnel::default());
    let mut view = view();
    view.revision.index = 7;
    let other = peer(2, WgKey([2; 32]), "192.0.2.2:2377".parse().expect("address"));
    let cluster = ClusterPart { nodes: vec![view.cluster.nodes[0].clone(), other], ..(*view.cluster).clone() };
    view.cluster = Arc::new(cluster);
    let revision = view.revision;
    let (_views, views) = watch::channel(Some(Arc::new(view)));
    let (publish, mut applied) = watch::channel(Revision::default());
    let stop = CancellationToken::new();
    let me = NodeId::from("node1");
    let overlay = Overlay::new(me, Arc::clone(&mesh), Arc::clone(&tunnel) as Arc<dyn Tunnel>);
    let running = tokio::spawn(overlay.run(views, publish, stop.clone()));
    eventually("the mesh namespace to be configured", PATIENCE, || async {
        anyhow::ensure!(mesh.observe().await?.rules.len() > base::rules().len());
        Ok(())
    })
    .await
    .expect("configured");
    assert_eq!(*applied.borrow(), Revision::default(), "not published");
    tunnel.answers.store(true, std::sync::atomic::Ordering::Relaxed);
    tokio::time::timeout(PATIENCE, applied.wait_for(|seen| *seen == revision)).await.expect("in time").expect("published");
    assert_eq!(tunnel.state.lock().expect("lock").peers.keys().collect::<Vec<_>>(), [&WgKey([2; 32])]);
    stop.cancel();
    running.await.expect("ends without a panic");
    mesh.remove().expect("remove");
}

/// A hundred networks with fifty members each: the test checks that one plan settles, and prints the duration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_networks_settle() {
    let dir = test_dir();
    let host = Namespace::create(&dir.0, "host");
    let mesh = host.block_on(Mesh::open(&dir.0.join("mesh"))).expect("open");
    let mesh_namespace = Namespace::open("mesh", dir.0.join("mesh"));
    mesh_namespace.run("ip tuntap add skep0 mode tun").await;
    let mut view = view();
    let part = view.networks.by_id.values().next().expect("one").clone();
    let other = NodeId::from("node2");
    let parts = (1..=100_u8).map(|third| {
        let subnet = net(&format!("10.0.{third}.0/24"));
        let members = (2..52).map(|last| Arc::new(member(&other, std::net::Ipv4Addr::new(10, 0, third, last)))).collect();
        let part = NetworkPart { subnet, gateway: skep::model::mesh::gateway(subnet), members, ..part.clone() };
        (format!("n{third}").into(), part)
    });
    view.networks = Arc::new(Networks { by_id: parts.collect() });
    let (start, steps) = (std::time::Instant::now(), settle(&mesh, &view).await);
    println!("{} steps in {:?}", steps.len(), start.elapsed());
    let start = std::time::Instant::now();
    assert_eq!(plan_of(&mesh, &view).await, []);
    println!("nothing to do, found in {:?}", start.elapsed());
    mesh.remove().expect("remove");
}

async fn settle(mesh: &Mesh, view: &NodeView) -> Vec<MeshStep> {
    let actual = OverlayState { mesh: mesh.observe().await.expect("observe"), tunnel: Some(TunnelState::default()) };
    let steps = mesh_only(plan(
        view,
        &view.cluster.nodes[0].node_id,
        &actual,
        &PathMtus::uniform(MTU),
        &mut Attempts::default(),
        std::time::Instant::now(),
    ));
    mesh.apply(&steps).await.expect("apply");
    steps
}

async fn plan_of(mesh: &Mesh, view: &NodeView) -> Vec<MeshStep> {
    let actual = OverlayState { mesh: mesh.observe().await.expect("observe"), tunnel: Some(TunnelState::default()) };
    mesh_only(plan(
        view,
        &view.cluster.nodes[0].node_id,
        &actual,
        &PathMtus::uniform(MTU),
        &mut Attempts::default(),
        std::time::Instant::now(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn created_adopted_repaired_removed() {
    let test_dir = test_dir();
    let dir = test_dir.0.clone();
    let pin = dir.join("run/mesh");
    let host = Namespace::create(&dir, "host");

    // A plain file, as it remains after a reboot, is no namespace.
    std::fs::create_dir_all(pin.parent().expect("directory")).expect("directory");
    std::fs::write(&pin, "").expect("stale file");
    let mesh = host.block_on(Mesh::open(&pin)).expect("open");
    let fresh = mesh.observe().await.expect("observe");
    assert_eq!(fresh.rules, base::rules(), "the kernel's own rules are replaced");
    for (key, value) in base::SYSCTLS {
        assert_eq!(fresh.sysctls.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(fresh.links.keys().collect::<Vec<_>>(), ["lo"]);
    assert!(fresh.links["lo"].up);
    assert!(fresh.routes.is_empty() && fresh.addresses.is_empty());

    // A network and a veth; the next plan is empty.
    let view = view();
    assert!(!settle(&mesh, &view).await.is_empty());
    assert_eq!(plan_of(&mesh, &view).await, []);
    let end = mesh.attach(net(A), ip("10.0.1.11"), 1400).await.expect("attach");
    assert_eq!(end, "c0a00010b");
    assert!(host.run("ip -o link show c0a00010b").await.contains("mtu 1400"));
    let before = mesh.observe().await.expect("observe");
    assert_eq!(before.sysctls["ipv6/conf/v0a00010b/disable_ipv6"], "1");
    assert_eq!(plan_of(&mesh, &view).await, [], "attach had installed everything; a veth keeps its MTU");
    let whole = mesh.observe().await.expect("observe");

    // A network that the view does not contain (yet) keeps what the attach configured.
    mesh.attach(net(B), ip("10.0.2.11"), MTU).await.expect("attach");
    assert_eq!(plan_of(&mesh, &view).await, []);
    // A second attach replaces the pair, with the same result; a second detach is no error; then its network is removed.
    mesh.attach(net(B), ip("10.0.2.11"), MTU).await.expect("attach again");
    assert_eq!(plan_of(&mesh, &view).await, []);
    mesh.detach(ip("10.0.2.11")).await.expect("detach");
    mesh.detach(ip("10.0.2.11")).await.expect("detach again");
    assert!(!host.run("ip -o link").await.contains("c0a00020b"));
    settle(&mesh, &view).await;
    let contents = |state: &skep::datapath::mesh::MeshState| (state.rules.clone(), state.routes.clone(), state.addresses.clone());
    assert_eq!(contents(&mesh.observe().await.expect("observe")), contents(&whole), "nothing of the other network remains");

    // Each manual removal or addition is repaired, and nothing else is changed.
    let mesh_namespace = Namespace::open("mesh", &pin);
    let table = 0x0a00_0100;
    for (command, repair) in [
        ("ip rule del priority 121920 from 10.0.1.0/24".to_owned(), "rule add 121920: from 10.0.1.0/24 lookup 167772416"),
        ("ip rule del priority 100".to_owned(), "rule add 100: from 10.0.0.0/20 goto 121920"),
        ("ip rule del priority 121921".to_owned(), "rule add 121921: goto 3000000"),
        ("ip rule del priority 3000002".to_owned(), "rule add 3000002: to 10.0.1.0/24 iif lo lookup 167772416"),
        ("ip rule del priority 3200000".to_owned(), "rule add 3200000: unreachable"),
        ("ip -6 rule del priority 52".to_owned(), "rule add -6 52: from fd12:3456:789a::/49 iif skep0 lookup local"),
        ("ip rule add priority 0 from all lookup local".to_owned(), "rule del 0: lookup local"),
        ("ip rule add priority 7 from 10.0.1.0/24 lookup 7".to_owned(), "rule del 7: from 10.0.1.0/24 lookup 7"),
        (format!("ip route del 10.0.1.11/32 table {table}"), "route set 10.0.1.11/32 dev v0a00010b table 167772416"),
        (format!("ip route del local 10.0.1.1 table {table}"), "route set local 10.0.1.1/32 dev lo table 167772416"),
        (format!("ip route replace 10.0.1.11/32 dev lo table {table}"), "route set 10.0.1.11/32 dev v0a00010b table 167772416"),
        (
            format!("ip route add 10.0.1.99/32 dev v0a00010b table {table}"),
            "route del 10.0.1.99/32 dev v0a00010b table 167772416",
        ),
        (format!("ip route add blackhole 10.0.1.98/32 table {table}"), "route del 10.0.1.98/32 (blackhole, ) table 167772416"),
        ("ip addr del 10.0.1.1/32 dev lo".to_owned(), "address add 10.0.1.1 dev lo"),
        ("ip addr add 10.9.9.9/32 dev lo".to_owned(), "address del 10.9.9.9 dev lo"),
        ("sysctl -qw net.ipv4.conf.all.rp_filter=2".to_owned(), "sysctl net/ipv4/conf/all/rp_filter = 1"),
        ("sysctl -qw net.ipv6.conf.v0a00010b.disable_ipv6=0".to_owned(), "sysctl net/ipv6/conf/v0a00010b/disable_ipv6 = 1"),
    ] {
        mesh_namespace.run(&command).await;
        let steps: Vec<String> = settle(&mesh, &view).await.iter().map(ToString::to_string).collect();
        assert_eq!(steps, [repair], "after {command}");
        assert_eq!(plan_of(&mesh, &view).await, [], "after {command}");
    }
    // The kernel removes the routes of a link that is set down.
    mesh_namespace.run("ip link set v0a00010b down").await;
    settle(&mesh, &view).await;
    assert_eq!(mesh.observe().await.expect("observe"), whole);

    // A second daemon on the same pin does not change it.
    let again = host.block_on(Mesh::open(&pin)).expect("open again");
    assert_eq!(again.observe().await.expect("observe"), whole);
    drop(again);

    // Sockets are created inside; the calling thread stays in its namespace.
    let home = std::fs::read_link("/proc/thread-self/ns/net").expect("link");
    let server = mesh.udp("10.0.1.1:53".parse().expect("address")).expect("the gateway's address is configured");
    assert!(mesh.udp("10.0.1.7:53".parse().expect("address")).is_err(), "no such address");
    assert!(mesh.udp("0.0.0.0:53".parse().expect("address")).is_err(), "servers bind one address");
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").expect("link"), home);
    let inside = mesh.run(|| std::fs::read_link("/proc/thread-self/ns/net").expect("link")).expect("run");
    assert_ne!(inside, home);
    let entered = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            skep::datapath::mesh::enter(&pin).expect("enter");
            std::fs::read_link("/proc/thread-self/ns/net").expect("link")
        });
        thread.join().expect("thread")
    });
    assert_eq!(entered, inside);

    // The removal includes links, mount and file, also while a socket inside is open.
    mesh.remove().expect("remove");
    assert!(!pin.exists());
    assert!(!host.run("ip -o link").await.contains("c0a00010b"), "the container's end is removed with it");
    drop(server);
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").contains(&*pin.to_string_lossy()));
    assert!(netns::pinned(&pin).expect("readable").is_none());
    assert!(skep::datapath::mesh::enter(&pin).is_err());
    drop((host, mesh_namespace));
    std::fs::remove_dir_all(dir).expect("nothing remains");
}

/// What a change costs does not grow with the number of containers and networks: the namespace is not read for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_do_not_read_the_namespace_and_what_is_known_of_it_is_right() {
    let dir = test_dir();
    let host = Namespace::create(&dir.0, "host");
    let mesh = host.block_on(Mesh::open(&dir.0.join("mesh"))).expect("open");
    let tunnel = Arc::new(FakeTunnel::default());
    tunnel.answers.store(true, std::sync::atomic::Ordering::Relaxed);
    let view = view();
    let me = view.cluster.nodes[0].node_id.clone();
    let hour = std::time::Duration::from_hours(1);
    let mut overlay = Overlay::new(me.clone(), Arc::clone(&mesh), tunnel).with_tick(hour);
    let with_members = |network: &str, subnet: &str, members: &[&str]| {
        let members = members.iter().map(|address| member(&NodeId::from("node2"), ip(address))).collect();
        let part = fixture::network_part(network, net(subnet), members);
        let mut view = view.clone();
        let mut all = Networks::clone(&view.networks);
        all.by_id.insert(network.into(), part);
        view.networks = Arc::new(all);
        view
    };
    overlay.reconcile(&view).await.expect("reconciled");
    let reads = mesh.reads();
    mesh.attach(net(A), ip("10.0.1.11"), 1400).await.expect("attach");
    overlay.reconcile(&view).await.expect("a container that starts");
    overlay.reconcile(&with_members("b", B, &["10.0.2.12"])).await.expect("a further network");
    overlay.reconcile(&with_members("b", "172.20.0.0/16", &["172.20.3.4", "172.20.3.5"])).await.expect("another one");
    mesh.attach(net("192.168.7.0/28"), ip("192.168.7.9"), MTU).await.expect("a network that the view does not have");
    mesh.attach(net("192.168.7.0/28"), ip("192.168.7.9"), MTU).await.expect("made again");
    overlay.reconcile(&view).await.expect("the view of before");
    mesh.detach(ip("10.0.1.11")).await.expect("detach");
    overlay.reconcile(&view).await.expect("a container that ended");
    mesh.detach(ip("192.168.7.9")).await.expect("detach");
    overlay.reconcile(&view).await.expect("all of them");
    let known = mesh.recent(hour).await.expect("known");
    assert_eq!(mesh.reads(), reads, "nothing of this read the namespace");
    let read = mesh.observe().await.expect("observe");
    assert_eq!(known, read);
    // Another program's change is found by the next reading.
    Namespace::open("mesh", dir.0.join("mesh")).run("ip rule del priority 100").await;
    assert!(overlay.reconcile(&view).await.is_ok() && mesh.recent(hour).await.expect("known") == read);
    let mut overlay = Overlay::new(me, Arc::clone(&mesh), Arc::new(FakeTunnel::default())).with_tick(std::time::Duration::ZERO);
    let _ = overlay.reconcile(&view).await;
    assert_eq!(mesh.observe().await.expect("observe"), read, "repaired");
    mesh.remove().expect("removed");
}
