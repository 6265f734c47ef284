//! What the name server counts, since the daemon joined. Each count is one atomic; resolvers are few and behind a lock that only
//! their failures take.

use super::response;
use crate::sync::lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Resolvers with counts of their own; specs of tasks can name any number. Further ones are counted as `other`.
const MAX_RESOLVERS: usize = 16;

/// Why an answer was not as asked for, or how it was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum QuestionKind {
    /// Answered from the cluster's names.
    Internal,
    /// Forwarded to resolvers outside.
    Forwarded,
    /// Of an address that is no container of this node.
    Stranger,
    /// No question.
    Malformed,
}

/// A bound at which a question or connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum QuestionBound {
    /// Forwarded questions of one container.
    ClientQuestions,
    /// Forwarded questions in all.
    AllQuestions,
    /// TCP connections of one container.
    ClientConnections,
    /// TCP connections in all.
    AllConnections,
}

/// How a resolver failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ResolverFailure {
    /// No answer within the time-out.
    Timeout,
    /// Another one that was asked after it answered before it.
    Slow,
    /// The kernel said so, or its TCP connection ended.
    Unreachable,
    ServFail,
    Refused,
    /// This host had no socket for the query.
    Local,
}

const KINDS: [(QuestionKind, &str); 4] = [
    (QuestionKind::Internal, "internal"),
    (QuestionKind::Forwarded, "forwarded"),
    (QuestionKind::Stranger, "stranger"),
    (QuestionKind::Malformed, "malformed"),
];
const BOUNDS: [(QuestionBound, &str); 4] = [
    (QuestionBound::ClientQuestions, "client_questions"),
    (QuestionBound::AllQuestions, "questions"),
    (QuestionBound::ClientConnections, "client_connections"),
    (QuestionBound::AllConnections, "connections"),
];
const FAILURES: [&str; 6] = ["timeout", "slow", "unreachable", "servfail", "refused", "local"];

/// The counters, shared by all gateways.
#[derive(Default, Debug)]
pub struct DnsCounts {
    questions: [AtomicU64; KINDS.len()],
    refusals: [AtomicU64; BOUNDS.len()],
    /// By the four bits of the code in the header.
    answers: [AtomicU64; 16],
    truncated: AtomicU64,
    resolvers: Mutex<BTreeMap<(Option<IpAddr>, ResolverFailure), u64>>,
}

/// The values of a moment, by the names that they have in `/metrics`; zero counts are left out.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsStatus {
    /// Questions by kind: `internal`, `forwarded`, `stranger`, `malformed`.
    pub questions: BTreeMap<String, u64>,
    /// Answers by code: `noerror`, `nxdomain`, …
    pub answers: BTreeMap<String, u64>,
    /// Answers over UDP that had to be truncated.
    pub truncated: u64,
    /// Refused questions and connections by bound.
    pub refusals: BTreeMap<String, u64>,
    /// Failures by resolver's address (`other` beyond the first few) and kind.
    pub resolvers: Vec<ResolverFailures>,
}

/// Failures of one kind of one resolver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResolverFailures {
    pub resolver: String,
    /// `timeout`, `slow`, `unreachable`, `servfail`, `refused` or `local`.
    pub reason: String,
    pub count: u64,
}

impl DnsCounts {
    /// Counts a question.
    pub fn question(&self, kind: QuestionKind) {
        self.questions[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer that is sent.
    pub fn answer(&self, reply: &[u8]) {
        if let Some(code) = response::code(reply) {
            self.answers[usize::from(code)].fetch_add(1, Ordering::Relaxed);
        }
        if response::truncated(reply) {
            self.truncated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts what is refused at a bound.
    pub fn refused(&self, bound: QuestionBound) {
        self.refusals[bound as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failure of a resolver.
    pub fn resolver_failed(&self, resolver: IpAddr, failure: ResolverFailure) {
        let mut resolvers = lock(&self.resolvers);
        let known = resolvers.keys().any(|(address, _)| *address == Some(resolver));
        let room = resolvers.len() < MAX_RESOLVERS * FAILURES.len();
        *resolvers.entry(((known || room).then_some(resolver), failure)).or_default() += 1;
    }

    /// The counts of this moment.
    #[must_use]
    pub fn status(&self) -> DnsStatus {
        let value = |count: &AtomicU64| Some(count.load(Ordering::Relaxed)).filter(|count| *count > 0);
        let named = |counts: &[AtomicU64], names: &[&str]| {
            counts.iter().zip(names).filter_map(|(count, name)| Some(((*name).to_owned(), value(count)?))).collect()
        };
        let codes = self.answers.iter().zip(0_u8..).filter_map(|(count, code)| Some((code, value(count)?)));
        let resolvers = lock(&self.resolvers);
        let failures = resolvers.iter().map(|((resolver, failure), count)| ResolverFailures {
            resolver: resolver.map_or_else(|| "other".to_owned(), |address| address.to_string()),
            reason: FAILURES[*failure as usize].to_owned(),
            count: *count,
        });
        DnsStatus {
            questions: named(&self.questions, &KINDS.map(|(_, name)| name)),
            answers: codes.map(|(code, count)| (response::code_text(code).into_owned(), count)).collect(),
            truncated: self.truncated.load(Ordering::Relaxed),
            refusals: named(&self.refusals, &BOUNDS.map(|(_, name)| name)),
            resolvers: failures.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_the_counters() {
        let counts = DnsCounts::default();
        for (kind, name) in KINDS {
            counts.question(kind);
            assert_eq!(counts.status().questions.remove(name), Some(1));
        }
        for (bound, name) in BOUNDS {
            counts.refused(bound);
            assert_eq!(counts.status().refusals.remove(name), Some(1));
        }
        counts.answer(&[0, 0, 0x82, 0x83]);
        let status = counts.status();
        assert_eq!((status.answers, status.truncated), (BTreeMap::from([("nxdomain".to_owned(), 1)]), 1));
    }

    #[test]
    fn resolvers_with_counts_of_their_own_are_bounded() {
        let counts = DnsCounts::default();
        for address in 0..1000_u32 {
            counts.resolver_failed(std::net::Ipv4Addr::from(address).into(), ResolverFailure::Timeout);
        }
        let status = counts.status();
        assert!(status.resolvers.len() <= MAX_RESOLVERS * FAILURES.len() + 1);
        assert_eq!(status.resolvers.iter().map(|r| r.count).sum::<u64>(), 1000);
        assert!(status.resolvers.iter().any(|r| r.resolver == "other" && r.reason == "timeout"));
    }
}
