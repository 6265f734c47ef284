//! Removal in order on this plane.

use super::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_tasks_change_on_the_ebpf_datapath() {
    let swarm = tasks_come_and_go(swarm("ko", 3, AUTO).await).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &swarm.hosts {
        let status = status(host).await;
        assert!(count(host, "port_new").await > 50, "the kernel gave backends: {:#}", status["ebpf"]);
        assert_eq!(status["ports"][0]["errors"], 0, "{:#}", status["ports"]);
    }
    assert!(count(&swarm.hosts[0], "vip_connect").await > 50, "names answer virtual addresses");
    swarm.stop().await;
}

/// A client that keeps its port and its pace does not notice that its backend went.
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
    stand_behind(&swarm.hosts, "5300/udp", 4).await;
    let outside = of_host(&client);
    let flows = swarm.hosts.iter().flat_map(|host| (0..8).map(move |at| (host, at)));
    let flows = flows.map(|(host, at)| Target::new(&outside, (host.address(), 5300).into(), format!("{at} by {}", host.name())));
    let load = Load::flows(flows, Duration::from_millis(20));
    let goes_on = async || {
        let before = load.answers();
        within(30, "every flow to be answered", || async {
            let now = load.answers();
            anyhow::ensure!(now.iter().zip(&before).all(|(now, before)| *now > before + 50), "{before:?} {now:?}");
            Ok(())
        })
        .await;
    };
    goes_on().await;
    scale(&swarm, "web", 1).await;
    settled(&swarm, "web", 1).await;
    goes_on().await;
    let last = swarm.running("web", 1).await[0]["ID"].as_str().expect("id").to_owned();
    let tallies = load.stop().await;
    assert!(tallies.iter().all(|tally| tally.answered.contains_key(&last)), "all are with the task that is left");
    assert!(tallies.iter().any(|tally| tally.answered.len() > 1), "some had to move");
    assert!(tallies.iter().all(|tally| tally.failed.is_empty()), "datagrams were lost");
    client.stop().await;
    swarm.stop().await;
}

/// A process that keeps a socket on a virtual address is told that its task went: it gets an error, not silence, and the
/// next connect leads to a task that is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_connected_datagram_socket_learns_that_its_task_went() {
    let swarm = swarm("kd", 2, AUTO).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!({ "Networks": [{ "Target": "back" }] });
    swarm.service("web", 2, None, networks.clone()).await;
    swarm.service("ask", 2, None, networks).await;
    for task in &swarm.running("web", 2).await {
        echo(&swarm, task, 5300).await;
    }
    let asking = swarm.running("ask", 2).await;
    serves(&swarm.hosts, &[]).await;
    let to = SocketAddr::new(vip(&swarm, "web").await.into(), 5300);
    let mut flows = Vec::new();
    for task in &asking {
        let from = of_task(&swarm, task).await;
        for _ in 0..8 {
            let namespace = from.try_clone().expect("a descriptor");
            let mut flow = inside(namespace, move || Flow::new(to).expect("a socket")).await;
            let who = flow.ask().expect("an answer");
            flows.push((flow, who));
        }
    }
    let tasks: BTreeSet<String> = flows.iter().map(|(_, who)| who.clone()).collect();
    assert_eq!(tasks.len(), 2, "some with each task");
    scale(&swarm, "web", 1).await;
    settled(&swarm, "web", 1).await;
    let last = swarm.running("web", 1).await[0]["ID"].as_str().expect("id").to_owned();
    for (mut flow, who) in flows {
        if who == last {
            assert_eq!(flow.ask().expect("its task is there"), last);
            continue;
        }
        let error = flow.ask().expect_err("its task is gone");
        let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        // Whoever waits is told that it ended; whoever sends, that it leads nowhere.
        assert!([Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)].contains(&code), "{error:#}");
        flow.connect(to).expect("connects again");
        assert_eq!(flow.ask().expect("an answer"), last);
    }
    swarm.stop().await;
}
