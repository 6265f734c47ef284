//! Makes the bytes of a snapshot on a thread of its own; raft asks for one at a time.

use super::core::Event;
use crate::sync::lock;
use std::io;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[error("the snapshot could not be made because of a bug, which is in the log above")]
pub(super) struct SnapshotBug;

type Make = Box<dyn FnOnce() -> Vec<u8> + Send>;
type Work = Box<dyn FnOnce() + Send>;

/// The snapshot that is being made, if one is.
#[derive(Default)]
pub(super) enum SnapshotThread {
    #[default]
    Idle,
    /// There was no thread for it.
    Waiting {
        index: u64,
        make: Make,
    },
    Making(Receiver<Event>),
}

impl SnapshotThread {
    /// Starts to make the snapshot after the entry `index`, now or once there is a thread for it.
    pub fn start(&mut self, index: u64, make: Make) {
        if let Err(error) = self.start_on(index, make, spawn) {
            tracing::warn!(index, %error, "no thread for a snapshot yet: the log grows until there is one");
        }
    }

    /// Tries again to start what waits for a thread.
    pub fn tick(&mut self) {
        self.try_again(spawn);
    }

    fn try_again(&mut self, spawn: impl FnOnce(Work) -> io::Result<()>) {
        match std::mem::take(self) {
            Self::Waiting { index, make } => drop(self.start_on(index, make, spawn)),
            other => *self = other,
        }
    }

    fn start_on(&mut self, index: u64, make: Make, spawn: impl FnOnce(Work) -> io::Result<()>) -> io::Result<()> {
        let (made, receiver) = sync_channel(1);
        // What cannot be spawned is dropped, with all that it owns.
        let kept = Arc::new(Mutex::new(Some(make)));
        let taken = kept.clone();
        let spawned = spawn(Box::new(move || {
            let Some(make) = lock(&taken).take() else { return };
            let bytes = make();
            tracing::debug!(index, bytes = bytes.len(), "snapshot taken");
            // Sending fails if raft has ended.
            let _ = made.send(Event::Snapshot { index, bytes });
        }));
        match &spawned {
            Ok(()) => *self = Self::Making(receiver),
            Err(_) => *self = lock(&kept).take().map_or(Self::Idle, |make| Self::Waiting { index, make }),
        }
        spawned
    }

    /// The snapshot, once it is made.
    ///
    /// # Errors
    /// Its thread has panicked.
    pub fn finished(&mut self) -> Result<Option<Event>, SnapshotBug> {
        let Self::Making(receiver) = self else { return Ok(None) };
        match receiver.try_recv() {
            Err(TryRecvError::Empty) => Ok(None),
            Ok(event) => {
                *self = Self::Idle;
                Ok(Some(event))
            }
            Err(TryRecvError::Disconnected) => Err(SnapshotBug),
        }
    }
}

fn spawn(work: Work) -> io::Result<()> {
    std::thread::Builder::new().name("snapshot".to_owned()).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(thread: &mut SnapshotThread) -> Result<Event, SnapshotBug> {
        loop {
            if let Some(event) = thread.finished()? {
                return Ok(event);
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_snapshot_comes_once_and_a_panic_is_an_error() {
        let mut thread = SnapshotThread::default();
        assert!(thread.finished().is_ok_and(|event| event.is_none()));
        let (release, held) = sync_channel::<()>(1);
        let make = move || {
            let _ = held.recv();
            b"state".to_vec()
        };
        thread.start(7, Box::new(make));
        assert!(thread.finished().is_ok_and(|event| event.is_none()), "it is not made yet");
        release.send(()).expect("it waits");
        let Ok(Event::Snapshot { index: 7, bytes }) = wait(&mut thread) else { panic!("a snapshot") };
        assert_eq!(bytes, b"state");
        assert!(thread.finished().is_ok_and(|event| event.is_none()));
        thread.start(8, Box::new(|| panic!("a test")));
        assert!(wait(&mut thread).is_err());
    }

    #[test]
    fn a_snapshot_for_which_there_is_no_thread_is_made_later() {
        let none = |_: Work| Err(io::Error::from(io::ErrorKind::WouldBlock));
        let mut thread = SnapshotThread::default();
        thread.start_on(7, Box::new(|| b"state".to_vec()), none).expect_err("no thread");
        thread.try_again(none);
        assert!(thread.finished().is_ok_and(|event| event.is_none()), "it waits, and is no failure");
        thread.tick();
        let Ok(Event::Snapshot { index: 7, bytes }) = wait(&mut thread) else { panic!("a snapshot") };
        assert_eq!(bytes, b"state");
        thread.start_on(8, Box::new(Vec::new), none).expect_err("no thread");
        thread.start(9, Box::new(|| b"later".to_vec()));
        assert!(matches!(wait(&mut thread), Ok(Event::Snapshot { index: 9, .. })), "the one that is asked for");
    }
}
