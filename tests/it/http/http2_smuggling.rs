//! As `smuggling`, with HTTP/2 in the place of the first program: what has no form in HTTP/1, or another one than it seems, reaches no task.
//! The frames are written byte by byte, as no library makes these.

use super::smuggling::{INNER, Recorded, record};
use super::*;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 94, 0, 1);

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Fields as literals that are neither indexed nor compressed.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [&[0][..], &text(name), &text(value)].concat()).collect()
}

/// A connection with one request, which waits for a while for what comes of it.
fn send(to: SocketAddr, fields: &[(&str, &str)], body: Option<&str>) {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    let end = if body.is_none() { END_STREAM } else { 0 };
    let body = body.map(|body| frame(DATA, END_STREAM, 1, body.as_bytes())).unwrap_or_default();
    let head = frame(HEADERS, END_HEADERS | end, 1, &block(fields));
    let _ = stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..], &head, &body].concat());
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

type Fields = Vec<(&'static str, &'static str)>;

/// What the task may get at most: a request to this path with this body.
type Most = Option<(&'static str, &'static str)>;

const METHOD: (&str, &str) = (":method", "GET");
const POST: (&str, &str) = (":method", "POST");
const SCHEME: (&str, &str) = (":scheme", "http");
const AUTHORITY: (&str, &str) = (":authority", "shop.test");
const PATH: (&str, &str) = (":path", "/a");

/// What it is, its fields, its body, and what comes of it at most.
#[rustfmt::skip]
fn corpus() -> Vec<(&'static str, Fields, Option<&'static str>, Most)> {
    let get = |more: &[(&'static str, &'static str)]| [&[METHOD, SCHEME, AUTHORITY, PATH][..], more].concat();
    let post = |more: &[(&'static str, &'static str)]| [&[POST, SCHEME, AUTHORITY, PATH][..], more].concat();
    let with = |first: &[(&'static str, &'static str)]| first.to_vec();
    let a = Some(("/a", ""));
    vec![
        ("chunks", get(&[("transfer-encoding", "chunked")]), None, None),
        ("chunks with a body", post(&[("transfer-encoding", "chunked")]), Some("0\r\n\r\nGET /inner HTTP/1.1\r\n\r\n"), None),
        ("a connection", get(&[("connection", "close, host")]), None, None),
        ("an upgrade", get(&[("upgrade", "websocket")]), None, None),
        ("a length that is too short", post(&[("content-length", "0")]), Some(INNER), a),
        ("a length that is too long", post(&[("content-length", "50")]), Some("hello"), None),
        ("a length of a request that has ended", get(&[("content-length", "50")]), None, None),
        ("two lengths", post(&[("content-length", "5"), ("content-length", "6")]), Some("hello"), None),
        ("a list of lengths", post(&[("content-length", "5, 5")]), Some("hello"), None),
        ("a length with a sign", post(&[("content-length", "+5")]), Some("hello"), None),
        ("a line end in a value", get(&[("x", "y\r\n\r\nGET /inner HTTP/1.1\r\nhost: shop.test")]), None, None),
        ("a line feed in a value", get(&[("x", "y\ntransfer-encoding: chunked")]), None, None),
        ("NUL in a value", get(&[("x", "y\0z")]), None, None),
        ("a line end in a name", get(&[("x: y\r\ntransfer-encoding", "chunked")]), None, None),
        ("a colon in a name", get(&[("x:y", "z")]), None, None),
        ("a blank in a name", get(&[("transfer-encoding ", "chunked")]), None, None),
        ("a name in capitals", get(&[("Transfer-Encoding", "chunked")]), None, None),
        ("another host", get(&[("host", "other.test")]), None, a),
        ("two other hosts", get(&[("host", "other.test"), ("host", "shop.test")]), None, a),
        ("two hosts", with(&[METHOD, SCHEME, PATH, ("host", "shop.test"), ("host", "other.test")]), None, a),
        ("no host", with(&[METHOD, SCHEME, PATH]), None, None),
        ("a host with a path", with(&[METHOD, SCHEME, (":authority", "shop.test/b"), PATH]), None, None),
        ("a host with a user", with(&[METHOD, SCHEME, (":authority", "other.test@shop.test"), PATH]), None, a),
        ("a host with a line end", with(&[METHOD, SCHEME, (":authority", "shop.test\r\nx: y"), PATH]), None, None),
        ("a path with a version", with(&[METHOD, SCHEME, AUTHORITY, (":path", "/inner HTTP/1.1\r\nhost: shop.test\r\n\r\n")]), None, None),
        ("a path with a blank", with(&[METHOD, SCHEME, AUTHORITY, (":path", "/a /inner")]), None, None),
        ("a path without a slash", with(&[METHOD, SCHEME, AUTHORITY, (":path", "a")]), None, None),
        ("a path that is an address", with(&[METHOD, SCHEME, AUTHORITY, (":path", "http://other.test/a")]), None, None),
        ("an empty path", with(&[METHOD, SCHEME, AUTHORITY, (":path", "")]), None, Some(("/", ""))),
        ("two paths", get(&[(":path", "/inner")]), None, None),
        ("two methods", get(&[(":method", "POST")]), None, None),
        ("a method with a line", with(&[(":method", "GET /inner HTTP/1.1\r\nhost: shop.test\r\n\r\nGET"), SCHEME, AUTHORITY, PATH]), None, None),
        ("CONNECT", with(&[(":method", "CONNECT"), AUTHORITY]), None, None),
        ("an unknown field of its own", get(&[(":protocol-x", "y")]), None, None),
        ("a field of its own after others", with(&[METHOD, ("x", "y"), SCHEME, AUTHORITY, PATH]), None, None),
        ("a status", get(&[(":status", "200")]), None, None),
    ]
}

/// One head, one host, one length.
fn is_one(request: &Recorded, path: &str, body: &str) -> bool {
    let framing = request.all("content-length").len() + request.all("transfer-encoding").len();
    request.line.split(' ').nth(1) == Some(path)
        && request.line.split(' ').count() == 3
        && request.body == body
        && framing <= 1
        && request.all("host") == ["shop.test"]
        && request.all("x-forwarded-for") == ["127.0.0.1"]
}

#[tokio::test]
async fn each_request_of_http_2_has_one_reading_in_http_1_or_reaches_no_task() {
    let port = free_port();
    let records = record(ONE, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("corpus-2", vec![Site::new(&labels, &[ONE])]).await;
    let get = |fields: &[(&str, &str)], body| {
        records.lock().expect("no panic").clear();
        send(ingress.plain(), fields, body);
        records.lock().expect("no panic").clone()
    };
    // The way of requests with a body, and of those without.
    for (method, body, expected) in [(METHOD, None, ""), (POST, Some("hello"), "hello")] {
        let seen = get(&[method, SCHEME, AUTHORITY, PATH], body);
        assert!(matches!(&seen[..], [one] if is_one(one, "/a", expected)), "a good one: {seen:#?}");
    }
    let mut wrong = Vec::new();
    for (what, fields, body, most) in corpus() {
        let seen = get(&fields, body);
        let is_right = match &seen[..] {
            [] => true,
            [one] => most.is_some_and(|(path, body)| is_one(one, path, body)),
            _ => false,
        };
        // The next one on a connection that the task has had before.
        let next = get(&[POST, SCHEME, AUTHORITY, PATH], Some("next"));
        if !is_right || !matches!(&next[..], [one] if is_one(one, "/a", "next")) {
            wrong.push(format!("{what}: {seen:#?}, then {next:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
