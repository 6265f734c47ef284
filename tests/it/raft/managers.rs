//! Several managers in one process: writes reach the log from each of them, an election delays and loses none, and none is
//! written twice.

use super::super::api::recorded_store;
use super::fixture::TempDir;
use skep::manager::new_cluster::{self, GreetingVerdict, ManagerGreeting, Survivor, judge};
use skep::manager::replica::{self, Replica, StartedReplica};
use skep::manager::{Forward, Proposer};
use skep::model::network::{Network, NetworkSpec};
use skep::model::{NetworkId, Timestamp};
use skep::raft::{MembershipChange, RaftConfig, Transport, join};
use skep::store::{Action, ProposeError, StoreError, StoreHandle, Transaction};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What of a manager others reach.
type WiredManager = (skep::raft::Raft<skep::manager::ApplyOutcome>, Arc<Proposer>);

/// Connects managers by their raft ids.
#[derive(Default)]
struct Wire {
    managers: Mutex<BTreeMap<u64, WiredManager>>,
    /// The answer to the next proposal is lost.
    loses_answers: AtomicBool,
    /// With the answer to the next proposal all managers but the one that waits for it are gone.
    ends_with_answer: AtomicBool,
}

/// One manager's end.
struct End(u64, Arc<Wire>);

impl Transport for End {
    fn send(&self, to: u64, message: Vec<u8>) {
        let managers = self.1.managers.lock().unwrap();
        if managers.contains_key(&self.0)
            && let Some((raft, _)) = managers.get(&to)
        {
            raft.step(self.0, message);
        }
    }
}

#[async_trait::async_trait]
impl Forward for End {
    async fn forward(&self, leader: u64, document: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let proposer = self.1.managers.lock().unwrap().get(&leader).map(|(_, proposer)| proposer.clone());
        let Some(proposer) = proposer else { return std::future::pending().await };
        let answer = proposer.answer(&document).await;
        if self.1.ends_with_answer.swap(false, Ordering::SeqCst) {
            self.1.managers.lock().unwrap().retain(|id, _| *id == self.0);
            anyhow::bail!("the leader is gone");
        }
        anyhow::ensure!(!self.1.loses_answers.swap(false, Ordering::SeqCst), "the answer was lost");
        Ok(answer)
    }
}

struct Managers {
    wire: Arc<Wire>,
    all: BTreeMap<u64, (StartedReplica, CancellationToken, TempDir)>,
}

impl Managers {
    async fn start(name: &str, count: u64) -> Self {
        Self::start_with(name, count, (7, 14)).await
    }

    async fn start_with(name: &str, count: u64, election_ticks: (usize, usize)) -> Self {
        let mut managers = Self { wire: Arc::default(), all: BTreeMap::new() };
        for id in 1..=count {
            let dir = TempDir::new(&format!("{name}-{id}"));
            let config = RaftConfig { election_ticks, ..RaftConfig::new(&dir.0, id) };
            if id > 1 {
                join(&config).expect("an empty log");
            }
            let stop = CancellationToken::new();
            let end = Arc::new(End(id, managers.wire.clone()));
            let started = Replica::start(config, id == 1, end.clone(), end, stop.clone()).await.expect("starts");
            let connected = (started.raft.clone(), started.proposer.clone());
            managers.wire.managers.lock().unwrap().insert(id, connected);
            managers.all.insert(id, (started, stop, dir));
            let first = &managers.all[&1].0;
            if id == 1 {
                assert!(first.raft.leads().await);
                let cluster = recorded_store::cluster();
                let cluster = skep::model::Cluster { feature_level: 2, ..cluster };
                first.store.write(Timestamp(1), vec![Action::create(cluster)]).await.expect("written");
                continue;
            }
            managers.change(MembershipChange::AddLearner(id)).await;
            let learns = managers.manager(id).store.watch();
            learns.clone().wait_for(|store| store.cluster().is_some()).await.expect("catches up");
            managers.change(MembershipChange::AddVoter(id)).await;
        }
        managers
    }

