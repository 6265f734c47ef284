//! One fact of a healthy host is changed at a time: the line that names it must appear, with its level and with what to do.

use super::facts::{DiskFacts, DockerFacts, Facts, HostFacts, Ipv6, NetworkFacts, NodeFacts};
use super::firewall::Passage;
use super::{Level, examine};
use crate::datapath::ebpf::Occupancy;
use crate::ingress::ebpf::RefusalCount;
use crate::ingress::http::{HttpListenerStatus, HttpRouteStatus};
use crate::model::{Role, Timestamp};
use crate::status::{CertificateSummary, NodeSummary, Status};
use std::collections::BTreeMap;
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_790_000_000_000_000_000);

/// Adds a route that is served with a certificate of so many hours.
fn route(facts: &mut Facts, certificate: &str, hours: i64) {
    let end = Timestamp(NOW.0 + hours * 3_600_000_000_000);
    let (host, certificate) = ("shop.test".to_owned(), certificate.to_owned());
    let route = HttpRouteStatus { host, certificate, certificate_end: Some(end), ..HttpRouteStatus::default() };
    status(facts).http.routes.push(route);
}

/// A manager of a swarm of three, none of which has a fault.
fn healthy() -> Facts {
    let node = |name: &str, here: bool| NodeSummary {
        id: name.into(),
        hostname: name.to_owned(),
        manager: true,
        here,
        mesh: "fd00::1".to_owned(),
        path: if here { "self" } else { "direct" }.to_owned(),
        endpoint: Some("172.16.4.2:2377".parse().unwrap()),
        handshake_seconds: Some(9),
        rx_bytes: 0,
        tx_bytes: 0,
        containers: 0,
        feature_levels: None,
        path_mtu: Some(1500),
    };
    let certificate = CertificateSummary {
        expires: Timestamp(1_795_000_000_000_000_000),
        seconds_left: 7_000_000,
        failures: 0,
        warning: String::new(),
    };
    let listed = |name: &str, rack: &str| NodeFacts {
        hostname: name.to_owned(),
        is_manager: true,
        reachability: "reachable".to_owned(),
        state: "ready".to_owned(),
        labels: [("example.com/rack".to_owned(), rack.to_owned())].into(),
    };
    Facts {
        settings: Ok(()),
        host: HostFacts {
            is_root: true,
            kernel: "6.1.0-9-amd64".to_owned(),
            ipv6: Ipv6::Enabled,
            wireguard: Ok(true),
            tun: true,
            ebpf: Ok(()),
            cgroup2: true,
            clock: Ok(true),
            memory_available: 2 << 30,
            conntrack: Some((100, 65_536)),
            resolvers: 2,
        },
        disk: Ok(DiskFacts {
            path: "/var/lib/skep".to_owned(),
            in_memory: false,
            free: 20 << 30,
            sync: Duration::from_millis(2),
        }),
        engine: Ok(DockerFacts {
            url: "unix:///var/run/docker.sock".to_owned(),
            version: "28.5.2".to_owned(),
            swarm: "inactive".to_owned(),
            is_rootless: false,
            free: Some(20 << 30),
        }),
        network: NetworkFacts {
            firewall: Ok([("2377/tcp", Passage::Accepted), ("2377/udp", Passage::Depends)]
                .map(|(p, f)| (p.to_owned(), f))
                .into()),
            routes: vec!["192.168.7.0/24".parse().unwrap(), "10.9.0.0/16".parse().unwrap()],
            taken: BTreeMap::new(),
        },
        has_membership: true,
        daemon: Ok(Status {
            version: "0.1.0".to_owned(),
            state: "active".to_owned(),
            node: Some("a".into()),
            role: Some(Role::Manager),
            session: "open".to_owned(),
            certificate: Some(certificate),
            nodes: vec![node("a", true), node("b", false), node("c", false)],
            ..Status::default()
        }),
        now: NOW,
        nodes: vec![listed("a", "1"), listed("b", "2"), listed("c", "3")],
    }
}

fn status(facts: &mut Facts) -> &mut Status {
    facts.daemon.as_mut().unwrap()
}

#[test]
fn a_healthy_host_has_only_good_lines() {
    let bad: Vec<_> = examine(&healthy()).into_iter().filter(|finding| finding.level != Level::Ok).collect();
    assert_eq!(bad, []);
    let fresh = Facts { has_membership: false, daemon: Err("no such file".to_owned()), nodes: Vec::new(), ..healthy() };
    assert!(examine(&fresh).iter().all(|finding| finding.level == Level::Ok), "{:?}", examine(&fresh));
}

