//! Gets transactions into the log, from any manager: on the leader through its own raft, elsewhere by forwarding them to the
//! leader and waiting until this manager has applied them too. A request that meets an election waits for its end.

use super::entry::{ApplyOutcome, TransactionEntry};
use super::outcomes::RecentOutcomes;
use crate::raft::{Raft, RaftError, RaftStatus};
use crate::store::{Propose, ProposeError, PublishedStore, Store, Transaction};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Writes fail when no leader is known for this long and no majority is heard that could elect one.
const NO_LEADER: Duration = Duration::from_millis(900);
/// Pause before a leader that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(50);

/// Carries a proposal to the manager that leads.
#[async_trait]
pub trait Forward: Send + Sync {
    /// Sends a document for [`Proposer::answer`] to the manager with this raft id, and returns its answer.
    ///
    /// # Errors
    /// There was no answer; the proposal may have been written.
    async fn forward(&self, leader: u64, document: Vec<u8>) -> anyhow::Result<Vec<u8>>;
}

/// A proposal on its way to the leader. The id is the same in each attempt, so that the leader writes it once.
#[derive(Serialize, Deserialize)]
struct ForwardedProposal {
    id: u64,
    transaction: Transaction,
}

/// The leader's answer.
#[derive(Serialize, Deserialize)]
enum ForwardAnswer {
    /// It was applied, or refused by the store, at an index.
    Applied { index: u64, outcome: ApplyOutcome },
    /// The manager does not lead: nothing was written.
    NotLeader,
    /// No majority answered in time. It may still be written later.
    TimedOut,
    /// The leader cannot write; for people.
    Stopped(String),
}

/// How one attempt ended.
enum Attempt {
    Applied {
        index: u64,
        outcome: ApplyOutcome,
    },
    /// Another manager leads by now, or none does: nothing was written, to be tried again.
    Again,
    /// The leader did not answer: it may be written, to be tried again.
    Unanswered,
    Failed(ProposeError),
}

/// The write side of the store on one manager.
pub struct Proposer {
    raft: Raft<ApplyOutcome>,
    published: PublishedStore,
    forward: Arc<dyn Forward>,
    outcomes: Arc<RecentOutcomes>,
    timeout: Duration,
}

impl Proposer {
    pub(super) fn new(
        raft: Raft<ApplyOutcome>,
        published: PublishedStore,
        forward: Arc<dyn Forward>,
        outcomes: Arc<RecentOutcomes>,
        timeout: Duration,
    ) -> Self {
        Self { raft, published, forward, outcomes, timeout }
    }

