//! Reads the facts: everything at once, each with a bound, so that the doctor answers although a disk or the engine hangs.

mod bounds;
mod disk;
mod host;
mod network;

use self::bounds::{apart, bounded};
use super::facts::{DockerFacts, Facts, HostFacts, Ipv6, NodeFacts};
use crate::clock::{Clock as _, SystemClock};
use crate::http::UnixClient;
use crate::settings::Settings;
use crate::status::Status;
use serde_json::Value;
use std::path::Path;

/// Reads everything. `settings`: those that the daemon has, or why they are refused. Takes a little more than twice the bound of one fact.
pub async fn facts(settings: Settings, refused: Option<String>) -> Facts {
    let has_membership = settings.data_dir.join("node.json").exists();
    let daemon_socket = settings.admin_socket();
    let (host, disk, engine, daemon) = tokio::join!(
        apart({
            let resolv_conf = settings.resolv_conf.clone();
            move || host::facts(&resolv_conf)
        }),
        apart({
            let data_dir = settings.data_dir.clone();
            move || disk::facts(&data_dir)
        }),
        bounded(engine(&settings)),
        bounded(daemon(&daemon_socket)),
    );
    // What the daemon itself holds is not tried.
    let (network, nodes) =
        tokio::join!(network::facts(daemon.is_ok(), has_membership), bounded(nodes(settings.docker_socket(), daemon.is_ok())),);
    Facts {
        settings: refused.map_or(Ok(()), Err),
        host: host.unwrap_or_else(unknown_host),
        disk: disk.and_then(|disk| disk),
        engine,
        network,
        has_membership,
        daemon,
        now: SystemClock.now(),
        nodes: nodes.unwrap_or_default(),
    }
}

/// A host that could not be looked at in time.
fn unknown_host(error: String) -> HostFacts {
    HostFacts {
        is_root: rustix::process::geteuid().is_root(),
        kernel: String::new(),
        ipv6: Ipv6::Enabled,
        wireguard: Err(error.clone()),
        tun: true,
        ebpf: Err(error.clone()),
        cgroup2: false,
        clock: Err(error),
        memory_available: u64::MAX,
        conntrack: None,
        resolvers: 1,
    }
}

async fn engine(settings: &Settings) -> anyhow::Result<DockerFacts> {
    let socket = settings.engine_socket()?;
    let info: Value = UnixClient::new(&socket).get("/info").await?.json()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let root = text(&info["DockerRootDir"]);
    Ok(DockerFacts {
        url: settings.engine.clone(),
        version: text(&info["ServerVersion"]),
        swarm: text(&info["Swarm"]["LocalNodeState"]),
        is_rootless: info["SecurityOptions"].as_array().into_iter().flatten().any(|option| text(option).contains("rootless")),
        free: disk::free(Path::new(&root)).ok(),
    })
}

async fn daemon(socket: &Path) -> anyhow::Result<Status> {
    UnixClient::new(socket).get("/status").await?.json()
}

/// The nodes as this manager's API lists them; an error on a worker.
async fn nodes(socket: std::path::PathBuf, has_daemon: bool) -> anyhow::Result<Vec<NodeFacts>> {
    if !has_daemon {
        return Ok(Vec::new());
    }
    let nodes: Vec<Value> = UnixClient::new(socket).get("/nodes").await?.json()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let labels = |value: &Value| {
        let pairs = value.as_object().into_iter().flatten();
        pairs.map(|(key, value)| (key.clone(), text(value))).collect::<Vec<_>>()
    };
    Ok(nodes
        .iter()
        .map(|node| NodeFacts {
            hostname: text(&node["Description"]["Hostname"]),
            is_manager: node["Spec"]["Role"] == "manager",
            reachability: text(&node["ManagerStatus"]["Reachability"]),
            state: text(&node["Status"]["State"]),
            labels: labels(&node["Description"]["Engine"]["Labels"]).into_iter().chain(labels(&node["Spec"]["Labels"])).collect(),
        })
        .collect())
}
