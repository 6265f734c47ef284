//! The next daemon adopts or removes what a killed one left, and `leave` removes everything.

use super::*;
use std::collections::BTreeSet;

async fn web(swarm: &Swarm) {
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    swarm.service("web", 2, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    swarm.running("web", 2).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
}

/// Every program of the host's eBPF datapath.
fn programs(host: &Host) -> BTreeSet<u32> {
    bpf::links(host).iter().map(|pin| bpf::program_of(host, pin)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_killed_daemon_are_removed_by_the_next() {
    let mut swarm = swarm("kg", 1, AUTO).await;
    let client = client(&swarm).await;
    web(&swarm).await;
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    let host = &swarm.hosts[0];
    let (pins, links) = (bpf::pins(host), bpf::links(host));
    let old = programs(host);

    // Maps of another layout; a link to a device that is gone; a pin from before its rename.
    std::fs::create_dir(pins.join("maps0")).expect("folder");
    bpf::pin_again(&bpf::maps(host).join("VIPS"), &pins.join("maps0/VIPS"));
    let link = |pin: &str| pins.join("links").join(pin);
    bpf::pin_again(&link("connect4"), &link("from_container@gone@4000"));
    bpf::pin_again(&link("connect4"), &link("connect4!"));

    start(&mut swarm.hosts[0]).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    let host = &swarm.hosts[0];
    within(20, "the leftovers to be removed", || async {
        anyhow::ensure!(bpf::links(host) == links, "{:?}", bpf::links(host));
        anyhow::ensure!(!pins.join("maps0").exists(), "maps of another layout stay");
        let stay: Vec<&u32> = old.iter().filter(|program| bpf::alive(**program)).collect();
        anyhow::ensure!(stay.is_empty(), "programs of the killed daemon stay: {stay:?}");
        Ok(())
    })
    .await;
    within(10, "the port to answer", || ask(&client, (host.address(), 8080).into())).await;
    client.stop().await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_veth_pair_whose_mesh_namespace_was_lost_is_replaced() {
    let mut swarm = swarm("kp", 1, AUTO).await;
    let client = client(&swarm).await;
    web(&swarm).await;
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    let host = &swarm.hosts[0];
    let mesh = host.run_dir().join("mesh");
    // A process in the old mesh namespace keeps it, and skeph, without a pin.
    let mut process =
        host.command("nsenter").arg(format!("--net={}", mesh.display())).args(["sleep", "infinity"]).spawn().expect("started");
    within(10, "the process to enter it", || async {
        let listens = host.run(&format!("nsenter --net={} ss -lnt", mesh.display())).await.map(drop);
        listens.and(host.run("busybox pidof sleep").await.map(drop))
    })
    .await;
    host.run(&format!("umount -l {}", mesh.display())).await.expect("unpinned");
    host.run("ip link show skeph").await.expect("it exists");

    start(&mut swarm.hosts[0]).await;
    let host = &swarm.hosts[0];
    // The containers' veth ends were lost with the old namespace: this test is about the port's path, not about tasks.
    within(30, "the eBPF datapath to be up", || async {
        let status = status(host).await;
        anyhow::ensure!(status["ebpf"]["up"] == true && status["ebpf"]["reason"] == "", "{:#}\n{}", status, host.log_tail());
        Ok(())
    })
    .await;
    process.kill().await.expect("ends");
    client.stop().await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leave_removes_programs_the_veth_pair_and_mounts() {
    let swarm = swarm("kv", 2, AUTO).await;
    web(&swarm).await;
    for host in [&swarm.hosts[1], &swarm.hosts[0]] {
        let programs = programs(host);
        assert_eq!(programs.len(), skep::datapath::ebpf::Hook::ALL.len());
        ok(&post(host, "/swarm/leave?wait=1&force=1", &serde_json::json!({})).await);
        let mounts = host.run("cat /proc/self/mounts").await.expect("mounts");
        assert!(!mounts.lines().any(|line| line.split(' ').nth(2) == Some("bpf")), "{mounts}");
        let links = host.run("ip -o link").await.expect("links");
        assert!(!links.contains("skeph"), "{links}");
        assert!(!host.run_dir().join("bpf").exists() && !host.run_dir().join("mesh").exists());
        // The kernel frees them a moment later.
        within(20, "its programs to be gone", || async {
            let stay: Vec<&u32> = programs.iter().filter(|program| bpf::alive(**program)).collect();
            anyhow::ensure!(stay.is_empty(), "{stay:?}");
            Ok(())
        })
        .await;
        for (name, attach_type) in bpf::CALLS {
            let attached = bpf::programs_at(bpf::cgroup(), attach_type);
            assert!(!attached.iter().any(|id| programs.contains(id)), "{name} stays at the cgroup");
        }
    }
    swarm.stop().await;
}
