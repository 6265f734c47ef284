//! `/metrics`, checked by Prometheus' promtool.

use skep::admin::metrics::{MetricsFormat, render};
use skep::datapath::ebpf::Occupancy;
use skep::ingress::ebpf::{EbpfStatus, FrontendConnections, RefusalCount};
use skep::ingress::http::{HttpExemplar, HttpRouteStatus, HttpStatus, RouteCounts, RouteRates};
use skep::ingress::{PortState, PortStatus};
use skep::model::{FormatRange, Protocol, Revision, Role, Timestamp};
use skep::status::{CertificateSummary, ManagerSummary, NodeSummary, RaftSummary, Status};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// All families. Dashboards and alerts use these names.
const FAMILIES: [&str; 49] = [
    "skep_build_info",
    "skep_certificate_expiry_timestamp_seconds",
    "skep_certificate_remaining_seconds",
    "skep_certificate_renewal_failures",
    "skep_certificate_warning",
    "skep_cluster_feature_level",
    "skep_ebpf_attached_programs",
    "skep_ebpf_connections_total",
    "skep_ebpf_drops_total",
    "skep_ebpf_events_total",
    "skep_ebpf_left_total",
    "skep_ebpf_map_entries",
    "skep_ebpf_map_max_entries",
    "skep_ebpf_map_memory_bytes",
    "skep_ebpf_ports",
    "skep_ebpf_repairs_total",
    "skep_ebpf_up",
    "skep_ebpf_vips",
    "skep_http_certificate_expiry_timestamp_seconds",
    "skep_http_left_out_tasks",
    "skep_http_log_lines_dropped_total",
    "skep_http_open_connections",
    "skep_http_ready_tasks",
    "skep_http_refused_total",
    "skep_http_request_duration_seconds",
    "skep_http_requests_in_flight",
    "skep_http_requests_total",
    "skep_http_retries_total",
    "skep_loop_degraded",
    "skep_manager_left_out_objects",
    "skep_manager_loop_restarts_total",
    "skep_manager_refused_connections_total",
    "skep_node_feature_level",
    "skep_node_info",
    "skep_peer_handshake_age_seconds",
    "skep_peer_receive_bytes_total",
    "skep_peer_transmit_bytes_total",
    "skep_port_backends",
    "skep_port_open_connections",
    "skep_port_refusals_total",
    "skep_raft_applied_index",
    "skep_raft_ignored_messages_total",
    "skep_raft_leader",
    "skep_raft_problem",
    "skep_raft_term",
    "skep_session_established",
    "skep_swarm_active",
    "skep_swarm_manager",
    "skep_view_applied_revision",
];

#[test]
fn promtool_accepts_a_status_with_every_series() {
    let text = render(&full_status(), MetricsFormat::Prometheus);
    let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_whitespace().next()).collect();
    let expected: Vec<&str> = FAMILIES.into_iter().chain(["skep_view_revision", "skep_view_stale"]).collect();
    assert_eq!(families, expected);
    let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let labelled: BTreeSet<&str> = series.iter().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
    assert_eq!(labelled.len(), series.len(), "a series occurs twice:\n{text}");

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs: config/install-tools installs it");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let out = promtool.wait_with_output().expect("promtool ends");
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && printed.is_empty(), "promtool: {}\n{printed}\n{text}", out.status);
}

/// Of a request that an example is of, and when it ended.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ENDED: i64 = 1_795_000_000;

