//! Tasks on overlay networks, through the engine's plugin protocol.

use super::fixture::{AgentFixture, ME, POLITE, on, task, wanting};
use skep::model::{NodeId, TaskState};
use skep::runtime::{EngineError, NetworkPlan};

fn plan(id: &str, name: &str) -> NetworkPlan {
    NetworkPlan {
        id: id.into(),
        name: name.to_owned(),
        subnet: "10.0.9.0/24".parse().expect("a subnet"),
        gateway: "10.0.9.1".parse().expect("an address"),
        further: Vec::new(),
        v6: None,
        internal: false,
        ingress: false,
        mtu: 1400,
        most_mtu: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_reach_each_other_on_their_networks() {
    let mut agent = AgentFixture::new("nets").await;
    let one = on(on(task(1, POLITE), "ingress", "10.0.0.5/24"), "back", "10.0.1.5/24");
    let two = on(task(2, POLITE), "back", "10.0.1.6/24");
    let inner = on(task(3, POLITE), "internal", "10.0.2.7/24");
    let all = [one.clone(), two.clone(), inner.clone()];
    agent.want(&all);
    for t in &all {
        agent.until(t, TaskState::Running).await;
    }
    let addresses = agent.exec(&one, "ip -o -4 addr").await.expect("runs");
    assert!(addresses.contains("10.0.0.5/32") && addresses.contains("10.0.1.5/32"), "{addresses}");
    assert!(agent.exec(&one, "ip link").await.expect("runs").contains("mtu 1400"));
    agent.exec(&one, "ping -c1 -W2 10.0.1.6").await.expect("reaches the other task");
    agent.exec(&two, "ping -c1 -W2 10.0.1.1").await.expect("reaches the gateway");
    let resolver = agent.docker(&["inspect", "--format={{.HostConfig.Dns}}", &one.container_name()]).await.expect("exists");
    assert_eq!(resolver, "[10.0.1.1]");
    // The engine adds its own bridge as default route, except on an internal network.
    assert!(agent.exec(&two, "ip route").await.expect("runs").contains("default"));
    let routes = agent.exec(&inner, "ip route").await.expect("runs");
    assert!(routes.contains("10.0.2.0/24 via 10.0.2.1") && !routes.contains("default"), "{routes}");
    assert_eq!(agent.docker(&["network", "ls", "-q", "--filter", "driver=skep"]).await.expect("lists").lines().count(), 3);

    // A container that is no task gets no address from a driver without managers, but an error.
    let refused = agent.docker(&["run", "--rm", "--network", "back", skep::lab::WHOAMI_IMAGE, "/bin/ls"]).await;
    let refused = format!("{:#}", refused.expect_err("refused"));
    assert!(refused.contains("no network of the swarm has the subnet"), "{refused}");

    // The driver restarts: endpoints made before are removed properly later.
    agent.start_driver();
    agent.want(&[wanting(&one, TaskState::Shutdown), two.clone()]);
    agent.until(&one, TaskState::Shutdown).await;
    agent.until_docker(&["network", "ls", "--filter", "driver=skep", "--format", "{{.Name}}"], "back").await;
    let links = agent.host.run("ip -n mesh -o link").await.expect("lists");
    assert!(links.contains("v0a000106") && !links.contains("v0a000105") && !links.contains("v0a000005"), "{links}");

    // The same address for a successor.
    let next = on(task(4, POLITE), "back", "10.0.1.5/24");
    agent.want(&[two.clone(), next.clone()]);
    agent.until(&next, TaskState::Running).await;
    agent.exec(&next, "ping -c1 -W2 10.0.1.6").await.expect("reaches the other task");
    agent.want(&[]);
    agent.until_docker(&["network", "ls", "-q", "--filter", "driver=skep"], "").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_restart_and_a_driver_that_starts_late() {
    let mut agent = AgentFixture::without_engine("order").await;
    // The engine is up before the driver's socket exists.
    agent.start_engine().await;
    agent.start_driver();
    let one = on(task(1, POLITE), "back", "10.0.1.5/24");
    agent.want(std::slice::from_ref(&one));
    agent.until(&one, TaskState::Running).await;
    // It restarts and stops its containers; a successor gets the address.
    agent.restart_engine().await;
    agent.until_final(&one).await;
    let two = on(task(2, POLITE), "back", "10.0.1.5/24");
    agent.want(&[wanting(&one, TaskState::Shutdown), two.clone()]);
    agent.until(&two, TaskState::Running).await;
    agent.exec(&two, "ping -c1 -W2 10.0.1.1").await.expect("reaches the gateway");

    // Names in use, by another driver and by an earlier network of skep.
    agent.docker(&["network", "create", "taken"]).await.expect("makes");
    let error = agent.engine.ensure_network(&plan("x", "taken")).await.expect_err("refused");
    assert!(matches!(&error, EngineError::Refused(words) if words.contains("docker network rm taken")), "{error}");
    let error = agent.engine.ensure_network(&plan("another", "back")).await.expect_err("in use");
    assert!(matches!(error, EngineError::Busy(_)), "{error}");

    // Leaving removes every network of skep and no other.
    agent.want(&[]);
    skep::agent::remove_all(&NodeId::from(ME), &*agent.engine, &agent.host.dir().join("files")).await.expect("removes");
    agent.until_docker(&["network", "ls", "-q", "--filter", "driver=skep"], "").await;
    assert_eq!(agent.docker(&["network", "ls", "-q", "--filter", "name=taken"]).await.expect("lists").lines().count(), 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_boots_without_the_driver_runs_tasks_once_it_is_up() {
    let mut agent = AgentFixture::new("boot").await;
    let one = on(task(1, POLITE), "back", "10.0.1.5/24");
    agent.want(std::slice::from_ref(&one));
    agent.until(&one, TaskState::Running).await;
    agent.host.stop_engine().await.expect("stops");
    agent.stop_driver();
    // It waits 15 s per endpoint for the driver.
    agent.restart_engine().await;
    agent.until_final(&one).await;
    agent.start_driver();
    let two = on(task(3, POLITE), "back", "10.0.1.5/24");
    agent.want(std::slice::from_ref(&two));
    agent.until(&two, TaskState::Running).await;
    agent.exec(&two, "ping -c1 -W2 10.0.1.1").await.expect("reaches the gateway");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_containers_that_were_never_started_stay() {
    let mut agent = AgentFixture::new("made").await;
    for name in ["back", "connected", "unused"] {
        let subnet = format!("10.0.{}.0/24", name.len()).parse().expect("a subnet");
        let gateway = format!("10.0.{}.1", name.len()).parse().expect("an address");
        agent.engine.ensure_network(&NetworkPlan { subnet, gateway, ..plan(&format!("id-{name}"), name) }).await.expect("made");
    }
    let image = skep::lab::WHOAMI_IMAGE;
    agent.docker(&["create", "--name", "made", "--network", "back", image]).await.expect("created");
    agent.docker(&["create", "--name", "joined", image]).await.expect("created");
    agent.docker(&["network", "connect", "connected", "joined"]).await.expect("connected");
    let list = ["network", "ls", "--filter", "driver=skep", "--format", "{{.Name}}"];
    // The view has none of these networks: what nothing refers to is removed.
    agent.want(&[]);
    agent.until_docker(&list, "back\nconnected").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(agent.docker(&list).await.expect("lists").trim(), "back\nconnected", "the agent has looked again");
    agent.docker(&["rm", "made"]).await.expect("removed");
    agent.until_docker(&list, "connected").await;
    agent.docker(&["rm", "joined"]).await.expect("removed");
    agent.until_docker(&list, "").await;
    agent.stop().await;
}
