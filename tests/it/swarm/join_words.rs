//! The words of a join that is refused, as data: `api/words/join.txt`. What is refused leaves nothing behind, on either side.

use super::kit::*;
use crate::api::words::{Case, cases, table, without_ids};
use serde_json::json;
use skep::lab::{Host, eventually};
use std::time::{Duration, Instant};

/// Docker takes ten seconds for every refusal that comes from the other side. On a busy machine one of many may take long.
const NOT_WAITED_FOR: Duration = Duration::from_secs(9);
/// What the README says of them.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Tokens by the words of the table.
struct Tokens {
    worker: String,
    rotated: String,
    earlier_ca: String,
}

impl Tokens {
    async fn new(manager: &Host) -> Self {
        let earlier_ca = worker_token(manager).await;
        manager.docker_run("swarm ca --rotate -d").await.expect("a new root");
        within(20, "a new root", || async {
            let swarm = get(manager, "/swarm").await;
            anyhow::ensure!(swarm["RootRotationInProgress"] == false && swarm["JoinTokens"]["Worker"] != earlier_ca, "{swarm}");
            Ok(())
        })
        .await;
        let rotated = worker_token(manager).await;
        manager.docker_run("swarm join-token --rotate -q worker").await.expect("a new token");
        let worker = worker_token(manager).await;
        Self { worker, rotated, earlier_ca }
    }

    fn text(&self, word: &str) -> String {
        let mut parts = self.worker.split('-').skip(2);
        let (digest, secret) = (parts.next().expect("a digest"), parts.next().expect("a secret"));
        match word {
            "-" => String::new(),
            "ROTATED" => self.rotated.clone(),
            "EARLIER-CA" => self.earlier_ca.clone(),
            text => text.replace("DIGEST", digest).replace("SECRET", secret),
        }
    }
}

/// `STATUS MESSAGE` of a case.
async fn answer(swarm: &Swarm, tokens: &Tokens, request: &str) -> String {
    let [manager, joiner, worker] = [0, 1, 2].map(|n| swarm.hosts[n].address().to_string());
    let mut words = request.split(' ');
    let remotes = words.next().expect("remotes").split(',').map(|word| match word {
        "manager" => manager.as_str(),
        "worker" => &worker,
        "self" => &joiner,
        "absent" => "192.0.2.77",
        "unknown" => "no.such.host.invalid",
        other => panic!("{other}"),
    });
    let remotes: Vec<&str> = remotes.collect();
    let token = tokens.text(words.next().expect("a token"));
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": joiner, "RemoteAddrs": remotes, "JoinToken": token });
    let reply = post(&swarm.hosts[1], "/swarm/join", &body).await;
    format!("{} {}", reply.status.as_u16(), without_ids(&said(&reply))).trim().to_owned()
}

#[tokio::test]
async fn a_join_that_is_refused_is_answered_as_by_a_real_swarm_or_unlike_it_for_a_reason() {
    let table = table("join.txt");
    let mut swarm = hosts("joinwords", 3, "").await;
    init(&swarm.hosts[0]).await;
    let tokens = Tokens::new(&swarm.hosts[0]).await;
    ok(&join(&swarm.hosts[2], swarm.hosts[0].address(), &tokens.worker).await);
    swarm.ready(2).await;
    let mut wrong = Vec::new();
    let (mut has_quorum, mut refusals) = (true, Vec::new());
    for Case { number, request, real, unlike } in cases(&table) {
        let case = Case { number, request, real, unlike };
        let rest = request.strip_prefix("lost ").unwrap_or(request);
        if rest != request && std::mem::take(&mut has_quorum) {
            lose_quorum(&mut swarm).await;
        }
        let begin = Instant::now();
        let answer = answer(&swarm, &tokens, rest).await;
        if !case.matches(&answer) {
            let expected = unlike.map_or(real, |(ours, _)| ours.trim());
            wrong.push(format!("line {number}: {request}\n    is {answer}\n    not {expected}"));
        }
        let may_wait = ["absent", "lost"].iter().any(|slow| request.starts_with(slow));
        if !may_wait && begin.elapsed() > NOT_WAITED_FOR {
            wrong.push(format!("line {number}: {request}\n    after {:?}", begin.elapsed()));
        }
        if answer.ends_with("to join this cluster") {
            refusals.push(begin.elapsed());
        }
        let state = get(&swarm.hosts[1], "/info").await["Swarm"]["LocalNodeState"].clone();
        let nodes = get(&swarm.hosts[0], "/nodes").await.as_array().map_or(0, Vec::len);
        if state != "inactive" || nodes != 2 {
            wrong.push(format!("line {number}: {request}\n    leaves the joiner {state}, and {nodes} nodes"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refusals.len() >= 3 && refusals.iter().any(|time| *time < AT_ONCE), "refusals by the manager took {refusals:?}");
    swarm.stop().await;
}

/// The second manager of two is gone.
async fn lose_quorum(swarm: &mut Swarm) {
    swarm.hosts[0].docker_run("node promote n3").await.expect("promoted");
    // It votes a moment after it is listed as reachable.
    for _ in 0..3 {
        within(20, "a second manager", || async {
            let nodes = swarm.hosts[2].docker_run("node ls --format {{.ManagerStatus}}").await?;
            anyhow::ensure!(nodes.contains("Leader") && nodes.contains("Reachable"), "{nodes}");
            Ok(())
        })
        .await;
        swarm.hosts[2].stop_daemon(true).await.expect("killed");
        let has_none = eventually("no leader", Duration::from_secs(4), || async {
            let error = get(&swarm.hosts[0], "/info").await["Swarm"]["Error"].clone();
            anyhow::ensure!(error.as_str().is_some_and(|text| text.contains("does not have a leader")), "{error}");
            Ok(())
        });
        if has_none.await.is_ok() {
            return;
        }
        start(&mut swarm.hosts[2]).await;
    }
    panic!("the leader needs no majority");
}
