//! Reads several logs at once into one queue.

use crate::model::{LogPiece, LogRequest, TaskId, TaskLog};
use async_trait::async_trait;
use futures_util::stream::{BoxStream, StreamExt as _};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Logs that are not followed and read at the same time for one reader; further ones wait for these to end.
const AT_ONCE: usize = 16;

/// Reads the logs of a node's own tasks.
#[async_trait]
pub trait LogReader: Send + Sync {
    /// The log of a task, until it ends or the stream is dropped; empty if its container is gone.
    ///
    /// # Errors
    /// The log cannot be read; the reason, for people.
    async fn read(&self, request: &LogRequest) -> anyhow::Result<BoxStream<'static, anyhow::Result<LogPiece>>>;
}

/// Reads each log that is asked for into `logs`. Returns when nothing more can be asked for and every log has ended, or when
/// `logs` is closed.
pub async fn read_here(
    reader: Arc<dyn LogReader>,
    mut requests: mpsc::Receiver<LogRequest>,
    logs: mpsc::Sender<(TaskId, TaskLog)>,
) {
    let (mut running, slots) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    let mut open = true;
    while open || !running.is_empty() {
        tokio::select! {
            () = logs.closed() => return,
            request = requests.recv(), if open => match request {
                Some(request) => drop(running.spawn(read_one(reader.clone(), request, slots.clone(), logs.clone()))),
                None => open = false,
            },
            Some(_) = running.join_next() => {}
        }
    }
}

async fn read_one(reader: Arc<dyn LogReader>, request: LogRequest, slots: Arc<Semaphore>, logs: mpsc::Sender<(TaskId, TaskLog)>) {
    // A log that is followed does not end: the next one cannot wait for it.
    let _slot = if request.options.follow { None } else { slots.acquire().await.ok() };
    let send = async |log| logs.send((request.task.clone(), log)).await.is_ok();
    let reason = match reader.read(&request).await {
        Err(error) => Some(format!("{error:#}")),
        Ok(mut pieces) => loop {
            match pieces.next().await {
                Some(Ok(piece)) => {
                    if !send(TaskLog::Piece(piece)).await {
                        return;
                    }
                }
                Some(Err(error)) => break Some(format!("{error:#}")),
                None => break None,
            }
        },
    };
    let _ = send(TaskLog::Ended(reason)).await;
}