    /// A change through the manager that leads.
    async fn change(&self, change: MembershipChange) {
        let all: Vec<u64> = self.all.keys().copied().collect();
        while self.manager(self.leader_among(&all).await).raft.change(change).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn manager(&self, id: u64) -> &StartedReplica {
        &self.all[&id].0
    }

    async fn write(&self, by: u64, name: &str) -> Result<u64, ProposeError> {
        let written = self.manager(by).store.write(Timestamp(1), vec![network(name)]).await;
        if written.is_ok() {
            let store = self.manager(by).store.read();
            assert!(store.network(&NetworkId::from(name)).is_some(), "the writer reads what it wrote");
        }
        written
    }

    /// The manager is gone without a word.
    fn kill(&self, id: u64) {
        self.wire.managers.lock().unwrap().remove(&id);
    }

    async fn leader_among(&self, ids: &[u64]) -> u64 {
        loop {
            for id in ids {
                if self.manager(*id).raft.status().borrow().is_leader {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        for (started, stop, _dir) in self.all.into_values() {
            stop.cancel();
            started.raft.closed().await;
        }
    }
}

fn network(id: &str) -> Action {
    let spec = NetworkSpec { name: id.to_owned(), ..NetworkSpec::default() };
    Action::create(Network::new(NetworkId::from(id), spec))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_manager_writes_and_reads_what_it_wrote() {
    let managers = Managers::start("each", 3).await;
    for id in 1..=3 {
        managers.write(id, &format!("by{id}")).await.expect("written");
        let again = managers.write(id, "by1").await.expect_err("refused everywhere alike");
        assert!(matches!(again, ProposeError::Refused(StoreError::Exists { .. } | StoreError::NameConflict { .. })), "{again}");
    }
    let index = managers.write(2, "last").await.expect("written");
    for id in 1..=3 {
        let mut store = managers.manager(id).store.watch();
        let store = store.wait_for(|s| s.index() >= index).await.expect("follows");
        assert_eq!(store.networks().count(), 4);
    }
    managers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_written_once() {
    let managers = Managers::start("lost", 3).await;
    managers.wire.loses_answers.store(true, Ordering::SeqCst);
    managers.write(2, "once").await.expect("the second attempt gets the outcome of the first, not `already exists`");
    assert!(!managers.wire.loses_answers.load(Ordering::SeqCst), "an answer was lost");
    managers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_in_an_election_wait_and_succeed_and_fail_at_once_without_a_quorum() {
    let managers = Managers::start("kill", 3).await;
    // Some writes meet the election.
    let first = managers.leader_among(&[1, 2, 3]).await;
    managers.kill(first);
    let others: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
    let (two, three) = tokio::join!(managers.write(others[0], "a"), managers.write(others[1], "b"));
    two.and(three).expect("the others elect a leader meanwhile");
    let leader = managers.leader_among(&others).await;
    managers.kill(leader);
    let left = 6 - first - leader;
    let _ = managers.manager(left).raft.status().wait_for(|s| s.leader.is_none()).await;
    let asked = Instant::now();
    let error = managers.write(left, "c").await.expect_err("no majority");
    assert!(matches!(error, ProposeError::NotLeader), "{error}");
    // A second is promised; a real swarm takes 20.
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    managers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_written_is_not_called_refused() {
    let managers = Managers::start("unknown", 3).await;
    let leader = managers.leader_among(&[1, 2, 3]).await;
    let asked = if leader == 1 { 2 } else { 1 };
    managers.wire.ends_with_answer.store(true, Ordering::SeqCst);
    let error = managers.write(asked, "maybe").await.expect_err("no majority");
    assert!(
        matches!(error, ProposeError::TimedOut),
        "it was written by the leader, and \"not the leader\" says that it was not: {error}"
    );
    managers.stop().await;
}

/// Stops a manager and re-creates the cluster from its log.
async fn recreate(managers: &mut Managers, survivor: u64, raft_id: u64) -> (StartedReplica, CancellationToken, TempDir) {
    let (started, stop, dir) = managers.all.remove(&survivor).expect("a manager");
    stop.cancel();
    started.raft.closed().await;
    let cipher: Arc<dyn skep::raft::LogCipher> = Arc::new(skep::raft::NoCipher);
    let (mut store, log) = replica::replayed(&dir.0, &cipher).expect("a log");
    let node = Survivor { node: "ej9fe8a4i12wa7r06tdh2hha7".into(), raft_id, addr: None, endpoints: Vec::new() };
    let actions = new_cluster::plan(&store, &node, 9, Timestamp(2)).expect("a plan");
    store.apply(log.last + 1, &Transaction::new(Timestamp(2), actions)).expect("applied");
    skep::raft::rebuild(&dir.0, raft_id, (log.last + 1, log.term + 1), store.snapshot(), &cipher).expect("written");
    let (stop, end) = (CancellationToken::new(), Arc::new(End(raft_id, managers.wire.clone())));
    let config = RaftConfig::new(&dir.0, raft_id);
    let started = Replica::start(config, false, end.clone(), end, stop.clone()).await.expect("starts");
    managers.wire.managers.lock().unwrap().insert(raft_id, (started.raft.clone(), started.proposer.clone()));
    (started, stop, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_recreated_from_one_manager_has_every_acknowledged_write_and_the_old_ones_do_not_disturb_it() {
    let mut managers = Managers::start("recreated", 3).await;
    let first = managers.leader_among(&[1, 2, 3]).await;
    let survivor = (1..=3).find(|id| *id != first).expect("another");
    let node = super::super::api::recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", skep::model::Role::Manager);
    managers.manager(first).store.write(Timestamp(1), vec![Action::create(node)]).await.expect("written");
    for number in 0..20 {
        managers.write(survivor, &format!("before{number}")).await.expect("written");
    }
    // The others are lost for good, as it seems.
    let others: Vec<u64> = (1..=3).filter(|id| *id != survivor).collect();
    for id in &others {
        managers.kill(*id);
    }
    let (recreated, stop, _dir) = recreate(&mut managers, survivor, 77).await;
    assert!(recreated.raft.leads().await, "alone");
    assert_eq!(recreated.store.read().networks().count(), 20);
    let old = managers.manager(others[0]).store.read();
    let (before, now) = (old.revision(), recreated.store.read().revision());
    assert!(now.incarnation == 9 && now > before && now.index > before.index, "{before:?} {now:?}");
    recreated.store.write(Timestamp(3), vec![network("after")]).await.expect("written");
    // They come back and are a majority of the old cluster: nothing of theirs reaches the new one, whose raft id they do not know.
    for id in &others {
        let (started, ..) = &managers.all[id];
        managers.wire.managers.lock().unwrap().insert(*id, (started.raft.clone(), started.proposer.clone()));
    }
    managers.leader_among(&others).await;
    managers.write(others[0], "theirs").await.expect("their incarnation goes on");
    recreated.store.write(Timestamp(4), vec![network("ours")]).await.expect("written");
    assert!(recreated.store.read().network(&NetworkId::from("theirs")).is_none());
    assert_eq!(recreated.raft.status().borrow().voters, [77]);
    // Both sides see it when they greet each other.
    let greeting = |store: &StoreHandle| ManagerGreeting::new(&store.read(), true);
    let (ours, theirs) = (greeting(&recreated.store), greeting(&managers.manager(others[0]).store));
    assert!(matches!(judge(&theirs, &ours), GreetingVerdict::WentOn { entries: 1.., .. }));
    assert!(matches!(judge(&ours, &theirs), GreetingVerdict::OtherGoesOn { entries: 1.. }));
    stop.cancel();
    recreated.raft.closed().await;
    managers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_manager_refuses_every_write_with_the_reason() {
    let managers = Managers::start("superseded", 1).await;
    let raft = &managers.manager(1).raft;
    raft.supersede("the cluster was re-created".to_owned());
    let _ = raft.status().wait_for(|status| status.problem.is_some()).await;
    let error = managers.write(1, "late").await.expect_err("refused").to_string();
    assert!(error.contains("the cluster was re-created"), "{error}");
    managers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_process_has_ended_is_not_waited_for() {
    // Without the report, the election would be an hour away.
    let managers = Managers::start_with("ended", 3, (72_000, 80_000)).await;
    let first = managers.leader_among(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
    managers.kill(first);
    let (waits, also) = tokio::join!(managers.write(others[0], "a"), async {
        for id in &others {
            managers.manager(*id).raft.report_ended(first);
        }
        managers.write(others[1], "b").await
    });
    waits.and(also).expect("the others elect a leader meanwhile");
    managers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_transfers_leadership() {
    let managers = Managers::start("hand-over", 3).await;
    let leader = managers.leader_among(&[1, 2, 3]).await;
    managers.manager(leader).raft.transfer_leadership(Duration::from_secs(10)).await;
    assert!(!managers.manager(leader).raft.status().borrow().is_leader);
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    managers.leader_among(&others).await;
    managers.write(leader, "after").await.expect("through the next one");
    managers.stop().await;
}
