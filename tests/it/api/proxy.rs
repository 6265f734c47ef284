//! Raw connections: hijacked streams, half-close, malformed requests, and an engine that does not answer.

use super::fixture::{ApiFixture, FakeNode, SocketDir};
use skep::api::control::Membership;
use skep::http::bind_unix;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Bound on every wait.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An engine that answers every request with the same reply, then echoes its input in capitals, and sends `bye` after the
/// end of the input.
struct EchoEngine {
    dir: SocketDir,
    /// Heads of the requests received.
    heads: Arc<Mutex<Vec<String>>>,
}

impl EchoEngine {
    fn new(reply: &'static str) -> Self {
        let engine = Self { dir: SocketDir::new(), heads: Arc::default() };
        let listener = bind_unix(&engine.dir.path("engine.sock")).unwrap();
        let heads = engine.heads.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let heads = heads.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    heads.lock().unwrap().push(String::from_utf8(head).unwrap());
                    stream.write_all(reply.as_bytes()).await.unwrap();
                    let mut buffer = [0; 1024];
                    loop {
                        match stream.read(&mut buffer).await {
                            Ok(n) if n > 0 => stream.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap(),
                            _ => break,
                        }
                    }
                    let _ = stream.write_all(b"bye").await;
                });
            }
        });
        engine
    }
    fn serve_api(&self) -> ApiFixture {
        ApiFixture::serve(FakeNode::new(Membership::Inactive), Some(&self.dir.path("engine.sock")))
    }
}

async fn read_all(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    timeout(TIMEOUT, stream.read_to_end(&mut all)).await.expect("the server ends the stream").unwrap();
    String::from_utf8(all).unwrap()
}

async fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut all = String::new();
    while !all.ends_with(end) {
        let byte = timeout(TIMEOUT, stream.read_u8()).await.expect("more data").unwrap();
        all.push(char::from(byte));
    }
    all
}

/// Hijacks a stream and exchanges data both ways; the heads that the engine received.
async fn hijack(head: &str, reply: &'static str) -> Vec<String> {
    let engine = EchoEngine::new(reply);
    let fixture = engine.serve_api();
    let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
    // Data in the same write as the head, from a client that does not wait for the reply.
    stream.write_all(format!("{head}\r\n\r\nearly ").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "EARLY ").await, format!("{reply}EARLY "));
    for word in ["one ", "two "] {
        stream.write_all(word.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, " ").await, word.to_ascii_uppercase());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "bye", "the engine sees the end of the input, and its output continues");
    engine.heads.lock().unwrap().clone()
}

#[tokio::test]
async fn a_stream_is_hijacked_without_upgrade() {
    let head = "POST /v1.24/containers/c1/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nContent-Type: text/plain";
    let heads = hijack(head, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n").await;
    assert!(heads[0].contains("Connection: close\r\n"), "{heads:?}");
}

#[tokio::test]
async fn a_stream_is_hijacked_with_upgrade() {
    let head = "POST /v1.50/exec/e1/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp";
    let heads = hijack(head, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").await;
    assert_eq!(heads[0], format!("{head}\r\n\r\n"), "the head is forwarded unchanged");
}

#[tokio::test]
async fn a_head_may_arrive_byte_by_byte() {
    let engine = EchoEngine::new("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let fixture = engine.serve_api();
    for (target, status) in [("/containers/json", "200"), ("/services", "503")] {
        let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
        for byte in format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").bytes() {
            stream.write_all(&[byte]).await.unwrap();
        }
        let mut start = [0; 12];
        timeout(TIMEOUT, stream.read_exact(&mut start)).await.expect("a reply").unwrap();
        assert_eq!(std::str::from_utf8(&start).unwrap(), format!("HTTP/1.1 {status}"));
    }
}

/// Sends bytes and half-closes; the whole reply.
async fn send_raw(fixture: &ApiFixture, sent: &[u8]) -> String {
    let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(sent).await;
    let _ = stream.shutdown().await;
    read_all(&mut stream).await
}

#[tokio::test]
async fn malformed_requests_are_refused_and_do_not_disturb_the_server() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(80 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500));
    let truncated =
        b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Name\"";
    let bad_chunk = b"POST /services/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    for (sent, status) in [
        (b"GET /_ping HTTP/1.1\r\nHos".as_slice(), "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
        (b"\0\0\0\0", "400"),
        (b"hello\r\n\r\n", "400"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (truncated, "400"),
        (bad_chunk, "400"),
        (b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "400"),
        (b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n{}", "400"),
        (b"POST /services/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n{}", "400"),
        (b"GET services HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        (b"GET /services/\x00 HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        (b"GET /services HTTP/1.1\r\nHo st: x\r\n\r\n", "400"),
        (b"GET /services HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
    ] {
        let reply = send_raw(&fixture, sent).await;
        let shown = String::from_utf8_lossy(&sent[..sent.len().min(60)]).into_owned();
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?} got {reply:?}");
        let body = reply.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{shown:?} got {reply:?}: {e}"));
        assert!(body["message"].as_str().is_some_and(|m| !m.is_empty()), "{shown:?} got {body}");
    }
    assert_eq!(send_raw(&fixture, b"").await, "", "a client that sends nothing gets no reply");
    assert!(fixture.client.get("/_ping").await.unwrap().status.is_success(), "it still serves");
    assert_eq!(fixture.client.get("/services").await.unwrap().body, "[]", "nothing was created");
}

/// `curl -g` sends them so, and Go's server takes them.
#[tokio::test]
async fn a_query_with_braces_and_quotes_is_served() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    for target in [
        "/v1.51/services?filters={\"name\":[\"x\"]}",
        "/tasks?filters={\"desired-state\":{\"running\":true}}",
        "/networks?filters={\"scope\":[\"swarm\"]}",
    ] {
        let reply = send_raw(&fixture, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("[]"), "{target}: {reply}");
    }
    let reply = send_raw(&fixture, "GET /services/{a}\u{fc} HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 404 ") && reply.contains("service {a}\u{fc} not found"), "{reply}");
}

#[tokio::test]
async fn other_spellings_of_a_path_of_the_swarm_are_its_own_too() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    for target in ["/%73ervices", "/v1.51/./%73ervices", "http://docker/v1.51/services", "tcp://docker:2375/services?filters={}"]
    {
        let reply = send_raw(&fixture, format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
        let is_answered = reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("[]");
        assert!(is_answered || target.contains("/./") && reply.contains("page not found"), "{target}: {reply}");
    }
    let reply = send_raw(&fixture, b"POST /v1.51.9/%73warm/init HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 404 ") && reply.contains("page not found"), "{reply}");
}

