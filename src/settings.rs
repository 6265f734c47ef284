//! The daemon's settings: defaults, then the file, then `SKEP_…` variables, then flags. `config/skep.toml` shows every
//! key; a test compares it with [`Settings::default`]. [`Settings::validate`] checks values against each other.

mod validate;

pub use validate::InvalidSetting;

use anyhow::Context as _;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every key, with its default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of what outlives a boot: identity, keys, raft log, ledger.
    pub data_dir: PathBuf,
    /// Directory of the sockets and of the pin of the mesh namespace.
    pub run_dir: PathBuf,
    /// Docker Engine, as `unix://PATH`.
    pub engine: String,
    /// Directory in which the engine discovers plugins.
    pub plugin_dir: PathBuf,
    /// Filter of the log, in the syntax of `tracing`'s `EnvFilter`.
    pub log: String,
    pub tunnel: TunnelMode,
    /// Was `fast_plane` until 0.1; the old key is still read.
    #[serde(alias = "fast_plane")]
    pub ebpf_datapath: EbpfMode,
    /// MTU of the paths between nodes, in bytes; the tunnel's is [`crate::model::mesh::TUNNEL_OVERHEAD`] less. 0: each path's
    /// is read from the host's routes and devices.
    pub path_mtu: u32,
    /// A task that mounts the engine's socket gets skep's in its place.
    pub replace_engine_socket: bool,
    /// Group, by name or number, whose members may use the Docker API's socket besides root; empty for root's.
    pub socket_group: String,
    /// File that lists the host's resolvers.
    pub resolv_conf: PathBuf,
    pub api: ApiSettings,
    pub access_point: AccessPointSettings,
    pub ports: PortSettings,
    pub ebpf: EbpfSettings,
    pub http: HttpSettings,
    pub acme: AcmeDaemonSettings,
    pub dns: ForwardSettings,
    pub timeouts: Timeouts,
    pub manager: ManagerTimeouts,
    pub raft: RaftTiming,
}

/// Which WireGuard implementation carries the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelMode {
    /// The kernel's if it has one, otherwise `skep tunnel`.
    #[default]
    Auto,
    /// The kernel's; an error if it has none.
    Kernel,
    /// `skep tunnel`.
    Process,
}

/// Whether the kernel serves virtual addresses and published ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EbpfMode {
    /// If the kernel can; otherwise the userspace datapath serves them, and `skep status` reports why.
    #[default]
    Auto,
    /// The userspace datapath serves them.
    Off,
}

/// The Docker API over TCP, which is with mutual TLS or not at all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSettings {
    /// As `tcp://ADDRESS:PORT`; empty: no TCP.
    pub listen: String,
    /// PEM file of the CAs whose clients are let in, of this API and of the access point.
    pub tls_ca: PathBuf,
    /// PEM file of the server's certificate, with its chain.
    pub tls_certificate: PathBuf,
    /// PEM file of the certificate's key.
    pub tls_key: PathBuf,
}

/// One Docker API for the engines of all nodes, on managers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessPointSettings {
    /// Serve it: its clients are as mighty as root on every node that does not refuse.
    pub enabled: bool,
    /// As `tcp://ADDRESS:PORT`, with the TLS files of [`ApiSettings`]; empty: no TCP.
    pub listen: String,
    /// Managers may use this node's Docker API. They can run any container on a node anyway.
    pub relay: bool,
    pub strategy: PlacementStrategy,
    /// So much more than a node's CPUs and memory may be reserved, as a part of them.
    pub overcommit: f64,
}

/// Which of the nodes that fit gets a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlacementStrategy {
    /// The least reserved, then the one with the fewest containers.
    #[default]
    Spread,
    /// The most reserved.
    Binpack,
    Random,
}

impl PlacementStrategy {
    /// `spread`, `binpack` or `random`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Binpack => "binpack",
            Self::Random => "random",
        }
    }
}

impl Default for AccessPointSettings {
    fn default() -> Self {
        Self { enabled: false, listen: String::new(), relay: true, strategy: PlacementStrategy::Spread, overcommit: 0.05 }
    }
}

/// Bounds of the userspace datapath. One port gets half of each at most, so that no port can exhaust them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortSettings {
    /// Concurrent TCP connections; further clients wait in the kernel's backlog. Each uses two file descriptors.
    pub max_connections: usize,
    /// Concurrent UDP flows (a client's datagrams to one port); when it is reached the longest idle flow is evicted.
    pub max_flows: usize,
    /// A UDP flow ends after so many milliseconds without a datagram in either direction.
    pub udp_idle_ms: u64,
}

impl Default for PortSettings {
    fn default() -> Self {
        Self { max_connections: 16_384, max_flows: 16_384, udp_idle_ms: 60_000 }
    }
}

/// Bounds of the eBPF datapath.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EbpfSettings {
    /// Established TCP connections by published ports that no other flow can push out. 0: by the machine's memory, 16,384 to
    /// 262,144. Further ones work, until newer flows push them out.
    pub max_tcp_flows: u32,
    /// An established TCP connection is forgotten after so many seconds without a packet.
    pub tcp_idle_s: u64,
}

