//! Published ports of whole swarms with real packets: every protocol and family on every node, host-mode ports, access
//! lists, dead nodes, and removal of tasks without a lost request.

mod allow;
mod dead;
mod edge;
mod host_mode;
pub mod listens;
pub mod order;

use super::load::*;
use super::swarm::kit::*;
use serde_json::{Value, json};
use skep::http::HttpReply;
use skep::lab::{Host, WHOAMI_IMAGE};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// A client host, with an address of each family as [`dual_stack`] adds them.
pub async fn client(swarm: &Swarm) -> Host {
    let host = swarm.lab.host("client", 9).await.expect("client");
    v6(&host, 9).await;
    host
}

/// Adds an IPv6 address to every host.
pub async fn dual_stack(swarm: &Swarm) {
    for (i, host) in swarm.hosts.iter().enumerate() {
        v6(host, u16::try_from(i).expect("few") + 1).await;
    }
}

async fn v6(host: &Host, number: u16) {
    host.run(&format!("ip addr add {}/64 dev eth0 nodad", v6_of(number))).await.expect("an IPv6 address");
}

fn v6_of(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number)
}

/// Both addresses of every host.
pub fn addresses(swarm: &Swarm) -> Vec<IpAddr> {
    let both = |(number, host): (u16, &Host)| [IpAddr::V4(host.address()), IpAddr::V6(v6_of(number))];
    (1..).zip(&swarm.hosts).flat_map(both).collect()
}

pub async fn create(swarm: &Swarm, name: &str, replicas: usize, ports: Value) {
    let spec = json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 } },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "EndpointSpec": { "Ports": ports },
    });
    ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
}

/// Scales without waiting.
pub async fn scale(swarm: &Swarm, name: &str, replicas: usize) {
    ok(&try_to_scale(swarm, name, replicas).await);
}

/// As [`scale`], with the manager's reply: it refuses if the service was changed at the same time.
pub async fn try_to_scale(swarm: &Swarm, name: &str, replicas: usize) -> HttpReply {
    let service = get(&swarm.hosts[0], &format!("/services/{name}")).await;
    let mut spec = service["Spec"].clone();
    spec["Mode"]["Replicated"]["Replicas"] = json!(replicas);
    post(&swarm.hosts[0], &format!("/services/{name}/update?version={}", service["Version"]["Index"]), &spec).await
}

/// A UDP server inside a task's container, on the wildcard address: it answers with the task's id, the client's address as
/// it sees it, and the payload. Ends with the process.
pub async fn echo(swarm: &Swarm, task: &Value, port: u16) {
    let bind = move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound in the container");
    let socket = inside(of_task(swarm, task).await, bind).await;
    let id = task["ID"].as_str().expect("id").to_owned();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{id} {peer} ").into_bytes();
            answer.extend(&buffer[..len]);
            let _ = socket.send_to(&answer, peer);
        }
    });
}

/// One datagram and its answer: the task's id, the client's address as the task sees it, the payload.
pub async fn ask_udp(from: &Host, to: SocketAddr, payload: Vec<u8>) -> anyhow::Result<(String, String, Vec<u8>)> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let answer: std::io::Result<Vec<u8>> = inside(of_host(from), move || {
        let socket = UdpSocket::bind((any, 0))?;
        // A connected socket receives no answers from another address.
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send(&payload)?;
        let mut buffer = vec![0; 65_536];
        let len = socket.recv(&mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    })
    .await;
    let answer = answer.map_err(|e| anyhow::anyhow!("{to}: {e}"))?;
    let mut parts = answer.splitn(3, |b| *b == b' ');
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (task, client) = (text(), text());
    Ok((task, client, parts.next().unwrap_or_default().to_vec()))
}
