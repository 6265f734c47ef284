//! A new port is served by the userspace datapath until the kernel's maps have it: clients that are quick notice nothing.

use super::*;

/// Services, one after the other; each is used from the moment at which its port answers.
const SERVICES: u16 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_a_port_moves_to_the_ebpf_datapath() {
    let swarm = swarm("kw", 3, AUTO).await;
    let client = client(&swarm).await;
    for port in (8080..).take(usize::from(SERVICES)) {
        let name = format!("web{port}");
        create(&swarm, &name, 3, json!([{ "TargetPort": 80, "PublishedPort": port }])).await;
        for host in &swarm.hosts {
            within(30, "the port to answer", || ask(&client, (host.address(), port).into())).await;
        }
        let targets = swarm.hosts.iter().map(|host| Target::new(&of_host(&client), (host.address(), port).into(), host.name()));
        let load = Load::start(targets, Duration::from_millis(2));
        serves(&swarm.hosts, &[&format!("{port}/tcp")]).await;
        let before = load.answers();
        within(20, "every node to answer on", || async {
            let now = load.answers();
            anyhow::ensure!(now.iter().zip(&before).all(|(now, before)| now > &(before + 50)), "{before:?}, now {now:?}");
            Ok(())
        })
        .await;
        for tally in load.stop().await {
            assert!(tally.failed.is_empty(), "{port}: {tally}");
        }
    }
    client.stop().await;
    swarm.stop().await;
}