impl Default for EbpfSettings {
    fn default() -> Self {
        Self { max_tcp_flows: 0, tcp_idle_s: 432_000 }
    }
}

/// HTTP ingress of services with labels that begin with `skep.http`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Port of HTTP without TLS; 0: none.
    pub port: u16,
    /// Port of HTTP with TLS; 0: none.
    pub tls_port: u16,
    /// Each request is a line on the daemon's standard output.
    pub access_log: AccessLog,
    /// Open connections of one client (an IPv4 address, an IPv6 /64); 0: no bound.
    pub client_connections: u32,
    /// Time for the head of a request, and for the handshake of TLS, in milliseconds.
    pub head_timeout_ms: u64,
    /// A connection without a request is closed after so many milliseconds.
    pub idle_timeout_ms: u64,
    /// Time for the body of a request in milliseconds, beside that of its bytes at 500 bytes/s.
    pub body_timeout_ms: u64,
    /// Connections from these prefixes begin with a PROXY header.
    pub proxy_protocol: Vec<IpNet>,
    /// Proxies in front whose `X-Forwarded-*` is true.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            port: 80,
            tls_port: 443,
            access_log: AccessLog::Switch(false),
            client_connections: 1024,
            head_timeout_ms: 20_000,
            idle_timeout_ms: 60_000,
            body_timeout_ms: 60_000,
            proxy_protocol: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

/// `true` is JSON, as it was before there was another format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AccessLog {
    Switch(bool),
    Format(AccessLogFormat),
}

/// Format of a line of the access log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    Json,
    Combined,
}

/// How this manager proves to a certificate authority that a name is the cluster's, beside what every node serves.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcmeDaemonSettings {
    /// Program that sets TXT records; empty: none, and no certificates for wildcards.
    pub dns_hook: PathBuf,
}

/// Bounds of queries for names outside the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardSettings {
    /// Time-out of one of the host's resolvers, in milliseconds.
    pub timeout_ms: u64,
    /// Concurrent queries; an eighth of them for one container.
    pub max_in_flight: usize,
}

impl Default for ForwardSettings {
    fn default() -> Self {
        Self { timeout_ms: 1500, max_in_flight: 1024 }
    }
}

/// Intervals and time-outs, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Interval of a node's heartbeats.
    pub heartbeat_ms: u64,
    /// A node is down after so long without a heartbeat.
    pub node_down_ms: u64,
    /// Of a join, including the proof that UDP packets arrive.
    pub join_ms: u64,
    /// Of a write that no majority of the managers confirms.
    pub propose_ms: u64,
    /// Of the network's part of the daemon's shutdown.
    pub shutdown_ms: u64,
    /// Interval of reconciliations without a change.
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
    /// Time that a node has to open a session with a manager that has just become the leader, in milliseconds.
    pub takeover_grace_ms: u64,
    /// Nodes that fall silent together, most of all and at least two, are unknown for so many milliseconds before they are
    /// down: the fault may be the manager's.
    pub disruption_hold_ms: u64,
    /// The tasks of a node that is down are kept for so many milliseconds where no replacement runs.
    pub return_window_ms: u64,
    /// Time that a node has from its admission to its first session, in milliseconds. Longer than a join may take.
    pub join_grace_ms: u64,
    /// Time that a replacement waits for its predecessor beyond the grace that it has to stop, in milliseconds.
    pub replace_wait_ms: u64,
    /// Longest time that the stop of a task is held back while nodes still send new traffic to it, in milliseconds.
    pub stop_hold_ms: u64,
    /// Time from when no node sends new traffic to a task until it is stopped, in milliseconds: packets on the way arrive, and its
    /// server accepts the connections that wait.
    pub stop_pause_ms: u64,
    /// A live node that has not applied a view for this long is waited for no longer, in milliseconds: addresses are
    /// assigned again and tasks stopped without it, and it is shown as degraded.
    pub node_lag_ms: u64,
    /// Tasks of a node are orphaned after it was down for this long, in seconds.
    pub orphan_after_s: u64,
    /// After the last manager was upgraded, an older skep can be installed again for this long, in seconds. Then the managers
    /// write what the older one cannot read. 0: at once.
    pub rollback_window_s: u64,
    /// Life of the certificates that this manager issues, in seconds; 0: the swarm's (`--cert-expiry`, an hour at least).
    /// For tests, which cannot wait an hour for a renewal.
    pub certificate_life_s: u64,
}

impl Default for ManagerTimeouts {
    fn default() -> Self {
        Self {
            takeover_grace_ms: 12_000,
            disruption_hold_ms: 30_000,
            return_window_ms: 60_000,
            join_grace_ms: 20_000,
            replace_wait_ms: 60_000,
            stop_hold_ms: 5000,
            stop_pause_ms: 200,
            node_lag_ms: 30_000,
            orphan_after_s: 86_400,
            rollback_window_s: 600,
            certificate_life_s: 0,
        }
    }
}

