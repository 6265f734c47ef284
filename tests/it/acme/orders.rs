//! Orders from their begin to the certificate that is served, with what goes wrong in between.

use super::cluster::OneNode;
use super::namespace::alone;
use super::pebble::PebbleConfig;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use skep::acme::{AcmeErrorKind, AcmeExecutor, Advance};
use skep::model::Timestamp;
use skep::model::acme::AcmeChallengeKind;
use skep::store::Action;
use std::sync::atomic::Ordering;

const HTTP: &[AcmeChallengeKind] = &[AcmeChallengeKind::Http];

fn executor(one: &OneNode) -> AcmeExecutor {
    let store = one.store.read();
    AcmeExecutor { key: one.vault.data_key(store.payload_keys().expect("stored")).expect("opened"), hook: None }
}

#[test]
fn names_and_an_address_get_certificates_though_https_is_forced_and_half_of_the_nonces_are_refused() {
    alone(async || {
        let labels = [("skep.http", "a.test,b.test,127.0.0.1"), ("skep.http.redirect", "https")];
        let one = OneNode::new(&labels, PebbleConfig { refused_nonces: 50, ..PebbleConfig::default() }).await;
        let _leader = one.lead();
        for id in ["a.test", "b.test", "127.0.0.1"] {
            let record = one.once(id, "a certificate", |record| record.issued.is_some()).await;
            let issued = record.issued.expect("there");
            assert!(
                record.order.is_none() && record.failure.is_none() && issued.issuer.starts_with("Pebble Intermediate"),
                "{issued:?}"
            );
            let life = issued.not_after.since(issued.not_before);
            let part = issued.renewal.at.since(issued.not_before).as_secs_f64() / life.as_secs_f64();
            assert!((0.63..0.67).contains(&part), "{part}");
        }
        one.is_served("a.test").await;
        one.is_served("b.test").await;
        assert!(one.pebble.log().contains("Attempting to validate w/ HTTP"));
    });
}

#[test]
fn browsers_and_the_authority_share_a_port_with_tls() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "a.test,127.0.0.1")], PebbleConfig::default()).await;
        one.set(|settings| settings.challenge = Some(AcmeChallengeKind::TlsAlpn)).await;
        let _leader = one.lead();
        for id in ["a.test", "127.0.0.1"] {
            one.once(id, "a certificate", |record| record.issued.is_some()).await;
        }
        one.is_served("a.test").await;
        for (offered, agreed) in [("h2", "h2"), ("http/1.1", "http/1.1"), ("acme-tls/1,h2", "h2")] {
            let mut client = tokio::process::Command::new("openssl");
            client.args(["s_client", "-connect", "127.0.0.1:443", "-servername", "a.test", "-alpn", offered]);
            let said = skep::lab::output(&mut client).await.expect("a handshake");
            assert!(said.contains(&format!("ALPN protocol: {agreed}")), "{offered}: {said}");
        }
    });
}

#[test]
fn a_failed_challenge_is_shown_and_the_next_order_succeeds() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "a.test")], PebbleConfig::default()).await;
        one.serves_challenges.store(false, Ordering::Relaxed);
        let _leader = one.lead();
        let record = one.once("a.test", "a failure", |record| record.failure.is_some()).await;
        let reason = record.failure.as_ref().map(|failure| failure.reason.clone()).unwrap_or_default();
        assert!(reason.contains("a.test") && reason.contains("503"), "{reason}");
        assert!(record.order.is_none(), "a failed challenge ends its order");
        one.serves_challenges.store(true, Ordering::Relaxed);
        let record = one.once("a.test", "a certificate", |record| record.issued.is_some()).await;
        assert_eq!(record.failure, None);
        one.is_served("a.test").await;
    });
}

