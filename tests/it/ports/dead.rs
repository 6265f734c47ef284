//! A node that dies: connections to its containers get an error at once. Connections of a node that is drained, and of tasks
//! that are scaled down, last as long as their containers.

use super::*;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

/// A task's container and its address on the network `back`.
struct TaskContainer {
    task: String,
    namespace: File,
    address: Ipv4Addr,
}

/// Both ends of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

/// Idle tasks on `back`, two on each of two hosts, by host.
async fn idle(swarm: &Swarm) -> [Vec<TaskContainer>; 2] {
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let idle = json!({
        "Networks": [{ "Target": "back" }],
        // Process 1 ignores the stop signal: it lives to the end of its grace.
        "ContainerSpec": { "Command": ["/bin/busybox", "sleep", "1000"], "StopGracePeriod": 60_000_000_000_u64 },
    });
    swarm.service("idle", 4, Some(8080), idle).await;
    let mut containers = [Vec::new(), Vec::new()];
    for task in swarm.running("idle", 4).await {
        let on = task["NetworksAttachments"].as_array().expect("networks").iter();
        let back = on.clone().find(|n| n["Network"]["Spec"]["Name"] == "back").expect("an address on the network");
        let address = back["Addresses"][0].as_str().and_then(|a| a.split('/').next()?.parse().ok()).expect("address");
        let id = task["ID"].as_str().expect("id").to_owned();
        containers[index_of(swarm, &task).await].push(TaskContainer {
            task: id,
            namespace: of_task(swarm, &task).await,
            address,
        });
    }
    assert!(containers.iter().all(|host| host.len() == 2), "two on each host");
    containers
}

async fn listen(at: &TaskContainer, port: u16) -> TcpListener {
    let namespace = at.namespace.try_clone().expect("clone");
    inside(namespace, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound in the container")).await
}

/// Connects from a namespace to an address behind which the listener is.
async fn connect(from: &File, to: SocketAddr, listener: &TcpListener) -> Connection {
    let (from, listener) = (from.try_clone().expect("clone"), listener.try_clone().expect("clone"));
    inside(from, move || {
        let client = TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap_or_else(|e| panic!("{to}: {e}"));
        let (server, _) = listener.accept().expect("accepts");
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_mins(1))).expect("a bound for the test");
        }
        Connection { client, server }
    })
    .await
}

async fn between(from: &TaskContainer, to: &TaskContainer, port: u16) -> Connection {
    let listener = listen(to, port).await;
    connect(&from.namespace, SocketAddr::new(to.address.into(), port), &listener).await
}

impl Connection {
    /// Sends a byte and returns it.
    fn exchange(&mut self) -> io::Result<()> {
        let mut byte = [7];
        self.client.write_all(&byte)?;
        self.server.read_exact(&mut byte)?;
        self.server.write_all(&byte)?;
        self.client.read_exact(&mut byte)
    }
}

/// Reads on a thread; no byte is ever sent.
fn read_on_thread(mut end: TcpStream) -> std::thread::JoinHandle<io::Result<usize>> {
    std::thread::spawn(move || end.read(&mut [0; 8]))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_dead_node_get_an_error_at_once() {
    let swarm = swarm("pd", 2, "").await;
    let client = client(&swarm).await;
    let [first, second] = idle(&swarm).await;
    let mut outgoing = between(&first[0], &second[0], 9000).await;
    let mut incoming = between(&second[0], &first[0], 9001).await;
    let mut local = between(&first[0], &first[1], 9002).await;
    // Through the first node's published port, to the only task that listens.
    let listener = listen(&second[1], 80).await;
    let mut published = connect(&of_host(&client), (swarm.hosts[0].address(), 8080).into(), &listener).await;
    for connection in [&mut outgoing, &mut incoming, &mut local, &mut published] {
        connection.exchange().expect("both nodes are up");
    }

    let outgoing_read = read_on_thread(outgoing.client.try_clone().expect("clone"));
    let incoming_read = read_on_thread(incoming.server.try_clone().expect("clone"));
    let published_read = read_on_thread(published.client.try_clone().expect("clone"));
    swarm.lab.cut(&swarm.hosts[1]).await.expect("cut");
    let error_kind = |read: std::thread::JoinHandle<io::Result<usize>>| async move {
        let ended = tokio::task::spawn_blocking(move || read.join().expect("no panic")).await.expect("no panic");
        ended.expect_err("an error, not an end of the stream").kind()
    };
    assert_eq!(error_kind(outgoing_read).await, ErrorKind::ConnectionAborted, "a client whose server died");
    assert_eq!(error_kind(incoming_read).await, ErrorKind::ConnectionAborted, "a server whose client died");
    assert_eq!(error_kind(published_read).await, ErrorKind::ConnectionReset, "a client of the published port");
    local.exchange().expect("a connection on the node that is up continues");
    let nodes = get(&swarm.hosts[0], "/nodes").await;
    let down = nodes.as_array().expect("nodes").iter().filter(|n| n["Status"]["State"] == "down").count();
    assert_eq!(down, 1, "not before the node is down: {nodes:#}");
    client.stop().await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_drained_and_removed_tasks_last_until_the_container_ends() {
    let swarm = swarm("pk", 2, "").await;
    let [first, second] = idle(&swarm).await;
    let mut all = [
        between(&first[0], &second[0], 9000).await,
        between(&second[0], &first[0], 9001).await,
        between(&first[0], &first[1], 9002).await,
    ];
    let (scaled_down, drained): (Vec<&str>, Vec<&str>) = (ids(&first), ids(&second));
    swarm.hosts[0].docker_run("node update --availability drain n2").await.expect("drain");
    for (label, removed) in [("drained", &drained), ("scaled down", &scaled_down)] {
        if label == "scaled down" {
            scale(&swarm, "idle", 0).await;
        }
        for host in &swarm.hosts {
            within(30, label, || async {
                let known = super::listens::known_backends(host).await?;
                anyhow::ensure!(!removed.iter().any(|id| known.contains_key(*id)), "{known:?}");
                Ok(())
            })
            .await;
        }
        for connection in &mut all {
            connection.exchange().unwrap_or_else(|e| panic!("after the tasks were {label}: {e}"));
        }
    }
    swarm.stop().await;
}

fn ids(containers: &[TaskContainer]) -> Vec<&str> {
    containers.iter().map(|container| container.task.as_str()).collect()
}
