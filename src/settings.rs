//! The daemon's settings: defaults, then the file, then `SKEP_…` variables, then flags. `config/skep.toml` shows every
//! key; a test compares it with [`Settings::default`].

use anyhow::Context as _;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every key, with its default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What lives longer than a boot: identity, keys, raft log, ledger.
    pub data_dir: PathBuf,
    /// Sockets and the pin of the mesh namespace.
    pub run_dir: PathBuf,
    /// Docker Engine.
    pub engine: String,
    /// Where the engine looks for plugins.
    pub plugin_dir: PathBuf,
    /// Filter of the log.
    pub log: String,
    /// `auto` (kernel WireGuard where there is one), `kernel` or `process`.
    pub tunnel: TunnelPlane,
    /// `auto` (eBPF where the kernel takes it) or `off`.
    #[serde(alias = "fast_plane")]
    pub ebpf_datapath: EbpfMode,
    /// MTU of the path between nodes; the tunnel's is 80 less.
    pub path_mtu: u32,
    /// A task that mounts the engine's socket gets skep's in its place.
    pub replace_engine_socket: bool,
    /// Where the host's resolvers are named.
    pub resolv_conf: PathBuf,
    /// Published ports in user space.
    pub ports: PortSettings,
    /// The name server of containers.
    pub dns: NameSettings,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// The leader's loops.
    pub manager: ManagerTimeouts,
    /// Raft's own.
    pub raft: RaftSettings,
}

/// Which WireGuard carries the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelPlane {
    /// The kernel's where there is one, else the process.
    #[default]
    Auto,
    /// The kernel's; an error where there is none.
    Kernel,
    /// `skep tunnel`.
    Process,
}

/// Bounds of the published ports in user space. One port gets half of each at most, so that none can take all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortSettings {
    /// TCP connections carried at one time; further clients wait in the kernel's backlog. Each takes two descriptors.
    pub max_connections: usize,
    /// UDP flows (a client's datagrams to one port); when full the longest idle one makes room.
    pub max_flows: usize,
    /// Without a datagram in either direction for so long a UDP flow is over, in milliseconds.
    pub udp_idle_ms: u64,
}

impl Default for PortSettings {
    fn default() -> Self {
        Self { max_connections: 16_384, max_flows: 16_384, udp_idle_ms: 60_000 }
    }
}

/// Bounds of questions for names that are not the cluster's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NameSettings {
    /// How long one of the host's resolvers may take, in milliseconds.
    pub timeout_ms: u64,
    /// Questions under way at one time, an eighth of it for one container.
    pub max_in_flight: usize,
}

impl Default for NameSettings {
    fn default() -> Self {
        Self { timeout_ms: 1500, max_in_flight: 1024 }
    }
}

/// Whether the kernel carries virtual addresses and published ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EbpfMode {
    /// Where the kernel can; elsewhere the userspace datapath carries them, and `skep status` says why.
    #[default]
    Auto,
    /// The userspace datapath carries them.
    Off,
}

/// Time-outs, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Between heartbeats of a node.
    pub heartbeat_ms: u64,
    /// Without a heartbeat: the node is down.
    pub node_down_ms: u64,
    /// Of a join, the proof of the UDP way included.
    pub join_ms: u64,
    /// Of a write that no majority answers.
    pub propose_ms: u64,
    /// Of the network at shut-down.
    pub shutdown_ms: u64,
    /// Between reconciliations without a change.
    pub reconcile_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { heartbeat_ms: 500, node_down_ms: 2000, join_ms: 15_000, propose_ms: 20_000, shutdown_ms: 5000, reconcile_ms: 5000 }
    }
}

impl Timeouts {
    /// `join_ms` as a duration.
    pub fn join(&self) -> Duration {
        Duration::from_millis(self.join_ms)
    }
}

/// Timeouts of the leader's loops. [`Timeouts`] has those that nodes share with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerTimeouts {
    /// Time that a node has from its admission to its first session, in milliseconds. Longer than a join may take.
    pub join_grace_ms: u64,
    /// Longest time that a replacement waits for its predecessor to stop, in milliseconds.
    pub replace_wait_ms: u64,
    /// Longest time that the stop of a task is held back while nodes still send new traffic to it, in milliseconds.
    pub stop_hold_ms: u64,
    /// Tasks of a node are orphaned after it was down for this long, in seconds.
    pub orphan_after_s: u64,
}

