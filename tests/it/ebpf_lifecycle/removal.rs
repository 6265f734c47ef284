//! Ordered removal of tasks on the eBPF datapath.

use super::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_tasks_change_on_the_ebpf_datapath() {
    let swarm = swarm("ko", 3, &format!("{AUTO}{LONG_HOLD}")).await;
    let swarm = change_tasks_under_load(swarm, async |hosts| serves(hosts, &["8080/tcp"]).await).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &swarm.hosts {
        let status = status(host).await;
        assert!(count(host, "port_new").await > 50, "the kernel selected backends: {:#}", status["ebpf"]);
        assert_eq!(status["ports"][0]["errors"], 0, "{:#}", status["ports"]);
    }
    assert!(count(&swarm.hosts[0], "vip_connect").await > 50, "names answer virtual addresses");
    swarm.stop().await;
}

/// A client that sends from one port at a steady rate loses no datagram when its backend is removed.
#[tokio::test(flavor = "multi_thread")]
async fn udp_flows_of_a_removed_task_move_at_once() {
    let swarm = swarm("ku", 2, AUTO).await;
    let client = client(&swarm).await;
    let ports = json!([{ "Protocol": "udp", "TargetPort": 5300, "PublishedPort": 5300 }]);
    create(&swarm, "web", 4, ports).await;
    for task in &swarm.running("web", 4).await {
        echo(&swarm, task, 5300).await;
    }
    serves(&swarm.hosts, &["5300/udp"]).await;
    wait_for_backends(&swarm.hosts, "5300/udp", 4).await;
    let outside = of_host(&client);
    let flows = swarm.hosts.iter().flat_map(|host| (0..8).map(move |at| (host, at)));
    let flows = flows.map(|(host, at)| Target::new(&outside, (host.address(), 5300).into(), format!("{at} by {}", host.name())));
    let load = Load::flows(flows, Duration::from_millis(20));
    let expect_answers = async || {
        let before = load.answers();
        within(30, "every flow to be answered", || async {
            let now = load.answers();
            anyhow::ensure!(now.iter().zip(&before).all(|(now, before)| *now > before + 50), "{before:?} {now:?}");
            Ok(())
        })
        .await;
    };
    expect_answers().await;
    scale(&swarm, "web", 1).await;
    settled(&swarm, "web", 1).await;
    expect_answers().await;
    let last = swarm.running("web", 1).await[0]["ID"].as_str().expect("id").to_owned();
    let tallies = load.stop().await;
    assert!(tallies.iter().all(|tally| tally.answered.contains_key(&last)), "the remaining task answers all");
    assert!(tallies.iter().any(|tally| tally.answered.len() > 1), "some flows moved");
    assert!(tallies.iter().all(|tally| tally.failed.is_empty()), "datagrams were lost");
    client.stop().await;
    swarm.stop().await;
}

/// A process with a socket on a virtual address gets an error when its task is removed, not silence, and its next connect
/// reaches another task.
#[tokio::test(flavor = "multi_thread")]
async fn a_connected_datagram_socket_gets_an_error_when_its_task_is_removed() {
    let swarm = swarm("kd", 2, AUTO).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!({ "Networks": [{ "Target": "back" }] });
    swarm.service("web", 2, None, networks.clone()).await;
    swarm.service("caller", 2, None, networks).await;
    let web = swarm.running("web", 2).await;
    for task in &web {
        echo(&swarm, task, 5300).await;
    }
    let callers = swarm.running("caller", 2).await;
    serves(&swarm.hosts, &[]).await;
    wait_until_ready(&swarm.hosts, &web, true).await;
    let to = SocketAddr::new(vip(&swarm, "web").await.into(), 5300);
    let mut flows = Vec::new();
    for task in &callers {
        let from = of_task(&swarm, task).await;
        for _ in 0..8 {
            let namespace = from.try_clone().expect("a descriptor");
            let mut flow = inside(namespace, move || Flow::new(to).expect("a socket")).await;
            let server = flow.ask().expect("an answer");
            flows.push((flow, server));
        }
    }
    let tasks: BTreeSet<String> = flows.iter().map(|(_, server)| server.clone()).collect();
    assert_eq!(tasks.len(), 2, "both tasks answer some");
    scale(&swarm, "web", 1).await;
    settled(&swarm, "web", 1).await;
    let last = swarm.running("web", 1).await[0]["ID"].as_str().expect("id").to_owned();
    for (mut flow, server) in flows {
        if server == last {
            assert_eq!(flow.ask().expect("its task runs"), last);
            continue;
        }
        let error = flow.ask().expect_err("its task is gone");
        let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        // ECONNABORTED for a socket that waits for an answer, EDESTADDRREQ for one that sends.
        assert!([Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)].contains(&code), "{error:#}");
        flow.connect(to).expect("connects again");
        assert_eq!(flow.ask().expect("an answer"), last);
    }
    swarm.stop().await;
}