#[test]
fn an_authority_that_has_forgotten_everything_gets_a_new_account_and_a_new_order() {
    alone(async || {
        let mut one = OneNode::new(&[("skep.http", "a.test")], PebbleConfig::default()).await;
        one.reports.store(false, Ordering::Relaxed);
        let _leader = one.lead();
        let before = one.once("a.test", "an order", |record| record.order.is_some()).await.order.expect("there");
        assert!(!one.pebble.log().contains("Pulled a task"), "no node has said that it serves the token");
        one.pebble.restart().await;
        one.reports.store(true, Ordering::Relaxed);
        one.once("a.test", "a certificate", |record| record.issued.is_some()).await;
        let account = one.store.read().acme_account().and_then(|account| account.registration.clone()).expect("registered");
        assert_ne!(account.url, before.account);
        one.is_served("a.test").await;
    });
}

#[test]
fn another_leader_goes_on_with_an_order_wherever_it_stands() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "a.test,b.test,c.test")], PebbleConfig::default()).await;
        one.reports.store(false, Ordering::Relaxed);
        let first = one.lead();
        for id in ["a.test", "b.test", "c.test"] {
            one.once(id, "an order", |record| record.order.is_some()).await;
        }
        // Dies between the order and the answer.
        drop(first);
        let orders: Vec<_> = ["a.test", "b.test", "c.test"].iter().map(|id| one.record(id).expect("a record")).collect();
        let account = one.store.read().acme_account().expect("an account").clone();
        // The first is finished by a leader that dies before it stores the certificate: valid at the authority, and here as before.
        let executor = executor(&one);
        let stored = orders[0].order.as_ref().expect("an order");
        let Ok(Advance::Issued(once)) = executor.advance(&account, &orders[0].id, stored).await else { panic!("no certificate") };
        let Ok(Advance::Issued(again)) = executor.advance(&account, &orders[0].id, stored).await else {
            panic!("no certificate")
        };
        assert_eq!(once.validity, again.validity, "the same certificate, for the stored key");
        // The second is ready: answered, and not finalized.
        let stored = orders[1].order.as_ref().expect("an order");
        let ready = executor.order(&account, &orders[1], HTTP, stored.created_at).await.expect("an order");
        let Ok(Advance::Issued(_)) = executor.advance(&account, &orders[1].id, stored).await else { panic!("no certificate") };
        let born = executor.order(&account, &orders[1], HTTP, stored.created_at).await.expect("an order");
        assert!(born.challenges.is_empty(), "the names are authorized: ready at birth");
        let Ok(Advance::Issued(_)) = executor.advance(&account, &orders[1].id, &born).await else { panic!("no certificate") };
        // Pending, with a token that no node has been sent: refused by the authority, and the reason is named.
        let refused = executor.advance(&account, &orders[1].id, &ready).await.err().expect("no token");
        assert!(refused.kind == AcmeErrorKind::Refused && refused.reason.contains("503"), "{refused:?}");
        // With another key than the stored one the certificate is not used.
        let mut other = orders[0].order.clone().expect("an order");
        let id = orders[0].id.clone();
        let made = skep::trust::CertificateRequest::new(&other.names).expect("a key");
        let sealed = skep::model::PayloadId::Secret(skep::model::SecretId::from(format!("acme-order/{id}")));
        other.key = executor.key.seal(&sealed, made.key.expose(), &mut rand::rng()).expect("sealed");
        let refused = executor.advance(&account, &id, &other).await.err().expect("another key");
        assert!(refused.reason.contains("key does not belong"), "{refused:?}");
        // The next leader goes on with all of them.
        one.reports.store(true, Ordering::Relaxed);
        let _second = one.lead();
        for id in ["a.test", "b.test", "c.test"] {
            one.once(id, "a certificate", |record| record.issued.is_some()).await;
            one.is_served(id).await;
        }
        let made = one.pebble.log().matches("Added order").count();
        assert!(made <= 5, "three of the first leader, two of this test: {made}");
    });
}

#[test]
fn a_wildcard_without_a_program_for_dns_leaves_the_hosts_below_it_their_certificates() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "*.a.test,a.test,x.a.test")], PebbleConfig::default()).await;
        let _leader = one.lead();
        let failed = one.once("*.a.test", "a failure", |record| record.failure.is_some()).await;
        assert!(failed.failure.is_some_and(|failure| failure.reason.contains("dns_hook")));
        for host in ["a.test", "x.a.test"] {
            one.once(host, "a certificate", |record| record.issued.is_some()).await;
            one.is_served(host).await;
        }
    });
}

