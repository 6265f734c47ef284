use super::*;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;
use std::collections::BTreeSet;

const PLAIN: AnswerLimit = AnswerLimit { bytes: 512, subset: None };

fn question(name: &str, kind: u8) -> Vec<u8> {
    let mut bytes = encode_name(name).unwrap();
    bytes.extend_from_slice(&[0, kind, 0, 1]);
    bytes
}

fn encoded(answer: &RecordAnswer, edns: bool, limit: AnswerLimit) -> (Vec<u8>, Message) {
    let question = question("Web.Front", 1);
    let head = AnswerHead { id: 0x1234, flags: [0x01, 0x10], question: &question, edns: edns.then_some(1232) };
    let bytes = encode(head, answer, 7, limit).unwrap();
    assert!(bytes.len() <= limit.bytes);
    let message = Message::from_vec(&bytes).expect("another implementation reads it");
    assert_eq!(message.edns.is_some(), edns, "EDNS only for a client that sent it");
    (bytes, message)
}

fn addresses(count: u32) -> Vec<Ipv4Addr> {
    (0..count).map(|n| Ipv4Addr::from(0x0a00_0100 + n)).collect()
}

fn received(message: &Message) -> Vec<Ipv4Addr> {
    let address = |data: &RData| if let RData::A(a) = data { Some(a.0) } else { None };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

fn target(slot: u8) -> ServiceTarget {
    ServiceTarget { host: format!("web.{slot}.task{slot}.Front"), address: [10, 0, 1, slot].into(), port: 8080 }
}

#[test]
fn an_answer_repeats_id_flags_question_and_case() {
    let (bytes, message) = encoded(&RecordAnswer::Addresses(addresses(2)), true, PLAIN);
    assert_eq!(bytes[..4], [0x12, 0x34, 0x81, 0x90], "answer, RD; RA, CD");
    assert_eq!(message.queries, [Query::query(Name::from_ascii("Web.Front.").unwrap(), RecordType::A)]);
    assert_eq!(message.queries[0].name().to_ascii(), "Web.Front.");
    assert_eq!(received(&message), addresses(2));
    assert!(message.answers.iter().all(|record| record.ttl == 7 && record.name == *message.queries[0].name()));
}

#[test]
fn negative_answers_have_a_soa_record_with_our_ttl() {
    for (answer, code, owner) in
        [(RecordAnswer::Empty, ResponseCode::NoError, "web.front."), (RecordAnswer::NoSuchName, ResponseCode::NXDomain, ".")]
    {
        for edns in [false, true] {
            let (_, message) = encoded(&answer, edns, PLAIN);
            assert_eq!((message.metadata.response_code, message.answers.len()), (code, 0));
            let [soa] = message.authorities.as_slice() else { panic!("{message:?}") };
            assert_eq!((soa.name.to_ascii().to_lowercase(), soa.ttl), (owner.to_owned(), 7));
            assert!(matches!(&soa.data, RData::SOA(data) if data.minimum == 7), "{soa:?}");
        }
    }
    let (_, refused) = encoded(&RecordAnswer::Refused, true, PLAIN);
    assert_eq!((refused.metadata.response_code, refused.authorities.len()), (ResponseCode::Refused, 0));
}

#[test]
fn records_that_do_not_fit_are_omitted_with_the_truncation_flag() {
    for (count, bytes, sent, truncated) in
        [(29, 512, 29, false), (30, 512, 29, true), (200, 512, 29, true), (73, 1232, 73, false), (200, 4096, 200, false)]
    {
        // 512 − 12 − 15 (question) − 11 (EDNS) leaves room for 29 records of 16 bytes.
        let (_, message) = encoded(&RecordAnswer::Addresses(addresses(count)), true, AnswerLimit { bytes, subset: None });
        assert_eq!(message.metadata.truncation, truncated, "{count} in {bytes}");
        assert_eq!(received(&message), addresses(sent.min(count)), "{count} in {bytes}");
    }
}

#[test]
fn a_subset_is_stable_for_a_client_differs_between_clients_and_is_not_marked() {
    let all = addresses(200);
    let subset = |key, addresses: &[Ipv4Addr]| {
        let limit = AnswerLimit { bytes: 512, subset: Some(key) };
        let (_, message) = encoded(&RecordAnswer::Addresses(addresses.to_vec()), true, limit);
        assert!(!message.metadata.truncation);
        received(&message).into_iter().collect::<BTreeSet<_>>()
    };
    let first = subset(1, &all);
    assert_eq!(first.len(), 29);
    let reversed: Vec<Ipv4Addr> = all.iter().rev().copied().collect();
    assert_eq!(subset(1, &reversed), first, "whatever the order of the records");
    assert!(subset(2, &all).intersection(&first).count() < 20);
    // A task that ends is replaced by one other.
    let gone = *first.first().unwrap();
    let rest: Vec<Ipv4Addr> = all.iter().copied().filter(|address| *address != gone).collect();
    assert_eq!(subset(1, &rest).intersection(&first).count(), 28);
    // All tasks have clients.
    let served: BTreeSet<Ipv4Addr> = (0..100).flat_map(|key| subset(key, &all)).collect();
    assert_eq!(served.len(), 200);
}

#[test]
fn targets_of_services_have_their_addresses_in_the_same_answer() {
    let (_, message) = encoded(&RecordAnswer::Services(vec![target(1), target(2)]), true, PLAIN);
    for (index, slot) in [(0, 1), (1, 2)] {
        let RData::SRV(srv) = &message.answers[index].data else { panic!("{message:?}") };
        assert_eq!((srv.port, srv.target.to_ascii()), (8080, format!("web.{slot}.task{slot}.Front.")));
        assert_eq!((srv.priority, srv.weight), (0, 1));
        let address = &message.additionals[index];
        assert_eq!(address.name, srv.target);
        assert!(matches!(&address.data, RData::A(a) if a.0 == Ipv4Addr::from([10, 0, 1, slot])));
    }
    // Addresses give way to targets, and are no reason for TCP.
    let many: Vec<ServiceTarget> = (1..=9).map(target).collect();
    let (_, message) = encoded(&RecordAnswer::Services(many[..9].to_vec()), true, PLAIN);
    assert!(!message.metadata.truncation || message.answers.len() < 9);
    assert!(message.additionals.len() < 9);
    let (_, whole) = encoded(&RecordAnswer::Services(many), true, AnswerLimit { bytes: 65_535, subset: None });
    assert_eq!((whole.answers.len(), whole.additionals.len(), whole.metadata.truncation), (9, 9, false));
}

#[test]
fn pointers_and_names_that_are_too_long() {
    let (_, message) = encoded(&RecordAnswer::Pointer("web.1.id.My_Net".to_owned()), false, PLAIN);
    assert!(matches!(&message.answers[0].data, RData::PTR(name) if name.to_ascii() == "web.1.id.My_Net."));
    for name in ["x".repeat(64), "x.".repeat(200), String::new(), "a..b".to_owned()] {
        assert_eq!(encoded(&RecordAnswer::Pointer(name), false, PLAIN).1.answers.len(), 0);
    }
}

proptest! {
    #[test]
    fn every_answer_fits_and_is_read_by_another_implementation(
        count in 0u32..700, bytes in 512usize..5000, subset in proptest::option::of(any::<u64>()), edns: bool, services: bool,
    ) {
        let answer = if services {
            RecordAnswer::Services((0..count).map(|n| target(u8::try_from(n % 250).unwrap())).collect())
        } else {
            RecordAnswer::Addresses(addresses(count))
        };
        let (_, message) = encoded(&answer, edns, AnswerLimit { bytes, subset });
        let complete = message.answers.len() == usize::try_from(count).unwrap();
        prop_assert_eq!(message.metadata.truncation, !complete && subset.is_none());
    }
}
