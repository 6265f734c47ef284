//! What is to be done for the certificates now. Pure: the same state and time lead to the same steps on every leader.

use super::client::MOST_RETRY_AFTER;
use super::error::AcmeError;
use super::names::WantedNames;
use super::settle::{MOST_ASK, ORDER_LIFE};
use crate::model::acme::{AcmeChallengeKind, AcmeFailure, AcmeOrder};
use crate::model::{AcmeAccount, AcmeCertificate, AcmeCertificateId, Meta, NodeState, Revision, Timestamp};
use crate::store::{ACME_KEYS, Action, Kind, Store};
use std::collections::BTreeSet;
use std::time::Duration;

/// Steps at the authority at a time.
const MOST_JOBS: usize = 4;
/// How long a challenge waits for nodes that are down: the authority may ask one that comes back meanwhile.
const DOWN_WAIT: Duration = Duration::from_secs(30);

/// How far the clocks of two leaders may be apart.
const CLOCKS: Duration = Duration::from_mins(10);

/// What the planner reads besides the store.
#[derive(Clone, Copy, Debug)]
pub struct AcmeInput<'a> {
    pub now: Timestamp,
    /// What the services and settings of the store ask for: [`super::names::wanted`].
    pub wanted: &'a WantedNames,
    /// Lowest revision that every live node has applied.
    pub applied: Revision,
    /// Certificates for which a step is running.
    pub busy: &'a BTreeSet<AcmeCertificateId>,
    /// The account is being registered, or its key made.
    pub registers: bool,
}

/// A step at the authority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AcmeJob {
    /// Make the account's key, which is stored before it is used.
    MakeKey,
    /// Register the account.
    Register,
    /// Make an order.
    Order(AcmeCertificate),
    /// Answer what the order asks for and follow it to its end. The nodes named were down: they do not serve its tokens.
    Advance { certificate: AcmeCertificate, without: Vec<String> },
    /// Ask when to renew.
    AskRenewal(AcmeCertificate),
}

/// Writes and steps, and when to plan again at the latest.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AcmePlan {
    pub actions: Vec<Action>,
    pub jobs: Vec<AcmeJob>,
    pub wake: Option<Timestamp>,
}

impl AcmePlan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |before| before.min(at)));
    }
}

/// The plan for this state.
#[must_use]
pub fn plan(store: &Store, input: AcmeInput<'_>) -> AcmePlan {
    let mut plan = AcmePlan::default();
    let Some(account) = store.acme_account() else { return plan };
    let none = WantedNames::default();
    let wanted = if account.settings.enabled { input.wanted } else { &none };
    plan.actions = records(store, account, wanted, input.now);
    if !plan.actions.is_empty() || !account.settings.enabled {
        if let Some(next) = store.all::<AcmeCertificate>().filter_map(|c| c.issued.as_ref()).map(|i| i.not_after).min() {
            plan.wake_at(next);
        }
        return plan;
    }
    if account.registration.is_none() {
        match &account.failure {
            _ if input.registers || wanted.certificates.is_empty() => {}
            Some(failure) if is_pending(failure, input.now) => plan.wake_at(failure.next),
            _ if account.key.is_none() && store.feature_level() >= ACME_KEYS => plan.jobs.push(AcmeJob::MakeKey),
            _ => plan.jobs.push(AcmeJob::Register),
        }
        return plan;
    }
    for certificate in store.all::<AcmeCertificate>() {
        if wanted.certificates.contains_key(certificate.id.as_str()) && !input.busy.contains(&certificate.id) {
            next(store, certificate, input, &mut plan);
        }
    }
    plan.jobs.truncate(MOST_JOBS.saturating_sub(input.busy.len()));
    plan
}

/// The records as they must be before anything is asked for: one for each certificate that is wanted, with its names, and an order
/// of this account alone. Certificates of hosts that are wanted no more stay until they expire, and failures until they may be repeated: the
/// hosts may come back, and the authority counts on.
fn records(store: &Store, account: &AcmeAccount, wanted: &WantedNames, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let url = account.registration.as_ref().map(|registration| registration.url.as_str());
    for record in store.all::<AcmeCertificate>() {
        let names = wanted.certificates.get(record.id.as_str());
        let is_valid = record.issued.as_ref().is_some_and(|issued| issued.not_after > now);
        let is_left_alone = record.failure.as_ref().is_some_and(|failure| is_pending(failure, now));
        if names.is_none() && !is_valid && !is_left_alone {
            actions.push(Action::Remove(Kind::AcmeCertificate, record.id.to_string()));
            continue;
        }
        let mut next = record.clone();
        if let Some(names) = names {
            next.names.clone_from(names);
        } else if is_valid {
            next.failure = None;
        } else {
            // It is not shown.
            next.names.clear();
        }
        let fits = |order: &AcmeOrder| names == Some(&order.names) && url == Some(&order.account);
        next.order = next.order.filter(fits);
        if next != *record {
            actions.push(Action::update(next));
        }
    }
    for (id, names) in &wanted.certificates {
        let id = AcmeCertificateId::from(id.as_str());
        if store.get::<AcmeCertificate>(&id).is_none() {
            let names = names.clone();
            actions.push(Action::create(AcmeCertificate {
                id,
                meta: Meta::default(),
                names,
                issued: None,
                order: None,
                failure: None,
            }));
        }
    }
    actions
}

