//! Makes the bytes of a snapshot on a thread of its own; raft asks for one at a time.

use super::core::Event;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotFailure {
    #[error("the thread that makes a snapshot cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("the snapshot could not be made because of a bug, which is in the log above: restart skep")]
    Bug,
}

/// The snapshot that is being made, if one is.
#[derive(Default)]
pub(super) struct SnapshotThread(Option<Receiver<Event>>);

impl SnapshotThread {
    /// Starts to make the snapshot after the entry `index`.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn start(&mut self, index: u64, make: Box<dyn FnOnce() -> Vec<u8> + Send>) -> Result<(), SnapshotFailure> {
        let (made, receiver) = sync_channel(1);
        let thread = std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
            let bytes = make();
            tracing::debug!(index, bytes = bytes.len(), "snapshot taken");
            // Sending fails if raft has ended.
            let _ = made.send(Event::Snapshot { index, bytes });
        });
        self.0 = Some(receiver);
        thread.map(drop).map_err(SnapshotFailure::Thread)
    }

    /// The snapshot, once it is made.
    ///
    /// # Errors
    /// Its thread has panicked.
    pub(super) fn finished(&mut self) -> Result<Option<Event>, SnapshotFailure> {
        match self.0.as_ref().map(Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => Ok(None),
            Some(Ok(event)) => {
                self.0 = None;
                Ok(Some(event))
            }
            Some(Err(TryRecvError::Disconnected)) => Err(SnapshotFailure::Bug),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(thread: &mut SnapshotThread) -> Result<Event, SnapshotFailure> {
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
        thread.start(7, Box::new(make)).expect("started");
        assert!(thread.finished().is_ok_and(|event| event.is_none()), "it is not made yet");
        release.send(()).expect("it waits");
        let Ok(Event::Snapshot { index: 7, bytes }) = wait(&mut thread) else { panic!("a snapshot") };
        assert_eq!(bytes, b"state");
        assert!(thread.finished().is_ok_and(|event| event.is_none()));
        thread.start(8, Box::new(|| panic!("a test"))).expect("started");
        assert!(matches!(wait(&mut thread), Err(SnapshotFailure::Bug)));
    }
}