    /// Answers a proposal that another manager has forwarded.
    pub async fn answer(&self, document: &[u8]) -> Vec<u8> {
        let answer = match serde_json::from_slice::<ForwardedProposal>(document) {
            Ok(ForwardedProposal { id, transaction }) => match self.attempt_here(id, transaction).await {
                Attempt::Applied { index, outcome } => ForwardAnswer::Applied { index, outcome },
                Attempt::Again | Attempt::Unanswered | Attempt::Failed(ProposeError::NotLeader) => ForwardAnswer::NotLeader,
                Attempt::Failed(ProposeError::Refused(error)) => ForwardAnswer::Applied { index: 0, outcome: Err(error) },
                Attempt::Failed(ProposeError::TimedOut) => ForwardAnswer::TimedOut,
                Attempt::Failed(error @ (ProposeError::TooLarge(_) | ProposeError::Stopped(_))) => {
                    ForwardAnswer::Stopped(error.to_string())
                }
            },
            Err(error) => ForwardAnswer::Stopped(format!("a proposal that is not understood: {error}")),
        };
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    /// Writes through this manager's raft, which must lead.
    async fn attempt_here(&self, id: u64, mut transaction: Transaction) -> Attempt {
        let mut status = self.raft.status();
        // Before that it may not have applied what an earlier leader wrote, this proposal included.
        let leads = status.wait_for(|s| s.is_leader || s.leader != Some(s.id) || s.problem.is_some()).await;
        let (leads, term) = leads.map_or((false, 0), |s| (s.is_leader, s.term));
        if !leads {
            return Attempt::Again;
        }
        if let Some(plan) = &mut transaction.plan {
            plan.term = term;
        }
        if let Some((index, outcome)) = self.outcomes.known(id).await {
            return Attempt::Applied { index, outcome };
        }
        let entry = match self.entry(id, transaction) {
            Ok(entry) => entry,
            Err(error) => return Attempt::Failed(error),
        };
        let _in_flight = self.outcomes.begin(id);
        let lost = async {
            let _ = status.wait_for(|s| s.leader != Some(s.id)).await;
            // The next leader commits the entry or replaces it, and raft says which.
            let next = tokio::time::timeout(NO_LEADER, status.wait_for(|s| s.leader.is_some()));
            let has_next = next.await.is_ok_and(|status| status.is_ok());
            if has_next {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            written = self.raft.propose(entry) => match written {
                Ok((index, outcome)) => Attempt::Applied { index, outcome },
                // Also while leadership passes to another manager.
                Err(RaftError::NotLeader { .. } | RaftError::Superseded | RaftError::Busy) => Attempt::Again,
                Err(RaftError::TimedOut) => Attempt::Failed(ProposeError::TimedOut),
                Err(error @ RaftError::TooLarge { .. }) => Attempt::Failed(ProposeError::TooLarge(error.to_string())),
                Err(other) => Attempt::Failed(ProposeError::Stopped(other.to_string())),
            },
            () = lost => Attempt::Failed(ProposeError::TimedOut),
        }
    }

    fn entry(&self, id: u64, transaction: Transaction) -> Result<Vec<u8>, ProposeError> {
        let store = self.published.read();
        let transaction = transaction.at_level_of(&store)?;
        let entry = TransactionEntry::new(id, transaction, &store);
        serde_json::to_vec(&entry).map_err(|e| ProposeError::Stopped(format!("the transaction cannot be written: {e}")))
    }

    /// Asks the leader, as long as raft says that it is the leader.
    async fn attempt_there(&self, leader: u64, document: &[u8], status: &mut watch::Receiver<RaftStatus>) -> Attempt {
        let answer = tokio::select! {
            answer = self.forward.forward(leader, document.to_vec()) => answer,
            _ = status.wait_for(|s| s.leader != Some(leader)) => return Attempt::Unanswered,
        };
        let answer = answer.and_then(|answer| Ok(serde_json::from_slice::<ForwardAnswer>(&answer)?));
        match answer {
            Ok(ForwardAnswer::Applied { index, outcome }) => Attempt::Applied { index, outcome },
            Ok(ForwardAnswer::NotLeader) => Attempt::Again,
            Ok(ForwardAnswer::TimedOut) => Attempt::Failed(ProposeError::TimedOut),
            Ok(ForwardAnswer::Stopped(why)) => Attempt::Failed(ProposeError::Stopped(why)),
            Err(error) => {
                tracing::debug!(leader, error = format!("{error:#}"), "the leader did not answer a proposal");
                Attempt::Unanswered
            }
        }
    }

    /// Attempts until one ends otherwise than by a change of leader.
    async fn propose_anywhere(&self, id: u64, transaction: Transaction) -> Result<u64, ProposeError> {
        let mut status = self.raft.status();
        let mut forwarded: Option<Vec<u8>> = None;
        let mut may_be_written = false;
        loop {
            let (me, leader) = match leader_of(&mut status).await {
                Ok(known) => known,
                // Who reads that there is no leader repeats the request.
                Err(ProposeError::NotLeader) if may_be_written => return Err(ProposeError::TimedOut),
                Err(error) => return Err(error),
            };
            let attempt = if leader == me {
                self.attempt_here(id, transaction.clone()).await
            } else {
                let document = match &forwarded {
                    Some(document) => document,
                    None => forwarded.insert(
                        serde_json::to_vec(&ForwardedProposal { id, transaction: transaction.clone() })
                            .map_err(|e| ProposeError::Stopped(format!("the transaction cannot be written: {e}")))?,
                    ),
                };
                self.attempt_there(leader, document, &mut status).await
            };
            match attempt {
                Attempt::Applied { index, outcome } => {
                    outcome?;
                    self.applied_here(index).await;
                    return Ok(index);
                }
                Attempt::Failed(error) => return Err(error),
                // At once when another manager leads.
                again @ (Attempt::Again | Attempt::Unanswered) => {
                    may_be_written |= matches!(again, Attempt::Unanswered);
                    drop(tokio::time::timeout(RETRY, status.wait_for(|s| s.leader != Some(leader))).await);
                }
            }
        }
    }

    /// Waits until readers of this manager see what was written at an index.
    async fn applied_here(&self, index: u64) {
        let mut store = self.published.watch();
        let seen = |store: &Arc<Store>| store.index() >= index;
        let _ = store.wait_for(seen).await;
    }
}

/// This manager's raft id and the leader's; waits for an election, unless too few managers are heard for one.
async fn leader_of(status: &mut watch::Receiver<RaftStatus>) -> Result<(u64, u64), ProposeError> {
    loop {
        let known = status.wait_for(|s| s.leader.is_some() || s.problem.is_some());
        let known = match tokio::time::timeout(NO_LEADER, known).await {
            Ok(Err(_)) => return Err(ProposeError::Stopped("raft has been shut down".to_owned())),
            Ok(Ok(status)) => Some((status.id, status.leader, status.problem.clone())),
            Err(_) => None,
        };
        match known {
            Some((_, _, Some(problem))) => return Err(ProposeError::Stopped(problem)),
            Some((me, leader, None)) => return Ok((me, leader.unwrap_or_default())),
            None if status.borrow().hears_majority => {}
            None => return Err(ProposeError::NotLeader),
        }
    }
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let id = rand::random();
        let deadline = Instant::now() + self.timeout;
        if transaction.plan.is_some() {
            // The planners of a manager that does not lead any more have nothing to say.
            return match self.attempt_here(id, transaction).await {
                Attempt::Applied { index, outcome } => outcome.map(|()| index).map_err(Into::into),
                Attempt::Again | Attempt::Unanswered => Err(ProposeError::NotLeader),
                Attempt::Failed(error) => Err(error),
            };
        }
        let outcome = tokio::time::timeout_at(deadline, self.propose_anywhere(id, transaction)).await;
        outcome.unwrap_or(Err(ProposeError::TimedOut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recorded::RecordedNames;

    /// Managers may be of two builds.
    #[test]
    fn what_managers_say_of_a_proposal_is_recorded_with_every_reason() {
        let recorded = serde_json::from_slice(include_bytes!("../../tests/it/formats/proposals.json")).unwrap();
        let names = RecordedNames::default();
        names.read_all::<ForwardedProposal>(&recorded, "ForwardedProposal");
        names.read_all::<ForwardAnswer>(&recorded, "ForwardAnswer");
        let own =
            |name: &String| ["ForwardedProposal.", "ForwardAnswer::", "StoreError::"].iter().any(|own| name.starts_with(own));
        let missing: Vec<String> = names.missing().into_iter().filter(own).collect();
        assert_eq!(missing, [""; 0], "record them in tests/it/formats/proposals.json");
    }
}
