//! Orders as the next leader may find them where the last one died after the finalization: in work, and refused. A real authority is in these
//! states for a moment; this one stays there.

use super::super::http::pem_of;
use super::answers::server;
use rand::SeedableRng as _;
use serde_json::{Value, json};
use skep::acme::{AcmeErrorKind, AcmeExecutor, Advance};
use skep::model::acme::AcmeOrder;
use skep::model::{AcmeAccount, AcmeCertificateId, PayloadId, SecretId, Timestamp};
use skep::trust::DataKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often each path was asked.
#[derive(Default)]
struct Asked {
    order: AtomicUsize,
    finalize: AtomicUsize,
}

/// An answer of the authority with a nonce.
fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nReplay-Nonce: bm9uY2U\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// An authority at which the first order is in work for a while, and the second one was refused.
fn answer(line: &str, at: &str, chain: &str, asked: &Asked) -> String {
    let order = |status: &str, more: Value| {
        let mut order =
            json!({ "status": status, "authorizations": [format!("{at}/authorization")], "finalize": format!("{at}/finalize") });
        order.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        order.to_string()
    };
    match line.split(' ').nth(1).unwrap_or_default() {
        "/dir" => {
            let urls = json!({
                "newNonce": format!("{at}/nonce"), "newAccount": format!("{at}/account"), "newOrder": format!("{at}/order"),
                "revokeCert": format!("{at}/revoke"), "keyChange": format!("{at}/key"),
            });
            reply("200 OK", "", &urls.to_string())
        }
        "/account" => reply("201 Created", &format!("Location: {at}/account/1\r\n"), "{\"status\":\"valid\"}"),
        "/order/1" => match asked.order.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => reply("200 OK", "Retry-After: 1\r\n", &order("processing", json!({}))),
            _ => reply("200 OK", "", &order("valid", json!({ "certificate": format!("{at}/certificate") }))),
        },
        "/order/2" => {
            let problem = json!({ "type": "urn:ietf:params:acme:error:caa", "detail": "a record forbids it", "status": 403 });
            reply("200 OK", "", &order("invalid", json!({ "error": problem })))
        }
        "/authorization" => {
            let one = json!({ "status": "valid", "identifier": { "type": "dns", "value": "a.test" }, "challenges": [] });
            reply("200 OK", "", &one.to_string())
        }
        "/finalize" => {
            asked.finalize.fetch_add(1, Ordering::Relaxed);
            reply("403 Forbidden", "", "{\"type\":\"urn:ietf:params:acme:error:orderNotReady\"}")
        }
        "/certificate" => reply("200 OK", "", chain),
        _ => reply("200 OK", "", ""),
    }
}

#[tokio::test]
async fn an_order_that_is_in_work_or_refused_is_followed_to_its_end_and_not_finalized_again() {
    let made = skep::trust::self_signed(vec!["a.test".to_owned()]).expect("a certificate");
    let asked = Arc::<Asked>::default();
    let (chain, counted) = (pem_of(&made).0, asked.clone());
    let (settings, port) = server(move |line, at| answer(line, at, &chain, &counted)).await;
    let executor = AcmeExecutor { key: DataKey::draw(&mut rand::rngs::StdRng::seed_from_u64(1)), hook: None };
    let mut account = AcmeAccount::new("c".into(), settings);
    let registration = executor.register(&account).await.expect("an account");
    let id = AcmeCertificateId::from("a.test");
    let sealed = PayloadId::Secret(SecretId::from(format!("acme-order/{id}")));
    let order = |number: u32| AcmeOrder {
        url: format!("https://localhost:{port}/order/{number}"),
        account: registration.url.clone(),
        names: vec!["a.test".to_owned()],
        key: executor.key.seal(&sealed, made.key.expose(), &mut rand::rng()).expect("sealed"),
        csr: String::new(),
        challenges: Vec::new(),
        created_at: Timestamp(1),
        look_at: Timestamp(1),
    };
    account.registration = Some(registration.clone());
    match executor.advance(&account, &id, &order(1)).await {
        Ok(Advance::Issued(received)) => assert_eq!(received.names, ["a.test"]),
        other => panic!("{:?}", other.err()),
    }
    assert!(asked.order.load(Ordering::Relaxed) >= 3, "it was waited for");
    let refused = executor.advance(&account, &id, &order(2)).await.err().expect("refused");
    assert!(refused.kind == AcmeErrorKind::Refused && refused.reason.contains("a record forbids it"), "{refused:?}");
    assert!(refused.ends_order(), "the next one is another order");
    assert_eq!(asked.finalize.load(Ordering::Relaxed), 0);
}
