use super::*;
use crate::dns::response::{answers, code, is_negative, truncated};
use hickory_proto::op::{Edns, MessageType, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn parsed(packet: &[u8]) -> DnsQuery {
    match parse(packet) {
        ParsedPacket::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn reply_code(packet: &[u8]) -> ResponseCode {
    match parse(packet) {
        ParsedPacket::Reply(reply) => Message::from_vec(&reply).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    }
}

fn addresses(count: u16) -> RecordAnswer {
    RecordAnswer::Addresses((0..count).map(|n| Ipv4Addr::from(0x0a00_0000 + u32::from(n))).collect())
}

#[test]
fn name_type_and_limits_of_a_query() {
    let request = parsed(&query("WhoAmI.Front.", RecordType::HTTPS, None));
    assert_eq!((request.name(), request.kind()), ("whoami.front", RecordType::HTTPS));
    assert_eq!(parsed(&query(".", RecordType::NS, None)).name(), "");
    for (payload, bytes, subset) in [
        (None, 512, None),
        (Some(0), 512, Some(9)),
        (Some(100), 512, Some(9)),
        (Some(512), 512, Some(9)),
        (Some(513), 513, None),
        (Some(1232), 1232, None),
        (Some(4096), 4096, None),
        (Some(8192), 8192, None),
        (Some(65_535), 8192, None),
    ] {
        let request = parsed(&query("whoami.", RecordType::A, payload));
        assert_eq!(request.udp_limit(9), AnswerLimit { bytes, subset }, "{payload:?}");
    }
}

#[test]
fn labels_with_dots_or_strange_bytes_are_no_other_name() {
    let name = |labels: &[&[u8]]| {
        let mut packet = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend_from_slice(label);
        }
        packet.extend_from_slice(&[0, 0, 1, 0, 1]);
        parsed(&packet).name().to_owned()
    };
    assert_eq!(name(&[b"app", b"2"]), "app.2");
    assert_eq!(name(&[b"app.2"]), r"app\.2");
    assert_eq!(name(&[br"app\", b"2"]), r"app\\.2");
    assert_ne!(name(&[b"a\0b"]), name(&[b"ab"]));
    assert!(name(&[b"\xff\xfe"]).chars().all(|c| c == char::REPLACEMENT_CHARACTER));
}

#[test]
fn edns_is_read_alone_or_among_other_records() {
    let plain = query("a.", RecordType::A, Some(1400));
    let alone = parsed(&plain);
    let mut with_option = plain.clone();
    let length = with_option.len();
    with_option[length - 1] = 8;
    with_option.extend_from_slice(&[0, 10, 0, 4, 1, 2, 3, 4]);
    assert_eq!(parsed(&with_option).upstream_query(1)[HEADER + 7..], with_option[HEADER + 7..], "options are forwarded");
    with_option[length + 3] = 5;
    assert_eq!(reply_code(&with_option), ResponseCode::FormErr, "an option beyond the record");
    // A record before it: A of the root.
    let mut among = plain[..HEADER + 7].to_vec();
    among[11] = 2;
    among.extend_from_slice(&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1]);
    among.extend_from_slice(&plain[HEADER + 7..]);
    let among = parsed(&among);
    assert_eq!(among.udp_limit(0), alone.udp_limit(0));
    assert_eq!(among.upstream_query(1), alone.upstream_query(1), "nothing else is forwarded");
}

#[test]
fn bad_packets() {
    let good = query("a.", RecordType::A, None);
    assert!(matches!(parse(&[]), ParsedPacket::Ignore));
    assert!(matches!(parse(&good[..11]), ParsedPacket::Ignore));
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert!(matches!(parse(&answer), ParsedPacket::Ignore), "an answer to an answer makes a loop");
    assert_eq!(reply_code(&good[..good.len() - 1]), ResponseCode::FormErr);
    let mut none = good.clone();
    none[5] = 0;
    assert_eq!(reply_code(&none), ResponseCode::FormErr);
    let mut two = good.clone();
    two[5] = 2;
    two.extend_from_slice(&good[HEADER..]);
    assert_eq!(reply_code(&two), ResponseCode::FormErr);
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(reply_code(&update), ResponseCode::NotImp);
    let mut chaos = good.clone();
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(reply_code(&chaos), ResponseCode::Refused);
    let mut long = good.clone();
    long.resize(MAX_QUERY + 1, 0);
    assert_eq!(reply_code(&long), ResponseCode::FormErr);
    let mut looping = good[..HEADER].to_vec();
    looping.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(reply_code(&looping), ResponseCode::FormErr, "a name that points at itself");
    let mut future = query("a.", RecordType::A, Some(1232));
    let version = future.len() - 5;
    future[version] = 1;
    assert_eq!(u16::from(reply_code(&future)), 16, "BADVERS");
}

#[test]
fn only_an_answer_with_our_id_and_question_is_accepted() {
    let sent = parsed(&query("Example.com.", RecordType::A, None)).upstream_query(7);
    let reply = |id: u16, name: &str, kind| {
        let mut message = Message::new(id, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    };
    assert!(answers(&reply(7, "Example.com.", RecordType::A), &sent));
    assert!(answers(&reply(7, "example.COM.", RecordType::A), &sent));
    assert!(!answers(&reply(8, "example.com.", RecordType::A), &sent), "another id");
    assert!(!answers(&reply(7, "example.org.", RecordType::A), &sent), "another name");
    assert!(!answers(&reply(7, "example.com.", RecordType::TXT), &sent), "another type");
    assert!(!answers(&sent, &sent), "a question");
    let mut bare = Message::error_msg(7, OpCode::Query, ResponseCode::FormErr).to_vec().unwrap();
    assert!(answers(&bare, &sent), "an error without the question");
    bare[3] &= 0xf0;
    assert!(!answers(&bare, &sent), "success without the question");
    assert!(!answers(&[], &sent));
}

#[test]
fn a_query_is_forwarded_with_another_id_and_its_edns() {
    let request = parsed(&query("example.com.", RecordType::TXT, Some(3000)));
    let message = Message::from_vec(&request.upstream_query(99)).unwrap();
    assert_eq!(message.metadata.id, 99);
    assert!(message.metadata.recursion_desired);
    assert_eq!(message.edns.as_ref().map(Edns::max_payload), Some(3000));
    let back = request.client_answer(message.to_vec().unwrap(), 1232);
    assert_eq!(back[..2], [0x12, 0x34]);
}

#[test]
fn a_long_answer_of_a_resolver_is_truncated_for_the_client() {
    let request = parsed(&query("example.com.", RecordType::TXT, None));
    let mut long = Message::new(1, MessageType::Response, OpCode::Query);
    let name = Name::from_ascii("example.com.").unwrap();
    long.add_query(Query::query(name.clone(), RecordType::TXT));
    for n in 0..20 {
        let text = rdata::TXT::new(vec![format!("{n:060}")]);
        long.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(text)));
    }
    let bytes = request.client_answer(long.to_vec().unwrap(), 512);
    assert!(bytes.len() <= 512);
    let message = Message::from_vec(&bytes).unwrap();
    assert!(message.metadata.truncation && !message.answers.is_empty());
    let unparsable = request.client_answer(vec![0x55; 2000], 512);
    assert_eq!(Message::from_vec(&unparsable).unwrap().metadata.response_code, ResponseCode::ServFail);
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic_and_a_reply_is_never_longer_than_the_packet(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let ParsedPacket::Reply(reply) = parse(&bytes) {
            prop_assert!(reply.len() <= bytes.len().max(512));
        }
        let _ = (answers(&bytes, &bytes), truncated(&bytes), is_negative(&bytes), code(&bytes));
    }

    #[test]
    fn a_query_with_a_flipped_bit_never_causes_a_panic(at in 0usize..40, bit in 0u8..8, payload in proptest::option::of(any::<u16>())) {
        let mut packet = query("whoami.front.", RecordType::A, payload);
        let at = at % packet.len();
        packet[at] ^= 1 << bit;
        if let ParsedPacket::Query(request) = parse(&packet) {
            let limit = request.udp_limit(1);
            prop_assert!(request.answer(&addresses(100), 1, limit).unwrap().len() <= limit.bytes);
            prop_assert!(matches!(parse(&request.upstream_query(1)), ParsedPacket::Query(again) if again.name() == request.name()));
        }
    }
}

#[test]
fn failures_of_one_resolver_and_negative_answers() {
    let (plain, edns) = (parsed(&query("a.", RecordType::A, None)), parsed(&query("a.", RecordType::A, Some(1232))));
    let response = |code: u8, flags: u8, answers: u8| [0, 0, 0x80 | flags, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
    for code in [2, 4, 5] {
        assert!(plain.is_failure(&response(code, 0, 0)) && edns.is_failure(&response(code, 0, 0)), "{code}");
    }
    for code in [0, 3] {
        assert!(!plain.is_failure(&response(code, 0, 0)), "{code}");
    }
    assert!(plain.is_failure(&response(1, 0, 0)));
    assert!(!edns.is_failure(&response(1, 0, 0)), "the client asks again without EDNS");
    assert!(is_negative(&response(3, 0, 0)) && is_negative(&response(0, 0, 0)));
    assert!(!is_negative(&response(0, 0, 1)) && !is_negative(&response(0, 2, 0)), "records, or too many records for UDP");
}
