//! Tasks on overlay networks, through the engine's plugin protocol.

use super::rig::{ME, POLITE, Rig, on, task, wanting};
use skep::model::{NodeId, TaskState};
use skep::runtime::{EngineError, NetworkPlan};

#[tokio::test(flavor = "multi_thread")]
async fn tasks_meet_on_their_networks_with_their_addresses() {
    let mut rig = Rig::new("nets").await;
    let one = on(on(task(1, POLITE), "ingress", "10.0.0.5/24"), "back", "10.0.1.5/24");
    let two = on(task(2, POLITE), "back", "10.0.1.6/24");
    let inner = on(task(3, POLITE), "internal", "10.0.2.7/24");
    let all = [one.clone(), two.clone(), inner.clone()];
    rig.want(&all);
    for t in &all {
        rig.until(t, TaskState::Running).await;
    }
    let addresses = rig.exec(&one, "ip -o -4 addr").await.expect("runs");
    assert!(addresses.contains("10.0.0.5/32") && addresses.contains("10.0.1.5/32"), "{addresses}");
    assert!(rig.exec(&one, "ip link").await.expect("runs").contains("mtu 1400"));
    rig.exec(&one, "ping -c1 -W2 10.0.1.6").await.expect("reaches the other task");
    rig.exec(&two, "ping -c1 -W2 10.0.1.1").await.expect("reaches the gateway");
    let resolver = rig.docker(&["inspect", "--format={{.HostConfig.Dns}}", &one.container_name()]).await.expect("is there");
    assert_eq!(resolver, "[10.0.1.1]");
    // The engine adds its own bridge for the way out, except on an internal network.
    assert!(rig.exec(&two, "ip route").await.expect("runs").contains("default"));
    let routes = rig.exec(&inner, "ip route").await.expect("runs");
    assert!(routes.contains("10.0.2.0/24 via 10.0.2.1") && !routes.contains("default"), "{routes}");
    assert_eq!(rig.docker(&["network", "ls", "-q", "--filter", "driver=skep"]).await.expect("lists").lines().count(), 3);

    // A plain container gets no address, and a sentence.
    let refused = rig.docker(&["run", "--rm", "--network", "back", skep::lab::WHOAMI_IMAGE, "/bin/ls"]).await;
    let refused = format!("{:#}", refused.expect_err("refused"));
    assert!(refused.contains("only tasks of the swarm get addresses"), "{refused}");

    // The driver restarts: what runs is taken down properly later.
    rig.start_driver();
    rig.want(&[wanting(&one, TaskState::Shutdown), two.clone()]);
    rig.until(&one, TaskState::Shutdown).await;
    rig.until_docker(&["network", "ls", "--filter", "driver=skep", "--format", "{{.Name}}"], "back").await;
    let links = rig.host.run("ip -n mesh -o link").await.expect("lists");
    assert!(links.contains("v0a000106") && !links.contains("v0a000105") && !links.contains("v0a000005"), "{links}");

    // The same address for a successor.
    let next = on(task(4, POLITE), "back", "10.0.1.5/24");
    rig.want(&[two.clone(), next.clone()]);
    rig.until(&next, TaskState::Running).await;
    rig.exec(&next, "ping -c1 -W2 10.0.1.6").await.expect("reaches the other task");
    rig.want(&[]);
    rig.until_docker(&["network", "ls", "-q", "--filter", "driver=skep"], "").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_restart_and_a_driver_that_comes_late() {
    let mut rig = Rig::without_engine("order").await;
    // The engine is up before the driver's socket is there.
    rig.start_engine().await;
    rig.start_driver();
    let one = on(task(1, POLITE), "back", "10.0.1.5/24");
    rig.want(std::slice::from_ref(&one));
    rig.until(&one, TaskState::Running).await;
    // It restarts and takes its containers down; a successor gets the address.
    rig.restart_engine().await;
    rig.until_over(&one).await;
    let two = on(task(2, POLITE), "back", "10.0.1.5/24");
    rig.want(&[wanting(&one, TaskState::Shutdown), two.clone()]);
    rig.until(&two, TaskState::Running).await;
    rig.exec(&two, "ping -c1 -W2 10.0.1.1").await.expect("reaches the gateway");

    // Names that are taken, by others and by an earlier network of ours.
    rig.docker(&["network", "create", "taken"]).await.expect("makes");
    let plan = |id: &str, name: &str| NetworkPlan {
        id: id.into(),
        name: name.to_owned(),
        subnet: "10.0.9.0/24".parse().expect("a subnet"),
        gateway: "10.0.9.1".parse().expect("an address"),
        internal: false,
        ingress: false,
        mtu: 1400,
    };
    let error = rig.engine.ensure_network(&plan("x", "taken")).await.expect_err("refused");
    assert!(matches!(&error, EngineError::Refused(words) if words.contains("docker network rm taken")), "{error}");
    let error = rig.engine.ensure_network(&plan("another", "back")).await.expect_err("in use");
    assert!(matches!(error, EngineError::Busy(_)), "{error}");

    // Leaving takes everything of ours, and nothing else.
    rig.want(&[]);
    skep::agent::remove_all(&NodeId::from(ME), &*rig.engine).await.expect("removes");
    rig.until_docker(&["network", "ls", "-q", "--filter", "driver=skep"], "").await;
    assert_eq!(rig.docker(&["network", "ls", "-q", "--filter", "name=taken"]).await.expect("lists").lines().count(), 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_boots_without_the_driver_takes_tasks_once_it_is_there() {
    let mut rig = Rig::new("boot").await;
    let one = on(task(1, POLITE), "back", "10.0.1.5/24");
    rig.want(std::slice::from_ref(&one));
    rig.until(&one, TaskState::Running).await;
    rig.host.stop_engine().await.expect("stops");
    rig.stop_driver();
    // It waits 15 s per endpoint for the driver.
    rig.restart_engine().await;
    rig.until_over(&one).await;
    rig.start_driver();
    let two = on(task(3, POLITE), "back", "10.0.1.5/24");
    rig.want(std::slice::from_ref(&two));
    rig.until(&two, TaskState::Running).await;
    rig.exec(&two, "ping -c1 -W2 10.0.1.1").await.expect("reaches the gateway");
    rig.stop().await;
}
