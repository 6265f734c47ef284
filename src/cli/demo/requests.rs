//! The demo's requests: calls of the Docker API, and HTTP requests of the client to published ports.

use crate::datapath::netns;
use crate::http::UnixClient;
use crate::lab::Host;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

/// Time-out of a connection, and of a read from it.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Client of the Docker API of the host's skep.
pub(super) fn api(node: &Host) -> UnixClient {
    UnixClient::new(node.skep_socket())
}

/// POST with a JSON body. Returns the reply's body, null if it has none.
pub(super) async fn post(node: &Host, target: &str, body: &Value) -> anyhow::Result<Value> {
    let reply = api(node).request("POST", target, Some(body)).await?;
    reply.ok().with_context(|| format!("{}: POST {target}", node.name()))?;
    Ok(serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
}

/// GET; returns the reply's body.
pub(super) async fn get(node: &Host, target: &str) -> anyhow::Result<Value> {
    api(node).get(target).await?.json().with_context(|| format!("{}: GET {target}", node.name()))
}

/// Lets the node leave the swarm: skep removes what it has set up.
pub(super) async fn leave(node: &Host) -> anyhow::Result<()> {
    post(node, "/swarm/leave?wait=1&force=1", &json!({})).await.map(drop)
}

/// The node object with this host name.
pub(super) async fn node_named(manager: &Host, name: &str) -> anyhow::Result<Value> {
    let nodes = get(manager, "/nodes").await?;
    let all = nodes.as_array().context("GET /nodes returned no list")?;
    all.iter().find(|n| n["Description"]["Hostname"] == name).cloned().with_context(|| format!("no node {name}"))
}

/// Sets a node's availability; again if the node was changed between read and write.
pub(super) async fn set_availability(manager: &Host, name: &str, availability: &str) -> anyhow::Result<()> {
    let mut last = None;
    for _ in 0..10 {
        let node = node_named(manager, name).await?;
        let mut spec = node["Spec"].clone();
        spec["Availability"] = json!(availability);
        let target = format!("/nodes/{}/update?version={}", node["ID"].as_str().unwrap_or_default(), node["Version"]["Index"]);
        match post(manager, &target, &spec).await {
            Ok(_) => return Ok(()),
            Err(error) if format!("{error:#}").contains("out of sequence") => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no attempt was made")))
}

/// Running tasks of the service per host name.
pub(super) async fn running(manager: &Host, service: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    let filter = format!("%7B%22service%22%3A%5B%22{service}%22%5D%2C%22desired-state%22%3A%5B%22running%22%5D%7D");
    let tasks = get(manager, &format!("/tasks?filters={filter}")).await?;
    let nodes = get(manager, "/nodes").await?;
    let name = |id: &Value| {
        let found = nodes.as_array().into_iter().flatten().find(|n| n["ID"] == *id);
        found.and_then(|n| n["Description"]["Hostname"].as_str()).unwrap_or("?").to_owned()
    };
    let mut count = BTreeMap::new();
    for task in tasks.as_array().into_iter().flatten().filter(|t| t["Status"]["State"] == "running") {
        *count.entry(name(&task["NodeID"])).or_insert(0) += 1;
    }
    Ok(count)
}

/// Answers to the requests to a port.
#[derive(Default, Debug)]
pub(super) struct Answers {
    /// Number of answers, by the backend's host name.
    pub by_backend: BTreeMap<String, usize>,
    /// Client addresses that the backends saw.
    pub clients: BTreeSet<String>,
    /// Requests that were not answered.
    pub failed: usize,
}

/// Sends requests for a site from the client to a port of a host, one after the other, each on a new connection.
pub(super) async fn send_requests(
    client: &Host,
    address: std::net::Ipv4Addr,
    port: u16,
    site: &str,
    times: usize,
) -> anyhow::Result<Answers> {
    let site = site.to_owned();
    let namespace =
        std::fs::File::open(format!("/proc/{}/ns/net", client.pid())).context("the client's namespaces do not exist any more")?;
    tokio::task::spawn_blocking(move || {
        let result = netns::run(namespace.as_fd(), || {
            let mut answers = Answers::default();
            for _ in 0..times {
                match fetch(SocketAddr::from((address, port)), &site) {
                    Ok((backend, client)) => {
                        *answers.by_backend.entry(backend).or_insert(0) += 1;
                        answers.clients.insert(client);
                    }
                    Err(_) => answers.failed += 1,
                }
            }
            answers
        });
        result.context("cannot enter the client's network namespace")
    })
    .await?
}

/// One HTTP request. Returns the first two words of the answer's body: the backend's host name, and the client address that
/// it saw.
fn fetch(target: SocketAddr, site: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {site}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let mut words =
        body.filter(|_| answer.starts_with("HTTP/1.") && answer.contains(" 200 ")).into_iter().flat_map(str::split_whitespace);
    let parsed = words.next().map(|backend| {
        // A server on an IPv6 socket sees IPv4 clients as ::ffff:192.0.2.1, some in brackets.
        let client = words.next().unwrap_or_default().trim_matches(['[', ']']).trim_start_matches("::ffff:");
        (backend.to_owned(), client.to_owned())
    });
    parsed.ok_or_else(|| std::io::Error::other(format!("not an answer: {answer:?}")))
}
