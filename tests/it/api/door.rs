//! The front door: streams that are taken over, half-closed ones, and what is no request at all.

use super::fake::{self, FakeNode, Folder, Served};
use skep::api::control::Membership;
use skep::http::bind_unix;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// An engine that answers with `reply`, then sends back in capitals what comes, and says bye at its end.
struct Echo {
    folder: Folder,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Echo {
    fn new(reply: &'static str) -> Self {
        let echo = Self { folder: Folder::new(), heads: Arc::default() };
        let listener = bind_unix(&echo.folder.at("engine.sock")).unwrap();
        let heads = echo.heads.clone();
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
        echo
    }
    fn serve(&self) -> Served {
        fake::serve(FakeNode::new(Membership::Inactive), Some(&self.folder.at("engine.sock")))
    }
}

async fn read_all(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the server ends the stream").unwrap();
    String::from_utf8(all).unwrap()
}

async fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut all = String::new();
    while !all.ends_with(end) {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("more comes").unwrap();
        all.push(char::from(byte));
    }
    all
}

async fn hijack(head: &str, reply: &'static str) -> Vec<String> {
    let echo = Echo::new(reply);
    let served = echo.serve();
    let mut stream = UnixStream::connect(&served.socket).await.unwrap();
    // What follows the head comes along with it, as clients do that do not wait.
    stream.write_all(format!("{head}\r\n\r\nearly ").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "EARLY ").await, format!("{reply}EARLY "));
    for word in ["one ", "two "] {
        stream.write_all(word.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, " ").await, word.to_ascii_uppercase());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "bye", "the end of the input arrives, and the output goes on");
    echo.heads.lock().unwrap().clone()
}

#[tokio::test]
async fn a_stream_is_taken_over_without_upgrade() {
    let head = "POST /v1.24/containers/c1/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nContent-Type: text/plain";
    let heads = hijack(head, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n").await;
    assert!(heads[0].contains("Connection: close\r\n"), "{heads:?}");
}

#[tokio::test]
async fn a_stream_is_taken_over_with_upgrade() {
    let head = "POST /v1.50/exec/e1/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp";
    let heads = hijack(head, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").await;
    assert_eq!(heads[0], format!("{head}\r\n\r\n"), "the head goes on unchanged");
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte_and_ours_as_well() {
    let echo = Echo::new("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let served = echo.serve();
    for (target, status) in [("/containers/json", "200"), ("/services", "503")] {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        for byte in format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").bytes() {
            stream.write_all(&[byte]).await.unwrap();
        }
        let mut start = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut start)).await.expect("an answer").unwrap();
        assert_eq!(std::str::from_utf8(&start).unwrap(), format!("HTTP/1.1 {status}"));
    }
}

async fn raw(served: &Served, sent: &[u8]) -> String {
    let mut stream = UnixStream::connect(&served.socket).await.unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(sent).await;
    let _ = stream.shutdown().await;
    read_all(&mut stream).await
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_harms_nobody() {
    let served = fake::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(80 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500));
    let lying =
        b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Name\"";
    let chunks = b"POST /services/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    for (sent, status) in [
        (b"GET /_ping HTTP/1.1\r\nHos".as_slice(), "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
        (b"\0\0\0\0", "400"),
        (b"hello\r\n\r\n", "400"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (lying, "400"),
        (chunks, "400"),
    ] {
        let answer = raw(&served, sent).await;
        let shown = String::from_utf8_lossy(&sent[..sent.len().min(60)]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?} gave {answer:?}");
    }
    assert_eq!(raw(&served, b"").await, "", "a client without a word gets none");
    assert!(served.client.get("/_ping").await.unwrap().status.is_success(), "and it still serves");
    assert_eq!(served.client.get("/services").await.unwrap().body, "[]", "nothing was made");
}

#[tokio::test]
async fn a_body_has_a_bound() {
    let served = fake::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), None);
    let body = format!("{{\"Name\": \"{}\"}}", "x".repeat(5 << 20));
    let kind = [("Content-Type", "application/json")];
    let reply = served.client.send("POST", "/services/create", &kind, body.into()).await.unwrap();
    assert_eq!(reply.status.as_u16(), 413);
    assert!(reply.ok().unwrap_err().to_string().contains("larger than 4 MiB"));
}

#[tokio::test]
async fn without_an_engine_the_swarm_still_answers() {
    let folder = Folder::new();
    let absent = folder.at("nobody.sock");
    let served = fake::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), Some(&absent));
    for target in ["/v1.41/containers/json", "/images/json", "/networks", "/networks/bridge"] {
        let reply = served.client.get(target).await.unwrap();
        let said = reply.ok().unwrap_err().to_string();
        assert_eq!(reply.status.as_u16(), 503, "{target}: {said}");
        assert!(said.contains("the Docker Engine does not answer on") && said.contains("nobody.sock"), "{target}: {said}");
    }
    let ping = served.client.get("/_ping").await.unwrap();
    assert_eq!((ping.status.as_u16(), ping.headers["swarm"].to_str().unwrap()), (200, "active/manager"));
    assert_eq!(ping.headers["api-version"], "1.51");
    let info: serde_json::Value = served.client.get("/info").await.unwrap().json().unwrap();
    assert_eq!(info["Swarm"]["LocalNodeState"], "active");
    assert!(info["Warnings"][0].as_str().unwrap().contains("nobody.sock"), "{info}");
    assert_eq!(served.client.get("/services").await.unwrap().body, "[]");
    let networks = served.client.get("/networks?filters=%7B%22scope%22%3A%5B%22swarm%22%5D%7D").await.unwrap();
    assert_eq!(networks.body, "[]");
}

#[tokio::test]
async fn an_engine_that_says_nothing_does_not_stop_the_swarm() {
    let folder = Folder::new();
    let silent = folder.at("silent.sock");
    let listener = bind_unix(&silent).unwrap();
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let served = fake::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), Some(&silent));
    let reply = timeout(PATIENCE, served.client.get("/services")).await.expect("an answer in time").unwrap();
    assert_eq!(reply.body, "[]");
    holding.abort();
}
