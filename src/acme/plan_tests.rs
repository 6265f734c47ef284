use super::*;
use crate::acme::error::AcmeErrorKind;
use crate::acme::names;
use crate::acme::settle::{self, ReceivedCertificate};
use crate::model::acme::{AcmeChallenge, AcmeFailure, AcmeRegistration, AcmeSettings};
use crate::model::payload::SealedData;
use crate::model::{NodeSpec, ServiceSpec, fixture};
use crate::store::Transaction;
use crate::trust::Validity;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const DAY: Duration = Duration::from_hours(24);

/// A store, and what the planner says of it.
struct Planned {
    store: Store,
    now: Timestamp,
    applied: Revision,
    busy: BTreeSet<AcmeCertificateId>,
}

fn account(url: &str) -> AcmeAccount {
    let registration = Some(AcmeRegistration { url: url.to_owned(), credentials: SealedData::default() });
    let settings = AcmeSettings { enabled: true, ..AcmeSettings::default() };
    AcmeAccount { registration, ..AcmeAccount::new("c".into(), settings) }
}

impl Planned {
    /// One service with these hosts.
    fn new(hosts: &str) -> Self {
        let labels = [("skep.http".to_owned(), hosts.to_owned())].into();
        let spec = ServiceSpec { name: "web".to_owned(), labels, ..ServiceSpec::default() };
        let mut planned =
            Self { store: Store::default(), now: Timestamp(0).plus(DAY), applied: Revision::default(), busy: BTreeSet::new() };
        planned.write(vec![Action::create(fixture::service("web", spec)), Action::create(account("https://ca/1"))]);
        planned
    }

    fn write(&mut self, actions: Vec<Action>) {
        let index = self.store.index() + 1;
        self.store.apply(index, &Transaction::new(self.now, actions)).unwrap();
    }

    fn plan(&self) -> AcmePlan {
        let failed = names::failed_wildcards(&self.store, self.now);
        let wanted = &names::wanted(&self.store, &self.store.acme_account().unwrap().settings, &failed);
        plan(&self.store, AcmeInput { now: self.now, wanted, applied: self.applied, busy: &self.busy, registers: false })
    }

    /// Writes the records until there is nothing to write, and returns the rest of the plan.
    fn settled(&mut self) -> AcmePlan {
        for _ in 0..3 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return plan;
            }
            assert!(plan.jobs.is_empty(), "records first");
            self.write(plan.actions);
        }
        panic!("the records do not settle");
    }

    fn record(&self, id: &str) -> &AcmeCertificate {
        self.store.get(&id.into()).unwrap_or_else(|| panic!("no record of {id}"))
    }

    fn update(&mut self, change: impl FnOnce(&AcmeCertificate) -> AcmeCertificate) {
        let next = change(self.record("a.example.com"));
        self.write(vec![Action::update(next)]);
    }

    fn account(&mut self, change: impl FnOnce(&mut AcmeAccount)) {
        let mut next = self.store.acme_account().unwrap().clone();
        change(&mut next);
        self.write(vec![Action::update(next)]);
    }

    fn order(&self, kind: AcmeChallengeKind) -> AcmeOrder {
        let challenge =
            AcmeChallenge { name: "a.example.com".to_owned(), kind, segment: "t".to_owned(), key_authorization: "k".to_owned() };
        AcmeOrder {
            url: "https://ca/order/1".to_owned(),
            account: "https://ca/1".to_owned(),
            names: vec!["a.example.com".to_owned()],
            key: SealedData::default(),
            csr: String::new(),
            challenges: vec![challenge],
            created_at: self.now,
            look_at: self.now,
        }
    }

    fn everybody_applies(&mut self) {
        self.applied = self.store.revision();
    }
}

