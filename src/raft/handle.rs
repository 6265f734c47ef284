//! What the rest of a manager holds of raft: proposals in, status out. Cheap to clone.

use super::config::{RaftError, RaftStatus};
use super::core::Change;
use super::shell::Request;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Handle of a running raft; `O` is the outcome of applying an entry.
pub struct Raft<O> {
    pub(super) requests: SyncSender<Request<O>>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) timeout: Duration,
}

impl<O> Clone for Raft<O> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone(), status: self.status.clone(), timeout: self.timeout }
    }
}

impl<O> std::fmt::Debug for Raft<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

impl<O: Send + 'static> Raft<O> {
    /// Writes an entry; returns its index and what applying it here gave.
    ///
    /// # Errors
    /// As [`RaftError`] says.
    pub async fn propose(&self, data: Vec<u8>) -> Result<(u64, O), RaftError> {
        self.ask(|answer| Request::Propose { data, answer }).await
    }

    /// Changes who the managers are; returns the index that it was applied at.
    ///
    /// # Errors
    /// As [`RaftError`] says.
    pub async fn change(&self, change: Change) -> Result<u64, RaftError> {
        self.ask(|answer| Request::Change { change, answer }).await
    }

    /// Takes in a message of another manager; dropped if too many wait (raft repeats it).
    #[expect(clippy::unused_async, reason = "part of the agreed interface; back-pressure may come")]
    pub async fn step(&self, message: Vec<u8>) {
        let _ = self.requests.try_send(Request::Message(message));
    }

    /// What raft is doing, as it changes. The sender is gone once raft has stopped and closed its file.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
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

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, RaftError>>) -> Request<O>) -> Result<T, RaftError> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(request(answer)).map_err(|e| match e {
            TrySendError::Full(_) => RaftError::Busy,
            TrySendError::Disconnected(_) => stopped(),
        })?;
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(RaftError::TimedOut),
        }
    }
}

fn stopped() -> RaftError {
    RaftError::Stopped("raft has been shut down".to_owned())
}
