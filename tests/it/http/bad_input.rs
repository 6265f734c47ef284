//! Garbage, oversize, slow and half-closed clients: each is answered or cut, and others are served.

use super::*;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 84, 0, 1);

/// What comes back for these bytes, up to the end of the connection or for half a second.
fn sent(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        answer.extend(&buffer[..length]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_that_are_none_are_answered_or_cut_and_others_are_served() {
    let port = free_port();
    task::serve(ONE, port);
    let ingress =
        Ingress::with("bad", vec![Site::new(&[("skep.http", "shop.test"), ("skep.http.port", &port.to_string())], &[ONE])]).await;
    let to = ingress.plain();
    let head = |more: &str| format!("GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n{more}\r\n").into_bytes();
    assert!(sent(to, &head("")).starts_with("HTTP/1.1 200"));
    let many: String = (0..300).map(|number| format!("X-{number}: x\r\n")).collect();
    let long = format!("X: {}\r\n", "x".repeat(2 << 20));
    for (what, bytes) in [
        ("no host", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec()),
        ("no route's host", b"GET / HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n".to_vec()),
        ("two hosts", head("Host: other.test\r\n")),
        ("two lengths", head("Content-Length: 1\r\nContent-Length: 2\r\n")),
        ("a length that is none", head("Content-Length: +1\r\n")),
        ("a folded header", head("X: a\r\n b\r\n")),
        ("a space before the colon", head("X : a\r\n")),
        ("too many headers", head(&many)),
        ("too long a head", head(&long)),
        ("garbage", b"\x00\xff\x16\x03\x01garbage\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("CONNECT", b"CONNECT shop.test:80 HTTP/1.1\r\nHost: shop.test:80\r\n\r\n".to_vec()),
    ] {
        let answer = sent(to, &bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    let tls = SocketAddr::from((Ipv4Addr::LOCALHOST, ingress.ports.tls));
    assert!(!sent(tls, &head("")).contains("200 OK"), "no plain request is served on the port with TLS");
    assert!(sent(to, &head("")).starts_with("HTTP/1.1 200"), "and all is as before");
    let status = ingress.status().await;
    assert_eq!(status.listeners.iter().filter(|listener| listener.error.is_some()).count(), 0, "{status:?}");
}

/// Both bodies of a request that has both lengths are one body to the task.
#[tokio::test]
async fn a_request_with_two_kinds_of_length_smuggles_nothing() {
    let port = free_port();
    task::serve(ONE, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let closed = [("skep.http", "shop.test/closed"), ("skep.http.port", &port.to_string()), ("skep.http.allow", "192.0.2.0/24")];
    let ingress = Ingress::with("smuggle", vec![Site::new(&labels, &[ONE]), Site::new(&closed, &[ONE])]).await;
    let inner = "GET /closed HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for framing in ["Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"]
    {
        let request = format!("POST / HTTP/1.1\r\nHost: shop.test\r\n{framing}\r\n0\r\n\r\n{inner}");
        let answer = sent(ingress.plain(), request.as_bytes());
        assert!(!answer.contains("\"path\":\"/closed\""), "{framing}: {answer}");
    }
    let after = ingress.curl(&["HTTP/closed"]);
    assert!(after.starts_with("403"), "{after}");
}

#[tokio::test]
async fn a_slow_head_is_cut_and_a_client_that_waits_for_its_answer_is_not() {
    let port = free_port();
    task::serve(ONE, port);
    let ingress =
        Ingress::with("slow", vec![Site::new(&[("skep.http", "shop.test"), ("skep.http.port", &port.to_string())], &[ONE])])
            .await;
    let mut slow = TcpStream::connect(ingress.plain()).expect("connected");
    slow.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let began = std::time::Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n").expect("sent");
    let mut writer = slow.try_clone().expect("a descriptor");
    let drip = std::thread::spawn(move || {
        while writer.write_all(b"X: x\r\n").is_ok() && began.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let answer = ingress.curl(&["HTTP/slow"]);
    assert!(answer.contains("\"path\":\"/slow\""), "{answer}");
    let mut buffer = [0; 64];
    let read = slow.read(&mut buffer);
    let took = began.elapsed();
    assert!(
        !matches!(read, Ok(1..)) && (Duration::from_millis(1400)..Duration::from_secs(5)).contains(&took),
        "{read:?} after {took:?}"
    );
    drip.join().expect("no panic");
}