#[test]
fn a_wildcard_and_its_parent_are_proved_by_two_values_of_one_name() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "*.a.test,a.test")], PebbleConfig::default()).await;
        let (set, clear) = (one.pebble.names("set-txt"), one.pebble.names("clear-txt"));
        let calls = one.dir().join("calls");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\nverb=$1 name=$2; shift 2\ncurl -sSf {clear} -d \"{{\\\"host\\\":\\\"$name.\\\"}}\" || exit 1\n\
             for value; do curl -sSf {set} -d \"{{\\\"host\\\":\\\"$name.\\\",\\\"value\\\":\\\"$value\\\"}}\" || exit 1; done\n",
            calls.display()
        );
        let one = one.with_hook(&script);
        let _leader = one.lead();
        let record = one.once("*.a.test", "a certificate", |record| record.issued.is_some()).await;
        assert_eq!(record.issued.expect("there").names, ["*.a.test", "a.test"]);
        one.is_served("a.test").await;
        one.is_served("x.a.test").await;
        let calls = std::fs::read_to_string(calls).expect("called");
        let set = calls.lines().find(|line| line.starts_with("set _acme-challenge.a.test ")).expect("set");
        assert_eq!(set.split(' ').count(), 4, "both values at once: {calls}");
        assert!(calls.contains("remove _acme-challenge.a.test"), "{calls}");
    });
}

#[test]
fn an_account_is_bound_to_that_of_the_user() {
    alone(async || {
        let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
        let config = PebbleConfig { external: Some(("kid-1".to_owned(), key.to_owned())), ..PebbleConfig::default() };
        let one = OneNode::new(&[("skep.http", "a.test")], config).await;
        let mut account = one.store.read().acme_account().expect("an account").clone();
        let executor = executor(&one);
        let refused = executor.register(&account).await.expect_err("no binding");
        assert!(refused.kind == AcmeErrorKind::Refused && refused.reason.contains("externalAccountRequired"), "{refused:?}");
        let bytes = URL_SAFE_NO_PAD.decode(key).expect("base64url");
        let sealed = executor.key.seal(&skep::acme::external_account_payload(), &bytes, &mut rand::rng()).expect("sealed");
        account.settings.external_account = Some(skep::model::acme::ExternalAccount { key_id: "kid-1".to_owned(), key: sealed });
        account.key = Some(executor.make_key().expect("a key"));
        let bound = executor.register(&account).await.expect("bound").url;
        assert!(bound.starts_with("https://127.0.0.1:14000/"), "{bound}");
        assert_eq!(executor.register(&account).await.expect("again").url, bound, "the answer was lost: the same account");
    });
}

#[test]
fn a_leader_that_ends_before_the_answer_leaves_the_key_for_the_account_that_the_next_one_finds() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "a.test")], PebbleConfig::default()).await;
        // What a leader does that loses the answer: the authority has an account with the stored key, of which the state knows nothing.
        let mut account = one.store.read().acme_account().expect("an account").clone();
        account.key = Some(executor(&one).make_key().expect("a key"));
        one.store.write(Timestamp(2), vec![Action::update(account.clone())]).await.expect("written");
        let orphan = executor(&one).register(&account).await.expect("an account").url;

        let _leader = one.lead();
        one.once("a.test", "a certificate", |record| record.issued.is_some()).await;
        let account = one.store.read().acme_account().expect("an account").clone();
        assert_eq!(account.registration.expect("registered").url, orphan);
    });
}

#[test]
fn an_aaaa_record_without_a_listener_is_named() {
    alone(async || {
        let one = OneNode::new(&[("skep.http", "a.test")], PebbleConfig::default()).await;
        one.pebble.set_address("a.test", "::2".parse().expect("an address")).await;
        let _leader = one.lead();
        let record = one.once("a.test", "a failure", |record| record.failure.is_some()).await;
        let reason = record.failure.map(|failure| failure.reason).unwrap_or_default();
        assert!(reason.contains("::2"), "{reason}");
    });
}
