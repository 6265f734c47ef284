//! A joiner proves that it has its tunnel's private key before the authority, and so the store, hears of it.

use super::fixture::{Setup, Trust, eventually, tls};
use super::formats::{read, write};
use skep::model::node::NodeDescription;
use skep::model::{Availability, FormatRange, KeyChallenge, Role, Secret, WgKey};
use skep::protocol::{FORMATS, FromJoiner, JoinRequest, KeyAnswer, ToJoiner};
use skep::rpc::ListenerKind;
use skep::trust::{NodeKey, TunnelKey};
use std::net::{Ipv6Addr, SocketAddr};

fn key(number: u8) -> TunnelKey {
    TunnelKey::new(Secret::new([number; 32]))
}

fn request(trust: &Trust, key: WgKey, formats: FormatRange) -> FromJoiner {
    FromJoiner::Request(Box::new(JoinRequest {
        format: formats.oldest,
        formats: Some(formats),
        token: trust.tokens.of(Role::Worker).into(),
        csr: NodeKey::generate().unwrap().request().unwrap(),
        key,
        endpoints: vec![([0, 0, 0, 0], 2377).into()],
        description: NodeDescription::default(),
        availability: Availability::Active,
    }))
}

/// What the manager answers a joiner that claims `claimed` and answers the challenge as `answer` says.
async fn outcome(at: SocketAddr, trust: &Trust, claimed: WgKey, answer: impl Fn(&KeyChallenge, &[u8]) -> FromJoiner) -> ToJoiner {
    let mut stream = tls(at, "skep-join/1", None).await.unwrap();
    let request = request(trust, claimed, FORMATS);
    write(&mut stream, &request).await;
    match read(&mut stream).await {
        ToJoiner::Key(challenge) => {
            write(&mut stream, &answer(&challenge, &serde_json::to_vec(&request).unwrap())).await;
            read(&mut stream).await
        }
        other => other,
    }
}

fn proof(key: &TunnelKey, challenge: &KeyChallenge, request: &[u8]) -> FromJoiner {
    FromJoiner::Key(KeyAnswer(key.answer(challenge, request).unwrap()))
}

fn refusal(answer: ToJoiner) -> String {
    match answer {
        ToJoiner::Refused(why) => why.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_key_that_is_not_the_joiner_s_never_reaches_the_store() {
    let trust = Trust::new();
    for address in [SocketAddr::from(([127, 0, 0, 1], 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))] {
        let mut setup = Setup::new(&trust, ListenerKind::Outer);
        setup.address = address;
        let manager = setup.start();
        let (victim, attacker) = (key(1), key(2));
        let at = manager.address;

        let wrong = outcome(at, &trust, victim.public(), |c, r| proof(&attacker, c, r)).await;
        let text = refusal(wrong);
        assert!(text.contains("has not proved") && text.contains(&victim.public().to_base64()), "{text}");

        // What the victim answered in its own join, sent again for the same key in another one.
        let recorded = std::sync::Mutex::new(None);
        let joined = outcome(at, &trust, victim.public(), |c, r| {
            let answer = proof(&victim, c, r);
            *recorded.lock().unwrap() = Some(answer.clone());
            answer
        });
        assert!(matches!(joined.await, ToJoiner::Reply(_)), "the victim itself is admitted");
        let recorded = recorded.into_inner().unwrap().unwrap();
        assert!(refusal(outcome(at, &trust, victim.public(), |_, _| recorded.clone()).await).contains("has not proved"));

        // The victim's answer to this very challenge, but for another request.
        let relayed = outcome(at, &trust, victim.public(), |c, _| proof(&victim, c, b"another request")).await;
        assert!(refusal(relayed).contains("has not proved"));

        // With a key of low order everybody knows the shared secret.
        for low in [0, 1] {
            let mut claimed = WgKey([0; 32]);
            claimed.0[0] = low;
            assert!(refusal(outcome(at, &trust, claimed, |c, r| proof(&attacker, c, r)).await).contains("low order"));
        }

        let nothing = outcome(at, &trust, victim.public(), |_, _| FromJoiner::Done).await;
        assert!(refusal(nothing).contains("answered with the proof of the key"));
        eventually("the admitted one is gone", || manager.journal.has("revoke")).await;
        assert_eq!(manager.journal.all(), ["admit", "revoke"], "only the victim's own join was admitted");
    }
}

#[tokio::test]
async fn a_joiner_of_the_release_before_is_not_asked_and_a_key_of_low_order_is_refused_in_any_format() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Outer).start();
    for (key, admitted) in [(key(1).public(), true), (WgKey([0; 32]), false)] {
        let mut stream = tls(manager.address, "skep-join/1", None).await.unwrap();
        write(&mut stream, &request(&trust, key, FormatRange::new(2, 3))).await;
        match read(&mut stream).await {
            ToJoiner::Reply(_) if admitted => {}
            ToJoiner::Refused(why) if !admitted => assert!(why.to_string().contains("low order"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn where_every_joiner_has_to_prove_its_key_an_old_format_is_no_way_around_that() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.requires_key_proof = true;
    let manager = setup.start();
    for formats in [FormatRange::only(2), FormatRange::new(2, 3)] {
        let mut stream = tls(manager.address, "skep-join/1", None).await.unwrap();
        write(&mut stream, &request(&trust, key(1).public(), formats)).await;
        let text = refusal(read(&mut stream).await);
        assert!(text.contains("upgrade skep on this node"), "{text}");
    }
    assert!(manager.journal.all().is_empty(), "the store hears of none of them");
    let joined = outcome(manager.address, &trust, key(1).public(), |c, r| proof(&key(1), c, r)).await;
    assert!(matches!(joined, ToJoiner::Reply(_)), "{joined:?}");
}
