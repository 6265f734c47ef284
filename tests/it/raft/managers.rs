//! Several managers in one process: writes reach the log from each of them, an election delays and loses none, and none is
//! written twice.

use super::super::api::recorded_store;
use super::fixture::TempDir;
use skep::manager::replica::{Replica, StartedReplica};
use skep::manager::{Forward, Proposer};
use skep::model::network::{Network, NetworkSpec};
use skep::model::{Meta, NetworkId, Timestamp};
use skep::raft::{MembershipChange, RaftConfig, Transport, join};
use skep::store::{Action, ProposeError, StoreError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What of a manager others reach.
type WiredManager = (skep::raft::Raft<skep::manager::ApplyOutcome>, Arc<Proposer>);

/// Connects managers by their raft ids.
#[derive(Default)]
struct Wire {
    managers: Mutex<BTreeMap<u64, WiredManager>>,
    /// Answers to proposals are lost.
    loses_answers: AtomicBool,
}

/// One manager's end.
struct End(u64, Arc<Wire>);

impl Transport for End {
    fn send(&self, to: u64, message: Vec<u8>) {
        let managers = self.1.managers.lock().unwrap();
        if managers.contains_key(&self.0)
            && let Some((raft, _)) = managers.get(&to)
        {
            raft.step(message);
        }
    }
}

#[async_trait::async_trait]
impl Forward for End {
    async fn forward(&self, leader: u64, document: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let proposer = self.1.managers.lock().unwrap().get(&leader).map(|(_, proposer)| proposer.clone());
        let Some(proposer) = proposer else { return std::future::pending().await };
        let answer = proposer.answer(&document).await;
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
        let mut managers = Self { wire: Arc::default(), all: BTreeMap::new() };
        for id in 1..=count {
            let dir = TempDir::new(&format!("{name}-{id}"));
            let config = RaftConfig::new(&dir.0, id, 7);
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
    Action::create(Network { id: NetworkId::from(id), meta: Meta::default(), spec, subnet: None, removing: false })
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
    let error = managers.write(left, "c").await.expect_err("no majority");
    assert!(matches!(error, ProposeError::NotLeader), "{error}");
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
