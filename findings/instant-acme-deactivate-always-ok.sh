#!/usr/bin/env bash
# instant-acme 0.8.5: Account::deactivate() returns Ok when the CA refuses.
# Expected: an error, as from every other call of the crate; new_order() returns Err for the same answer.
# Instead: the status and the problem document of the answer are never looked at. A 403 and a 500 are Ok as well.
# The call takes the account by value, so the caller has no handle left to look again.
# Why it matters: a cluster that gives an account up deletes the key after the Ok, and the account stays valid. A client
# must send this request itself, or look at the answer in an HttpClient of its own.
# Needs cargo and a C compiler. Run time: about a minute, nearly all of it compiling. The CA is a function in the program.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
mkdir src
cat >Cargo.toml <<'E'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
instant-acme = { version = "=0.8.5", default-features = false, features = ["ring"] }
bytes = "=1.11.0"
http = "=1.4.0"
tokio = { version = "=1.54.1", features = ["macros", "rt"] }
[profile.dev]
debug = 0
E
cat >src/main.rs <<'E'
use bytes::Bytes;
use http::{Request, Response};
use instant_acme::{Account, BodyWrapper, BytesResponse, Error, HttpClient, Identifier, NewAccount, NewOrder};
use std::{future::Future, pin::Pin};

struct Ca {
    refusal: u16, // the status of every answer but those that make the account
}

impl HttpClient for Ca {
    fn request(
        &self,
        req: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (status, body) = match req.uri().path() {
            "/dir" => (200, r#"{"newNonce":"https://ca.test/nonce","newAccount":"https://ca.test/account",
                "newOrder":"https://ca.test/order","revokeCert":"https://ca.test/revoke","keyChange":"https://ca.test/key"}"#),
            "/nonce" => (200, ""),
            "/account" => (201, r#"{"status":"valid"}"#),
            _ => (self.refusal, r#"{"type":"urn:ietf:params:acme:error:unauthorized","detail":"refused"}"#),
        };
        let mut rsp = Response::builder().status(status).header("Replay-Nonce", "bm9uY2U");
        if status == 201 {
            rsp = rsp.header("Location", "https://ca.test/account/1");
        }
        let rsp = rsp.body(BodyWrapper::from(body.as_bytes().to_vec())).unwrap();
        Box::pin(async move { Ok(BytesResponse::from(rsp)) })
    }
}

async fn account(refusal: u16) -> Account {
    let new = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
    let ca = Box::new(Ca { refusal });
    let made = Account::builder_with_http(ca).create(&new, "https://ca.test/dir".into(), None).await;
    made.expect("the account is made").0
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let names = [Identifier::Dns("a.test".into())];
    let order = account(403).await.new_order(&NewOrder::new(&names)).await;
    let refused = order.err().expect("another call reports the refusal").to_string();
    for status in [403, 500] {
        let left = account(status).await.deactivate().await;
        assert!(left.is_ok(), "CHANGED: deactivate() of an account, answered {status}, is {left:?}");
    }
    println!("instant-acme 0.8.5: new_order() answered 403: Err({refused}); deactivate() answered 403 or 500: Ok");
}
E
cargo run --quiet
