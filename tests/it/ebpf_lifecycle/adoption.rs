//! The datapath outlives its daemon: connections continue and new ones are accepted while daemons and tunnels are killed.

use super::*;
use skep::lab::output;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A swarm under load: a service with a web server and a server of numbers on every node, with requests to its port and its
/// virtual address, and transfers on each path.
pub struct LoadFixture {
    pub swarm: Swarm,
    client: Host,
    transfers: Vec<Transfer>,
    load: Load,
    served: Vec<ServerRecords>,
}

impl LoadFixture {
    /// `settings` end in the table of time-outs. A node whose daemon is stopped does not become down, so its tasks are not
    /// replaced.
    pub async fn set_up(name: &str, settings: &str) -> Self {
        let swarm = swarm(name, 2, &format!("{settings}node_down_ms = 60000\n")).await;
        let client = client(&swarm).await;
        ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
        let networks = json!([{ "Target": "back" }]);
        let ports = json!([
            { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080 },
            { "Protocol": "tcp", "TargetPort": 7000, "PublishedPort": 7000 },
        ]);
        let spec = json!({
            "Name": "web", "Mode": { "Replicated": { "Replicas": 2 } }, "EndpointSpec": { "Ports": ports },
            "TaskTemplate": { "ContainerSpec": { "Image": skep::lab::WHOAMI_IMAGE }, "Networks": networks },
        });
        ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
        swarm.service("caller", 1, None, json!({ "Networks": networks })).await;
        let mut served = Vec::new();
        for task in &swarm.running("web", 2).await {
            served.push(serve_numbers(of_task(&swarm, task).await, 7000).await);
        }
        let caller = of_task(&swarm, &swarm.running("caller", 1).await[0]).await;
        serves(&swarm.hosts, &["8080/tcp", "7000/tcp"]).await;
        for port in ["8080/tcp", "7000/tcp"] {
            wait_for_backends(&swarm.hosts, port, 2).await;
        }
        // A daemon that is killed goes on from its ledger.
        for host in &swarm.hosts {
            ledger_is_written(host).await;
        }

        // Four on each path, so that both backends have some.
        let outside = of_host(&client);
        let vip = vip(&swarm, "web").await;
        let mut paths: Vec<(&std::fs::File, std::net::IpAddr, String)> =
            swarm.hosts.iter().map(|h| (&outside, h.address().into(), format!("by {}", h.name()))).collect();
        paths.push((&caller, vip.into(), "by virtual address".to_owned()));
        let (mut transfers, mut targets) = (Vec::new(), Vec::new());
        for (from, address, label) in &paths {
            for _ in 0..4 {
                transfers.push(Transfer::start(Target::new(from, (*address, 7000).into(), label)).await);
            }
            let port = if *address == vip { 80 } else { 8080 };
            targets.push(Target::new(from, (*address, port).into(), label));
        }
        let load = Load::start(targets, Duration::from_millis(5));
        Self { swarm, client, transfers, load, served }
    }

    /// Waits until every target has answered 100 more requests. `when` is part of the error.
    pub async fn answers_requests(&self, when: &str) {
        let before = self.load.answers();
        within(30, &format!("requests to be answered {when}"), || async {
            let now = self.load.answers();
            anyhow::ensure!(now.iter().zip(&before).all(|(now, before)| *now > before + 100), "{before:?} {now:?}");
            Ok(())
        })
        .await;
    }

