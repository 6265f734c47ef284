use super::*;
use crate::ingress::PortState;
use crate::ingress::ebpf::{EbpfStatus, FrontendConnections, RefusalCount};
use crate::model::Protocol;
use crate::status::ResolverFailures;
use std::collections::BTreeSet;

pub fn node_summary(id: &str, hostname: &str) -> NodeSummary {
    NodeSummary {
        id: id.into(),
        hostname: hostname.to_owned(),
        manager: false,
        here: false,
        mesh: "fd12::5".to_owned(),
        path: "direct".to_owned(),
        endpoint: None,
        handshake_seconds: Some(3),
        rx_bytes: 11,
        tx_bytes: 12,
        containers: 0,
        feature_levels: None,
        path_mtu: None,
    }
}

pub fn port(port: u16, service: &str) -> PortStatus {
    PortStatus {
        protocol: Protocol::Tcp,
        port,
        service: service.to_owned(),
        state: PortState::Listening,
        backends: 2,
        connections: 3,
        errors: 4,
        refused: 5,
        over_share: 6,
    }
}

/// The lines that are samples, without their value; each must occur once.
fn series(text: &str) -> BTreeSet<&str> {
    let all: Vec<&str> =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').expect("a value").0).collect();
    let unique: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(all.len(), unique.len(), "a series occurs twice:\n{text}");
    unique
}

#[test]
fn two_peers_of_one_hostname_are_two_series() {
    let status = Status { nodes: vec![node_summary("id1", "web"), node_summary("id2", "web")], ..Status::default() };
    let text = render(&status, MetricsFormat::default());
    let series = series(&text);
    assert!(series.contains(r#"skep_peer_receive_bytes_total{node_id="id1",node="web"}"#), "{text}");
    assert!(series.contains(r#"skep_peer_receive_bytes_total{node_id="id2",node="web"}"#), "{text}");
    assert!(text.contains("\nskep_peer_handshake_age_seconds{node_id=\"id1\",node=\"web\"} 3\n"), "{text}");
}

#[test]
fn hostile_names_stay_inside_their_label() {
    let hostile = "a\"} 1\nskep_fake{x=\"\\";
    let ebpf = EbpfStatus {
        connections: vec![FrontendConnections { service: hostile.to_owned(), frontend: "10.0.0.2".to_owned(), connections: 1 }],
        ..EbpfStatus::default()
    };
    let status = Status { nodes: vec![node_summary("id1", hostile)], ports: vec![port(80, hostile)], ebpf, ..Status::default() };
    let text = render(&status, MetricsFormat::default());
    let escaped = r#"a\"} 1\nskep_fake{x=\"\\"#;
    assert!(text.contains(&format!("skep_peer_transmit_bytes_total{{node_id=\"id1\",node=\"{escaped}\"}} 12\n")), "{text}");
    assert!(text.contains(&format!("skep_port_backends{{port=\"80\",protocol=\"tcp\",service=\"{escaped}\"}} 2\n")), "{text}");
    assert!(text.contains(&format!("skep_ebpf_connections_total{{service=\"{escaped}\",frontend=\"10.0.0.2\"}} 1\n")), "{text}");
    assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("skep_")), "{text}");
    assert!(!text.contains("\nskep_fake"), "{text}");
}

#[test]
fn counters_are_typed_and_drops_and_refusals_have_a_reason() {
    let counters = [("drop_forged", 7), ("port_new", 8)].map(|(name, n)| (name.to_owned(), n)).into();
    let refusal = |left, reason: &str, service: &str, count| RefusalCount {
        left,
        reason: reason.to_owned(),
        hook: "from_uplink".to_owned(),
        service: service.to_owned(),
        count,
    };
    let refusals = vec![
        refusal(false, "forged_source", "web", 7),
        refusal(false, "forged_source", "", 6),
        refusal(true, "no_backend", "web", 3),
    ];
    let ebpf = EbpfStatus { counters, refusals, repaired: 9, ..EbpfStatus::default() };
    let text = render(&Status { ports: vec![port(80, "web")], ebpf, ..Status::default() }, MetricsFormat::default());
    for line in [
        "# TYPE skep_ebpf_drops_total counter",
        "skep_ebpf_drops_total{reason=\"forged_source\",hook=\"from_uplink\",service=\"web\"} 7",
        "skep_ebpf_drops_total{reason=\"forged_source\",hook=\"from_uplink\",service=\"\"} 6",
        "skep_ebpf_left_total{reason=\"no_backend\",hook=\"from_uplink\",service=\"web\"} 3",
        "skep_ebpf_events_total{event=\"port_new\"} 8",
        "# TYPE skep_ebpf_repairs_total counter",
        "skep_ebpf_repairs_total 9",
        "skep_port_refusals_total{port=\"80\",protocol=\"tcp\",service=\"web\",reason=\"no_backend\"} 4",
        "skep_port_refusals_total{port=\"80\",protocol=\"tcp\",service=\"web\",reason=\"source_not_allowed\"} 5",
        "# TYPE skep_port_open_connections gauge",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        assert_eq!(line.ends_with(" counter"), line.contains("_total "), "{line}");
    }
}

#[test]
fn a_port_that_is_listed_twice_is_one_series() {
    let text = render(&Status { ports: vec![port(80, "web"), port(80, "web")], ..Status::default() }, MetricsFormat::default());
    assert!(series(&text).contains("skep_port_backends{port=\"80\",protocol=\"tcp\",service=\"web\"}"), "{text}");
}

#[test]
fn a_certificate_near_its_end_is_a_warning_and_outside_a_swarm_there_is_none() {
    use crate::model::Timestamp;
    use crate::status::CertificateSummary;
    let certificate = CertificateSummary {
        expires: Timestamp(1_795_000_000_000_000_000),
        seconds_left: 90,
        failures: 2,
        warning: "its renewal fails: no manager is known".to_owned(),
    };
    let text = render(&Status { certificate: Some(certificate), ..Status::default() }, MetricsFormat::default());
    for line in [
        "skep_certificate_expiry_timestamp_seconds 1795000000",
        "skep_certificate_remaining_seconds 90",
        "skep_certificate_renewal_failures 2",
        "skep_certificate_warning 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
    assert!(!render(&Status::default(), MetricsFormat::default()).contains("skep_certificate"));
}

#[test]
fn the_name_server_s_counts_are_series_and_what_was_not_counted_is_none() {
    assert!(!render(&Status::default(), MetricsFormat::default()).contains("skep_dns"));
    let one = |name: &str, count| [(name.to_owned(), count)].into();
    let failure = ResolverFailures { resolver: "2001:db8::53".to_owned(), reason: "timeout".to_owned(), count: 6 };
    let mut status = Status::default();
    status.names.questions = one("forwarded", 2);
    status.names.answers = one("nxdomain", 3);
    status.names.truncated = 4;
    status.names.refusals = one("client_connections", 5);
    status.names.resolvers = vec![failure];
    let text = render(&status, MetricsFormat::default());
    for line in [
        "skep_dns_questions_total{kind=\"forwarded\"} 2",
        "skep_dns_answers_total{code=\"nxdomain\"} 3",
        "skep_dns_truncated_answers_total 4",
        "skep_dns_refusals_total{bound=\"client_connections\"} 5",
        "skep_dns_resolver_failures_total{resolver=\"2001:db8::53\",reason=\"timeout\"} 6",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
