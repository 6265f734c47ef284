//! A request by class of duration whose trace somebody keeps: from a slow class to what was slow in it.

use super::counts::CLASSES;
use super::forwarded;
use crate::clock::{Clock, SystemClock};
use crate::model::Timestamp;
use crate::sync::lock;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::time::Duration;

/// A request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpExemplar {
    /// Index of the class of its duration.
    pub class: usize,
    /// Id of its trace, 32 hexadecimal digits.
    pub trace: String,
    pub micros: u64,
    /// When it ended.
    pub at: Timestamp,
}

/// The last one of each class.
#[derive(Default, Debug)]
pub(super) struct RouteExemplars(Mutex<[Option<HttpExemplar>; CLASSES]>);

impl RouteExemplars {
    /// Keeps a request that has ended, if its trace is one that its client has chosen to keep.
    pub fn record(&self, class: usize, traceparent: &str, took: Duration) {
        let Some(trace) = forwarded::sampled(traceparent) else { return };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let exemplar = HttpExemplar { class, trace: trace.to_owned(), micros, at: SystemClock.now() };
        if let Some(last) = lock(&self.0).get_mut(class) {
            *last = Some(exemplar);
        }
    }

    pub fn read(&self) -> Vec<HttpExemplar> {
        lock(&self.0).iter().flatten().cloned().collect()
    }
}

#[test]
fn the_last_request_of_a_class_is_kept_if_its_trace_is() {
    let exemplars = RouteExemplars::default();
    let trace = |digit: &str, flags: &str| format!("00-{}-b7ad6b7169203331-{flags}", digit.repeat(32));
    for (class, traceparent) in
        [(0, trace("1", "01")), (0, trace("2", "03")), (0, trace("3", "00")), (4, trace("4", "01")), (99, trace("5", "01"))]
    {
        exemplars.record(class, &traceparent, Duration::from_micros(7));
    }
    exemplars.record(1, "", Duration::ZERO);
    let read: Vec<_> = exemplars.read().into_iter().map(|one| (one.class, one.trace, one.micros)).collect();
    assert_eq!(read, [(0, "2".repeat(32), 7), (4, "4".repeat(32), 7)]);
}
