//! The figure of the HTTP ingress: rollouts under load of all kinds, and nothing lost.

use super::super::load::{Load, Target, of_host};
use super::super::ports::client;
use super::http::{create, ready};
use super::kit::*;
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Rolls a site of three tasks out `SKEP_ROLLOUTS` times (20) while clients ask every node `SKEP_RATE` times a second (2000) in all, over
/// new and kept connections of HTTP/1.1, HTTP/2 and upgraded ones. Prints what each saw.
#[ignore = "minutes: `make soak`"]
#[tokio::test(flavor = "multi_thread")]
async fn rollouts_of_a_site_lose_no_request_of_any_kind() {
    #[allow(clippy::disallowed_methods, reason = "how long this test takes")]
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, rate) = (number("SKEP_ROLLOUTS", 20), number("SKEP_RATE", 2000));
    let swarm = swarm("hr", 3, "").await;
    let client = client(&swarm).await;
    create(&swarm, "site", 3, json!({ "skep.http": "test" }), json!({})).await;
    swarm.running("site", 3).await;
    ready(&swarm.hosts, 3).await;
    let outside = of_host(&client);
    // So many clients of each kind for each node, that the pause is longer than an answer takes.
    let each = usize::try_from(rate / 250).expect("few").max(1);
    let clients = u64::try_from(each * 4 * swarm.hosts.len()).expect("few");
    let pause = Duration::from_micros(1_000_000 * clients / rate);
    let targets = |what: &'static str| {
        let hosts = swarm.hosts.iter().flat_map(move |host| (0..each).map(move |n| (host, n)));
        let outside = &outside;
        hosts.map(move |(host, n)| {
            Target::new(outside, SocketAddr::from((host.address(), 80)), format!("{what} {} {n}", host.name()))
        })
    };
    let loads = [
        ("new connections", Load::http(targets("new"), pause, false)),
        ("kept connections", Load::http(targets("kept"), pause, true)),
        ("HTTP/2", Load::http2(targets("HTTP/2"), pause)),
        ("upgraded", Load::upgraded(targets("upgraded"), pause)),
    ];
    let began = Instant::now();
    for round in 0..rounds {
        let said = swarm.hosts[0].docker_run(&format!("service update --env-add ROUND={round} site")).await.expect("updated");
        assert!(said.contains("converged"), "{said}");
    }
    let took = began.elapsed();
    let (mut all, mut lost, mut lines) = (0, 0, Vec::new());
    for (what, load) in loads {
        let tallies = load.stop().await;
        let (answers, failed) = tallies.iter().fold((0, 0), |(a, f), tally| (a + tally.answers(), f + tally.failed.len()));
        let slowest = tallies.iter().map(|tally| tally.slowest).max().unwrap_or_default();
        lines.push(format!("{what}: {answers} answers, {failed} lost, slowest {slowest:.0?}"));
        (all, lost) = (all + answers, lost + failed);
        assert!(tallies.iter().all(|tally| tally.answers() > 0), "every client is answered: {what}");
    }
    eprintln!("{}", lines.join("\n"));
    eprintln!(
        "{rounds} rollouts in {took:.0?}, {} requests/s, {lost} lost of {all}",
        all / usize::try_from(took.as_secs().max(1)).expect("few")
    );
    assert_eq!(lost, 0, "no request is lost");
    client.stop().await;
    swarm.stop().await;
}