impl Default for ManagerTimeouts {
    fn default() -> Self {
        Self { join_grace_ms: 20_000, replace_wait_ms: 60_000, stop_hold_ms: 5000, orphan_after_s: 86_400 }
    }
}

/// Raft's clock and log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftSettings {
    /// Length of a tick, in milliseconds.
    pub tick_ms: u64,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Fewest ticks without a leader before an election.
    pub election_ticks_min: usize,
    /// Most ticks.
    pub election_ticks_max: usize,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot for slow managers.
    pub keep_entries: u64,
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            heartbeat_ticks: 2,
            election_ticks_min: 10,
            election_ticks_max: 20,
            snapshot_every: 10_000,
            keep_entries: 500,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/skep".into(),
            run_dir: "/run/skep".into(),
            engine: "unix:///var/run/docker.sock".to_owned(),
            plugin_dir: "/run/docker/plugins".into(),
            log: "info".to_owned(),
            tunnel: TunnelPlane::Auto,
            ebpf_datapath: EbpfMode::Auto,
            path_mtu: 1500,
            replace_engine_socket: true,
            resolv_conf: "/etc/resolv.conf".into(),
            ports: PortSettings::default(),
            dns: NameSettings::default(),
            timeouts: Timeouts::default(),
            manager: ManagerTimeouts::default(),
            raft: RaftSettings::default(),
        }
    }
}

/// The file that is read if none is named.
pub const DEFAULT_FILE: &str = "/etc/skep/skep.toml";

impl Settings {
    /// Reads a file; the default one may be missing.
    ///
    /// # Errors
    /// The file cannot be read, or has a key that is not known or not of the right kind.
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file.is_none() => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read the settings file {}", path.display())),
        };
        toml::from_str(&text).with_context(|| format!("the settings file {} is not right", path.display()))
    }

    /// Path of the engine's socket.
    ///
    /// # Errors
    /// The engine is not named by a unix socket.
    pub fn engine_socket(&self) -> anyhow::Result<PathBuf> {
        self.engine.strip_prefix("unix://").map(PathBuf::from).with_context(|| {
            format!(
                "engine is {:?}, but skep stands beside its engine: name a unix socket, as unix:///var/run/docker.sock",
                self.engine
            )
        })
    }
    /// The Docker API's socket.
    pub fn docker_socket(&self) -> PathBuf {
        self.run_dir.join("docker.sock")
    }
    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
    /// The driver's socket.
    pub fn driver_socket(&self) -> PathBuf {
        self.plugin_dir.join("skep.sock")
    }
    /// Pin of the mesh namespace.
    pub fn mesh_pin(&self) -> PathBuf {
        self.run_dir.join("mesh")
    }
    /// MTU of the tunnel.
    pub fn tunnel_mtu(&self) -> u32 {
        self.path_mtu.saturating_sub(crate::model::mesh::TUNNEL_OVERHEAD)
    }
}

/// Default address pools when none is given.
pub fn default_pools() -> Vec<Ipv4Net> {
    vec![crate::model::mesh::DEFAULT_POOL]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_config_shows_every_key_with_its_default() {
        let text = include_str!("../config/skep.toml");
        assert_eq!(toml::from_str::<Settings>(text).expect("config/skep.toml parses"), Settings::default());
        let shown: toml::Table = text.parse().expect("table");
        let all = toml::Table::try_from(Settings::default()).expect("table");
        assert_eq!(keys(&shown), keys(&all), "config/skep.toml misses a key or has one too many");
    }

    fn keys(table: &toml::Table) -> Vec<String> {
        let mut keys = Vec::new();
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => keys.extend(self::keys(inner).into_iter().map(|k| format!("{name}.{k}"))),
                _ => keys.push(name.clone()),
            }
        }
        keys.sort();
        keys
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = toml::from_str::<Settings>("data_dri = \"/x\"").expect_err("refused");
        assert!(error.to_string().contains("data_dri"), "{error}");
    }
}