fn received(now: Timestamp, life: Duration) -> ReceivedCertificate {
    ReceivedCertificate {
        payload: "p".into(),
        data: SealedData::default(),
        names: vec!["a.example.com".to_owned()],
        issuer: "R3".to_owned(),
        validity: Validity { not_before: now, not_after: now.plus(life) },
    }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

#[test]
fn a_wildcard_that_cannot_be_had_leaves_the_other_hosts_their_certificates() {
    let mut planned = Planned::new("*.example.com,a.example.com");
    let orders = |plan: &AcmePlan| {
        let id = |job: &AcmeJob| match job {
            AcmeJob::Order(certificate) => certificate.id.to_string(),
            other => panic!("{other:?}"),
        };
        plan.jobs.iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(orders(&planned.settled()), ["*.example.com"], "one order may be for both");
    let error = AcmeError::refused("a certificate for a wildcard needs dns-01");
    let failed = settle::failed(planned.record("*.example.com"), &error, planned.now, &mut rng());
    planned.write(vec![Action::update(failed)]);
    assert_eq!(orders(&planned.settled()), ["a.example.com"]);
    let now = planned.now;
    planned.update(|record| settle::issued(record, received(now, 90 * DAY), now, &mut rng()));
    planned.now = now.plus(80 * DAY);
    assert!(orders(&planned.settled()).contains(&"a.example.com".to_owned()), "it is renewed");
    let of_wildcard = ReceivedCertificate { names: vec!["*.example.com".to_owned()], ..received(planned.now, 90 * DAY) };
    let issued = settle::issued(planned.record("*.example.com"), of_wildcard, planned.now, &mut rng());
    planned.write(vec![Action::update(issued)]);
    assert!(planned.settled().jobs.is_empty(), "it is for both");
    planned.now = planned.now.plus(76 * DAY);
    assert_eq!(orders(&planned.settled()), ["*.example.com"]);
    let failed = settle::failed(planned.record("*.example.com"), &error, planned.now, &mut rng());
    planned.write(vec![Action::update(failed)]);
    assert_eq!(orders(&planned.settled()), ["a.example.com"], "a wildcard that ends and is not renewed");
}

#[test]
fn an_order_that_is_one_too_many_holds_back_those_of_other_hosts() {
    let mut planned = Planned::new("a.example.com,b.example.com");
    assert_eq!(planned.settled().jobs.len(), 2);
    let retry_after = Some(DAY);
    let error = AcmeError { retry_after, ..AcmeError::new(AcmeErrorKind::RateLimited, "too many new orders") };
    let now = planned.now;
    planned.update(|record| settle::failed(record, &error, now, &mut rng()));
    planned.account(|account| *account = settle::held(account, &error, now));
    let plan = planned.settled();
    assert_eq!((plan.jobs.len(), plan.wake), (0, Some(now.plus(Duration::from_mins(10)))));
    planned.now = now.plus(Duration::from_mins(10));
    let jobs = planned.settled().jobs;
    assert!(matches!(&jobs[..], [AcmeJob::Order(one)] if one.id.as_str() == "b.example.com"), "{jobs:?}");
}

#[test]
fn nothing_is_done_until_it_is_switched_on_and_the_account_comes_first() {
    let mut planned = Planned::new("a.example.com");
    planned.account(|account| account.settings.enabled = false);
    assert_eq!(planned.settled(), AcmePlan::default());
    planned.account(|account| (account.settings.enabled, account.registration) = (true, None));
    assert_eq!(planned.settled().jobs, [AcmeJob::Register]);
    let later = planned.now.plus(DAY);
    let failure = AcmeFailure { reason: "no".to_owned(), at: planned.now, next: later, count: 1 };
    planned.account(|account| account.failure = Some(failure));
    assert_eq!(planned.settled(), AcmePlan { wake: Some(later), ..AcmePlan::default() });
}

#[test]
fn the_key_of_an_account_is_stored_before_the_account_is_made_where_every_manager_reads_it() {
    let mut planned = Planned::new("a.example.com");
    planned.account(|account| account.registration = None);
    let cluster = crate::model::Cluster { feature_level: ACME_KEYS - 1, ..fixture::cluster() };
    planned.write(vec![Action::create(cluster)]);
    assert_eq!(planned.settled().jobs, [AcmeJob::Register]);
    let mut stored = planned.store.cluster().unwrap().clone();
    stored.feature_level = ACME_KEYS;
    planned.write(vec![Action::update(stored)]);
    assert_eq!(planned.settled().jobs, [AcmeJob::MakeKey]);
    planned.account(|account| account.key = Some(SealedData::default()));
    assert_eq!(planned.settled().jobs, [AcmeJob::Register]);
}

#[test]
fn a_challenge_is_answered_once_every_live_node_serves_its_token() {
    let mut planned = Planned::new("a.example.com");
    assert_eq!(planned.settled().jobs, [AcmeJob::Order(planned.record("a.example.com").clone())]);
    let order = planned.order(AcmeChallengeKind::Http);
    planned.update(|record| settle::ordered(record, order));
    assert_eq!(planned.settled(), AcmePlan::default(), "no node has it");
    planned.applied = Revision { index: planned.store.index() - 1, ..planned.store.revision() };
    assert_eq!(planned.settled().jobs, [], "one node is a revision behind");
    planned.everybody_applies();
    let advance = |planned: &Planned, without: &[&str]| AcmeJob::Advance {
        certificate: planned.record("a.example.com").clone(),
        without: without.iter().map(|name| (*name).to_owned()).collect(),
    };
    assert_eq!(planned.settled().jobs, [advance(&planned, &[])]);
    // A leader of another incarnation, or one that has just begun to lead, knows of no node what it has.
    planned.applied = Revision::default();
    assert_eq!(planned.settled().jobs, []);
    planned.everybody_applies();
    planned.busy.insert("a.example.com".into());
    assert_eq!(planned.settled().jobs, [], "it is being followed");
}

#[test]
fn a_node_that_is_down_is_waited_for_and_not_for_ever() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let order = planned.order(AcmeChallengeKind::TlsAlpn);
    planned.update(|record| settle::ordered(record, order));
    let peer = fixture::peer(1);
    let mut node = crate::model::Node {
        id: peer.node_id.clone(),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: crate::model::node::NodeDescription { hostname: "h1".to_owned(), ..Default::default() },
        status: crate::model::node::NodeStatus::default(),
        mesh: crate::model::node::NodeMesh {
            key: peer.key,
            next: None,
            subnet: peer.subnet,
            ingress_addr: peer.ingress_addr,
            endpoints: Vec::new(),
        },
        manager: None,
    };
    node.status.state = NodeState::Down;
    planned.write(vec![Action::create(node)]);
    planned.everybody_applies();
    let plan = planned.settled();
    assert_eq!((plan.jobs, plan.wake), (vec![], Some(planned.now.plus(DOWN_WAIT))));
    planned.now = planned.now.plus(DOWN_WAIT);
    let jobs = planned.settled().jobs;
    assert!(matches!(&jobs[..], [AcmeJob::Advance { without, .. }] if without == &["h1"]), "{jobs:?}");
}

#[test]
fn dns_needs_no_node() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let order = planned.order(AcmeChallengeKind::Dns);
    planned.update(|record| settle::ordered(record, order));
    assert_eq!(planned.settled().jobs.len(), 1);
}