/// A fault, the check that names it, its level, a part of its text, a part of the help.
type Fault = (fn(&mut Facts), &'static str, Level, &'static str, &'static str);

use Level::{Error, Warning};

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    (|f| f.settings = Err("path_mtu is 100".to_owned()), "settings", Error, "path_mtu is 100", "skep.toml"),
    (|f| f.host.is_root = false, "user", Error, "not root", "sudo"),
    (|f| f.host.kernel = "5.10.0-28-amd64".to_owned(), "kernel", Warning, "5.10", "newer kernel"),
    (|f| f.host.ipv6 = Ipv6::Disabled, "IPv6", Warning, "IPv4 only", "disable_ipv6=0"),
    (|f| f.host.ipv6 = Ipv6::Absent, "IPv6", Error, "without IPv6", "ipv6.disable=1"),
    (|f| { f.host.wireguard = Ok(false); f.host.tun = false; }, "WireGuard", Error, "/dev/net/tun", "modprobe"),
    (|f| f.host.ebpf = Err("the kernel has no eBPF programs on devices".to_owned()), "eBPF", Warning, "clients' addresses", "CONFIG_BPF"),
    (|f| f.host.cgroup2 = false, "eBPF", Warning, "cgroup2", "mount -t cgroup2"),
    (|f| f.host.clock = Ok(false), "clock", Warning, "synchronises", "chrony"),
    (|f| f.host.memory_available = 100 << 20, "memory", Warning, "100 MiB", "memory"),
    (|f| f.host.conntrack = Some((60_000, 65_536)), "conntrack", Warning, "60000 of 65536", "nf_conntrack_max=131072"),
    (|f| f.host.resolvers = 0, "resolvers", Warning, "names none", "nameserver"),
    (|f| f.disk = Err("/var/lib/skep: read-only file system".to_owned()), "disk", Error, "read-only", "dmesg"),
    (|f| f.disk.as_mut().unwrap().in_memory = true, "disk", Error, "in memory", "data_dir"),
    (|f| f.disk.as_mut().unwrap().free = 500 << 20, "disk space", Warning, "500 MiB", "df -h"),
    (|f| f.disk.as_mut().unwrap().free = 1 << 20, "disk space", Error, "1 MiB", "du"),
    (|f| f.disk.as_mut().unwrap().sync = Duration::from_millis(180), "disk speed", Warning, "180.0 ms", "demote"),
    (|f| f.engine = Err("no answer within 3 s".to_owned()), "engine", Error, "no answer", "systemctl start docker"),
    (|f| f.engine.as_mut().unwrap().swarm = "active".to_owned(), "engine", Error, "swarm mode (active)", "swarm leave --force"),
    (|f| f.engine.as_mut().unwrap().is_rootless = true, "engine", Error, "rootless", "system service"),
    (|f| f.engine.as_mut().unwrap().free = Some(1 << 30), "engine's disk", Warning, "1024 MiB", "prune"),
    (|f| { f.network.taken.insert("2377/tcp".to_owned(), "address in use".to_owned()); }, "ports", Error, "2377/tcp", "ss -lntp"),
    (|f| { f.network.taken.insert("2377/udp".to_owned(), "address in use".to_owned()); }, "ports", Error, "2377/udp", "ss -lnup"),
    (|f| { f.network.firewall.as_mut().unwrap().insert("2377/udp".to_owned(), Passage::Dropped { chain: "ip filter INPUT".to_owned() }); },
     "firewall", Error, "2377/udp is dropped by ip filter INPUT", "ufw allow 2377/udp"),
    (|f| f.network.firewall = Err("no program `nft`".to_owned()), "firewall", Warning, "nft", "2377/tcp"),
    (|f| f.network.routes.push("10.0.0.0/8".parse().unwrap()), "routes", Warning, "10.0.0.0/8", "--default-addr-pool"),
    (|f| f.daemon = Err("connection refused".to_owned()), "daemon", Error, "connection refused", "systemctl start skep"),
    (|f| { status(f).blockers.insert("manager".to_owned(), "its port is taken".to_owned()); }, "daemon", Error, "its port is taken", "journalctl"),
    (|f| { status(f).troubles.insert("overlay".to_owned(), "no such device".to_owned()); }, "daemon", Warning, "no such device", "skep status"),
    (|f| status(f).stale_since = Some("12:00".to_owned()), "session", Error, "since 12:00", "start the managers"),
    (|f| status(f).certificate.as_mut().unwrap().seconds_left = 0, "certificate", Error, "expired at 2026-11-18", "recover-certificates"),
    (|f| status(f).certificate.as_mut().unwrap().warning = "its renewal fails".to_owned(), "certificate", Warning, "renewal fails", "clocks"),
    (|f| status(f).nodes[1].path = "none".to_owned(), "paths", Error, "no handshake with b at 172.16.4.2:2377", "docker node inspect b"),
    (|f| status(f).nodes[2].path_mtu = Some(1280), "paths", Warning, "1280 bytes", "MTU"),
    (|f| status(f).nodes[2].hostname = "b".to_owned(), "host names", Warning, "called b", "hostnamectl"),
    (|f| { status(f).ebpf.maps.insert("TCP_FLOWS".to_owned(), Occupancy { entries: 95, room: 100, bytes: 0, forgets: false }); },
     "tables", Warning, "TCP_FLOWS is nearly full", "max_tcp_flows"),
    (|f| status(f).ebpf.rising.push(RefusalCount { left: false, reason: "unknown_flow".to_owned(), hook: "from_mesh".to_owned(), service: String::new(), count: 7 }),
     "drops", Warning, "7 packets", "skep drops"),
    (|f| route(f, "secret", 5 * 24), "certificates", Warning, "shop.test ends in 5 days", "docker secret create"),
    (|f| route(f, "secret", -1), "certificates", Error, "shop.test has ended at 2026-09-21", "docker secret create"),
    (|f| { route(f, "secret", 60 * 24); status(f).http.problems.push("service web: the certificate of its secret does not name shop.test, it is for a.b: browsers refuse it".to_owned()); },
     "certificates", Warning, "does not name shop.test", "docker secret create"),
    (|f| route(f, "R3", 7), "certificates", Warning, "shop.test ends in 7 hours", "skep http acme"),
    (|f| { route(f, "R3", 20 * 24); status(f).http.certificate_failures.insert("shop.test".to_owned(), 3); }, "certificates", Warning, "ends in 20 days", "skep http acme"),
    (|f| { route(f, "R3", 60 * 24); status(f).http.problems.push("certificate of shop.test: no (caa); next try at T".to_owned()); },
     "certificates", Warning, "no (caa); next try at T", "--retry"),
    (|f| { route(f, "R3", 60 * 24); status(f).http.listeners.push(HttpListenerStatus { address: "0.0.0.0:80".to_owned(), tls: false, error: Some("in use".to_owned()) }); },
     "http", Error, "cannot listen on 0.0.0.0:80: in use", "ss -lntp"),
    (|f| f.nodes[1].reachability = "unreachable".to_owned(), "managers", Warning, "b away: the loss of one more of 3", "demote b"),
    (|f| f.nodes.iter_mut().skip(1).for_each(|n| n.reachability = "unreachable".to_owned()), "managers", Error, "1 of 3 managers are reachable, 2", "start b, c"),
    (|f| f.nodes.truncate(2), "managers", Warning, "2 managers stand the loss of 0, as 1 do", "odd number"),
    (|f| f.nodes.iter_mut().skip(1).for_each(|n| n.is_manager = false), "managers", Warning, "one manager", "promote two"),
    (|f| f.nodes[1].labels = f.nodes[0].labels.clone(), "managers", Warning, "2 of 3 managers have example.com/rack=1", "elsewhere"),
];

