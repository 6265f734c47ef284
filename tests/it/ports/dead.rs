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

/// The container of a service that is pinned to the second node and published at 8081.
async fn pinned(swarm: &Swarm) -> TaskContainer {
    let alone = json!({
        "Name": "alone",
        "TaskTemplate": {
            "ContainerSpec": { "Image": WHOAMI_IMAGE, "Command": ["/bin/busybox", "sleep", "1000"] },
            "Placement": { "Constraints": ["node.hostname==n2"] },
        },
        "EndpointSpec": { "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8081 }] },
    });
    ok(&post(&swarm.hosts[0], "/services/create", &alone).await);
    let task = swarm.running("alone", 1).await.remove(0);
    assert_eq!(index_of(swarm, &task).await, 1);
    TaskContainer { task: String::new(), namespace: of_task(swarm, &task).await, address: Ipv4Addr::UNSPECIFIED }
}

/// A connection through the first node's port that the eBPF datapath carries: the container sees the client's own address.
async fn carried(swarm: &Swarm, client: &Host, port: u16, listener: &TcpListener) -> Connection {
    within(40, "ports on the eBPF datapath", || async {
        let ebpf = status(&swarm.hosts[0]).await["ebpf"].take();
        let serves = ebpf["ports"].as_array().is_some_and(|all| all.contains(&json!(format!("{port}/tcp"))));
        anyhow::ensure!(serves, "{ebpf:#}");
        Ok(())
    })
    .await;
    let to = SocketAddr::new(swarm.hosts[0].address().into(), port);
    within(20, "the eBPF datapath to carry a connection", || async {
        let connection = connect(&of_host(client), to, listener).await;
        let seen = connection.server.peer_addr()?;
        anyhow::ensure!(
            seen.ip() == IpAddr::V4(client.address()),
            "the container sees {seen}: the userspace datapath carries it"
        );
        Ok(connection)
    })
    .await
}

async fn is_down(swarm: &Swarm, name: &str) {
    within(30, "the node to be down", || async {
        let nodes = swarm.hosts[0].docker_run("node ls --format {{.Hostname}}|{{.Status}}").await?;
        anyhow::ensure!(nodes.contains(&format!("{name}|Down")), "{nodes}");
        Ok(())
    })
    .await;
}

/// A node is down as soon as its daemon is silent; its containers and its tunnel go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_task_s_node_has_lost_its_daemon_keeps_its_connection() {
    let mut swarm = swarm("pf", 2, "ebpf_datapath = \"auto\"\n").await;
    let client = client(&swarm).await;
    let listener = listen(&pinned(&swarm).await, 80).await;
    let mut connection = carried(&swarm, &client, 8081, &listener).await;
    connection.exchange().expect("both nodes are up");

    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    is_down(&swarm, "n2").await;
    let mut goes_on = async |when: &str| {
        // Longer than a node may take to answer, and than the pause until it is asked again.
        for round in 0..30 {
            connection.exchange().unwrap_or_else(|error| panic!("{when}, round {round}: {error}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    goes_on("without the daemon").await;
    start(&mut swarm.hosts[1]).await;
    swarm.ready(2).await;
    goes_on("with the daemon of afterwards").await;

    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    is_down(&swarm, "n2").await;
    connection.exchange().expect("the node answers");
    // It is silent only later than it was declared down.
    swarm.lab.cut(&swarm.hosts[1]).await.expect("cut");
    connection.client.write_all(b"x").expect("there is room");
    let ended = read_on_thread(connection.client.try_clone().expect("clone"));
    let ended = tokio::task::spawn_blocking(move || ended.join().expect("no panic")).await.expect("no panic");
    assert_eq!(ended.expect_err("an error, not an end of the stream").kind(), ErrorKind::ConnectionReset);
    client.stop().await;
    swarm.stop().await;
}

/// Review finding 5, on the eBPF datapath: the node of a client's task is gone. The client's node knows no connection that could be
/// reset, so the next packet is answered: by another task, or by the node itself if there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_task_s_node_is_cut_off_is_reset_with_its_next_packet() {
    let swarm = swarm("pe", 2, "ebpf_datapath = \"auto\"\n").await;
    let client = client(&swarm).await;
    let [first, second] = idle(&swarm).await;
    let alone = pinned(&swarm).await;
    let listeners = [(8080, listen(&second[0], 80).await), (8081, listen(&alone, 80).await)];
    let mut connections = Vec::new();
    for (port, listener) in &listeners {
        connections.push(carried(&swarm, &client, *port, listener).await);
    }
    // From now on a task on the client's node is in the table as well.
    let near = listen(&first[0], 80).await;
    within(20, "a second task to be served", || async {
        let known = super::listens::known_backends(&swarm.hosts[0]).await?;
        anyhow::ensure!(known.values().filter(|listens| listens.0).count() == 2, "{known:?}");
        Ok(())
    })
    .await;
    for connection in &mut connections {
        connection.exchange().expect("both nodes are up");
    }
    swarm.lab.cut(&swarm.hosts[1]).await.expect("cut");
    for connection in &mut connections {
        // Sent again and again until it is answered.
        connection.client.write_all(b"x").expect("there is room");
        let ended = read_on_thread(connection.client.try_clone().expect("clone"));
        let ended = tokio::task::spawn_blocking(move || ended.join().expect("no panic")).await.expect("no panic");
        assert_eq!(ended.expect_err("an error, not an end of the stream").kind(), ErrorKind::ConnectionReset);
    }
    let nodes = get(&swarm.hosts[0], "/nodes").await;
    let down = nodes.as_array().expect("nodes").iter().filter(|n| n["Status"]["State"] == "down").count();
    assert_eq!(down, 1, "not before the node is down: {nodes:#}");
    drop(near);
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
    // Both tasks of the node at once: a drain keeps to the parallelism of updates, and the first takes a minute to stop.
    swarm.hosts[0].docker_run("service update -d --no-resolve-image --update-parallelism 0 idle").await.expect("parallel");
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