/// Whether a time is still to come. One that is further away than it can have been when it was stored is of a clock that was ahead, and
/// nothing waits for it.
fn is_ahead(at: Timestamp, most: Duration, now: Timestamp) -> bool {
    at > now && at <= now.plus(most).plus(CLOCKS)
}

/// Whether what has failed is to be left alone.
fn is_pending(failure: &AcmeFailure, now: Timestamp) -> bool {
    is_ahead(failure.next, failure.next.since(failure.at), now)
}

/// Until when the authority is asked for no order of the account.
fn held_until(store: &Store, now: Timestamp) -> Option<Timestamp> {
    let failure = store.acme_account()?.failure.as_ref();
    failure.filter(|failure| is_pending(failure, now)).map(|failure| failure.next)
}

/// The next step of one certificate, or when there is one.
fn next(store: &Store, certificate: &AcmeCertificate, input: AcmeInput<'_>, plan: &mut AcmePlan) {
    let now = input.now;
    if let Some(order) = &certificate.order {
        if is_ahead(order.look_at, MOST_RETRY_AFTER, now) {
            return plan.wake_at(order.look_at);
        }
        if !is_applied(store, certificate, order, input.applied) {
            return;
        }
        let without = nodes_down(store, order);
        let patience = order.created_at.plus(DOWN_WAIT);
        if !without.is_empty() && now < patience {
            return plan.wake_at(patience);
        }
        return plan.jobs.push(AcmeJob::Advance { certificate: certificate.clone(), without });
    }
    let due = match &certificate.issued {
        Some(issued) if issued.names == certificate.names => issued.renewal.at,
        _ => now,
    };
    match (&certificate.failure, &certificate.issued) {
        (Some(failure), _) if due <= now && is_pending(failure, now) => plan.wake_at(failure.next),
        _ if due <= now => match held_until(store, now) {
            Some(until) => plan.wake_at(until),
            None => plan.jobs.push(AcmeJob::Order(certificate.clone())),
        },
        (_, Some(issued)) if !is_ahead(issued.renewal.ask_at, MOST_ASK, now) => {
            plan.jobs.push(AcmeJob::AskRenewal(certificate.clone()));
        }
        (_, issued) => plan.wake_at(issued.as_ref().map_or(due, |issued| due.min(issued.renewal.ask_at))),
    }
}

/// What nodes have to serve for an order.
fn is_served(order: &AcmeOrder) -> bool {
    order.challenges.iter().any(|challenge| challenge.kind != AcmeChallengeKind::Dns)
}

/// Every live node serves the tokens of the order: one answer without them ends it.
fn is_applied(store: &Store, certificate: &AcmeCertificate, order: &AcmeOrder, applied: Revision) -> bool {
    let incarnation = store.revision().incarnation;
    !is_served(order) || applied >= Revision { incarnation, index: certificate.meta.version }
}

/// Host names of nodes that cannot have the tokens now.
fn nodes_down(store: &Store, order: &AcmeOrder) -> Vec<String> {
    if !is_served(order) {
        return Vec::new();
    }
    store.nodes().filter(|node| node.status.state == NodeState::Down).map(|node| node.description.hostname.clone()).collect()
}

/// An error for users, with the nodes that could not serve the challenge.
#[must_use]
pub fn with_nodes_down(mut error: AcmeError, without: &[String]) -> AcmeError {
    if !without.is_empty() {
        error.reason = format!("{} (without nodes that are down: {})", error.reason, without.join(", "));
    }
    error
}

/// Whether an order is older than any is followed.
#[must_use]
pub fn is_too_old(order: &AcmeOrder, now: Timestamp) -> bool {
    now.since(order.created_at) >= ORDER_LIFE
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
