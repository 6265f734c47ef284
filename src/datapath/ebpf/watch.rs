//! Watchers of what the programs drop, refuse or leave to the host. One task reads the ring for all of them; it starts with
//! the first watcher and ends with the last one, and the programs write nothing while it does not run.

use super::events::{EventRing, Refusal};
use crate::sync::lock;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};

/// Events that a slow watcher may be behind; older ones are lost to it.
const BEHIND: usize = 4_096;
/// How often the switch is renewed, and lost events are counted.
const RENEW: Duration = Duration::from_millis(500);

/// What a watcher is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Watched {
    Event(Refusal),
    /// So many events were not written, or not read in time.
    Lost(u64),
}

/// The watchers of one datapath.
#[derive(Default)]
pub(super) struct Watchers {
    /// The running reader's sender.
    reader: Mutex<Option<broadcast::Sender<Watched>>>,
    /// Watchers that want to see what is left to the host too.
    left: AtomicUsize,
}

/// A watcher. Its watch ends when it is dropped.
pub struct RefusalWatch {
    receiver: broadcast::Receiver<Watched>,
    left: bool,
    watchers: Arc<Watchers>,
}

impl RefusalWatch {
    /// The next event; `None` when the ring cannot be read any more.
    pub async fn next(&mut self) -> Option<Watched> {
        loop {
            match self.receiver.recv().await {
                Ok(Watched::Event(event)) if event.reason.left_reason().is_some() && !self.left => {}
                Ok(watched) => return Some(watched),
                Err(RecvError::Lagged(lost)) => return Some(Watched::Lost(lost)),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for RefusalWatch {
    fn drop(&mut self) {
        if self.left {
            self.watchers.left.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A reader that panics is none any more: its watchers see the end, and the next one starts another.
struct ReaderPanic<'a>(&'a Watchers);

impl Drop for ReaderPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *lock(&self.0.reader) = None;
        }
    }
}

impl Watchers {
    /// Adds a watcher; starts the reader if none runs. `maps`: folder of the pinned maps.
    pub(super) fn add(self: &Arc<Self>, maps: &Path, left: bool) -> anyhow::Result<RefusalWatch> {
        let mut reader = lock(&self.reader);
        let receiver = if let Some(sender) = &*reader {
            sender.subscribe()
        } else {
            let mut ring = EventRing::open(maps)?;
            ring.renew(left)?;
            let (sender, receiver) = broadcast::channel(BEHIND);
            *reader = Some(sender.clone());
            tokio::spawn(Arc::clone(self).read(ring, sender));
            receiver
        };
        if left {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
        Ok(RefusalWatch { receiver, left, watchers: Arc::clone(self) })
    }

    /// Reads the ring until no watcher is left or it cannot be read.
    async fn read(self: Arc<Self>, mut ring: EventRing, sender: broadcast::Sender<Watched>) {
        let _panic = ReaderPanic(&self);
        let mut tick = tokio::time::interval(RENEW);
        let mut lost = 0;
        let error = loop {
            tokio::select! {
                events = ring.next() => match events {
                    Ok(events) => events.into_iter().for_each(|event| drop(sender.send(Watched::Event(event)))),
                    Err(error) => break Some(error),
                },
                _ = tick.tick() => {
                    let mut reader = lock(&self.reader);
                    if sender.receiver_count() == 0 {
                        *reader = None;
                        // Off before another watcher can turn it on.
                        drop(ring);
                        return;
                    }
                    drop(reader);
                    if let Err(error) = ring.renew(self.left.load(Ordering::Relaxed) > 0) {
                        break Some(error);
                    }
                    let now = ring.lost().unwrap_or(lost);
                    if now > lost {
                        let _ = sender.send(Watched::Lost(now - lost));
                        lost = now;
                    }
                }
            }
        };
        if let Some(error) = error {
            tracing::warn!(error = format!("{error:#}"), "the events of the eBPF datapath cannot be read");
        }
        *lock(&self.reader) = None;
    }
}
