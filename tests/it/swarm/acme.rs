//! Certificates by ACME in a swarm of three hosts, from a real authority beside it.

use super::super::acme::pebble::{Pebble, PebbleConfig};
use super::http::{create, curl, ready};
use super::kit::*;
use super::managers::{managers, reachable};
use serde_json::{Value, json};
use skep::lab::{Host, output};
use std::net::IpAddr;

/// What `skep http acme` with these flags prints, or why it fails.
async fn acme(host: &Host, flags: &[&str]) -> Result<String, String> {
    let mut command = host.command(SKEP);
    command.args(["http", "acme", "--run-dir"]).arg(host.run_dir()).args(flags);
    let output = command.output().await.expect("skep http acme");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_the_authority_and_serves_the_certificate() {
    let swarm = swarm("ac", 3, "").await;
    let ca = swarm.lab.host("ca", 9).await.expect("a host");
    let address = IpAddr::V4(ca.address());
    let pebble =
        Pebble::start(&ca.dir().join("pebble"), PebbleConfig { address, beside: Some(ca.pid()), ..PebbleConfig::default() })
            .await;
    // The authority asks another node for each name.
    let names = ["one.test", "two.test", "three.test"];
    for (name, host) in names.iter().zip(&swarm.hosts) {
        pebble.set_address(name, host.address().into()).await;
    }
    create(&swarm, "site", 1, json!({ "skep.http": names.join(","), "skep.http.redirect": "https" }), json!({})).await;
    ready(&swarm.hosts, 1).await;
    let manager = &swarm.hosts[0];
    assert!(acme(manager, &[]).await.expect("shown").contains("ACME is off"));
    let (directory, listener) = (pebble.directory(), pebble.listener());
    let on = ["--email", "me@example.com", "--directory", &directory, "--root-certificate", listener.to_str().expect("a path")];
    let refused = acme(manager, &on).await.expect_err("the terms");
    assert!(refused.contains("terms of service") && refused.contains("--agree-tos"), "{refused}");
    acme(manager, &[&on[..], &["--agree-tos"]].concat()).await.expect("on");
    within(60, "three certificates", || async {
        let shown: Value = serde_json::from_str(&acme(manager, &["--json"]).await.map_err(anyhow::Error::msg)?)?;
        let certificates = shown["Certificates"].as_array().cloned().unwrap_or_default();
        let issued = certificates.iter().filter(|one| one["Issuer"].is_string()).count();
        anyhow::ensure!(issued == 3, "{shown:#}\n{}", pebble.log());
        Ok(())
    })
    .await;
    let root = pebble.root().await;
    for host in &swarm.hosts {
        for name in names {
            let page = format!("--cacert {} --resolve {name}:443:{} https://{name}/", root.display(), host.address());
            within(20, "the certificate", || async {
                let answer = curl(&ca, &page).await;
                anyhow::ensure!(answer.contains(" ok "), "{}: {answer}", host.name());
                Ok(())
            })
            .await;
        }
        let http = status(host).await["http"].take();
        let shown = http["routes"][0]["certificate"].as_str().unwrap_or_default();
        assert!(shown.starts_with("Pebble Intermediate CA"), "{http:#}");
        let listed = output(host.command(SKEP).args(["http", "--run-dir"]).arg(host.run_dir())).await.expect("skep http");
        let row = listed.lines().find(|line| line.contains("Pebble Intermediate CA")).unwrap_or_else(|| panic!("{listed}"));
        assert_eq!(row.matches(" days left").count(), 1, "{listed}");
    }
    let text = acme(manager, &[]).await.expect("shown");
    assert!(text.contains("one.test") && text.contains("Pebble Intermediate CA") && text.contains("served"), "{text}");

    // A name that the authority cannot reach: the reason is shown on every node, and the others are served.
    pebble.set_address("gone.test", IpAddr::from([192, 0, 2, 200])).await;
    create(&swarm, "gone", 1, json!({ "skep.http": "gone.test" }), json!({})).await;
    for host in &swarm.hosts {
        within(60, "the reason of the failure", || async {
            let problems = status(host).await["http"]["problems"].to_string();
            anyhow::ensure!(problems.contains("certificate of gone.test: ") && problems.contains("next try at"), "{problems}");
            Ok(())
        })
        .await;
    }
    let off = acme(manager, &["--off"]).await.expect("off");
    assert!(off.contains("ACME is off, with") && off.contains("served"), "{off}");
    drop(pebble);
    ca.stop().await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_goes_on_with_an_order_whose_leader_was_killed() {
    let mut swarm = managers("at").await;
    let ca = swarm.lab.host("ca", 9).await.expect("a host");
    let config = PebbleConfig { address: ca.address().into(), slow: 15, beside: Some(ca.pid()), ..PebbleConfig::default() };
    let pebble = Pebble::start(&ca.dir().join("pebble"), config).await;
    let names = ["one.test", "two.test", "three.test"];
    let leader = reachable(&swarm.hosts[0], 3).await;
    let index = swarm.hosts.iter().position(|host| host.name() == leader).expect("a host");
    // The killed daemon's node is asked too: its process for HTTP runs on.
    for (name, host) in names.iter().zip(&swarm.hosts) {
        pebble.set_address(name, host.address().into()).await;
    }
    let mut leader = swarm.hosts.remove(index);
    let other = &swarm.hosts[0];
    let labels = json!({ "skep.http": names.join(",") });
    let spec = json!({
        "Name": "site", "Labels": labels, "Mode": { "Replicated": { "Replicas": 0 } },
        "TaskTemplate": { "ContainerSpec": { "Image": "none" } },
    });
    ok(&post(other, "/services/create", &spec).await);
    let (directory, listener) = (pebble.directory(), pebble.listener());
    let on = ["--agree-tos", "--directory", &directory, "--root-certificate", listener.to_str().expect("a path")];
    acme(other, &on).await.expect("on");
    let certificates = async || -> anyhow::Result<Vec<Value>> {
        let shown: Value = serde_json::from_str(&acme(other, &["--json"]).await.map_err(anyhow::Error::msg)?)?;
        Ok(shown["Certificates"].as_array().cloned().unwrap_or_default())
    };
    // The challenges are answered, and the authority takes its time.
    within(40, "the challenges to be answered", || async {
        let log = pebble.log();
        let answered = log.matches("Pulled a task from the Tasks queue").count();
        anyhow::ensure!(answered >= 3, "{answered}: {:?} {log}", acme(other, &[]).await);
        Ok(())
    })
    .await;
    leader.stop_daemon(true).await.expect("killed");
    let issued = certificates().await.unwrap_or_default().iter().filter(|one| one["Issuer"].is_string()).count();
    assert!(issued < 3, "the leader was killed in the middle");
    within(90, "three certificates by the next leader", || async {
        let all = certificates().await?;
        anyhow::ensure!(all.iter().filter(|one| one["Issuer"].is_string()).count() == 3, "{all:#?}\n{}", pebble.log());
        Ok(())
    })
    .await;
    assert_eq!(pebble.log().matches("Added order").count(), 3, "the orders of the first leader: {}", pebble.log());
    let root = pebble.root().await;
    for name in names {
        let page = format!("--cacert {} --resolve {name}:443:{} https://{name}/", root.display(), other.address());
        within(20, "the certificate", || async {
            let answer = curl(&ca, &page).await;
            anyhow::ensure!(answer.contains("503 no task"), "{answer}");
            Ok(())
        })
        .await;
    }
    drop(pebble);
    ca.stop().await;
    swarm.hosts.push(leader);
    swarm.stop().await;
}