#[test]
fn every_fault_is_named_with_what_to_do_and_no_other_line_changes() {
    let before = examine(&healthy());
    for (number, (spoil, check, level, found, help)) in FAULTS.iter().enumerate() {
        let mut facts = healthy();
        spoil(&mut facts);
        let bad: Vec<_> =
            examine(&facts).into_iter().filter(|finding| !before.contains(finding) && finding.level != Level::Ok).collect();
        assert!(!bad.is_empty(), "fault {number} ({check}, {found}) is not named");
        for finding in &bad {
            assert_eq!((finding.check.as_str(), finding.level), (*check, *level), "fault {number}: {finding:?}");
            assert!(finding.found.contains(found) && finding.help.contains(help), "fault {number}: {finding:?}");
        }
    }
}

#[test]
fn certificates_that_are_renewed_in_time_are_a_good_line() {
    let mut facts = healthy();
    route(&mut facts, "R3", 5 * 24);
    route(&mut facts, "secret", 40 * 24);
    let lines = examine(&facts);
    assert!(lines.iter().all(|finding| finding.level == Level::Ok), "{lines:?}");
    let line = lines.iter().find(|finding| finding.check == "certificates").unwrap();
    assert!(line.found.contains("1 hosts with a certificate") && line.found.contains("shop.test's, in 5 days"), "{line:?}");
}

/// A worker cannot list the nodes, and never had to reach the other workers.
#[test]
fn a_worker_is_not_blamed_for_what_it_cannot_know() {
    let mut facts = healthy();
    facts.nodes.clear();
    let status = status(&mut facts);
    status.role = Some(Role::Worker);
    status.nodes[2].manager = false;
    status.nodes[2].path = "none".to_owned();
    assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok), "{:?}", examine(&facts));
}