#[test]
fn a_transient_failure_keeps_the_order_a_refusal_ends_it_and_the_authority_is_left_alone_longer_each_time() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let order = planned.order(AcmeChallengeKind::Dns);
    planned.update(|record| settle::ordered(record, order));
    let now = planned.now;
    let limited = AcmeError { retry_after: Some(Duration::from_hours(3)), ..AcmeError::new(AcmeErrorKind::RateLimited, "429") };
    planned.update(|record| settle::failed(record, &limited, now, &mut rng()));
    let failure = planned.record("a.example.com").failure.clone().unwrap();
    assert_eq!(failure.next, now.plus(Duration::from_hours(3)), "as the authority says");
    assert_eq!(planned.settled(), AcmePlan { wake: Some(failure.next), ..AcmePlan::default() });
    planned.now = failure.next;
    assert_eq!(planned.settled().jobs.len(), 1, "the same order goes on");
    let (mut pauses, now) = (Vec::new(), planned.now);
    for _ in 0..12 {
        planned.update(|record| settle::failed(record, &AcmeError::refused("404"), now, &mut rng()));
        let record = planned.record("a.example.com");
        assert!(record.order.is_none());
        pauses.push(record.failure.as_ref().unwrap().next.since(now));
    }
    assert!(pauses.is_sorted() && pauses[0] > Duration::from_mins(2) && pauses[11] <= DAY, "{pauses:?}");
    let wake = planned.settled().wake;
    assert_eq!(wake, Some(now.plus(pauses[11])));
    planned.now = wake.unwrap();
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::Order(_)]));
}

#[test]
fn an_order_ends_with_its_account_its_names_or_its_host() {
    for change in [
        (|planned| planned.account(|account| account.registration = account_of("https://ca/2"))) as fn(&mut Planned),
        |planned| planned.account(|account| account.registration = None),
        |planned| planned.account(|account| account.settings.enabled = false),
        |planned| planned.write(vec![Action::Remove(Kind::Service, "web".to_owned())]),
    ] {
        let mut planned = Planned::new("a.example.com");
        planned.settled();
        let order = planned.order(AcmeChallengeKind::Http);
        planned.update(|record| settle::ordered(record, order));
        assert_eq!(planned.settled().actions, []);
        change(&mut planned);
        planned.settled();
        let record = planned.store.get::<AcmeCertificate>(&"a.example.com".into());
        assert!(record.is_none_or(|record| record.order.is_none()));
    }
}

