//! What an answer of the authority means for the record of a certificate. Pure: time and randomness are passed in.

use super::error::{AcmeError, AcmeErrorKind};
use crate::backoff::Backoff;
use crate::model::acme::{AcmeFailure, AcmeOrder, AcmeRenewal, IssuedCertificate};
use crate::model::payload::SealedData;
use crate::model::{AcmeCertificate, SecretId, Timestamp};
use crate::trust::Validity;
use rand::Rng;
use std::time::Duration;

/// After an order that the authority has refused. Public ones count five an hour for a name.
const REFUSED: Backoff = Backoff::new(Duration::from_mins(5), Duration::from_hours(24));
/// After a step that may succeed the next time.
const TRANSIENT: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_hours(1));
/// An order that is not decided after this time is given up.
pub const ORDER_LIFE: Duration = Duration::from_hours(24);
/// Longest time until the authority is asked for its renewal window again.
const MOST_ASK: Duration = Duration::from_hours(6);

/// The failure after this one.
pub fn failure(before: Option<&AcmeFailure>, error: &AcmeError, now: Timestamp, rng: &mut impl Rng) -> AcmeFailure {
    let count = before.map_or(0, |failure| failure.count).saturating_add(1);
    let backoff = if error.kind == AcmeErrorKind::Refused { REFUSED } else { TRANSIENT };
    let pause = backoff.jittered(count, rng).max(error.retry_after.unwrap_or_default());
    AcmeFailure { reason: error.reason.clone(), at: now, next: now.plus(pause), count }
}

/// After a failed step. An order stays if nothing is decided yet.
pub fn failed(before: &AcmeCertificate, error: &AcmeError, now: Timestamp, rng: &mut impl Rng) -> AcmeCertificate {
    let failure = failure(before.failure.as_ref(), error, now, rng);
    let undecided = matches!(error.kind, AcmeErrorKind::Transient | AcmeErrorKind::RateLimited);
    let keep = |order: &AcmeOrder| undecided && now.since(order.created_at) < ORDER_LIFE;
    let order = before.order.clone().filter(keep).map(|order| AcmeOrder { look_at: failure.next, ..order });
    AcmeCertificate { order, failure: Some(failure), ..before.clone() }
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
    // At two thirds of its life, and up to a thirtieth before.
    let at = not_before.plus(life.mul_f64(2.0 / 3.0 - rng.random::<f64>() / 30.0));
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
        // The window of a short life may reach to its end.
        let end = window.1.min(issued.not_before.plus(life.mul_f64(5.0 / 6.0)));
        issued.renewal.at = window.0.plus(end.since(window.0).mul_f64(rng.random::<f64>()));
    }
    after
}
