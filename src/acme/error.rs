//! What went wrong at the authority, in the kinds that differ in what follows.

use super::client::LastAnswer;
use instant_acme::{Error, Problem};
use std::time::Duration;

/// Why a step at the authority failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct AcmeError {
    pub kind: AcmeErrorKind,
    /// For users.
    pub reason: String,
    /// How long the authority wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// What follows from an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcmeErrorKind {
    /// The authority says no: the order is over.
    Refused,
    /// Nothing is decided: the same step again.
    Transient,
    /// The authority has used up or forgotten every nonce that the library tried: the same step again, soon.
    StaleNonce,
    /// This manager is not ready for it, and has asked the authority nothing.
    NotReady,
    /// Too many requests; the order stays.
    RateLimited,
    /// The authority does not know the account.
    AccountGone,
    /// The authority does not know the order, or has other challenges for it.
    OrderGone,
}

impl AcmeError {
    /// Of this kind.
    #[must_use]
    pub fn new(kind: AcmeErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), retry_after: None }
    }

    /// The authority refuses; see [`AcmeErrorKind::Refused`].
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::new(AcmeErrorKind::Refused, reason)
    }

    /// The order is over; otherwise nothing is decided yet.
    #[must_use]
    pub fn ends_order(&self) -> bool {
        use AcmeErrorKind::{NotReady, RateLimited, StaleNonce, Transient};
        !matches!(self.kind, Transient | StaleNonce | NotReady | RateLimited)
    }

    /// What the ACME library says, with the last answer as the client has seen it.
    pub(super) fn read(error: &Error, last: &LastAnswer) -> Self {
        let (kind, reason) = match error {
            Error::Api(problem) => (kind_of(problem, last.status), text(problem)),
            Error::Json(_) => match last.status {
                404 => (AcmeErrorKind::OrderGone, "the authority does not know the order any more".to_owned()),
                429 => (AcmeErrorKind::RateLimited, "too many requests (HTTP 429)".to_owned()),
                status => (AcmeErrorKind::Transient, format!("the authority's answer is not readable (HTTP {status})")),
            },
            other => (AcmeErrorKind::Transient, chain(other)),
        };
        Self { kind, reason, retry_after: last.retry_after.filter(|_| last.status >= 400) }
    }
}

/// The type of a problem without its common beginning.
pub(super) fn name(problem: &Problem) -> &str {
    let name = problem.r#type.as_deref().unwrap_or_default();
    name.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(name)
}

fn kind_of(problem: &Problem, status: u16) -> AcmeErrorKind {
    match (name(problem), status) {
        ("accountDoesNotExist", _) => AcmeErrorKind::AccountGone,
        ("rateLimited", _) | (_, 429) => AcmeErrorKind::RateLimited,
        ("badNonce", _) => AcmeErrorKind::StaleNonce,
        ("serverInternal", _) | (_, 500..) => AcmeErrorKind::Transient,
        _ => AcmeErrorKind::Refused,
    }
}

/// A problem for users.
pub(super) fn text(problem: &Problem) -> String {
    let detail = problem.detail.as_deref().unwrap_or("no reason");
    let of = |sub: &instant_acme::Subproblem| sub.detail.clone();
    let further: Vec<String> = problem.subproblems.iter().filter_map(of).collect();
    let further = if further.is_empty() { String::new() } else { format!("; {}", further.join("; ")) };
    format!("{detail}{further} ({})", name(problem))
}

/// An error with its causes: the library shows the first one only.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !texts.iter().any(|before| before.contains(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    texts.join(": ")
}
