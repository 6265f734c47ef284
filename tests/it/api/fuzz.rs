//! Requests of the recordings, changed at random: bodies of other types and depths, numbers at their limits, cut and damaged bytes,
//! targets with odd versions, ids and filters. Each is answered with a status that clients know and a message, and what is refused writes
//! nothing. `SKEP_FUZZ_SEEDS=1000` (100 by default) sets how many seeds are tried, of [`REQUESTS`] each; a seed repeats its requests.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use super::replay::recordings;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};
use skep::api::control::Membership;
use skep::model::{Cluster, ClusterConfig, ClusterSecret, Network, Node, Service, Task};
use skep::store::{Store, StoreHandle, StoreObject, changed};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Of one seed, to one node.
const REQUESTS: u64 = 20;
/// For one answer, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(20);
/// What the documentation of the API has, and what axum says of a head or a body that it cannot read.
const STATUSES: &[u16] = &[200, 201, 204, 304, 400, 403, 404, 405, 406, 409, 413, 415, 431, 500, 501, 503];

struct Request {
    method: String,
    target: String,
    body: Vec<u8>,
}

/// A recorded exchange with changes.
fn alter(exchange: &Value, rng: &mut StdRng) -> Request {
    let method = exchange["method"].as_str().unwrap_or("GET").to_owned();
    let mut path = exchange["path"].as_str().unwrap_or("/").to_owned();
    if rng.random_ratio(1, 6) {
        let version = ["/v1.24", "/v1.51", "/v9.99", "/v0.1", "/v1", "/v1.", "/v1.99999999999999999999", ""].choose(rng).unwrap();
        let rest = path.strip_prefix("/v").and_then(|rest| rest.find('/').map(|at| rest[at..].to_owned()));
        path = format!("{version}{}", rest.unwrap_or(path));
    }
    if rng.random_ratio(1, 6) {
        let at = path.rfind('/').unwrap_or(0);
        let id = [
            "..",
            "%2e%2e%2f",
            "%00",
            "a b",
            "%ff",
            "*",
            "-",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "",
        ];
        path = format!("{}/{}", &path[..at], id.choose(rng).unwrap().replace(' ', "%20"));
    }
    let mut query = exchange["query"].as_object().cloned().unwrap_or_default();
    // A stream has no end, and lines of a container are the engine's.
    query.remove("follow");
    if rng.random_ratio(1, 4) {
        let filters = [
            json!({"name": {"a": true}}),
            json!({"name": ["a"]}),
            json!({"nosuch": ["a"]}),
            json!([1]),
            json!({"label": {"a": 1}}),
            json!("{"),
            json!({"mode": {"": true}}),
        ];
        query.insert("filters".to_owned(), filters.choose(rng).unwrap().clone());
    }
    for value in query.values_mut() {
        if rng.random_ratio(1, 5) {
            change(value, rng, 0);
        }
    }
    let pairs = query.iter().map(|(key, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{key}={}", escaped(&text))
    });
    let pairs: Vec<String> = pairs.collect();
    let mut target = path;
    if !pairs.is_empty() {
        target = format!("{target}?{}", pairs.join("&"));
    }
    let mut body = exchange["request_body"].clone();
    for _ in 0..rng.random_range(0..4) {
        change(&mut body, rng, 0);
    }
    let mut body = if body.is_null() && rng.random_ratio(3, 4) { Vec::new() } else { body.to_string().into_bytes() };
    match rng.random_range(0..12) {
        0 if !body.is_empty() => body.truncate(rng.random_range(0..body.len())),
        1 if !body.is_empty() => {
            let at = rng.random_range(0..body.len());
            body[at] = rng.random();
        }
        2 => body = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000)).into_bytes(),
        3 => body.extend_from_within(..),
        _ => {}
    }
    Request { method, target, body }
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Changes one value in the tree.
fn change(value: &mut Value, rng: &mut StdRng, depth: usize) {
    let descends = depth < 8 && rng.random_ratio(4, 5);
    match value {
        Value::Object(fields) if descends && !fields.is_empty() => {
            let at = rng.random_range(0..fields.len());
            let (key, inner) = fields.iter_mut().nth(at).map(|(key, inner)| (key.clone(), inner)).unwrap();
            if rng.random_ratio(1, 6) {
                return change_fields(fields, &key, rng);
            }
            change(inner, rng, depth + 1);
        }
        Value::Array(list) if descends && !list.is_empty() => {
            let at = rng.random_range(0..list.len());
            change(&mut list[at], rng, depth + 1);
        }
        _ => *value = other(value, rng),
    }
}

fn change_fields(fields: &mut Map<String, Value>, key: &str, rng: &mut StdRng) {
    match rng.random_range(0..4) {
        0 => drop(fields.remove(key)),
        1 => drop(fields.insert(key.to_lowercase(), json!(1))),
        2 => drop(fields.insert("NoSuchField".to_owned(), json!({"a": [null]}))),
        _ => {
            let inner = fields.get(key).cloned().unwrap_or_default();
            fields.insert(key.to_owned(), json!({ key: inner }));
        }
    }
}

