//! How far a client is with sending its request, and whether that is too slow.
//!
//! pingora bounds each read, and nothing bounds the head or the body as a whole: a client that sends a byte now and then would
//! hold a connection for ever. The filters say here what they see; the caller that serves the request waits for [`RequestProgress::overdue`] beside it.

use super::limits::{BODY_RATE, HttpLimits};
use super::refusals::HttpRefusal;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

tokio::task_local! {
    /// Of the request that this task serves.
    static CURRENT: Arc<RequestProgress>;
}

/// A body of unknown length.
const UNKNOWN: u64 = u64::MAX;

/// How far a request is; on a connection of HTTP/1 each in its turn.
#[derive(Debug)]
pub(super) struct RequestProgress {
    began: Instant,
    /// Nothing of the request has come, which is no fault.
    idle: AtomicBool,
    /// From when on the request or its head is waited for, in milliseconds from `began`, and for how long.
    since: AtomicU64,
    head_ms: AtomicU64,
    head: AtomicBool,
    /// There is a body.
    expected: AtomicBool,
    /// Bytes of the body that is waited for; 0: none is.
    announced: AtomicU64,
    /// The body is complete.
    ended: AtomicBool,
    read: AtomicU64,
    /// The connection speaks something else from now on.
    upgraded: AtomicBool,
    /// When the head was read, and when the last part of the body was, in milliseconds from `began`.
    head_at: AtomicU64,
    last_at: AtomicU64,
}

/// What is decided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ProgressSeen {
    idle: bool,
    since: u64,
    head_ms: u64,
    head: bool,
    /// Bytes that are announced, if a body is waited for; [`UNKNOWN`] if its length is not.
    body: Option<u64>,
    read: u64,
    head_at: u64,
    last_at: u64,
}

/// What is to be done about a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    /// The connection is to be closed; without a reason it was of no use any more.
    Overdue(Option<HttpRefusal>),
    /// Look again then, in milliseconds from the beginning.
    LookAt(u64),
    /// Nothing more is waited for.
    Complete,
}

fn pace(seen: &ProgressSeen, now: u64, body_ms: u64) -> Pace {
    let due = |at: u64, reason| if now >= at { Pace::Overdue(reason) } else { Pace::LookAt(at) };
    match (seen.head, seen.body) {
        (false, _) => due(seen.since + seen.head_ms, Some(HttpRefusal::SlowHead).filter(|_| !seen.idle)),
        (true, None) => Pace::Complete,
        (true, Some(UNKNOWN)) => due(seen.last_at + body_ms, Some(HttpRefusal::SlowBody)),
        (true, Some(_)) => due(seen.head_at + body_ms + seen.read * 1000 / BODY_RATE, Some(HttpRefusal::SlowBody)),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl RequestProgress {
    /// `head`: how long the head is waited for.
    pub fn new(head: Duration) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            idle: AtomicBool::new(false),
            since: AtomicU64::new(0),
            head_ms: AtomicU64::new(millis(head)),
            head: AtomicBool::new(false),
            expected: AtomicBool::new(false),
            announced: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            read: AtomicU64::new(0),
            upgraded: AtomicBool::new(false),
            head_at: AtomicU64::new(0),
            last_at: AtomicU64::new(0),
        })
    }

    /// The next request is waited for, so long.
    pub fn restart(&self, idle: Duration) {
        self.wait(idle);
        self.idle.store(true, Ordering::Relaxed);
        self.announced.store(0, Ordering::Relaxed);
        self.expected.store(false, Ordering::Relaxed);
        self.ended.store(false, Ordering::Relaxed);
        self.read.store(0, Ordering::Relaxed);
        self.head.store(false, Ordering::Release);
    }

    /// A part of the head has come; the rest is waited for.
    pub fn head_began(&self, head: Duration) {
        if self.idle.swap(false, Ordering::Relaxed) {
            self.wait(head);
        }
    }

    /// The head is waited for from now on.
    pub fn wait(&self, time: Duration) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.head_ms.store(millis(time), Ordering::Relaxed);
    }

    /// The head of a request without a body was read.
    pub fn head_alone(&self) {
        self.head.store(true, Ordering::Release);
    }

    /// Runs what serves the request; the filters that it calls find this.
    pub fn watch<F: Future>(self: Arc<Self>, serve: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, serve)
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn seen(&self) -> ProgressSeen {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let waits = !self.ended.load(Ordering::Relaxed);
        ProgressSeen {
            idle: self.idle.load(Ordering::Relaxed),
            since: load(&self.since),
            head_ms: load(&self.head_ms),
            head: self.head.load(Ordering::Acquire),
            body: Some(load(&self.announced)).filter(|announced| waits && *announced > 0),
            read: load(&self.read),
            head_at: load(&self.head_at),
            last_at: load(&self.last_at),
        }
    }

    /// Returns once the client is too slow, or has waited too long: the latter without a reason.
    pub async fn overdue(&self, limits: &HttpLimits) -> Option<HttpRefusal> {
        // Whatever is waited for next is waited for so long: it need not be announced here.
        let least = limits.body_ms.min(limits.head_ms).min(limits.idle_ms).max(1);
        loop {
            let now = self.now();
            let look_at = match pace(&self.seen(), now, limits.body_ms) {
                Pace::Overdue(reason) => return reason,
                Pace::LookAt(at) => at.min(now + least),
                Pace::Complete => now + least,
            };
            tokio::time::sleep_until(self.began + Duration::from_millis(look_at)).await;
        }
    }
}

