//! Removal in order on this plane.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_when_tasks_come_and_go_on_the_fast_plane() {
    let swarm = tasks_come_and_go(swarm("ko", 3, AUTO).await).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &swarm.hosts {
        let status = status(host).await;
        assert!(count(host, "port_new").await > 50, "the kernel gave backends: {:#}", status["fast"]);
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