fn other(value: &Value, rng: &mut StdRng) -> Value {
    let numbers =
        [json!(-1), json!(0), json!(i64::MIN), json!(i64::MAX), json!(u64::MAX), json!(0.5), json!(1e300), json!(65_536)];
    let texts = [
        "",
        "\u{0}",
        "../../etc",
        "{{.Node.ID}}",
        "{{",
        "10.0.0.0/33",
        "::1/129",
        "a\nb",
        "1.5h",
        "-5s",
        "null",
        "sha256:",
        "host",
    ];
    match rng.random_range(0..9) {
        0 => Value::Null,
        1 => json!(rng.random::<bool>()),
        2 | 3 => numbers.choose(rng).unwrap().clone(),
        4 | 5 => json!(texts.choose(rng).unwrap()),
        6 => json!("x".repeat(rng.random_range(1..70_000))),
        7 => json!(vec![value.clone(); rng.random_range(0..300)]),
        _ => json!({ "a": value }),
    }
}

/// Status and body of the answer.
async fn send(fixture: &ApiFixture, request: &Request) -> Result<(u16, Vec<u8>), String> {
    let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
    let head = format!(
        "{} {} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        request.method,
        request.target,
        request.body.len()
    );
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        // A body may be refused before it is read.
        let _ = stream.write_all(&request.body).await;
        stream.read_to_end(&mut answer).await
    };
    match tokio::time::timeout(LIMIT, exchange).await {
        Err(_) => return Err("no answer in time".to_owned()),
        Ok(Err(error)) if answer.is_empty() => return Err(error.to_string()),
        Ok(_) => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.as_bytes().to_vec());
    status.zip(body).ok_or_else(|| format!("no answer: {text:.200}"))
}

/// Whether an object differs; a transaction that was refused has a revision all the same.
fn has_changed(before: &Store, after: &Store) -> bool {
    fn of<T: StoreObject>(before: &Store, after: &Store) -> bool {
        changed::<T>(before, after).next().is_some()
    }
    of::<Cluster>(before, after)
        || of::<Node>(before, after)
        || of::<Network>(before, after)
        || of::<Service>(before, after)
        || of::<Task>(before, after)
        || of::<ClusterSecret>(before, after)
        || of::<ClusterConfig>(before, after)
}

/// What is wrong with the answers of a seed.
async fn run(seed: u64, exchanges: &[Value]) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    recorded_store::fill(&store, std::slice::from_ref(exchanges.choose(&mut rng).unwrap())).await;
    let fixture = ApiFixture::serve(node.clone(), None);
    let mut wrong = Vec::new();
    for number in 0..REQUESTS {
        let request = alter(exchanges.choose(&mut rng).unwrap(), &mut rng);
        let store = node.store.lock().unwrap().clone();
        let before = store.as_ref().map(StoreHandle::read);
        let answer = send(&fixture, &request).await;
        let mut is_wrong = |why: &str| {
            let body = String::from_utf8_lossy(&request.body);
            wrong.push(format!("seed {seed}, request {number}: {why}: {} {:.300}\n{body:.1000}", request.method, request.target));
        };
        let (status, body) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                is_wrong(&error);
                continue;
            }
        };
        let text = String::from_utf8_lossy(&body);
        if !STATUSES.contains(&status) {
            is_wrong(&format!("{status} {text:.300}"));
        }
        if status >= 400 {
            if text.trim().is_empty() && request.method != "HEAD" {
                is_wrong(&format!("{status} without a message"));
            }
            if before.zip(store).is_some_and(|(before, store)| has_changed(&before, &store.read())) {
                is_wrong(&format!("{status} {text:.300} has written"));
            }
        }
    }
    let services = fixture.client.get("/services").await.expect("the API answers on");
    assert!([200, 503].contains(&services.status.as_u16()), "seed {seed}: {}", services.status);
    wrong
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "an option of the soak")]
async fn changed_requests_are_answered_and_what_is_refused_writes_nothing() {
    let all = ["manager", "payloads"].into_iter().flat_map(recordings).flat_map(|(_, exchanges)| exchanges);
    // These answer as long as something happens.
    let endless = ["/events", "/attach", "/session"];
    let ends = |exchange: &Value| !endless.iter().any(|part| exchange["path"].as_str().unwrap_or_default().contains(part));
    let exchanges: Vec<Value> = all.filter(ends).collect();
    let seeds = std::env::var("SKEP_FUZZ_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(100);
    let mut wrong = Vec::new();
    for seed in 0..seeds {
        wrong.extend(run(seed, &exchanges).await);
    }
    assert!(wrong.is_empty(), "{} of {} answers:\n{}", wrong.len(), seeds * REQUESTS, wrong[..wrong.len().min(10)].join("\n"));
}