/// What follows a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExpectedBody {
    /// Nothing, or a stream that is silent for as long as it likes.
    Nothing,
    /// So many bytes.
    Length(u64),
    Unknown,
}

/// The head was read.
pub(super) fn head_seen(body: ExpectedBody) {
    let _ = CURRENT.try_with(|progress| {
        let now = progress.now();
        progress.head_at.store(now, Ordering::Relaxed);
        progress.last_at.store(now, Ordering::Relaxed);
        let announced = match body {
            ExpectedBody::Nothing => 0,
            ExpectedBody::Length(length) => length,
            ExpectedBody::Unknown => UNKNOWN,
        };
        progress.announced.store(announced, Ordering::Relaxed);
        progress.expected.store(body != ExpectedBody::Nothing, Ordering::Relaxed);
        progress.head.store(true, Ordering::Release);
    });
}

/// The request waits for a task: its body is asked for later.
pub(super) fn task_awaited() {
    let _ = CURRENT.try_with(|progress| {
        let now = progress.now();
        progress.head_at.store(now, Ordering::Relaxed);
        progress.last_at.store(now, Ordering::Relaxed);
    });
}

/// A part of the body was read.
pub(super) fn body_read(bytes: usize, end: bool) {
    let _ = CURRENT.try_with(|progress| {
        progress.read.fetch_add(bytes as u64, Ordering::Relaxed);
        progress.last_at.store(progress.now(), Ordering::Relaxed);
        progress.ended.fetch_or(end, Ordering::Relaxed);
    });
}

/// The answer has begun: the client may wait for parts of it before it sends more.
pub(super) fn answer_began() {
    let _ = CURRENT.try_with(|progress| {
        if progress.announced.load(Ordering::Relaxed) == UNKNOWN {
            progress.announced.store(0, Ordering::Relaxed);
        }
    });
}

/// The answer was an upgrade.
pub(super) fn upgraded() {
    let _ = CURRENT.try_with(|progress| progress.upgraded.store(true, Ordering::Relaxed));
}

/// Whether the connection of the request that this task serves was upgraded.
pub(super) fn is_upgraded() -> bool {
    CURRENT.try_with(|progress| progress.upgraded.load(Ordering::Relaxed)).unwrap_or(false)
}

/// The answer is complete: a body that still comes is of no use, and is to come fast.
pub(super) fn answer_ended() {
    let _ = CURRENT.try_with(|progress| {
        if !progress.ended.load(Ordering::Relaxed) && progress.expected.load(Ordering::Relaxed) {
            progress.head_at.store(progress.now(), Ordering::Relaxed);
            progress.read.store(0, Ordering::Relaxed);
            progress.announced.store(UNKNOWN - 1, Ordering::Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_bodies_have_their_time() {
        let seen =
            ProgressSeen { idle: false, since: 0, head_ms: 1000, head: true, body: None, read: 0, head_at: 100, last_at: 100 };
        let none = ProgressSeen { head: false, ..seen };
        let announced = ProgressSeen { body: Some(1_000_000), ..seen };
        let unknown = ProgressSeen { body: Some(UNKNOWN), ..seen };
        for (seen, now, expected) in [
            (none, 0, Pace::LookAt(1000)),
            (none, 1000, Pace::Overdue(Some(HttpRefusal::SlowHead))),
            (ProgressSeen { since: 500, ..none }, 1000, Pace::LookAt(1500)),
            (ProgressSeen { idle: true, ..none }, 1000, Pace::Overdue(None)),
            (seen, 99_999, Pace::Complete),
            (announced, 100, Pace::LookAt(5100)),
            (announced, 5100, Pace::Overdue(Some(HttpRefusal::SlowBody))),
            // 1000 bytes are worth 2 s.
            (ProgressSeen { read: 1000, ..announced }, 5100, Pace::LookAt(7100)),
            (unknown, 5099, Pace::LookAt(5100)),
            (unknown, 5100, Pace::Overdue(Some(HttpRefusal::SlowBody))),
            (ProgressSeen { last_at: 4000, ..unknown }, 5100, Pace::LookAt(9000)),
        ] {
            assert_eq!(pace(&seen, now, 5000), expected, "{seen:?} at {now}");
        }
    }

    #[tokio::test]
    async fn filters_report_to_the_request_that_their_task_serves() {
        let limits = HttpLimits { body_ms: 50, ..HttpLimits::default() };
        let overdue = async |complete: bool| {
            let progress = RequestProgress::new(Duration::ZERO);
            let serve = progress.clone().watch(async {
                head_seen(ExpectedBody::Length(1000));
                body_read(10, complete);
                tokio::time::sleep(Duration::from_millis(200)).await;
            });
            tokio::select! {
                biased;
                () = serve => None,
                reason = progress.overdue(&limits) => reason,
            }
        };
        assert_eq!((overdue(true).await, overdue(false).await), (None, Some(HttpRefusal::SlowBody)));
        body_read(1, true);
        assert_eq!(RequestProgress::new(Duration::ZERO).overdue(&limits).await, Some(HttpRefusal::SlowHead));
    }
}
