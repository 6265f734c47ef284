//! Connections that were upgraded, as those of WebSocket: what labels say of requests does not hold for what follows, and no word is lost.

use super::*;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

const ECHO: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 1);
const QUIET: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 3);
const BYE: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 2);
const NAMED: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 4);
const HASTY: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 5);

/// Reads a head to its end; its first line.
fn head(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|length| *length > 0)?;
    let mut line = first.clone();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    }
    Some(first)
}

/// A connection that was upgraded, with what was read ahead.
fn upgraded(to: SocketAddr, path: &str) -> (TcpStream, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    stream.set_nodelay(true).expect("set");
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let first = head(&mut reader).expect("an answer");
    assert!(first.contains(" 101 "), "{first}");
    (stream, reader)
}

#[tokio::test]
async fn the_bound_of_a_body_is_none_of_what_follows_an_upgrade() {
    let port = free_port();
    task::serve(ECHO, port);
    let port = port.to_string();
    let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str()), ("skep.http.body", "10")];
    let ingress = Ingress::with("upgrade-body", vec![Site::new(&labels, &[ECHO])]).await;
    let (mut stream, mut reader) = upgraded(ingress.plain(), "/ws");
    for _ in 0..20 {
        stream.write_all(b"0123456789abcdef").expect("sent");
        let mut back = [0; 16];
        reader.read_exact(&mut back).expect("sent back");
    }
    assert!(ingress.curl(&["HTTP/", "-d", "0123456789a"]).starts_with("413"));
}

#[tokio::test]
async fn the_time_of_an_answer_is_none_of_the_silence_after_an_upgrade() {
    let port = free_port();
    task::serve(QUIET, port);
    let port = port.to_string();
    let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str()), ("skep.http.timeout", "300ms")];
    let ingress = Ingress::with("upgrade-time", vec![Site::new(&labels, &[QUIET])]).await;
    let (mut stream, mut reader) = upgraded(ingress.plain(), "/ws");
    // The connection is silent for longer than the time of these answers.
    for _ in 0..2 {
        let late = ingress.curl(&["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "HTTP/slow"]);
        assert!(late.starts_with("504 the task does not answer in time"), "{late}");
    }
    stream.write_all(b"still here").expect("sent");
    let mut back = [0; 10];
    reader.read_exact(&mut back).expect("sent back");
}

#[tokio::test]
async fn an_upgrade_passes_if_the_route_names_it_and_http_2_never_does() {
    let port = free_port();
    task::serve(NAMED, port);
    let port = port.to_string();
    let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str()), ("skep.http.upgrade", "tcp, spdy/3.1")];
    let ingress = Ingress::with("upgrade-named", vec![Site::new(&labels, &[NAMED])]).await;
    let ask = |fields: &str| {
        let mut stream = TcpStream::connect(ingress.plain()).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n").as_bytes()).expect("sent");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let first = head(&mut reader).expect("an answer");
        (first, stream, reader)
    };
    for fields in [
        "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n",
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    ] {
        let (first, mut stream, mut reader) = ask(fields);
        assert!(first.contains(" 101 "), "{fields}: {first}");
        stream.write_all(b"through").expect("sent");
        let mut back = [0; 7];
        reader.read_exact(&mut back).expect("sent back");
        assert_eq!(&back, b"through", "{fields}");
    }
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: tcp, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: keep-alive\r\nUpgrade: tcp\r\n",
    ] {
        let (first, _stream, mut reader) = ask(fields);
        assert!(first.contains(" 200 "), "{fields}: {first}");
        let mut line = String::new();
        reader.read_line(&mut line).expect("a body");
        let headers = &shown(&line)["headers"];
        let seen = ["upgrade", "http2-settings", "connection"].map(|name| headers[name].as_str().unwrap_or_default());
        assert!(headers["host"] == "shop.test" && !seen.concat().to_lowercase().contains("upgrade"), "{fields}: {headers}");
        assert!(headers["upgrade"].is_null() && headers["http2-settings"].is_null(), "{fields}: {headers}");
    }
}

#[tokio::test]
async fn a_task_that_takes_over_a_connection_unasked_gets_nothing_of_it() {
    let port = free_port();
    let listener = TcpListener::bind((HASTY, port)).expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            while head(&mut reader).is_some() {
                let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\n\r\nhello");
            }
        }
    });
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("upgrade-unasked", vec![Site::new(&labels, &[HASTY])]).await;
    for more in [&[][..], &["-H", "Connection: Upgrade", "-H", "Upgrade: tcp"], &["-d", "body"]] {
        let arguments: Vec<&str> = ["-w", " %{http_code}", "HTTP/"].into_iter().chain(more.iter().copied()).collect();
        let answer = ingress.curl(&arguments);
        assert!(answer.ends_with(" 502"), "{more:?}: {answer}");
    }
}

/// After a line it says `bye`, in one of the ways in which servers end.
fn say_bye(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let first = head(&mut reader)?;
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").ok()?;
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    stream.write_all(b"bye\n").ok()?;
    if first.contains("/gently") {
        stream.shutdown(Shutdown::Write).ok()?;
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_of_a_server_reaches_a_client_that_still_sends() {
    let port = free_port();
    let listener = TcpListener::bind((BYE, port)).expect("a listener");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || say_bye(stream));
        }
    });
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("last-word", vec![Site::new(&labels, &[BYE])]).await;
    let to = ingress.plain();
    let heard = move |path: &'static str, round: usize| {
        let (mut stream, mut reader) = upgraded(to, path);
        let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = ended.clone();
        let writer = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) && stream.write_all(b"still here\n").is_ok() {
                std::thread::sleep(Duration::from_micros((round % 20) as u64 * 10));
            }
        });
        let mut all = String::new();
        let end = reader.read_to_string(&mut all);
        ended.store(true, Ordering::Relaxed);
        writer.join().expect("no panic");
        (all.ends_with("bye\n"), end.is_ok())
    };
    let mut lost = Vec::new();
    for path in ["/gently", "/at-once"] {
        let threads: Vec<_> =
            (0..8).map(|n| std::thread::spawn(move || (0..25).map(|round| heard(path, n + round)).collect::<Vec<_>>())).collect();
        let outcomes: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        let without = outcomes.iter().filter(|(heard, _)| !heard).count();
        let reset = outcomes.iter().filter(|(_, ended)| !ended).count();
        lost.push((path, without, reset));
    }
    assert!(lost.iter().all(|(_, without, reset)| (*without, *reset) == (0, 0)), "without the last word, and reset: {lost:?}");
}