#[tokio::test]
async fn a_body_above_the_bound_is_refused() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    let body = format!("{{\"Name\": \"{}\"}}", "x".repeat(5 << 20));
    let kind = [("Content-Type", "application/json")];
    let reply = fixture.client.send("POST", "/services/create", &kind, body.into()).await.unwrap();
    assert_eq!(reply.status.as_u16(), 413);
    assert!(reply.ok().unwrap_err().to_string().contains("larger than 4 MiB"));
}

#[tokio::test]
async fn swarm_requests_work_without_an_engine() {
    let dir = SocketDir::new();
    let absent = dir.path("absent.sock");
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), Some(&absent));
    for target in ["/v1.41/containers/json", "/images/json", "/networks", "/networks/bridge"] {
        let reply = fixture.client.get(target).await.unwrap();
        let message = reply.ok().unwrap_err().to_string();
        assert_eq!(reply.status.as_u16(), 503, "{target}: {message}");
        assert!(
            message.contains("the Docker Engine does not answer on") && message.contains("absent.sock"),
            "{target}: {message}"
        );
    }
    let ping = fixture.client.get("/_ping").await.unwrap();
    assert_eq!((ping.status.as_u16(), ping.headers["swarm"].to_str().unwrap()), (200, "active/manager"));
    assert_eq!(ping.headers["api-version"], "1.51");
    let info: serde_json::Value = fixture.client.get("/info").await.unwrap().json().unwrap();
    assert_eq!(info["Swarm"]["LocalNodeState"], "active");
    assert!(info["Warnings"][0].as_str().unwrap().contains("absent.sock"), "{info}");
    assert_eq!(fixture.client.get("/services").await.unwrap().body, "[]");
    let networks = fixture.client.get("/networks?filters=%7B%22scope%22%3A%5B%22swarm%22%5D%7D").await.unwrap();
    assert_eq!(networks.body, "[]");
}

#[tokio::test]
async fn swarm_requests_work_with_an_engine_that_never_replies() {
    let dir = SocketDir::new();
    let silent = dir.path("silent.sock");
    let listener = bind_unix(&silent).unwrap();
    let acceptor = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.push(stream);
        }
    });
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), Some(&silent));
    let reply = timeout(TIMEOUT, fixture.client.get("/services")).await.expect("a reply in time").unwrap();
    assert_eq!(reply.body, "[]");
    acceptor.abort();
}

/// The next reply on a connection, whose body has a length.
async fn reply(stream: &mut UnixStream) -> (String, String) {
    let head = read_until(stream, "\r\n\r\n").await.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    timeout(TIMEOUT, stream.read_exact(&mut body)).await.expect("a body").unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn a_connection_serves_requests_until_one_is_the_engines_or_says_that_it_is_the_last() {
    let engine = EchoEngine::new("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let manager = || FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let fixture = ApiFixture::serve(manager(), Some(&engine.dir.path("engine.sock")));
    let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
    let create = |body: &str| {
        format!(
            "POST /configs/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    // One after the other: with a body, refused, with a target that is encoded again.
    for (sent, status) in [
        (get("/services", ""), "200"),
        (create("{"), "400"),
        (get("/services/none", ""), "404"),
        (get("/services?filters={\"name\":[\"x\"]}", ""), "200"),
    ] {
        stream.write_all(sent.as_bytes()).await.unwrap();
        let (head, _) = reply(&mut stream).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")) && !head.contains("connection: close"), "{sent}: {head}");
    }
    // Two at once, and of the second one only a part.
    let (first, second) = (get("/services", ""), get("/services/none", ""));
    stream.write_all(format!("{first}{}", &second[..20]).as_bytes()).await.unwrap();
    assert!(reply(&mut stream).await.0.starts_with("http/1.1 200 "));
    stream.write_all(&second.as_bytes()[20..]).await.unwrap();
    assert!(reply(&mut stream).await.0.starts_with("http/1.1 404 "));
    // The engine's is its last one.
    stream.write_all(get("/containers/json", "").as_bytes()).await.unwrap();
    assert_eq!(reply(&mut stream).await.1, "hi");
    let heads = engine.heads.lock().unwrap().clone();
    let passed = heads.iter().filter(|head| head.starts_with("GET /containers/json ")).collect::<Vec<_>>();
    assert!(passed.len() == 1 && passed[0].contains("Connection: close\r\n"), "{heads:?}");
    for last in [get("/services", "Connection: close\r\n"), get("/services", "").replace("1.1", "1.0")] {
        let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
        stream.write_all(last.as_bytes()).await.unwrap();
        assert!(read_all(&mut stream).await.ends_with("[]"), "{last}: the server closes the connection");
    }
}

#[tokio::test]
async fn a_request_whose_client_has_gone_ends_its_connection() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
    stream.write_all(b"GET /services HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_all(&mut stream).await.ends_with("[]"));
}
