//! Checks of the settings' values, alone and against each other. Knows nothing of the host: whether a directory exists or
//! an engine answers shows when the daemon starts.

use super::Settings;
use crate::model::mesh::TUNNEL_OVERHEAD;
use std::path::Path;

/// Range of `path_mtu`, in bytes: the tunnel carries IPv6, whose links have at least 1280 (RFC 8200), and a device has 65535
/// at most.
const PATH_MTU: std::ops::RangeInclusive<u32> = 1280 + TUNNEL_OVERHEAD..=65_535;

/// A value that the daemon does not start with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("setting {key} is {value}: {advice}")]
pub struct InvalidSetting {
    /// As the file spells it, with its table.
    pub key: &'static str,
    pub value: String,
    /// What to set instead, and why.
    pub advice: String,
}

/// Most connections that a table is made for.
const MAX_TCP_FLOWS: u64 = 1 << 24;

impl Settings {
    /// Checks all values.
    ///
    /// # Errors
    /// The first one that is not valid.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        self.paths()?;
        if self.path_mtu().is_some_and(|mtu| !PATH_MTU.contains(&mtu)) {
            let (low, high) = PATH_MTU.into_inner();
            return Err(invalid(
                "path_mtu",
                self.path_mtu.to_string(),
                format!("set the MTU between the nodes, {low} to {high} bytes, or 0 to read it from the host's routes"),
            ));
        }
        if self.http.port == self.http.tls_port && self.http.port != 0 {
            let advice = "set another port than http.port, or 0 for none: one of them is with TLS".to_owned();
            return Err(invalid("http.tls_port", self.http.tls_port.to_string(), advice));
        }
        self.tcp()?;
        let http = &self.http;
        for (key, value) in [
            ("http.head_timeout_ms", http.head_timeout_ms),
            ("http.idle_timeout_ms", http.idle_timeout_ms),
            ("http.body_timeout_ms", http.body_timeout_ms),
        ] {
            if value < 1000 {
                return Err(invalid(key, value.to_string(), "set 1000 or more: clients are far away".to_owned()));
            }
        }
        self.bounds()?;
        let timeouts = &self.timeouts;
        if timeouts.node_down_ms <= timeouts.heartbeat_ms {
            let advice = format!(
                "set more than timeouts.heartbeat_ms ({}), some four times as much: a node that misses one heartbeat is not down",
                timeouts.heartbeat_ms
            );
            return Err(invalid("timeouts.node_down_ms", timeouts.node_down_ms.to_string(), advice));
        }
        let manager = &self.manager;
        if manager.node_lag_ms <= manager.stop_hold_ms {
            let advice = format!(
                "set more than manager.stop_hold_ms ({}), some six times as much: a node that is slow once is not degraded",
                manager.stop_hold_ms
            );
            return Err(invalid("manager.node_lag_ms", manager.node_lag_ms.to_string(), advice));
        }
        self.elections()
    }

    fn paths(&self) -> Result<(), InvalidSetting> {
        let paths: [(&'static str, &Path); 4] = [
            ("data_dir", &self.data_dir),
            ("run_dir", &self.run_dir),
            ("plugin_dir", &self.plugin_dir),
            ("resolv_conf", &self.resolv_conf),
        ];
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(invalid(
                    key,
                    format!("{:?}", path.display().to_string()),
                    "set an absolute path, one that begins with /".to_owned(),
                ));
            }
        }
        match self.engine_socket() {
            Ok(socket) if socket.is_absolute() => Ok(()),
            _ => {
                let advice = "set the unix socket of the engine on this host, as unix:///var/run/docker.sock".to_owned();
                Err(invalid("engine", format!("{:?}", self.engine), advice))
            }
        }
    }

    /// The API over TCP: an address, and the files without which there is no TCP.
    fn tcp(&self) -> Result<(), InvalidSetting> {
        let (api, access_point) = (&self.api, &self.access_point);
        let listens: [(&'static str, &str); 2] = [("api.listen", &api.listen), ("access_point.listen", &access_point.listen)];
        let files: [(&'static str, &Path); 3] =
            [("api.tls_ca", &api.tls_ca), ("api.tls_certificate", &api.tls_certificate), ("api.tls_key", &api.tls_key)];
        for (key, value) in listens.into_iter().filter(|(_, value)| !value.is_empty()) {
            if let Err(error) = Self::tcp_address(value) {
                let advice = format!("set tcp://ADDRESS:PORT, as tcp://0.0.0.0:2376, or \"\" for none: {error:#}");
                return Err(invalid(key, format!("{value:?}"), advice));
            }
            if let Some((key, path)) = files.into_iter().find(|(_, path)| !path.is_absolute()) {
                let advice = format!(
                    "set the absolute path of a PEM file: the Docker API is served over TCP with mutual TLS only, and {value} is to listen"
                );
                return Err(invalid(key, format!("{:?}", path.display().to_string()), advice));
            }
        }
        if !access_point.listen.is_empty() && !access_point.enabled {
            let advice = "set access_point.enabled to true, or remove the key".to_owned();
            return Err(invalid("access_point.listen", format!("{:?}", access_point.listen), advice));
        }
        if access_point.enabled && !access_point.relay {
            let advice = "set true, or access_point.enabled to false: what serves the access point is part of it".to_owned();
            return Err(invalid("access_point.relay", "false".to_owned(), advice));
        }
        if !(0.0..=100.0).contains(&access_point.overcommit) {
            let advice = "set 0 to 100: 0.05 lets 5 % more be reserved than a node has".to_owned();
            return Err(invalid("access_point.overcommit", access_point.overcommit.to_string(), advice));
        }
        Ok(())
    }

    /// Bounds and intervals: the smallest and the largest value with which the daemon is of use.
    fn bounds(&self) -> Result<(), InvalidSetting> {
        let (ports, dns, timeouts, manager, raft) = (&self.ports, &self.dns, &self.timeouts, &self.manager, &self.raft);
        let (minute, hour, day) = (60_000, 3_600_000, 86_400_000);
        let bounds: [(&'static str, u64, u64, u64); 32] = [
            ("ports.max_connections", ports.max_connections as u64, 1, 1 << 24),
            ("ports.max_flows", ports.max_flows as u64, 1, 1 << 24),
            ("ports.udp_idle_ms", ports.udp_idle_ms, 1, day),
            ("ebpf.max_tcp_flows", u64::from(self.ebpf.max_tcp_flows), 0, MAX_TCP_FLOWS),
            ("ebpf.tcp_idle_s", self.ebpf.tcp_idle_s, 1, 315_360_000),
            ("http.head_timeout_ms", self.http.head_timeout_ms, 1, day),
            ("http.idle_timeout_ms", self.http.idle_timeout_ms, 1, day),
            ("http.body_timeout_ms", self.http.body_timeout_ms, 1, day),
            ("dns.timeout_ms", dns.timeout_ms, 1, minute),
            ("dns.max_in_flight", dns.max_in_flight as u64, 1, 1 << 20),
            ("timeouts.heartbeat_ms", timeouts.heartbeat_ms, 10, minute),
            ("timeouts.node_down_ms", timeouts.node_down_ms, 11, hour),
            ("timeouts.join_ms", timeouts.join_ms, 100, hour),
            ("timeouts.propose_ms", timeouts.propose_ms, 100, hour),
            ("timeouts.shutdown_ms", timeouts.shutdown_ms, 1, hour),
            ("timeouts.reconcile_ms", timeouts.reconcile_ms, 50, hour),
            ("manager.join_grace_ms", manager.join_grace_ms, 100, day),
            ("manager.takeover_grace_ms", manager.takeover_grace_ms, 0, hour),
            ("manager.disruption_hold_ms", manager.disruption_hold_ms, 0, day),
            ("manager.return_window_ms", manager.return_window_ms, 0, day),
            ("manager.orphan_after_s", manager.orphan_after_s, 1, 315_360_000),
            ("manager.rollback_window_s", manager.rollback_window_s, 0, 315_360_000),
            ("manager.certificate_life_s", manager.certificate_life_s, 0, 315_360_000),
            ("manager.replace_wait_ms", manager.replace_wait_ms, 0, day),
            ("manager.stop_hold_ms", manager.stop_hold_ms, 0, hour),
            ("manager.stop_pause_ms", manager.stop_pause_ms, 0, minute),
            ("manager.node_lag_ms", manager.node_lag_ms, 1, day),
            ("raft.tick_ms", raft.tick_ms, 1, minute),
            ("raft.heartbeat_ticks", raft.heartbeat_ticks as u64, 1, 1000),
            ("raft.election_ticks_max", raft.election_ticks_max as u64, 3, 10_000),
            ("raft.snapshot_every", raft.snapshot_every, 1, 1 << 24),
            ("raft.keep_entries", raft.keep_entries, 0, 1 << 24),
        ];
        match bounds.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            Some((key, value, low, high)) => {
                let advice = format!("set {low} to {high}, or remove the key for its default");
                Err(invalid(key, value.to_string(), advice))
            }
            None => Ok(()),
        }
    }

    /// What the raft library demands of its ticks.
    fn elections(&self) -> Result<(), InvalidSetting> {
        let raft = &self.raft;
        if raft.election_ticks_min <= raft.heartbeat_ticks {
            let advice = format!(
                "set more than raft.heartbeat_ticks ({}), some four times as much: a late heartbeat must not cause an election",
                raft.heartbeat_ticks
            );
            return Err(invalid("raft.election_ticks_min", raft.election_ticks_min.to_string(), advice));
        }
        if raft.election_ticks_max <= raft.election_ticks_min {
            let advice = format!(
                "set more than raft.election_ticks_min ({}), some twice as much: managers have different time-outs from this range",
                raft.election_ticks_min
            );
            return Err(invalid("raft.election_ticks_max", raft.election_ticks_max.to_string(), advice));
        }
        Ok(())
    }
}

fn invalid(key: &'static str, value: String, advice: String) -> InvalidSetting {
    InvalidSetting { key, value, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn every_number_has_a_bound() {
        let defaults = toml::Table::try_from(Settings::default()).unwrap();
        let number = |value: &toml::Value| value.is_integer() || value.is_float();
        let mut keys: Vec<String> = Vec::new();
        for (name, value) in &defaults {
            match value {
                toml::Value::Table(section) => {
                    keys.extend(section.iter().filter(|(_, v)| number(v)).map(|(key, _)| format!("[{name}]\n{key}")));
                }
                value if number(value) => keys.push(name.clone()),
                _ => {}
            }
        }
        assert!(keys.len() > 30, "{keys:?}");
        let taken = |key: &String| {
            let read = toml::from_str::<Settings>(&format!("{key} = {}", i64::MAX));
            read.is_ok_and(|settings| settings.validate().is_ok())
        };
        assert_eq!(keys.into_iter().filter(taken).collect::<Vec<_>>(), Vec::<String>::new());
    }

    #[test]
    fn each_invalid_value_is_refused_by_key_and_value_with_what_to_set() {
        // (lines of the file, key, value, words of the advice)
        let cases = [
            ("data_dir = \"skep\"", "data_dir", "\"skep\"", "absolute path"),
            ("run_dir = \"./run\"", "run_dir", "\"./run\"", "absolute path"),
            ("plugin_dir = \"\"", "plugin_dir", "\"\"", "absolute path"),
            ("resolv_conf = \"resolv.conf\"", "resolv_conf", "\"resolv.conf\"", "absolute path"),
            ("engine = \"tcp://192.0.2.1:2375\"", "engine", "\"tcp://192.0.2.1:2375\"", "unix:///var/run/docker.sock"),
            ("engine = \"unix://docker.sock\"", "engine", "\"unix://docker.sock\"", "unix:///var/run/docker.sock"),
            ("path_mtu = 1359", "path_mtu", "1359", "1360 to 65535"),
            ("path_mtu = 65536", "path_mtu", "65536", "1360 to 65535"),
            ("[api]\nlisten = \"unix:///x\"", "api.listen", "\"unix:///x\"", "tcp://0.0.0.0:2376"),
            ("[api]\nlisten = \"tcp://nohost:2376\"", "api.listen", "\"tcp://nohost:2376\"", "ADDRESS:PORT"),
            ("[api]\nlisten = \"tcp://0.0.0.0:2376\"", "api.tls_ca", "\"\"", "mutual TLS only"),
            (
                "[api]\nlisten = \"tcp://0.0.0.0:2376\"\ntls_ca = \"/c\"\ntls_certificate = \"/c\"",
                "api.tls_key",
                "\"\"",
                "mutual TLS only",
            ),
            ("[access_point]\nenabled = true\nlisten = \"tcp://[::]:3376\"", "api.tls_ca", "\"\"", "mutual TLS only"),
            (
                "[access_point]\nlisten = \"tcp://[::]:3376\"\n[api]\ntls_ca = \"/c\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"",
                "access_point.listen",
                "\"tcp://[::]:3376\"",
                "access_point.enabled",
            ),
            ("[access_point]\nenabled = true\nrelay = false", "access_point.relay", "false", "set true"),
            ("[access_point]\novercommit = -1.0", "access_point.overcommit", "-1", "0 to 100"),
            ("[ports]\nmax_connections = 0", "ports.max_connections", "0", "1 to"),
            ("[ports]\nmax_flows = 0", "ports.max_flows", "0", "1 to"),
            ("[ports]\nudp_idle_ms = 0", "ports.udp_idle_ms", "0", "1 to"),
            ("[ebpf]\ntcp_idle_s = 0", "ebpf.tcp_idle_s", "0", "1 to"),
            ("[ebpf]\nmax_tcp_flows = 16777217", "ebpf.max_tcp_flows", "16777217", "0 to 16777216"),
            ("[dns]\ntimeout_ms = 0", "dns.timeout_ms", "0", "1 to"),
            ("[dns]\nmax_in_flight = 0", "dns.max_in_flight", "0", "1 to"),
            ("[timeouts]\nheartbeat_ms = 0", "timeouts.heartbeat_ms", "0", "10 to 60000"),
            ("[timeouts]\njoin_ms = 0", "timeouts.join_ms", "0", "100 to"),
            ("[timeouts]\npropose_ms = 0", "timeouts.propose_ms", "0", "100 to"),
            ("[timeouts]\nshutdown_ms = 0", "timeouts.shutdown_ms", "0", "1 to"),
            ("[timeouts]\nreconcile_ms = 0", "timeouts.reconcile_ms", "0", "50 to"),
            ("[timeouts]\nnode_down_ms = 500", "timeouts.node_down_ms", "500", "more than timeouts.heartbeat_ms (500)"),
            ("[timeouts]\nheartbeat_ms = 100000\nnode_down_ms = 200000", "timeouts.heartbeat_ms", "100000", "10 to 60000"),
            ("[timeouts]\nreconcile_ms = 86400000", "timeouts.reconcile_ms", "86400000", "50 to 3600000"),
            ("[manager]\njoin_grace_ms = 0", "manager.join_grace_ms", "0", "100 to 86400000"),
            ("[raft]\ntick_ms = 0", "raft.tick_ms", "0", "1 to"),
            ("[raft]\nheartbeat_ticks = 0", "raft.heartbeat_ticks", "0", "1 to"),
            ("[raft]\nsnapshot_every = 0", "raft.snapshot_every", "0", "1 to"),
            ("[raft]\nelection_ticks_min = 2", "raft.election_ticks_min", "2", "more than raft.heartbeat_ticks (2)"),
            ("[raft]\nelection_ticks_max = 7", "raft.election_ticks_max", "7", "more than raft.election_ticks_min (7)"),
        ];
        for (text, key, value, advice) in cases {
            let error = Settings::parse(text).expect(text).validate().expect_err(text);
            assert_eq!((error.key, error.value.as_str()), (key, value), "{text}");
            assert!(error.to_string().starts_with(&format!("setting {key} is {value}: ")), "{error}");
            assert!(error.advice.contains(advice), "{error}");
        }
    }

    #[test]
    fn the_limits_themselves_are_valid() {
        for text in [
            "path_mtu = 0",
            "path_mtu = 1360",
            "path_mtu = 65535",
            "[timeouts]\nnode_down_ms = 501",
            "[raft]\nelection_ticks_min = 3\nelection_ticks_max = 4",
            "[raft]\nkeep_entries = 0",
        ] {
            assert_eq!(Settings::parse(text).expect(text).validate(), Ok(()), "{text}");
        }
    }
}
