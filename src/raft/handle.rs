//! The interface of a running raft for the rest of a manager: proposals in, status out.

use super::config::{RaftError, RaftStatus};
use super::core::MembershipChange;
use super::request::{RaftRequest, Responder};
use super::turns::TurnsWatch;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Pause before the next voter is asked to lead.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Handle of a running raft, cheap to clone; `O` is the outcome of applying an entry.
pub struct Raft<O> {
    pub(super) requests: SyncSender<RaftRequest<O>>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) timeout: Duration,
    pub(super) watch: Arc<TurnsWatch>,
}

impl<O> Clone for Raft<O> {
    fn clone(&self) -> Self {
        let (requests, status) = (self.requests.clone(), self.status.clone());
        Self { requests, status, timeout: self.timeout, watch: self.watch.clone() }
    }
}

impl<O> std::fmt::Debug for Raft<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

impl<O: Send + 'static> Raft<O> {
    /// Writes an entry; returns its index and the outcome of applying it on this manager.
    ///
    /// # Errors
    /// See [`RaftError`].
    pub async fn propose(&self, data: Vec<u8>) -> Result<(u64, O), RaftError> {
        self.request(|responder| RaftRequest::Propose { data, responder }).await
    }

    /// Changes the membership; returns the index of the change.
    ///
    /// # Errors
    /// See [`RaftError`].
    pub async fn change(&self, change: MembershipChange) -> Result<u64, RaftError> {
        self.request(|responder| RaftRequest::Change { change, responder }).await
    }

    /// Passes on a message from the manager with this raft id. Dropped if too many requests wait: raft repeats it.
    pub fn step(&self, from: u64, message: Vec<u8>) {
        let _ = self.requests.try_send(RaftRequest::Message { from, bytes: message });
    }

    /// Reports that the process of the manager with this raft id has ended. If it led, the others elect a leader at once.
    pub fn report_ended(&self, id: u64) {
        let _ = self.requests.try_send(RaftRequest::Ended(id));
    }

    /// Ends raft's part in its cluster for good, for this reason: another incarnation of the cluster has taken its place. All requests are
    /// refused with it, and it is the status's problem.
    pub fn supersede(&self, reason: String) {
        let _ = self.requests.try_send(RaftRequest::Supersede(reason));
    }

    /// Writes the log to a new file, encrypted as [`super::LogCipher`] says now; at once if it is. Returns when that is durable. Nothing
    /// is written, answered or elected meanwhile: 100 MiB take about a second.
    ///
    /// # Errors
    /// The new file could not be written, and raft runs on with the one of before; or raft has stopped, or did not come to it in time.
    pub async fn seal_again(&self) -> Result<(), RaftError> {
        self.request(|responder| RaftRequest::SealAgain { responder }).await
    }

    /// Asks raft to pass leadership on. Returns once another manager leads, or after `limit`; at once on a manager that does not
    /// lead, or is the only voter.
    pub async fn transfer_leadership(&self, limit: Duration) {
        let mut status = self.status.clone();
        let leads_others = |s: &RaftStatus| s.leader == Some(s.id) && s.voters != [s.id];
        if !leads_others(&status.borrow_and_update()) {
            return;
        }
        let asking = async {
            loop {
                // A queue that is full is asked again.
                let _ = self.requests.try_send(RaftRequest::TransferLeadership);
                let passed_on = status.wait_for(|s| s.leader.is_some_and(|leader| leader != s.id));
                // Passed on, or raft has stopped.
                if tokio::time::timeout(ASK_AGAIN, passed_on).await.is_ok() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, asking).await;
    }

    /// Status of raft. The sender is dropped when raft has stopped and closed its file.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Publishes what a silence of raft's thread means, until the thread has ended: without this a manager whose disk does not answer
    /// keeps the lead. To be run for as long as raft is.
    pub async fn watch_turns(&self) {
        self.watch.run().await;
    }

    /// Waits until this manager leads and has applied everything before its term; false if raft stops first.
    pub async fn leads(&self) -> bool {
        self.status.clone().wait_for(|s| s.is_leader).await.is_ok()
    }

    /// Waits until raft has stopped and closed its file.
    pub async fn closed(&self) {
        let mut status = self.status.clone();
        while status.changed().await.is_ok() {}
    }

    /// As [`Self::closed`]; gives up, and returns false, once raft's thread has not gone on for so long: the disk holds it.
    pub async fn closed_unless_held(&self, limit: Duration) -> bool {
        let closed = self.closed();
        tokio::pin!(closed);
        while self.watch.turns.silence() < limit {
            if tokio::time::timeout(limit / 8, &mut closed).await.is_ok() {
                return true;
            }
        }
        false
    }

    async fn request<T>(&self, request: impl FnOnce(Responder<T>) -> RaftRequest<O>) -> Result<T, RaftError> {
        let (responder, response) = oneshot::channel();
        self.requests.try_send(request(responder)).map_err(|e| match e {
            TrySendError::Full(_) => RaftError::Busy,
            TrySendError::Disconnected(_) => stopped(),
        })?;
        match tokio::time::timeout(self.timeout, response).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(RaftError::TimedOut),
        }
    }
}

fn stopped() -> RaftError {
    RaftError::Stopped("raft has been shut down".to_owned())
}
