use super::*;
use hickory_proto::rr::RecordType;
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

fn parsed(packet: &[u8]) -> Box<DnsQuery> {
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
fn an_answer_repeats_id_question_and_case() {
    let request = parsed(&query("WhoAmI.", RecordType::A, None));
    let message = Message::from_vec(&request.answer(&addresses(2), 2, 512).unwrap()).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.recursion_desired && message.metadata.recursion_available && !message.metadata.truncation);
    assert_eq!(message.queries[0].name().to_ascii(), "WhoAmI.");
    assert_eq!(message.answers.len(), 2);
    assert!(message.answers.iter().all(|r| r.ttl == 2));
    assert!(message.edns.is_none(), "no EDNS for a client that sent none");
}

#[test]
fn codes_of_answers() {
    let request = parsed(&query("a.", RecordType::A, None));
    let code = |answer: &RecordAnswer| {
        let message = Message::from_vec(&request.answer(answer, 2, 512).unwrap()).unwrap();
        (message.metadata.response_code, message.answers.len())
    };
    assert_eq!(code(&RecordAnswer::Empty), (ResponseCode::NoError, 0));
    assert_eq!(code(&RecordAnswer::NoSuchName), (ResponseCode::NXDomain, 0));
    assert_eq!(code(&RecordAnswer::Refused), (ResponseCode::Refused, 0));
    assert_eq!(code(&RecordAnswer::Pointer("web.1.id.My_Net".to_owned())), (ResponseCode::NoError, 1));
    assert_eq!(code(&RecordAnswer::Pointer("x".repeat(300))), (ResponseCode::NoError, 0));
    assert_eq!(request.answer(&RecordAnswer::Forward(Vec::new()), 2, 512), None);
}

#[test]
fn answers_that_do_not_fit_are_omitted_and_the_rest_is_sent_truncated() {
    for (payload, limit) in [(None, 512), (Some(100), 512), (Some(1000), 1000), (Some(65_535), 1232)] {
        let request = parsed(&query("whoami.", RecordType::A, payload));
        assert_eq!(request.udp_limit(), limit, "{payload:?}");
        let bytes = request.answer(&addresses(500), 2, limit).unwrap();
        assert!(bytes.len() <= limit && bytes.len() > limit - 32, "{} of {limit}", bytes.len());
        let message = Message::from_vec(&bytes).unwrap();
        assert!(message.metadata.truncation);
        assert!(message.answers.len() >= 25);
        assert_eq!(message.edns.is_some(), payload.is_some());
    }
    let request = parsed(&query("whoami.", RecordType::A, None));
    let whole = Message::from_vec(&request.answer(&addresses(2000), 2, 65_535).unwrap()).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (2000, false));
    let most = request.answer(&addresses(6000), 2, 65_535).unwrap();
    assert!(most.len() <= 65_535, "more than fits even into TCP");
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
    let sent = parsed(&query("Example.com.", RecordType::A, None)).upstream_query(7).unwrap();
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
    let message = Message::from_vec(&request.upstream_query(99).unwrap()).unwrap();
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
    long.add_query(request.question().clone());
    for n in 0..20 {
        let text = rdata::TXT::new(vec![format!("{n:060}")]);
        long.add_answer(Record::from_rdata(request.question().name().clone(), 60, RData::TXT(text)));
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
        let _ = (answers(&bytes, &bytes), truncated(&bytes), is_server_failure(&bytes));
    }

    #[test]
    fn a_query_with_a_flipped_bit_never_causes_a_panic(at in 0usize..40, bit in 0u8..8, payload in proptest::option::of(any::<u16>())) {
        let mut packet = query("whoami.front.", RecordType::A, payload);
        let at = at % packet.len();
        packet[at] ^= 1 << bit;
        if let ParsedPacket::Query(request) = parse(&packet) {
            prop_assert!(request.answer(&addresses(100), 1, request.udp_limit()).unwrap().len() <= request.udp_limit());
            prop_assert!(request.upstream_query(1).is_some());
        }
    }
}
