//! The series of the name server.

use super::family::{Exposition, MetricFamily};
use crate::status::{ResolverFailures, Status};
use std::collections::BTreeMap;

/// Adds the families of questions, answers and resolvers.
pub fn add(status: &Status, out: &mut Exposition) {
    let names = &status.names;
    let by_label = |family: MetricFamily<1>, counts: &BTreeMap<String, u64>| {
        counts.iter().fold(family, |family, (label, count)| family.sample([label], *count))
    };
    let questions = MetricFamily::counter(
        "skep_dns_questions_total",
        "Questions to the name server: about names of the cluster, forwarded, of addresses that are no container of this node, malformed.",
        ["kind"],
    );
    out.add(&by_label(questions, &names.questions));
    let answers = MetricFamily::counter("skep_dns_answers_total", "Answers of the name server, by response code.", ["code"]);
    out.add(&by_label(answers, &names.answers));
    let truncated = MetricFamily::counter(
        "skep_dns_truncated_answers_total",
        "Answers over UDP that left out records and asked the client to use TCP.",
        [],
    );
    if names.truncated > 0 {
        out.add(&truncated.value(names.truncated));
    }
    let refusals = MetricFamily::counter(
        "skep_dns_refusals_total",
        "Questions to be forwarded, and TCP connections, that were refused at a bound.",
        ["bound"],
    );
    out.add(&by_label(refusals, &names.refusals));
    let failures = MetricFamily::counter(
        "skep_dns_resolver_failures_total",
        "Failures of the resolvers that names outside the cluster are forwarded to.",
        ["resolver", "reason"],
    );
    let sample = |family: MetricFamily<2>, failure: &ResolverFailures| {
        let ResolverFailures { resolver, reason, count } = failure;
        family.sample([resolver, reason], *count)
    };
    out.add(&names.resolvers.iter().fold(failures, sample));
}
