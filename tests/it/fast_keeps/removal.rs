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
