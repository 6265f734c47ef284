//! `skep drops` of a real daemon: what is refused is shown while somebody looks, and only then.

use super::*;
use std::process::Stdio;
use tokio::process::Command;

/// Starts `skep drops` on a node for one event.
fn first_event(host: &Host, more: &[&str]) -> tokio::process::Child {
    let mut command = Command::new(SKEP);
    command.args(["drops", "--json", "--count", "1", "--run-dir"]).arg(host.run_dir()).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("skep drops runs")
}

/// The event that it shows, while `cause` makes some again and again.
async fn shown(host: &Host, more: &[&str], cause: impl Fn()) -> Value {
    let ended = first_event(host, more).wait_with_output();
    tokio::pin!(ended);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut again = tokio::time::interval(Duration::from_millis(100));
    let out = loop {
        tokio::select! {
            out = &mut ended => break out.expect("skep drops ends"),
            _ = again.tick() => cause(),
        }
        assert!(Instant::now() < deadline, "nothing is shown with {more:?}");
    };
    let (printed, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    let events: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    events.into_iter().find(|event| event["reason"].is_string()).unwrap_or_else(|| panic!("no event in {printed}{said}"))
}

fn text(event: &Value, field: &str) -> String {
    event[field].as_str().unwrap_or_else(|| panic!("no {field} in {event}")).to_owned()
}

#[test]
fn drops_shows_what_is_refused_while_it_runs_and_nothing_of_before() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let (services, host) = (&fixture.services, &fixture.swarm.hosts[0]);
        let caller = services.callers.iter().find(|caller| caller.namespace.name == host.name()).expect("on each node");
        let refused = |port: u16| {
            let error = caller.namespace.tcp(None, (services.empty, port).into()).map(drop).expect_err("no task runs");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        };
        // Before anyone looks.
        refused(7101);
        let event = shown(host, &["--service", "empty"], || refused(7102)).await;
        assert_eq!(text(&event, "destination"), format!("{}:7102", services.empty), "not the one of before");
        let expected = ["refused", "connect4", "vip_without_backend", "tcp", "empty"];
        assert_eq!(["action", "hook", "reason", "protocol", "service"].map(|field| text(&event, field)), expected);

        // A packet that no socket call has translated, and one that is left to the host.
        let raw = caller.namespace.raw();
        let (from, to) = (std::net::SocketAddrV4::new(caller.address, 4444), std::net::SocketAddrV4::new(services.empty, 7103));
        let sends = || drop(raw.send_to(&super::super::packet::udp(from, to, b"raw"), &SocketAddr::from(to).into()));
        let event = shown(host, &["--port", "7103"], sends).await;
        assert_eq!((text(&event, "source"), text(&event, "destination")), (from.to_string(), to.to_string()));
        assert_eq!(
            ["action", "hook", "reason"].map(|field| text(&event, field)),
            ["refused", "from_container", "vip_without_backend"]
        );
        assert!(!text(&event, "device").is_empty() && !text(&event, "device").starts_with('#'), "{event}");

        let client = fixture.client(0).raw();
        let from = std::net::SocketAddrV4::new(services.web[0].address, 4444);
        let std::net::SocketAddr::V4(to) = at(0, false, PUBLISHED) else { panic!("IPv4") };
        let sends = || drop(client.send_to(&super::super::packet::udp(from, to, b"raw"), &SocketAddr::from(to).into()));
        let event = shown(host, &["--left", "--reason", "source_on_cluster_network"], sends).await;
        assert_eq!(
            ["action", "hook", "device", "service"].map(|field| text(&event, field)),
            ["left", "from_uplink", "eth0", "web"]
        );
    });
}
