//! Requests without a body, which pass pingora by: whatever a task answers, the client reads the same, and connections are kept where they
//! can be.

use super::*;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 85, 0, 1);

/// What a task answers by path, and whether it closes the connection then.
fn answer_to(path: &str) -> (&'static [&'static str], bool) {
    match path {
        "/length" => (&["HTTP/1.1 200 OK\r\nContent-Le", "ngth: 5\r\nX: y\r\n\r\nhe", "llo"], false),
        "/chunked" => {
            (&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe", "\r\n3\r\nllo\r\n0\r\nT: x\r\n", "\r\n"], false)
        }
        "/until-closed" => (&["HTTP/1.0 200 OK\r\n\r\nhe", "llo"], true),
        "/hints" => {
            (&["HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], false)
        }
        "/none" => (&["HTTP/1.1 204 No Content\r\n\r\n"], false),
        "/closes" => (&["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], true),
        "/short" => (&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"], true),
        "/upgraded" => (&["HTTP/1.1 101 Switching Protocols\r\n\r\n"], true),
        "/garbage" => (&["SSH-2.0-x\r\n"], true),
        "/two-lengths" => (&["HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"], true),
        _ => (&[], true),
    }
}

/// What the connections of the task share.
#[derive(Clone)]
struct Task {
    /// The client of `/waits`, which is answered by nothing, is gone.
    gone: mpsc::Sender<()>,
    go: mpsc::Sender<()>,
    going: Arc<Mutex<mpsc::Receiver<()>>>,
}

/// Serves; what is returned says that the client of `/waits` is gone.
fn serve_answers(port: u16) -> mpsc::Receiver<()> {
    let listener = TcpListener::bind((ONE, port)).expect("a listener");
    let ((gone, is_gone), (go, going)) = (mpsc::channel(), mpsc::channel());
    let task = Task { gone, go, going: Arc::new(Mutex::new(going)) };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let task = task.clone();
            std::thread::spawn(move || serve_connection(&stream, &task));
        }
    });
    is_gone
}

fn serve_connection(mut stream: &TcpStream, task: &Task) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let first = lines.next()?.ok()?;
        while !lines.next()?.ok()?.is_empty() {}
        let (method, rest) = first.split_once(' ')?;
        let path = rest.split(' ').next()?;
        if path == "/waits" {
            let left = lines.next().is_none_or(|line| line.is_err());
            return left.then(|| task.gone.send(()).ok())?;
        }
        if path == "/events" {
            // The first event comes when another client has asked for it.
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
            task.going.lock().ok()?.recv().ok()?;
            stream.write_all(b"5\r\nhello\r\n0\r\n\r\n").ok()?;
            continue;
        }
        if path == "/none" {
            task.go.send(()).ok()?;
        }
        let (parts, closes) = answer_to(path);
        let whole = parts.concat();
        let head = whole.split_inclusive("\r\n\r\n").next().unwrap_or_default();
        let parts = if method == "HEAD" { &[head] } else { parts };
        for part in parts {
            stream.write_all(part.as_bytes()).ok()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        if closes {
            return stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

/// A client's connection, on which requests follow one another.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, requests: &[&str]) {
        let text: String = requests.iter().map(|request| format!("{request} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).collect();
        self.0.get_mut().write_all(text.as_bytes()).expect("sent");
    }

    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).expect("a line") > 0, "the connection ends after {head:?}");
        }
        head.to_ascii_lowercase()
    }

    /// An answer's status, head and body.
    fn answer(&mut self, has_body: bool) -> (u16, String, String) {
        let head = self.head();
        let status = head[9..12].parse().expect("a status");
        let mut body = Vec::new();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|length| length.parse().expect("a length"));
        if !has_body || status == 204 || status < 200 {
        } else if let Some(length) = length {
            body.resize(length, 0);
            self.0.read_exact(&mut body).expect("a body");
        } else {
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            loop {
                let mut line = String::new();
                self.0.read_line(&mut line).expect("a chunk");
                let size = usize::from_str_radix(line.trim(), 16).expect("a size");
                let mut chunk = vec![0; size + 2];
                self.0.read_exact(&mut chunk).expect("a chunk");
                if size == 0 {
                    break;
                }
                body.extend(&chunk[..size]);
            }
        }
        (status, head, String::from_utf8(body).expect("text"))
    }
}

