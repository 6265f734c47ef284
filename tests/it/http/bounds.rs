//! What one client may use: connections, time for its request, requests in flight. Others are served meanwhile, and each cut is
//! counted by its reason.

use super::*;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 85, 0, 1);
const NEVER: Ipv4Addr = Ipv4Addr::new(127, 85, 0, 2);

fn limits() -> HttpLimits {
    HttpLimits { client_connections: 20, head_ms: 1000, idle_ms: 1000, body_ms: 1000, ..HttpLimits::default() }
}

fn site(port: u16, more: &[(&str, &str)]) -> Site {
    let port = port.to_string();
    let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str())];
    Site::new(&labels.iter().chain(more).copied().collect::<Vec<_>>(), &[ONE])
}

/// A connection from an address of loopback.
fn connect_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("bound");
    socket.connect(&to.into()).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    stream
}

/// What comes to the end of the connection, and when that is.
fn end_of(mut stream: &TcpStream) -> (String, Duration) {
    let began = Instant::now();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        answer.extend(&buffer[..length]);
    }
    (String::from_utf8_lossy(&answer).into_owned(), began.elapsed())
}

async fn refused(ingress: &Ingress, reason: &str) -> u64 {
    ingress.status().await.refused[reason]
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_client_has_so_many_connections_and_others_are_served() {
    let port = free_port();
    task::serve(ONE, port);
    let ingress = Ingress::bounded("connections", HttpLimits { head_ms: 20_000, ..limits() }, vec![site(port, &[])]).await;
    let many: Vec<TcpStream> = (0..20).map(|_| connect_from([127, 0, 0, 7], ingress.plain())).collect();
    eventually("they are counted", Duration::from_secs(5), || async {
        anyhow::ensure!(ingress.status().await.connections == 20, "not yet");
        Ok(())
    })
    .await
    .expect("counted");
    let further = connect_from([127, 0, 0, 7], ingress.plain());
    let _ = (&further).write_all(GET);
    let (answer, took) = end_of(&further);
    assert!(answer.is_empty() && took < Duration::from_secs(2), "{answer} {took:?}");
    let other = connect_from([127, 0, 0, 8], ingress.plain());
    (&other).write_all(GET).expect("sent");
    assert!(end_of(&other).0.starts_with("HTTP/1.1 200"), "another client");
    assert_eq!(refused(&ingress, "client_connections").await, 1);
    drop(many);
    eventually("its connections are gone", Duration::from_secs(5), || async {
        let again = connect_from([127, 0, 0, 7], ingress.plain());
        let _ = (&again).write_all(GET);
        anyhow::ensure!(end_of(&again).0.starts_with("HTTP/1.1 200"), "refused");
        Ok(())
    })
    .await
    .expect("it is served again");
}

#[tokio::test]
async fn silent_and_slow_clients_are_cut_and_counted() {
    let port = free_port();
    task::serve(ONE, port);
    // A task that reads, and never answers.
    let never = TcpListener::bind((NEVER, port)).expect("a listener");
    let held = Site::new(&[("skep.http", "held.test"), ("skep.http.port", &port.to_string())], &[NEVER]);
    let ingress = Ingress::bounded("slow-clients", limits(), vec![site(port, &[]), held]).await;
    let tls = SocketAddr::from((Ipv4Addr::LOCALHOST, ingress.ports.tls));
    // No word, without TLS and where TLS is to begin.
    let silent = [connect_from([127, 0, 0, 1], ingress.plain()), connect_from([127, 0, 0, 1], tls)];
    // TLS and its agreement on HTTP/2, and then no word.
    let mut h2 = std::process::Command::new("openssl");
    h2.args(["s_client", "-quiet", "-no_ign_eof", "-alpn", "h2", "-servername", "shop.test", "-connect"]).arg(tls.to_string());
    h2.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let began = Instant::now();
    let mut h2 = h2.spawn().expect("openssl");
    // It ends with its input.
    let input = h2.stdin.take();
    // A body of which a byte comes now and then.
    let slow = connect_from([127, 0, 0, 1], ingress.plain());
    (&slow).write_all(b"POST / HTTP/1.1\r\nHost: held.test\r\nContent-Length: 100000\r\n\r\n").expect("sent");
    let mut writer = slow.try_clone().expect("a descriptor");
    let drip = std::thread::spawn(move || {
        while began.elapsed() < Duration::from_secs(5) && writer.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    // One whose length is not known, and that stops.
    let stopped = connect_from([127, 0, 0, 1], ingress.plain());
    (&stopped).write_all(b"POST / HTTP/1.1\r\nHost: held.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").expect("sent");
    // The same, of one that says that it is a stream.
    let claims = ["Connection: Upgrade\r\nUpgrade: websocket", "Content-Type: application/grpc"].map(|claim| {
        let stream = connect_from([127, 0, 0, 1], ingress.plain());
        let head = format!("POST / HTTP/1.1\r\nHost: held.test\r\n{claim}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        (&stream).write_all(head.as_bytes()).expect("sent");
        stream
    });
    // One that goes on after its answer.
    let answered = connect_from([127, 0, 0, 1], ingress.plain());
    (&answered).write_all(b"POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").expect("sent");
    // An answer, and then no further request.
    let idle = connect_from([127, 0, 0, 1], ingress.plain());
    (&idle).write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").expect("sent");
    assert!(ingress.curl(&["HTTP/"]).contains("\"path\":\"/\""), "others are served");
    for (what, stream) in [
        ("silent", &silent[0]),
        ("silent with TLS", &silent[1]),
        ("slow", &slow),
        ("stopped", &stopped),
        ("stopped, as if upgraded", &claims[0]),
        ("stopped, as if gRPC", &claims[1]),
        ("answered", &answered),
        ("idle", &idle),
    ] {
        let _ = end_of(stream);
        let took = began.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_millis(4500)).contains(&took), "{what}: {took:?}");
    }
    let status = h2.wait().expect("ended");
    assert!(began.elapsed() < Duration::from_millis(4500), "HTTP/2: {status} after {:?}", began.elapsed());
    drop(input);
    drip.join().expect("no panic");
    let counted = ingress.status().await.refused;
    let of = |reason: &str| counted[reason];
    assert_eq!((of("slow_head"), of("handshake"), of("slow_body")), (2, 1, 5), "{counted:?}");
    assert_eq!(ingress.status().await.connections, 0);
    drop(never);
}

#[tokio::test]
async fn requests_in_flight_are_bounded_by_label() {
    let port = free_port();
    task::serve(ONE, port);
    let ingress = Ingress::start("in-flight").await;
    for (label, expected, reason) in [
        ("skep.http.requests", "503 s0 has as many", "service_requests"),
        ("skep.http.requests.client", "429 this client", "client_requests"),
    ] {
        // The bound is the service's, whichever of its hosts is asked.
        let mut bound = site(port, &[(label, "2")]);
        bound.labels.insert("skep.http".to_owned(), "shop.test,other.test".to_owned());
        ingress.set(vec![bound]).await;
        let slow: Vec<TcpStream> = (0..2).map(|_| connect_from([127, 0, 0, 7], ingress.plain())).collect();
        for (mut stream, host) in slow.iter().zip(["shop.test", "other.test"]) {
            write!(stream, "GET /slow HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
        }
        eventually("two in flight", Duration::from_secs(5), || async {
            let in_flight: Vec<u64> = ingress.status().await.routes.iter().map(|route| route.in_flight).collect();
            anyhow::ensure!(in_flight == [1, 1], "not yet: {in_flight:?}");
            Ok(())
        })
        .await
        .expect("in flight");
        let third = connect_from([127, 0, 0, 7], ingress.plain());
        (&third).write_all(GET).expect("sent");
        let (answer, _) = end_of(&third);
        assert!(answer.contains(expected) && answer.contains("retry-after: 1"), "{answer}");
        assert_eq!(refused(&ingress, reason).await, 1);
        let other = ingress.curl(&["HTTP/"]);
        assert_eq!(other.contains("\"path\":\"/\""), label.ends_with("client"), "another client: {other}");
        assert!(slow.iter().all(|stream| end_of(stream).0.starts_with("HTTP/1.1 200")), "those in flight are answered");
    }
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_refused_for_a_time_and_others_are_served() {
    let port = free_port();
    task::serve(ONE, port);
    let label = [("skep.http.rate", "2/h"), ("skep.http.rate.burst", "3")];
    let ingress = Ingress::with("rate", vec![site(port, &label)]).await;
    let ask = |from: u8| {
        let stream = connect_from([127, 0, 0, from], ingress.plain());
        (&stream).write_all(GET).expect("sent");
        end_of(&stream).0
    };
    let answers: Vec<String> = (0..4).map(|_| ask(7)).collect();
    assert!(answers[..3].iter().all(|answer| answer.starts_with("HTTP/1.1 200")), "{answers:?}");
    assert!(answers[3].starts_with("HTTP/1.1 429") && answers[3].contains("retry-after: 1800"), "{}", answers[3]);
    assert!(ask(8).starts_with("HTTP/1.1 200"), "another client");
    assert_eq!(refused(&ingress, "client_rate").await, 1);
    // A change of the table forgets nothing.
    ingress.set(vec![site(port, &[label[0], label[1], ("skep.http.headers.response.X", "y")])]).await;
    assert!(ask(7).starts_with("HTTP/1.1 429"));
    // Behind a proxy that is trusted a client is the one that it names.
    let mut ingress = ingress;
    ingress.limits.trusted_proxies = vec!["127.0.0.9/32".parse().expect("a prefix")];
    ingress.set(vec![site(port, &label)]).await;
    let by_proxy = |client: &str| {
        let stream = connect_from([127, 0, 0, 9], ingress.plain());
        let head = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n");
        (&stream).write_all(head.as_bytes()).expect("sent");
        end_of(&stream).0
    };
    assert!(by_proxy("127.0.0.7").starts_with("HTTP/1.1 429") && by_proxy("127.0.0.10").starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_large_head_is_refused_and_a_client_that_takes_no_answer_holds_only_its_own() {
    let port = free_port();
    task::serve(ONE, port);
    let ingress = Ingress::with("heads", vec![site(port, &[])]).await;
    let large = format!("X-Large: {}", "x".repeat(70_000));
    let answer = ingress.curl(&["-H", &large, "HTTP/"]);
    assert!(answer.starts_with("431"), "{answer}");
    assert_eq!(refused(&ingress, "head_size").await, 1);
    let h2 = ingress.curl(&["-H", &large, "-w", "%{http_code}", "HTTPS/"]);
    assert!(!h2.ends_with("200"), "{h2}");
    assert!(ingress.curl(&["HTTPS/"]).contains("\"path\":\"/\""));
}

/// Over HTTP/2 without TLS, which clients of gRPC begin with at once.
#[tokio::test]
async fn a_connection_of_http_2_without_a_request_is_closed_and_one_that_waits_for_its_answer_is_not() {
    let port = free_port();
    task::serve(ONE, port);
    let ingress = Ingress::bounded("h2-idle", HttpLimits { idle_ms: 500, ..limits() }, vec![site(port, &[])]).await;
    let stream = tokio::net::TcpStream::connect(ingress.plain()).await.expect("connected");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let ended = tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("ready");
    let request = axum::http::Request::get("http://shop.test/slow").body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200, "a second later");
    let began = Instant::now();
    // It would keep the connection.
    let _sender = sender;
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("closed").expect("no panic").ok();
    assert!(began.elapsed() > Duration::from_millis(400), "{:?}", began.elapsed());
}

/// The daemon asks again and again, and lets go of what it asked before.
#[tokio::test]
async fn requests_of_a_daemon_that_is_gone_leave_no_descriptor_open() {
    let ingress = Ingress::start("control-ends").await;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", ingress.child.id())).expect("descriptors").count();
    let before = open();
    for path in ["/end", "/waiting"] {
        for _ in 0..20 {
            let asked = tokio::time::timeout(Duration::from_millis(50), ingress.control().get(path)).await;
            assert!(asked.is_err(), "{path} waits");
        }
    }
    eventually("the connections to be closed", Duration::from_secs(10), || async {
        anyhow::ensure!(open() <= before + 5, "{} descriptors, {before} before", open());
        Ok(())
    })
    .await
    .expect("closed");
}