fn account_of(url: &str) -> Option<AcmeRegistration> {
    account(url).registration
}

#[test]
fn a_certificate_is_renewed_at_two_thirds_of_its_life_at_a_time_that_is_drawn_once() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let now = planned.now;
    planned.update(|record| settle::issued(record, received(now, DAY * 90), now, &mut rng()));
    let renewal = planned.record("a.example.com").issued.clone().unwrap().renewal;
    assert!((DAY * 57..=DAY * 60).contains(&renewal.at.since(now)), "{:?}", renewal.at.since(now));
    assert_eq!(planned.settled().wake, Some(renewal.ask_at), "and asked for before");
    planned.now = renewal.ask_at;
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::AskRenewal(_)]));
    // No answer changes nothing of when.
    let now = planned.now;
    planned.update(|record| settle::renewal(record, None, now, &mut rng()));
    assert_eq!(planned.record("a.example.com").issued.as_ref().unwrap().renewal.at, renewal.at);
    let window = (now.plus(DAY * 20), now.plus(DAY * 22));
    let answer = Some((window, Duration::from_hours(6)));
    planned.update(|record| settle::renewal(record, answer, now, &mut rng()));
    let drawn = planned.record("a.example.com").issued.clone().unwrap().renewal;
    assert!(window.0 <= drawn.at && drawn.at <= window.1);
    planned.update(|record| settle::renewal(record, answer, now, &mut StdRng::seed_from_u64(2)));
    assert_eq!(planned.record("a.example.com").issued.as_ref().unwrap().renewal.at, drawn.at, "the same window: not drawn again");
    planned.now = drawn.at;
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::Order(_)]));
    // Revoked: the window is over.
    let past = (now, now.plus(DAY));
    planned.now = now.plus(DAY * 2);
    let now = planned.now;
    planned.update(|record| settle::renewal(record, Some((past, Duration::from_hours(6))), now, &mut rng()));
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::Order(_)]));
}

#[test]
fn a_short_life_is_not_renewed_at_every_look_and_not_at_its_end() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let (now, hour) = (planned.now, Duration::from_hours(1));
    planned.update(|record| settle::issued(record, received(now, hour), now, &mut rng()));
    for seed in 0..50 {
        let whole = (now, now.plus(hour));
        let rng = &mut StdRng::seed_from_u64(seed);
        let renewed = settle::renewal(planned.record("a.example.com"), Some((whole, Duration::from_hours(6))), now, rng);
        let renewal = renewed.issued.unwrap().renewal;
        assert!(renewal.at.since(now) <= hour.mul_f64(5.0 / 6.0));
        assert_eq!(renewal.ask_at.since(now), hour / 10, "asked before it ends");
    }
}

/// The leader's clock was wrong, and is right now, or another one leads.
#[test]
fn nothing_waits_for_a_time_that_a_clock_ahead_has_set() {
    let wrong = DAY * 365;
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let (now, ahead) = (planned.now, planned.now.plus(wrong));
    planned.update(|record| settle::failed(record, &AcmeError::refused("404"), ahead, &mut rng()));
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::Order(_)]), "a failure");
    let order = AcmeOrder { look_at: ahead, ..planned.order(AcmeChallengeKind::Dns) };
    planned.update(|record| settle::ordered(record, order));
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::Advance { .. }]), "an order");
    planned.update(|record| settle::issued(record, received(now, DAY * 90), now, &mut rng()));
    let wait = planned.settled().wake;
    planned.update(|record| settle::renewal(record, None, ahead, &mut rng()));
    assert!(matches!(&planned.settled().jobs[..], [AcmeJob::AskRenewal(_)]), "a question, before {wait:?}");
    planned.account(|account| {
        account.registration = None;
        account.failure = Some(settle::failure(None, &AcmeError::refused("no"), ahead, &mut rng()));
    });
    assert_eq!(planned.settled().jobs, [AcmeJob::Register]);
}

