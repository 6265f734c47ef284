//! What an answer of the authority means for the record of a certificate. Pure: time and randomness are passed in.

use super::error::{AcmeError, AcmeErrorKind};
use crate::backoff::Backoff;
use crate::model::acme::{AcmeFailure, AcmeOrder, AcmeRenewal, IssuedCertificate};
use crate::model::payload::SealedData;
use crate::model::{AcmeAccount, AcmeCertificate, SecretId, Timestamp};
use crate::trust::Validity;
use rand::Rng;
use std::time::Duration;

/// After an order that the authority has refused. Public ones count five an hour for a name.
const REFUSED: Backoff = Backoff::new(Duration::from_mins(5), Duration::from_hours(24));
/// After a step that may succeed the next time.
const TRANSIENT: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_hours(1));
/// After a nonce that the authority did not take, as RFC 8555 (6.5) asks for. The library has tried three by then, without a pause.
const STALE_NONCE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_hours(1));
/// While this manager waits for the key of secrets, which another one passes on within seconds.
const NOT_READY: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_mins(10));
/// An order that is not decided after this time is given up.
pub const ORDER_LIFE: Duration = Duration::from_hours(24);
/// Longest time until the authority is asked for its renewal window again.
pub(super) const MOST_ASK: Duration = Duration::from_hours(6);
/// Shortest time between two certificates of a name, whatever the clock and the authority say.
const LEAST_HELD: Duration = Duration::from_mins(10);
/// How long other certificates wait when an order was one too many. The bound may be of that one's domain alone.
const LEAST_PAUSE: Duration = Duration::from_mins(1);
const MOST_PAUSE: Duration = Duration::from_mins(10);
/// Bytes of a reason that are kept: every node is sent it.
const MOST_REASON: usize = 1000;

/// The failure after this one.
pub fn failure(before: Option<&AcmeFailure>, error: &AcmeError, now: Timestamp, rng: &mut impl Rng) -> AcmeFailure {
    let count = before.map_or(0, |failure| failure.count).saturating_add(1);
    let backoff = match error.kind {
        AcmeErrorKind::Refused => REFUSED,
        AcmeErrorKind::NotReady => NOT_READY,
        AcmeErrorKind::StaleNonce => STALE_NONCE,
        _ => TRANSIENT,
    };
    let pause = backoff.jittered(count, rng).max(error.retry_after.unwrap_or_default());
    AcmeFailure { reason: shown(&error.reason), at: now, next: now.plus(pause), count }
}

/// A text of the authority, or of what it was answered, as it may be kept and written to a terminal: one line, not too long.
fn shown(text: &str) -> String {
    let cut = text.floor_char_boundary(MOST_REASON.min(text.len()));
    let dots = if cut < text.len() { "…" } else { "" };
    text[..cut].replace(char::is_control, " ") + dots
}

/// After a failed step. An order stays if nothing is decided yet.
pub fn failed(before: &AcmeCertificate, error: &AcmeError, now: Timestamp, rng: &mut impl Rng) -> AcmeCertificate {
    let failure = failure(before.failure.as_ref(), error, now, rng);
    let keep = |order: &AcmeOrder| !error.ends_order() && now.since(order.created_at) < ORDER_LIFE;
    let order = before.order.clone().filter(keep).map(|order| AcmeOrder { look_at: failure.next, ..order });
    AcmeCertificate { order, failure: Some(failure), ..before.clone() }
}

/// The account after it was refused an order as one too many: no other is made for a while.
#[must_use]
pub fn held(before: &AcmeAccount, error: &AcmeError, now: Timestamp) -> AcmeAccount {
    let pause = error.retry_after.unwrap_or(LEAST_PAUSE).clamp(LEAST_PAUSE, MOST_PAUSE);
    let failure = AcmeFailure { reason: shown(&error.reason), at: now, next: now.plus(pause), count: 1 };
    AcmeAccount { failure: Some(failure), ..before.clone() }
}

/// With an order that was made.
#[must_use]
pub fn ordered(before: &AcmeCertificate, order: AcmeOrder) -> AcmeCertificate {
    AcmeCertificate { order: Some(order), ..before.clone() }
}

/// The order is not decided: it is looked at again.
#[must_use]
pub fn undecided(before: &AcmeCertificate, look_at: Timestamp) -> AcmeCertificate {
    let order = before.order.clone().map(|order| AcmeOrder { look_at, ..order });
    AcmeCertificate { order, ..before.clone() }
}

/// A certificate as it was received.
#[derive(Clone, Debug)]
pub struct ReceivedCertificate {
    pub payload: SecretId,
    pub data: SealedData,
    pub names: Vec<String>,
    pub issuer: String,
    pub validity: Validity,
}

/// With the certificate of its order.
pub fn issued(before: &AcmeCertificate, received: ReceivedCertificate, now: Timestamp, rng: &mut impl Rng) -> AcmeCertificate {
    let ReceivedCertificate { payload, data, names, issuer, validity: Validity { not_before, not_after } } = received;
    let life = not_after.since(not_before);
    // At two thirds of its life, and up to a thirtieth before. A clock that is ahead, or a life that has mostly passed when the
    // certificate is issued, would make an order at once after each order.
    let left = not_after.since(now);
    let held = if left.is_zero() { life / 3 } else { (life / 3).min(LEAST_HELD.max(left / 2)) };
    let at = not_before.plus(life.mul_f64(2.0 / 3.0 - rng.random::<f64>() / 30.0)).max(now.plus(held));
    let renewal = AcmeRenewal { at, window: None, ask_at: now.plus(MOST_ASK.min(life / 10)) };
    let issued = IssuedCertificate { payload, data, names, issuer, not_before, not_after, renewal };
    AcmeCertificate { issued: Some(issued), order: None, failure: None, ..before.clone() }
}

/// With what the authority says of when to renew: its window and the time until it wants to be asked again. Without an answer
/// the time of renewal stays.
pub fn renewal(
    before: &AcmeCertificate,
    answer: Option<((Timestamp, Timestamp), Duration)>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> AcmeCertificate {
    let mut after = before.clone();
    let Some(issued) = &mut after.issued else { return after };
    let life = issued.not_after.since(issued.not_before);
    let most = MOST_ASK.min(life / 10);
    let wait = answer.map_or(most, |(_, retry_after)| retry_after.max(Duration::from_secs(30)).min(most));
    issued.renewal.ask_at = now.plus(wait);
    if let Some((window, _)) = answer
        && issued.renewal.window != Some(window)
    {
        issued.renewal.window = Some(window);
        // The window of a short life may reach to its end, and a wrong one may lie behind it.
        let last = issued.not_before.plus(life.mul_f64(5.0 / 6.0));
        let (start, end) = (window.0.min(last), window.1.min(last));
        issued.renewal.at = start.plus(end.since(start).mul_f64(rng.random::<f64>()));
    }
    after
}
