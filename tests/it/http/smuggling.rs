//! Requests that two programs might read in two ways: skep refuses them, or its task gets exactly one request, with one length and the
//! host and path that skep has looked it up by. The task records what it gets.

use super::*;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 87, 0, 1);

/// A request as the task has read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Recorded {
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

pub type Records = Arc<Mutex<Vec<Recorded>>>;

/// Serves as strictly as the RFC has it, and records.
pub fn record(address: Ipv4Addr, port: u16) -> Records {
    let records = Records::default();
    let (listener, all) = (TcpListener::bind((address, port)).expect("a listener"), records.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let all = all.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(request) = read(&mut reader) {
                    all.lock().expect("no panic").push(request);
                    if reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    records
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Recorded> {
    let line = |reader: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.strip_suffix("\r\n").map_or_else(|| format!("bare LF: {line}"), str::to_owned))
    };
    let mut request = Recorded { line: line(reader)?, headers: Vec::new(), body: String::new() };
    loop {
        let header = line(reader)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ").unwrap_or((&header, "no colon"));
        request.headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut body = Vec::new();
    if request.all("transfer-encoding") == ["chunked"] {
        loop {
            let size = line(reader)?;
            let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("a chunk of {size:?}"));
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            assert!(chunk.ends_with(b"\r\n"), "{chunk:?}");
            body.extend(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let [length] = request.all("content-length")[..] {
        body.resize(length.parse().expect("a length"), 0);
        reader.read_exact(&mut body).ok()?;
    }
    request.body = String::from_utf8_lossy(&body).into_owned();
    Some(request)
}

/// The statuses of all answers that come for these bytes.
fn answers(to: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(Duration::from_millis(400))).expect("a time-out");
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        answer.extend(&buffer[..length]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// 4xx, or the connection ends; the task gets nothing.
    Refused,
    /// The task gets one request to this path, with this body.
    One(&'static str, &'static str),
    /// Either.
    Either(&'static str, &'static str),
}

use Fate::{Either, One, Refused};

/// What would be a second request to a server that reads another length.
pub const INNER: &str = "GET /inner HTTP/1.1\r\nHost: shop.test\r\n\r\n";

fn corpus() -> Vec<(&'static str, String, Fate)> {
    let post = |headers: &str, body: &str| format!("POST /a HTTP/1.1\r\nHost: shop.test\r\n{headers}\r\n{body}");
    let inner = |headers: &str, before: &str| post(headers, &format!("{before}{INNER}"));
    let chunked = "Transfer-Encoding: chunked\r\n";
    let get = |line: &str, headers: &str| format!("{line}\r\n{headers}\r\n");
    vec![
        ("a length", post("Content-Length: 5\r\n", "hello"), One("/a", "hello")),
        ("chunks", post(chunked, "5\r\nhello\r\n0\r\n\r\n"), One("/a", "hello")),
        ("length and chunks", inner("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Either("/a", "")),
        ("chunks and length", inner("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), Either("/a", "")),
        ("two lengths", inner("Content-Length: 0\r\nContent-Length: 40\r\n", ""), Refused),
        ("the same length twice", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Refused),
        ("a list of lengths", post("Content-Length: 5, 5\r\n", "hello"), Refused),
        ("a length with a sign", post("Content-Length: +5\r\n", "hello"), Refused),
        ("a negative length", inner("Content-Length: -5\r\n", ""), Refused),
        ("a length in another base", post("Content-Length: 0x5\r\n", "hello"), Refused),
        ("a length with a blank in it", inner("Content-Length: 4 0\r\n", ""), Refused),
        ("an empty length", inner("Content-Length: \r\n", ""), Refused),
        ("a huge length", inner("Content-Length: 99999999999999999999\r\n", ""), Refused),
        ("another encoding last", inner("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), Refused),
        ("another encoding first", inner("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), Refused),
        ("two encodings", inner("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"), Refused),
        ("chunked twice", inner("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Refused),
        ("an unknown encoding", inner("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), Refused),
        ("a tab in the encoding", inner("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), Refused),
        ("a quoted encoding", inner("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), Refused),
        ("a blank before the colon", inner("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), Refused),
        ("a folded encoding", inner("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), Refused),
        ("a folded header", get("GET /a HTTP/1.1", "Host: shop.test\r\nX: a\r\n b: c\r\n"), Refused),
        ("a header that begins with a blank", get("GET /a HTTP/1.1", " Host: shop.test\r\nHost: shop.test\r\n"), Refused),
        ("chunks on 1.0", format!("POST /a HTTP/1.0\r\nHost: shop.test\r\n{chunked}\r\n0\r\n\r\n{INNER}"), Refused),
        ("a chunk size with a sign", inner(chunked, "+0\r\n\r\n"), Refused),
        ("a chunk size with a prefix", inner(chunked, "0x0\r\n\r\n"), Refused),
        ("a chunk size that is none", inner(chunked, "z\r\n\r\n"), Refused),
        ("a chunk size that wraps", inner(chunked, "10000000000000000\r\n\r\n"), Refused),
        ("a negative chunk size", inner(chunked, "-1\r\n\r\n"), Refused),
        ("an empty chunk size", inner(chunked, "\r\n\r\n"), Either("/a", "")),
        ("a chunk that is longer than it says", inner(chunked, "2\r\nhello\r\n0\r\n\r\n"), Refused),
        ("a chunk extension", post(chunked, "5;a=b\r\nhello\r\n0\r\n\r\n"), Either("/a", "hello")),
        ("a line end in a chunk extension", inner(chunked, "0;a\n\r\n"), Either("/a", "")),
        ("trailers", post(chunked, "5\r\nhello\r\n0\r\nX-Last: 1\r\n\r\n"), Either("/a", "hello")),
        ("a trailer with a length", inner(chunked, "5\r\nhello\r\n0\r\nContent-Length: 40\r\n\r\n"), Either("/a", "hello")),
        ("bare line feeds", "GET /a HTTP/1.1\nHost: shop.test\n\n".to_owned(), Either("/a", "")),
        ("a bare line feed in a value", get("GET /a HTTP/1.1", "Host: shop.test\r\nX: a\nY: b\r\n"), Either("/a", "")),
        (
            "a bare carriage return in a value",
            get("GET /a HTTP/1.1", "Host: shop.test\r\nX: a\rTransfer-Encoding: chunked\r\n"),
            Refused,
        ),
        ("NUL in a value", get("GET /a HTTP/1.1", "Host: shop.test\r\nX: a\0b\r\n"), Refused),
        ("a name that is no token", get("GET /a HTTP/1.1", "Host: shop.test\r\nX(y): a\r\n"), Refused),
        ("an empty name", get("GET /a HTTP/1.1", "Host: shop.test\r\n: a\r\n"), Refused),
        ("no colon", get("GET /a HTTP/1.1", "Host: shop.test\r\nX\r\n"), Refused),
        ("no host", get("GET /a HTTP/1.1", ""), Refused),
        ("two hosts", get("GET /a HTTP/1.1", "Host: shop.test\r\nHost: other.test\r\n"), Refused),
        ("the same host twice", get("GET /a HTTP/1.1", "Host: shop.test\r\nHost: shop.test\r\n"), Refused),
        ("a host with a path", get("GET /a HTTP/1.1", "Host: shop.test/closed\r\n"), Refused),
        ("a host with a user", get("GET /a HTTP/1.1", "Host: other.test@shop.test\r\n"), Refused),
        ("a list of hosts", get("GET /a HTTP/1.1", "Host: shop.test, other.test\r\n"), Refused),
        ("the absolute form", get("GET http://shop.test/a HTTP/1.1", "Host: shop.test\r\n"), One("/a", "")),
        ("the absolute form of another host", get("GET http://other.test/a HTTP/1.1", "Host: shop.test\r\n"), Refused),
        ("the absolute form with a user", get("GET http://x@shop.test/a HTTP/1.1", "Host: shop.test\r\n"), Refused),
        ("a path with a blank", get("GET /a b HTTP/1.1", "Host: shop.test\r\n"), Either("/a%20b", "")),
        ("a path without a slash", get("GET a HTTP/1.1", "Host: shop.test\r\n"), Refused),
        ("another version", get("GET /a HTTP/2.0", "Host: shop.test\r\n"), Refused),
        ("no version", "GET /a\r\nHost: shop.test\r\n\r\n".to_owned(), Refused),
        ("a version that is none", get("GET /a HTTP/1.1x", "Host: shop.test\r\n"), Refused),
        ("a method that is none", get("GE(T /a HTTP/1.1", "Host: shop.test\r\n"), Refused),
        (
            "the change to HTTP/2",
            get(
                "GET /a HTTP/1.1",
                "Host: shop.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            ),
            Either("/a", ""),
        ),
        (
            "a connection that names its own headers",
            get("GET /a HTTP/1.1", "Host: shop.test\r\nConnection: close, X-Forwarded-For, Host\r\n"),
            Either("/a", ""),
        ),
        (
            "a body of GET",
            format!("GET /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {}\r\n\r\n{INNER}", INNER.len()),
            One("/a", INNER),
        ),
    ]
}

#[tokio::test]
async fn each_request_has_one_reading_or_is_refused() {
    let port = free_port();
    let records = record(ONE, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("corpus", vec![Site::new(&labels, &[ONE])]).await;
    let mut wrong = Vec::new();
    for (what, bytes, fate) in corpus() {
        records.lock().expect("no panic").clear();
        let answers = answers(ingress.plain(), bytes.as_bytes());
        let records = records.lock().expect("no panic").clone();
        let one = |path: &str, body: &str| {
            let [only] = &records[..] else { return false };
            let framing = only.all("content-length").len() + only.all("transfer-encoding").len();
            only.line.split(' ').nth(1) == Some(path)
                && only.body == body
                && framing <= 1
                && only.all("host") == ["shop.test"]
                && only.all("http2-settings").is_empty()
                && only.all("x-forwarded-for") == ["127.0.0.1"]
                && only.headers.iter().all(|(name, value)| !name.starts_with("bare LF") && value != "no colon")
        };
        let refused = answers.iter().all(|status| (400..=501).contains(status)) && answers.len() <= 1;
        let is_right = match fate {
            Refused => {
                refused
                    && records.iter().all(|record| record.body.is_empty() && record.line.contains("/a "))
                    && records.len() <= 1
            }
            One(path, body) => answers == [200] && one(path, body),
            Either(path, body) => (refused && records.is_empty()) || one(path, body),
        };
        if !is_right || records.iter().any(|record| record.line.contains("inner")) {
            wrong.push(format!("{what}: {fate:?}: {answers:?} {records:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ingress.status().await.refused["framing"] > 0);
}