#[test]
fn a_certificate_is_not_ordered_again_at_once_whatever_the_clock_the_life_and_the_window_say() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let now = planned.now.plus(DAY * 400);
    for (behind, life) in [
        // The clock is ahead by most of the life, by all of it, by more.
        (DAY * 70, DAY * 90),
        (DAY * 90, DAY * 90),
        (DAY * 200, DAY * 90),
        // Issued with a begin in the past.
        (Duration::from_hours(1), Duration::from_mins(80)),
    ] {
        let mut one = received(now, life);
        let begin = Timestamp(now.0 - i64::try_from(behind.as_nanos()).unwrap());
        one.validity = Validity { not_before: begin, not_after: begin.plus(life) };
        planned.update(|record| settle::issued(record, one, now, &mut rng()));
        let at = planned.record("a.example.com").issued.as_ref().unwrap().renewal.at;
        assert!(at.since(now) >= Duration::from_mins(10), "{behind:?} {life:?}: {:?}", at.since(now));
    }
    // A window behind the end.
    planned.update(|record| settle::issued(record, received(now, DAY * 90), now, &mut rng()));
    let window = (now.plus(DAY * 300), now.plus(DAY * 400));
    planned.update(|record| settle::renewal(record, Some((window, DAY)), now, &mut rng()));
    let at = planned.record("a.example.com").issued.as_ref().unwrap().renewal.at;
    assert!((DAY * 30..DAY * 80).contains(&at.since(now)), "{:?}", at.since(now));
}

#[test]
fn a_service_that_is_made_again_does_not_ask_an_authority_that_has_just_refused() {
    let mut planned = Planned::new("a.example.com");
    planned.settled();
    let now = planned.now;
    planned.update(|record| settle::failed(record, &AcmeError::refused("404"), now, &mut rng()));
    let next = planned.record("a.example.com").failure.as_ref().unwrap().next;
    let service = planned.store.service(&"web".into()).unwrap().clone();
    planned.write(vec![Action::Remove(Kind::Service, "web".to_owned())]);
    assert_eq!(planned.settled().jobs, []);
    assert!(planned.record("a.example.com").names.is_empty(), "it is not shown");
    planned.write(vec![Action::create(fixture::service("web", service.spec))]);
    assert_eq!(planned.settled(), AcmePlan { wake: Some(next), ..AcmePlan::default() });
    planned.write(vec![Action::Remove(Kind::Service, "web".to_owned())]);
    planned.settled();
    planned.now = next;
    planned.settled();
    assert_eq!(planned.store.all::<AcmeCertificate>().count(), 0);
}

#[test]
fn a_reason_is_one_line_of_a_bounded_length() {
    let error = AcmeError::refused(format!("\x1b[2J\r\n{}", "é".repeat(100_000)));
    let reason = settle::failure(None, &error, Timestamp(0), &mut rng()).reason;
    assert!(reason.len() < 1100 && !reason.contains(char::is_control) && reason.contains("[2J"), "{reason}");
}

#[test]
fn other_names_are_ordered_at_once_and_what_is_not_wanted_stays_until_it_expires() {
    let mut planned = Planned::new("*.example.com");
    planned.settled();
    let now = planned.now;
    let wild = ReceivedCertificate { names: vec!["*.example.com".to_owned()], ..received(now, DAY * 90) };
    let next = settle::issued(planned.record("*.example.com"), wild, now, &mut rng());
    planned.write(vec![Action::update(next)]);
    assert_eq!(planned.settled().jobs, []);
    let mut service = planned.store.service(&"web".into()).unwrap().clone();
    service.spec.labels.insert("skep.http".to_owned(), "*.example.com,example.com".to_owned());
    planned.write(vec![Action::update(service)]);
    let jobs = planned.settled().jobs;
    assert!(matches!(&jobs[..], [AcmeJob::Order(record)] if record.names == ["*.example.com", "example.com"]), "{jobs:?}");
    planned.write(vec![Action::Remove(Kind::Service, "web".to_owned())]);
    assert_eq!(planned.settled().jobs, []);
    assert!(planned.record("*.example.com").issued.is_some());
    planned.now = now.plus(DAY * 91);
    planned.settled();
    assert_eq!(planned.store.all::<AcmeCertificate>().count(), 0);
}

#[test]
fn a_nonce_that_was_not_taken_is_followed_by_another_within_a_second_and_by_longer_pauses_if_that_goes_on() {
    let stale = AcmeError::new(AcmeErrorKind::StaleNonce, "badNonce");
    assert!(!stale.ends_order());
    let first = settle::failure(None, &stale, Timestamp(0), &mut rng());
    assert!(first.next <= Timestamp(0).plus(Duration::from_secs(1)), "{first:?}");
    let after_many = AcmeFailure { count: 20, ..first };
    let later = settle::failure(Some(&after_many), &stale, Timestamp(0), &mut rng());
    assert!(later.next >= Timestamp(0).plus(Duration::from_mins(30)), "{later:?}");
}
