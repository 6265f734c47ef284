//! A node that dies: whoever waits for one of its containers gets an error at once. One that goes in order takes nothing
//! with it before its time.

use super::*;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

/// Where a task is on the network `back`.
struct Place {
    task: String,
    namespace: File,
    address: Ipv4Addr,
}

/// Both ends of a connection.
struct Ends {
    client: TcpStream,
    server: TcpStream,
}

/// Idle tasks on `back`, two on each of two hosts, by host.
async fn idle(swarm: &Swarm) -> [Vec<Place>; 2] {
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let idle = json!({
        "Networks": [{ "Target": "back" }],
        // Process 1 ignores the stop signal: it lives to the end of its grace.
        "ContainerSpec": { "Command": ["/bin/busybox", "sleep", "1000"], "StopGracePeriod": 60_000_000_000_u64 },
    });
    swarm.service("idle", 4, Some(8080), idle).await;
    let mut places = [Vec::new(), Vec::new()];
    for task in swarm.running("idle", 4).await {
        let on = task["NetworksAttachments"].as_array().expect("networks").iter();
        let back = on.clone().find(|n| n["Network"]["Spec"]["Name"] == "back").expect("an address on the network");
        let address = back["Addresses"][0].as_str().and_then(|a| a.split('/').next()?.parse().ok()).expect("address");
        let id = task["ID"].as_str().expect("id").to_owned();
        places[index_of(swarm, &task).await].push(Place { task: id, namespace: of_task(swarm, &task).await, address });
    }
    assert!(places.iter().all(|there| there.len() == 2), "two on each host");
    places
}

async fn listen(at: &Place, port: u16) -> TcpListener {
    let namespace = at.namespace.try_clone().expect("clone");
    inside(namespace, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound in the container")).await
}

/// Connects from a namespace to an address that leads to the listener.
async fn connect(from: &File, to: SocketAddr, listener: &TcpListener) -> Ends {
    let (from, listener) = (from.try_clone().expect("clone"), listener.try_clone().expect("clone"));
    inside(from, move || {
        let client = TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap_or_else(|e| panic!("{to}: {e}"));
        let (server, _) = listener.accept().expect("accepts");
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_mins(1))).expect("a bound for the test");
        }
        Ends { client, server }
    })
    .await
}

async fn between(from: &Place, to: &Place, port: u16) -> Ends {
    let listener = listen(to, port).await;
    connect(&from.namespace, SocketAddr::new(to.address.into(), port), &listener).await
}

impl Ends {
    /// A byte there and back.
    fn exchange(&mut self) -> io::Result<()> {
        let mut byte = [7];
        self.client.write_all(&byte)?;
        self.server.read_exact(&mut byte)?;
        self.server.write_all(&byte)?;
        self.client.read_exact(&mut byte)
    }
}

/// Waits for what never comes.
fn waiting(mut end: TcpStream) -> std::thread::JoinHandle<io::Result<usize>> {
    std::thread::spawn(move || end.read(&mut [0; 8]))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_dead_node_gets_an_error_at_once() {
    let swarm = swarm("pd", 2, "").await;
    let client = client(&swarm).await;
    let [here, there] = idle(&swarm).await;
    let mut asks = between(&here[0], &there[0], 9000).await;
    let mut asked = between(&there[0], &here[0], 9001).await;
    let mut lives = between(&here[0], &here[1], 9002).await;
    // Through the port of the node that lives, to the only task that listens.
    let listener = listen(&there[1], 80).await;
    let mut port = connect(&of_host(&client), (swarm.hosts[0].address(), 8080).into(), &listener).await;
    for ends in [&mut asks, &mut asked, &mut lives, &mut port] {
        ends.exchange().expect("all is well");
    }

    let asks_waits = waiting(asks.client.try_clone().expect("clone"));
    let asked_waits = waiting(asked.server.try_clone().expect("clone"));
    let port_waits = waiting(port.client.try_clone().expect("clone"));
    swarm.lab.cut(&swarm.hosts[1]).await.expect("cut");
    let kind = |waits: std::thread::JoinHandle<io::Result<usize>>| async move {
        let ended = tokio::task::spawn_blocking(move || waits.join().expect("no panic")).await.expect("no panic");
        ended.expect_err("an error, not an orderly end").kind()
    };
    assert_eq!(kind(asks_waits).await, ErrorKind::ConnectionAborted, "a client here whose server died");
    assert_eq!(kind(asked_waits).await, ErrorKind::ConnectionAborted, "a server here whose client died");
    assert_eq!(kind(port_waits).await, ErrorKind::ConnectionReset, "a client of the port");
    lives.exchange().expect("a connection between those that live goes on");
    let nodes = get(&swarm.hosts[0], "/nodes").await;
    let down = nodes.as_array().expect("nodes").iter().filter(|n| n["Status"]["State"] == "down").count();
    assert_eq!(down, 1, "not before the node is down: {nodes:#}");
    client.stop().await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_order_keeps_its_connections_to_the_end() {
    let swarm = swarm("pk", 2, "").await;
    let [here, there] = idle(&swarm).await;
    let mut all = [
        between(&here[0], &there[0], 9000).await,
        between(&there[0], &here[0], 9001).await,
        between(&here[0], &here[1], 9002).await,
    ];
    let (kept, drained): (Vec<&str>, Vec<&str>) = (ids(&here), ids(&there));
    swarm.hosts[0].docker_run("node update --availability drain n2").await.expect("drain");
    for (what, gone) in [("drained", &drained), ("scaled down", &kept)] {
        if what == "scaled down" {
            scale(&swarm, "idle", 0).await;
        }
        for host in &swarm.hosts {
            within(30, what, || async {
                let known = super::listens::known(host).await?;
                anyhow::ensure!(!gone.iter().any(|id| known.contains_key(*id)), "{known:?}");
                Ok(())
            })
            .await;
        }
        for ends in &mut all {
            ends.exchange().unwrap_or_else(|e| panic!("after it was {what}: {e}"));
        }
    }
    swarm.stop().await;
}

fn ids(places: &[Place]) -> Vec<&str> {
    places.iter().map(|place| place.task.as_str()).collect()
}