async fn start(name: &str) -> (Ingress, mpsc::Receiver<()>) {
    let port = free_port();
    let gone = serve_answers(port);
    let site = Site::new(&[("skep.http", "shop.test"), ("skep.http.port", &port.to_string())], &[ONE]);
    (Ingress::with(name, vec![site]).await, gone)
}

#[tokio::test]
async fn an_answer_is_what_the_task_has_said_and_the_connection_is_kept() {
    let (ingress, _) = start("direct").await;
    let mut client = Kept::connect(ingress.plain());
    for path in ["/length", "/chunked", "/until-closed", "/closes", "/length", "/closes", "/closes"] {
        client.send(&[&format!("GET {path}")]);
        let (status, head, body) = client.answer(true);
        assert_eq!((status, body.as_str()), (200, "hello"), "{path}: {head}");
        assert!(head.starts_with("http/1.1 200") && head.contains("connection: keep-alive") && head.contains("date: "), "{head}");
    }
    client.send(&["HEAD /length"]);
    let (status, head, _) = client.answer(false);
    assert!(status == 200 && head.contains("content-length: 5") && head.contains("x: y"), "{head}");
    client.send(&["GET /hints"]);
    let (status, head, _) = client.answer(false);
    assert!(status == 103 && head.contains("link: </x>"), "{head}");
    assert_eq!(client.answer(true).2, "hello");
    client.send(&["GET /none"]);
    assert_eq!(client.answer(true).0, 204);
    // What follows before the answer is there is the next request; also one with a body, after which heads are read again.
    client.send(&["GET /length", "GET /chunked", "GET /none"]);
    assert_eq!([client.answer(true).2, client.answer(true).2, client.answer(true).2], ["hello", "hello", ""]);
    let counts = &ingress.status().await.routes[0].counts;
    assert_eq!((counts.by_class[1], counts.by_class[4], counts.requests()), (13, 0, 13), "{counts:?}");
}

#[tokio::test]
async fn the_head_of_a_stream_comes_before_its_first_event() {
    let (ingress, _) = start("direct-events").await;
    let (mut client, mut other) = (Kept::connect(ingress.plain()), Kept::connect(ingress.plain()));
    client.send(&["GET /events"]);
    assert!(client.head().starts_with("http/1.1 200"));
    other.send(&["GET /none"]);
    assert_eq!(other.answer(true).0, 204);
    let mut rest = [0; 15];
    client.0.read_exact(&mut rest).expect("an event");
    assert_eq!(&rest, b"5\r\nhello\r\n0\r\n\r\n");
}

#[tokio::test]
async fn nonsense_of_a_task_is_a_502_and_an_answer_that_breaks_off_is_seen_to() {
    let (ingress, _) = start("direct-nonsense").await;
    for path in ["/garbage", "/upgraded", "/two-lengths", "/nothing"] {
        let mut client = Kept::connect(ingress.plain());
        client.send(&[&format!("GET {path}")]);
        let (status, head, body) = client.answer(true);
        assert!(status == 502 && head.contains("connection: close"), "{path}: {head}{body}");
    }
    let mut client = Kept::connect(ingress.plain());
    client.send(&["GET /short"]);
    assert!(client.head().contains("content-length: 9"));
    let mut rest = String::new();
    assert_eq!((client.0.read_to_string(&mut rest).expect("an end"), rest.as_str()), (5, "hello"));
}

#[tokio::test]
async fn a_task_sees_that_its_client_is_gone() {
    let (ingress, gone) = start("direct-gone").await;
    let mut client = Kept::connect(ingress.plain());
    client.send(&["GET /waits"]);
    while ingress.status().await.routes[0].in_flight == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(client);
    let seen = tokio::task::spawn_blocking(move || gone.recv_timeout(Duration::from_secs(10))).await.expect("joined");
    assert_eq!(seen, Ok(()));
}