    /// Takes the fixture down, and checks that no request failed and no connection broke. Prints the longest stalls.
    pub async fn expect_no_failure(self) {
        for tally in self.load.stop().await {
            assert!(tally.failed.is_empty() && tally.answered.len() == 2, "{tally}");
        }
        for transfer in self.transfers {
            let half = transfer.stop().await;
            assert!(half.error.is_none() && half.bytes > 100_000, "{half:?}");
        }
        for served in self.served {
            let all = served.lock().expect("no panic").clone();
            assert!(!all.is_empty() && all.iter().all(|half| half.error.is_none()), "{all:?}");
        }
        self.client.stop().await;
        self.swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_daemons_lose_no_connection_and_no_new_one() {
    let mut fixture = LoadFixture::set_up("ka", AUTO).await;
    for (label, killed) in [("n2", vec![1]), ("n1", vec![0]), ("both", vec![0, 1])] {
        let (mut pins, mut programs) = (Vec::new(), BTreeSet::new());
        for at in &killed {
            fixture.swarm.hosts[*at].stop_daemon(true).await.expect("killed");
            let host = &fixture.swarm.hosts[*at];
            let links = bpf::links(host);
            programs.extend(links.iter().map(|pin| bpf::program_of(host, pin)));
            pins.push(links);
        }
        eprintln!("killed: {label}");
        fixture.answers_requests(&format!("with {label} killed")).await;
        for at in &killed {
            start(&mut fixture.swarm.hosts[*at]).await;
        }
        serves(&fixture.swarm.hosts, &["8080/tcp", "7000/tcp"]).await;
        for (at, before) in killed.iter().zip(pins) {
            let host = &fixture.swarm.hosts[*at];
            assert_eq!(bpf::links(host), before, "the same links, none twice");
        }
        within(20, "programs of the killed daemon to be gone", || async {
            let stay: Vec<&u32> = programs.iter().filter(|program| bpf::alive(**program)).collect();
            anyhow::ensure!(stay.is_empty(), "{stay:?}");
            Ok(())
        })
        .await;
        fixture.answers_requests(&format!("with {label} running again")).await;
    }
    fixture.expect_no_failure().await;
}

/// Another build of skep, with other programs; `make test` builds it.
const CHANGED: &str = concat!(env!("CARGO_BIN_EXE_skep"), "-changed");

/// Programs of a host, by their links.
fn programs(host: &Host) -> BTreeMap<String, u32> {
    bpf::links(host).into_iter().map(|pin| (pin.clone(), bpf::program_of(host, &pin))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_with_changed_programs_takes_over_and_is_replaced_again() {
    assert!(
        Path::new(CHANGED).exists(),
        "run `cargo build --features changed-programs && cp target/debug/skep target/debug/skep-changed && cargo build`"
    );
    let mut fixture = LoadFixture::set_up("kc", AUTO).await;
    let tags = |programs: &BTreeMap<String, u32>| -> BTreeMap<String, [u32; 2]> {
        programs.iter().map(|(pin, program)| (pin.clone(), bpf::tag(*program))).collect()
    };
    // One host first, then both, then back; daemons stopped by SIGTERM and by SIGKILL.
    for (at, program, kill) in [(1, CHANGED, false), (0, CHANGED, true), (1, SKEP, true), (0, SKEP, false)] {
        let before = programs(&fixture.swarm.hosts[at]);
        let old = tags(&before);
        fixture.swarm.hosts[at].stop_daemon(kill).await.expect("stopped");
        start_as(&mut fixture.swarm.hosts[at], Path::new(program)).await;
        serves(&fixture.swarm.hosts, &["8080/tcp", "7000/tcp"]).await;
        let host = &fixture.swarm.hosts[at];
        let now = programs(host);
        assert!(now.keys().eq(before.keys()), "the same links: {before:?}, now {now:?}");
        within(20, "the other build's programs to be gone", || async {
            let stay: Vec<&u32> = before.values().filter(|program| bpf::alive(**program)).collect();
            anyhow::ensure!(stay.is_empty(), "{stay:?}");
            Ok(())
        })
        .await;
        let new = tags(&now);
        assert!(new.iter().all(|(pin, tag)| old[pin] != *tag), "other instructions everywhere: {old:?}, now {new:?}");
        fixture.answers_requests(&format!("with {program} on {}", host.name())).await;
    }
    fixture.expect_no_failure().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_tunnel_is_started_again_and_no_request_is_lost() {
    let fixture = LoadFixture::set_up("kt", &format!("tunnel = \"process\"\n{AUTO}")).await;
    for host in &fixture.swarm.hosts {
        let before = tunnel(host).await;
        host.run(&format!("kill -9 {before}")).await.expect("killed");
        within(20, "another tunnel process", || async {
            anyhow::ensure!(tunnel(host).await != before, "{before} is still named");
            Ok(())
        })
        .await;
        eprintln!("tunnel of {} killed", host.name());
        fixture.answers_requests("with a new tunnel process").await;
    }
    fixture.expect_no_failure().await;
}

/// Pid of the host's tunnel process, in the host's namespace.
async fn tunnel(host: &Host) -> String {
    let file = host.run_dir().join("tunnel.pid");
    output(host.command("cat").arg(file)).await.expect("a pid file").trim().to_owned()
}
