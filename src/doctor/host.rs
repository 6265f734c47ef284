//! The kernel, the clock, memory, resolvers, the settings.

use super::facts::{Facts, HostFacts, Ipv6};
use super::finding::Finding;

/// Oldest kernel with what the eBPF datapath uses.
const EBPF_KERNEL: (u32, u32) = (5, 15);
/// Bytes of free memory below which a node is short.
const LITTLE_MEMORY: u64 = 256 << 20;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    vec![
        settings(facts),
        root(host),
        kernel(host),
        ipv6(host),
        wireguard(host),
        ebpf(host),
        clock(host),
        memory(host),
        conntrack(host),
        resolvers(host),
    ]
}

fn settings(facts: &Facts) -> Finding {
    match &facts.settings {
        Ok(()) => Finding::ok("settings", "valid"),
        Err(error) => {
            Finding::error("settings", error.clone(), "correct the file or the flag; config/skep.toml shows every setting")
        }
    }
}

fn root(host: &HostFacts) -> Finding {
    if host.is_root {
        return Finding::ok("user", "root");
    }
    Finding::error("user", "not root: most of the host cannot be looked at", "sudo skep doctor")
}

fn kernel(host: &HostFacts) -> Finding {
    match version(&host.kernel) {
        Some(found) if found < EBPF_KERNEL => Finding::warning(
            "kernel",
            format!(
                "Linux {}: the eBPF datapath needs 5.15 or newer, so containers do not see their clients' addresses",
                host.kernel
            ),
            "install a newer kernel; everything else works",
        ),
        _ => Finding::ok("kernel", format!("Linux {}", host.kernel)),
    }
}

/// Major and minor number.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn ipv6(host: &HostFacts) -> Finding {
    match host.ipv6 {
        Ipv6::Enabled => Finding::ok("IPv6", "enabled"),
        Ipv6::Disabled => Finding::warning(
            "IPv6",
            "disabled by sysctl: published ports answer over IPv4 only",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
        Ipv6::Absent => Finding::error(
            "IPv6",
            "this kernel runs without IPv6, which the mesh uses between the nodes",
            "remove ipv6.disable=1 from the kernel's command line and reboot",
        ),
    }
}

fn wireguard(host: &HostFacts) -> Finding {
    match &host.wireguard {
        Ok(true) => Finding::ok("WireGuard", "in the kernel"),
        Ok(false) if host.tun => {
            Finding::ok("WireGuard", "not in this kernel: `skep tunnel` carries the mesh, each direction on one core")
        }
        Ok(false) => Finding::error(
            "WireGuard",
            "not in this kernel, and /dev/net/tun, which `skep tunnel` needs, is missing",
            "modprobe wireguard || modprobe tun",
        ),
        Err(error) => Finding::warning(
            "WireGuard",
            format!("cannot be tried: {error}"),
            "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        ),
    }
}

fn ebpf(host: &HostFacts) -> Finding {
    let without = "containers do not see their clients' addresses; the userspace datapath serves all ports";
    match &host.ebpf {
        Ok(()) if host.cgroup2 => Finding::ok("eBPF", "programs can be loaded and attached"),
        Ok(()) => Finding::warning(
            "eBPF",
            "no cgroup2 tree is mounted from its root: virtual addresses are resolved to the tasks' own, published ports are served",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        ),
        Err(error) => {
            Finding::warning("eBPF", format!("{error}: {without}"), "a kernel of 5.15 or newer with CONFIG_BPF_SYSCALL, and root")
        }
    }
}

fn clock(host: &HostFacts) -> Finding {
    match &host.clock {
        Ok(true) => Finding::ok("clock", "synchronised"),
        Ok(false) => Finding::warning(
            "clock",
            "nothing synchronises it: certificates are refused when clocks differ too much",
            "install an NTP client: `apt install chrony`, or `timedatectl set-ntp true`",
        ),
        Err(error) => Finding::warning("clock", format!("cannot be read: {error}"), ""),
    }
}

fn memory(host: &HostFacts) -> Finding {
    let free = host.memory_available >> 20;
    if host.memory_available < LITTLE_MEMORY {
        return Finding::warning("memory", format!("{free} MiB available"), "give the host more memory, or limit its containers");
    }
    Finding::ok("memory", format!("{free} MiB available"))
}

fn conntrack(host: &HostFacts) -> Finding {
    match host.conntrack {
        None => Finding::ok("conntrack", "not in use"),
        Some((used, room)) if used.saturating_mul(10) >= room.saturating_mul(9) => Finding::warning(
            "conntrack",
            format!("{used} of {room} entries are used: the host's firewall drops new connections when it is full"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", room.saturating_mul(2)),
        ),
        Some((used, room)) => Finding::ok("conntrack", format!("{used} of {room} entries are used")),
    }
}

fn resolvers(host: &HostFacts) -> Finding {
    match host.resolvers {
        0 => Finding::warning(
            "resolvers",
            "resolv.conf names none: containers resolve the swarm's names only",
            "add a `nameserver` line, or set resolv_conf to a file that has one",
        ),
        number => Finding::ok("resolvers", format!("{number} in resolv.conf")),
    }
}