/// Raft's clock and log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftTiming {
    /// Length of a tick, in milliseconds.
    pub tick_ms: u64,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before an election: each manager has a number of its own, above this one…
    pub election_ticks_min: usize,
    /// …and below this one.
    pub election_ticks_max: usize,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot for slow managers.
    pub keep_entries: u64,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            heartbeat_ticks: 2,
            election_ticks_min: 7,
            election_ticks_max: 14,
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
            tunnel: TunnelMode::Auto,
            ebpf_datapath: EbpfMode::Auto,
            path_mtu: 0,
            replace_engine_socket: true,
            socket_group: String::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            api: ApiSettings::default(),
            access_point: AccessPointSettings::default(),
            ports: PortSettings::default(),
            ebpf: EbpfSettings::default(),
            http: HttpSettings::default(),
            acme: AcmeDaemonSettings::default(),
            dns: ForwardSettings::default(),
            timeouts: Timeouts::default(),
            manager: ManagerTimeouts::default(),
            raft: RaftTiming::default(),
        }
    }
}

/// The file that is read if none is named.
pub const DEFAULT_FILE: &str = "/etc/skep/skep.toml";

/// A key that was renamed: (today's, the old one, which is still read).
const RENAMED: (&str, &str) = ("ebpf_datapath", "fast_plane");

impl Settings {
    /// Reads a file; the default one may be missing.
    ///
    /// # Errors
    /// The file cannot be read, or [`Settings::parse`] refuses it.
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file.is_none() => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read the settings file {}", path.display())),
        };
        Self::parse(&text).with_context(|| format!("the settings file {} is not valid", path.display()))
    }

    /// Reads the text of a settings file. Values are checked by [`Settings::validate`], once flags are applied.
    ///
    /// # Errors
    /// No TOML, a key that is unknown or of another type, or a key under both its names.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = toml::from_str(text)?;
        let (key, old) = RENAMED;
        anyhow::ensure!(
            !(table.contains_key(key) && table.contains_key(old)),
            "both `{key}` and `{old}`, its old name, are set: remove `{old}`"
        );
        Ok(toml::from_str(text)?)
    }

    /// The address of a setting `tcp://ADDRESS:PORT`.
    ///
    /// # Errors
    /// It is none.
    pub fn tcp_address(text: &str) -> anyhow::Result<SocketAddr> {
        let address = text.strip_prefix("tcp://").context("it does not begin with tcp://")?;
        address.parse().with_context(|| format!("{address} is not ADDRESS:PORT"))
    }

    /// Path of the engine's socket.
    ///
    /// # Errors
    /// `engine` is not a unix socket.
    pub fn engine_socket(&self) -> anyhow::Result<PathBuf> {
        self.engine.strip_prefix("unix://").map(PathBuf::from).with_context(|| {
            format!(
                "engine is {:?}, but skep runs on the host of its engine: set a unix socket, as unix:///var/run/docker.sock",
                self.engine
            )
        })
    }
    /// Socket of the Docker API.
    pub fn docker_socket(&self) -> PathBuf {
        self.run_dir.join("docker.sock")
    }
    /// Socket of the access point.
    pub fn access_point_socket(&self) -> PathBuf {
        self.run_dir.join("cluster.sock")
    }
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
    /// Socket of the network and IPAM driver.
    pub fn driver_socket(&self) -> PathBuf {
        self.plugin_dir.join("skep.sock")
    }
    /// Secrets and configs of the node's tasks.
    pub fn task_files(&self) -> PathBuf {
        self.run_dir.join("files")
    }
    /// Pin of the mesh namespace.
    pub fn mesh_pin(&self) -> PathBuf {
        self.run_dir.join("mesh")
    }
    /// The MTU that overrides those of the paths, in bytes.
    pub fn path_mtu(&self) -> Option<u32> {
        (self.path_mtu > 0).then_some(self.path_mtu)
    }
    /// MTU of the tunnel, in bytes, before the paths are read.
    pub fn tunnel_mtu(&self) -> u32 {
        self.path_mtu().unwrap_or(1500).saturating_sub(crate::model::mesh::TUNNEL_OVERHEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_config_shows_every_key_with_its_default() {
        let text = include_str!("../config/skep.toml");
        assert_eq!(Settings::parse(text).expect("config/skep.toml parses"), Settings::default());
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
        let error = Settings::parse("data_dri = \"/x\"").expect_err("refused");
        assert!(error.to_string().contains("data_dri"), "{error}");
    }

    #[test]
    fn the_old_name_of_the_ebpf_datapath_is_read_and_both_names_are_refused() {
        for text in ["ebpf_datapath = \"off\"", "fast_plane = \"off\""] {
            assert_eq!(Settings::parse(text).expect(text).ebpf_datapath, EbpfMode::Off, "{text}");
        }
        let error = Settings::parse("ebpf_datapath = \"off\"\nfast_plane = \"off\"").expect_err("refused").to_string();
        assert!(error.contains("both `ebpf_datapath` and `fast_plane`") && error.contains("remove `fast_plane`"), "{error}");
    }
}