#[test]
fn prometheus_takes_open_metrics_and_keeps_the_examples() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = show_metrics(&stream);
        }
    });
    let dir = std::env::temp_dir().join(format!("skep-prometheus-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let config = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs: [{{job_name: skep, static_configs: [{{targets: ['{target}']}}]}}]\n"
    );
    std::fs::write(dir.join("prometheus.yml"), config).expect("written");
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let log = dir.join("prometheus.log");
    let mut prometheus = Command::new("prometheus")
        .arg("--enable-feature=exemplar-storage")
        .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("prometheus runs: config/install-tools installs it");
    let query = format!(
        "/api/v1/query_exemplars?query=skep_http_request_duration_seconds_bucket&start={}&end={}",
        ENDED - 60,
        ENDED + 60
    );
    let end = Instant::now() + Duration::from_secs(30);
    let kept = loop {
        let kept = asked(address, &query).unwrap_or_default();
        if kept.contains(TRACE) || Instant::now() > end {
            break kept;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let targets = asked(address, "/api/v1/targets").unwrap_or_default();
    let _ = prometheus.kill().and_then(|()| prometheus.wait());
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let _ = std::fs::remove_dir_all(&dir);
    assert!(kept.contains(TRACE) && kept.contains("\"le\":\"0.01\""), "{kept}\n{targets}\n{log}");
    assert!(targets.contains("\"health\":\"up\""), "{targets}");
}

/// Answers a scrape as the admin socket does.
fn show_metrics(mut stream: &TcpStream) -> Option<()> {
    let mut accept = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line.ok().filter(|line| !line.is_empty());
        let Some(line) = line else { break };
        if let Some(value) = line.strip_prefix("Accept: ") {
            value.clone_into(&mut accept);
        }
    }
    let format = MetricsFormat::accepted(&accept);
    let text = render(&full_status(), format);
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {}\r\n\r\n", format.content_type());
    stream.write_all((head + &text).as_bytes()).ok()
}

fn asked(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    Some(reply)
}

fn full_status() -> Status {
    let node = |id: &str, here: bool, hostname: &str| NodeSummary {
        id: id.into(),
        hostname: hostname.to_owned(),
        manager: here,
        here,
        mesh: "fd12:3456:789a:1::1".to_owned(),
        path: if here { "self" } else { "direct" }.to_owned(),
        endpoint: None,
        handshake_seconds: (!here).then_some(17),
        rx_bytes: u64::MAX,
        tx_bytes: 1 << 53,
        containers: 3,
        feature_levels: Some(FormatRange::new(1, 2)),
        path_mtu: None,
    };
    let port = |protocol, port, service: &str| PortStatus {
        protocol,
        port,
        service: service.to_owned(),
        state: PortState::Listening,
        backends: 2,
        connections: 3,
        errors: 4,
        refused: 5,
        over_share: 0,
    };
    let connections = |service: &str, frontend: &str| FrontendConnections {
        service: service.to_owned(),
        frontend: frontend.to_owned(),
        connections: 6,
    };
    let refusal = |left, reason: &str, hook: &str, service: &str, count| RefusalCount {
        left,
        reason: reason.to_owned(),
        hook: hook.to_owned(),
        service: service.to_owned(),
        count,
    };
    let route = |host: &str, service: &str| HttpRouteStatus {
        host: host.to_owned(),
        prefix: "/".to_owned(),
        service: service.to_owned(),
        ready: 1,
        tasks: 2,
        left_out: vec!["task1".to_owned()],
        in_flight: 2,
        certificate: "secret".to_owned(),
        certificate_end: Some(Timestamp(1_795_000_000_000_000_000)),
        exemplars: vec![HttpExemplar { class: 3, trace: TRACE.to_owned(), micros: 7_200, at: Timestamp(ENDED * 1_000_000_000) }],
        rates: RouteRates::default(),
        counts: RouteCounts {
            by_class: [0, 5, 0, 1, 0],
            durations: [0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            micros: 1_234_567,
            ..RouteCounts::default()
        },
    };
    let routes = vec![route("shop.example.com", "shop"), route("*.example.com", "shop"), route("shop.example.com", "canary")];
    Status {
        http: HttpStatus {
            pid: Some(7),
            routes,
            connections: 3,
            refused: [("slow_head".to_owned(), 4)].into(),
            ..HttpStatus::default()
        },
        version: "0.1.0".to_owned(),
        certificate: Some(CertificateSummary {
            expires: Timestamp(1_795_000_000_000_000_000),
            seconds_left: 86_400,
            failures: 0,
            warning: String::new(),
        }),
        manager: Some(ManagerSummary {
            feature_level: 2,
            loop_restarts: 1,
            refused_connections: [("token".to_owned(), 3)].into(),
            raft: RaftSummary { leads: true, term: 4, applied: 40, ..RaftSummary::default() },
            ..ManagerSummary::default()
        }),
        state: "active".to_owned(),
        node: Some("id1".into()),
        role: Some(Role::Manager),
        leader: Some("web".to_owned()),
        view_revision: Revision { incarnation: 1, index: 40 },
        applied: ["agent", "dns", "ebpf", "overlay", "ports"]
            .map(|name| (name.to_owned(), Revision { incarnation: 1, index: 39 }))
            .into(),
        // Two peers have one host name; that of a third one has characters that must be escaped.
        nodes: vec![
            node("id1", true, "web"),
            node("id2", false, "web"),
            node("id3", false, "web"),
            node("id4", false, "a\"}\n\\"),
        ],
        ports: vec![port(Protocol::Tcp, 80, "web"), port(Protocol::Udp, 80, "dns"), port(Protocol::Tcp, 81, "x\"y\\")],
        ebpf: EbpfStatus {
            up: true,
            ports: ["80/tcp", "80/tcp6"].map(str::to_owned).into(),
            connections: vec![connections("web", "80/tcp"), connections("web", "10.0.1.2"), connections("q\"", "81/tcp")],
            vips: 1,
            members: 2,
            links: 3,
            repaired: 4,
            counters: [("drop_flow", 1), ("drop_forged", 2), ("icmp_error", 3), ("port_new", 4)]
                .map(|(name, n)| (name.to_owned(), n))
                .into(),
            refusals: vec![
                refusal(false, "unknown_flow", "from_container", "web", 1),
                refusal(false, "unknown_flow", "from_container", "", 1),
                refusal(false, "vip_without_backend", "connect4", "x\"y\\", 2),
                refusal(true, "no_backend", "from_uplink", "unknown", u64::MAX),
            ],
            maps: [
                ("FLOWS".to_owned(), Occupancy { entries: 5, room: 131_072, bytes: 4096, forgets: false }),
                ("PEERS".to_owned(), Occupancy { entries: 65_536, room: 65_536, bytes: 0, forgets: true }),
            ]
            .into(),
            ..EbpfStatus::default()
        },
        ..Status::default()
    }
}
