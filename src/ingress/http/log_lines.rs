//! Lines that wait to be written. A thread of their own writes them: a reader that stalls holds up no request. What has no room is dropped, and counted.

use crate::sync::lock;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Bytes that wait at most.
const ROOM: usize = 4 << 20;

/// The lines.
#[derive(Debug)]
pub(super) struct LogLines {
    shared: Arc<SharedLines>,
    room: usize,
}

#[derive(Default, Debug)]
struct SharedLines {
    waiting: Mutex<WaitingLines>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Default, Debug)]
struct WaitingLines {
    bytes: Vec<u8>,
    lines: u64,
    /// No more will come.
    closed: bool,
    /// All of them were written.
    ended: bool,
}

impl LogLines {
    /// To standard output.
    pub fn standard() -> Self {
        Self::to(std::io::stdout(), ROOM)
    }

    fn to(out: impl Write + Send + 'static, room: usize) -> Self {
        let shared = Arc::<SharedLines>::default();
        let of_thread = shared.clone();
        let started = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || of_thread.write(out));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for the access log, which stays empty");
            lock(&shared.waiting).ended = true;
        }
        Self { shared, room }
    }

    /// Adds a line, if there is room.
    pub fn add(&self, line: &str) {
        let mut waiting = lock(&self.shared.waiting);
        if waiting.ended || waiting.bytes.len() + line.len() >= self.room {
            drop(waiting);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Otherwise the thread has something to do already.
        let wake = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line.as_bytes());
        waiting.bytes.push(b'\n');
        waiting.lines += 1;
        drop(waiting);
        if wake {
            self.shared.changed.notify_all();
        }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, at most for this long.
    pub fn close(&self, within: Duration) {
        let mut waiting = lock(&self.shared.waiting);
        waiting.closed = true;
        self.shared.changed.notify_all();
        let _ = self.shared.changed.wait_timeout_while(waiting, within, |waiting| !waiting.ended);
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl SharedLines {
    /// The thread.
    fn write(&self, mut out: impl Write) {
        let mut bytes = Vec::new();
        loop {
            let waiting = lock(&self.waiting);
            let waits = self.changed.wait_while(waiting, |waiting| waiting.bytes.is_empty() && !waiting.closed);
            let mut waiting = waits.unwrap_or_else(std::sync::PoisonError::into_inner);
            if waiting.bytes.is_empty() {
                waiting.ended = true;
                drop(waiting);
                self.changed.notify_all();
                return;
            }
            std::mem::swap(&mut waiting.bytes, &mut bytes);
            let lines = std::mem::take(&mut waiting.lines);
            drop(waiting);
            // A reader that is gone ends the log, not the requests.
            if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                self.dropped.fetch_add(lines, Ordering::Relaxed);
            }
            bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, pipe};

    #[test]
    fn lines_come_in_order_and_none_waits_for_a_reader_that_stalls() {
        let (mut reader, writer) = pipe().unwrap();
        let lines = LogLines::to(writer, 100_000);
        let line = "x".repeat(999);
        // More than the pipe and the room hold.
        (0..1_000).for_each(|_| lines.add(&line));
        let dropped = lines.dropped();
        assert!((1..1_000).contains(&dropped), "{dropped}");
        let mut first = [0; 1_000];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(first, format!("{line}\n").as_bytes());
        let rest = std::thread::spawn(move || {
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).map(|_| rest)
        });
        lines.close(Duration::from_secs(10));
        lines.add("after the end");
        assert_eq!(rest.join().unwrap().unwrap().len() as u64, (999 - dropped) * 1_000, "all that was not dropped");
        assert_eq!(lines.dropped(), dropped + 1);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let lines = LogLines::to(writer, 100);
        lines.add("one");
        lines.close(Duration::from_secs(10));
        assert_eq!(lines.dropped(), 1);
    }
}
