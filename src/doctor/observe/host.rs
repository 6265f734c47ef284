//! The kernel, its clock, memory and resolvers.

use super::super::facts::{HostFacts, Ipv6};
use crate::datapath::{clock_sync, ebpf, tunnel};
use std::fs;
use std::path::Path;

/// Blocking.
pub(super) fn facts(resolv_conf: &Path) -> HostFacts {
    HostFacts {
        is_root: rustix::process::geteuid().is_root(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        ipv6: ipv6(),
        wireguard: tunnel::kernel_has_wireguard().map_err(|error| format!("{error:#}")),
        tun: Path::new("/dev/net/tun").exists(),
        ebpf: ebpf::is_supported().map_err(|error| format!("{error:#}")),
        cgroup2: ebpf::cgroup_root().is_ok(),
        clock: clock_sync::is_synchronised().map_err(|error| error.to_string()),
        memory_available: memory_available(),
        conntrack: number("/proc/sys/net/netfilter/nf_conntrack_count").zip(number("/proc/sys/net/netfilter/nf_conntrack_max")),
        resolvers: resolvers(&fs::read_to_string(resolv_conf).unwrap_or_default()),
    }
}

fn ipv6() -> Ipv6 {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ipv6::Absent;
    }
    if number("/proc/sys/net/ipv6/conf/all/disable_ipv6") == Some(1) { Ipv6::Disabled } else { Ipv6::Enabled }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Bytes; all of it if the kernel does not say.
fn memory_available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(u64::MAX, |kib| kib << 10)
}

fn resolvers(text: &str) -> usize {
    text.lines().filter(|line| line.split_whitespace().next() == Some("nameserver")).count()
}
