//! What tasks get to know of the client behind proxies, and what is done to answers and requests on the way.

use super::*;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 2);
const RAW: Ipv4Addr = Ipv4Addr::new(127, 89, 0, 3);

fn site(host: &str, task: Ipv4Addr, port: u16, more: &[(&str, &str)]) -> Site {
    let port = port.to_string();
    let labels = [("skep.http", host), ("skep.http.port", port.as_str())];
    Site::new(&labels.iter().chain(more).copied().collect::<Vec<_>>(), &[task])
}

/// All that comes for these bytes to the end of the connection.
fn sent(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";

/// The version 2 header of 192.0.2.7:1234.
fn version_2() -> Vec<u8> {
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 7, 127, 0, 0, 1, 4, 210, 0, 80]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_of_a_trusted_source_has_the_clients_address() {
    let port = free_port();
    task::serve(ONE, port);
    let limits = HttpLimits { head_ms: 1000, proxy_protocol: vec!["127.0.0.1/32".parse().unwrap()], ..HttpLimits::default() };
    let sites =
        vec![site("shop.test", ONE, port, &[]), site("shop.test/closed", ONE, port, &[("skep.http.allow", "192.0.2.0/24")])];
    let ingress = Ingress::bounded("proxy-in", limits, sites).await;
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n";
    for first in [header.as_bytes().to_vec(), version_2()] {
        let answer = sent(ingress.plain(), &[&first, GET.as_bytes()].concat());
        assert!(
            answer.contains("\"x-forwarded-for\":\"192.0.2.7\"") && answer.contains("\"x-real-ip\":\"192.0.2.7\""),
            "{answer}"
        );
        assert!(answer.contains("for=192.0.2.7;host=shop.test;proto=http"), "{answer}");
    }
    let closed = sent(ingress.plain(), format!("{header}{}", GET.replace("/ ", "/closed ")).as_bytes());
    assert!(closed.starts_with("HTTP/1.1 200"), "the allow-list sees the client: {closed}");
    // TLS follows the header.
    let curl = ingress.curl(&["--haproxy-protocol", "HTTPS/"]);
    assert!(curl.contains("\"x-forwarded-proto\":\"https\"") && curl.contains("\"x-forwarded-for\":\"127.0.0.1\""), "{curl}");
    for (what, bytes) in [
        ("no header", GET.as_bytes().to_vec()),
        ("no address", format!("PROXY TCP4 x y 1 2\r\n{GET}").into_bytes()),
        ("a part", b"PROXY TCP4 192.0.2.7".to_vec()),
    ] {
        assert_eq!(sent(ingress.plain(), &bytes), "", "{what}");
    }
    assert_eq!(ingress.status().await.refused["proxy_header"], 3);
    // Another source has no header to send: it would be believed.
    let limits = HttpLimits { proxy_protocol: vec!["192.0.2.0/24".parse().unwrap()], ..HttpLimits::default() };
    let ingress = Ingress::bounded("proxy-none", limits, vec![site("shop.test", ONE, port, &[])]).await;
    let answer = sent(ingress.plain(), format!("{header}{GET}").as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trusted_proxies_are_believed_and_a_trace_goes_on() {
    let port = free_port();
    task::serve(ONE, port);
    let trusted = HttpLimits { trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..HttpLimits::default() };
    let ingress = Ingress::bounded("trusted", trusted, vec![site("shop.test", ONE, port, &[])]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = |ingress: &Ingress| {
        let answer = ingress.curl(&[
            "-H",
            "X-Forwarded-For: 198.51.100.1, 192.0.2.7",
            "-H",
            "X-Forwarded-Proto: https",
            "-H",
            "X_Forwarded_For: 198.51.100.9",
            "-H",
            &format!("traceparent: {trace}"),
            "-H",
            "X-Request-Id: abc",
            "HTTP/",
        ]);
        shown(&answer)["headers"].take()
    };
    let seen = ask(&ingress);
    assert_eq!((&seen["x-forwarded-for"], &seen["x-real-ip"]), (&json!("192.0.2.7, 127.0.0.1"), &json!("192.0.2.7")), "{seen}");
    assert_eq!((&seen["x-forwarded-proto"], &seen["traceparent"]), (&json!("https"), &json!(trace)));
    assert_eq!((&seen["x-request-id"], seen["x_forwarded_for"].is_null()), (&json!("abc"), true));
    assert!(seen["forwarded"].as_str().is_some_and(|value| value.starts_with("for=192.0.2.7, for=127.0.0.1;host=")), "{seen}");
    let others = Ingress::with("untrusted", vec![site("shop.test", ONE, port, &[])]).await;
    let seen = ask(&others);
    assert_eq!((&seen["x-forwarded-for"], &seen["x-forwarded-proto"]), (&json!("127.0.0.1"), &json!("http")), "{seen}");
    assert_eq!(seen["x-forwarded-port"], json!(others.ports.plain.to_string()));
    let made = shown(&others.curl(&["HTTP/"]))["headers"]["traceparent"].take();
    assert!(made.as_str().is_some_and(|made| made.starts_with("00-") && made.len() == 55), "{made}");
}

/// Keeps what comes up to the end of each head, and answers then.
fn serve_raw(address: Ipv4Addr, port: u16) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let (listener, all) = (TcpListener::bind((address, port)).expect("a listener"), seen.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let all = all.clone();
            std::thread::spawn(move || {
                let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    bytes.extend(&buffer[..length]);
                    let line = b" HTTP/1.1\r\n";
                    let head = bytes.windows(line.len()).position(|window| window == line);
                    if head.is_some_and(|at| bytes[at..].windows(4).any(|four| four == b"\r\n\r\n")) {
                        all.lock().expect("no panic").push(std::mem::take(&mut bytes));
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                    }
                }
            });
        }
    });
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_wants_it_gets_a_proxy_header_of_each_client() {
    let port = free_port();
    let seen = serve_raw(RAW, port);
    let ingress = Ingress::start("proxy-out").await;
    for version in ["1", "2"] {
        ingress.set(vec![site("shop.test", RAW, port, &[("skep.http.proxy-protocol", version)])]).await;
        seen.lock().expect("no panic").clear();
        let mut first = TcpStream::connect(ingress.plain()).expect("connected");
        let from = first.local_addr().expect("an address").port();
        first.write_all(GET.replace("close", "keep-alive").as_bytes()).expect("sent");
        let mut answer = [0; 15];
        first.read_exact(&mut answer).expect("an answer");
        assert!(ingress.curl(&["HTTP/"]).contains("ok"), "another client");
        let all = seen.lock().expect("no panic").clone();
        assert_eq!(all.len(), 2, "each client has a connection of its own");
        if version == "1" {
            let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {}\r\n", ingress.ports.plain);
            assert!(all[0].starts_with(expected.as_bytes()), "{:?}", String::from_utf8_lossy(&all[0]));
        } else {
            let addresses = [&[127, 0, 0, 1, 127, 0, 0, 1][..], &from.to_be_bytes(), &ingress.ports.plain.to_be_bytes()].concat();
            assert!(all[0].starts_with(&version_2()[..16]) && all[0][16..28] == addresses, "{:?}", all[0]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_go_to_another_service_and_maintenance_is_said() {
    let port = free_port();
    task::serve(ONE, port);
    let seen = serve_raw(TWO, port);
    let sites = vec![
        site("shop.test", ONE, port, &[("skep.http.mirror", "s1")]),
        site("next.test", TWO, port, &[]),
        site("old.test", ONE, port, &[("skep.http.maintenance", "back at 5")]),
    ];
    let ingress = Ingress::with("mirror", sites).await;
    let answer = ingress.curl(&["-d", "copied body", "HTTP/copied"]);
    assert!(answer.contains("\"path\":\"/copied\"") && answer.contains("\"body\":11"), "{answer}");
    assert!(ingress.curl(&["HTTPS/second"]).contains("\"path\":\"/second\""));
    eventually("the copies", Duration::from_secs(5), || async {
        let all: Vec<String> =
            seen.lock().expect("no panic").iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        let has = |what: &[&str]| all.iter().any(|one| what.iter().all(|part| one.contains(part)));
        anyhow::ensure!(has(&["POST /copied HTTP/1.1", "shop.test"]) && has(&["GET /second HTTP/1.1"]), "{all:#?}");
        Ok(())
    })
    .await
    .expect("sent");
    let maintained = ingress.curl(&["-D", "-", "-H", "Host: old.test", "HTTP/"]);
    assert!(maintained.contains("503 back at 5") && maintained.contains("retry-after"), "{maintained}");
}

/// Answers with this type and a text that compresses well.
fn serve_text(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap_or(0);
            let kind = if head[..length].starts_with(b"GET /image") { "image/png" } else { "text/html" };
            let text = "skep ".repeat(4000);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nETag: \"1\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all((head + &text).as_bytes());
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_compressed_for_those_who_ask() {
    let address = Ipv4Addr::new(127, 89, 0, 4);
    let port = free_port();
    serve_text(address, port);
    let ingress = Ingress::with("compress", vec![site("shop.test", address, port, &[("skep.http.compress", "true")])]).await;
    let ask = |accept: &str, url: &str| {
        let accept = format!("Accept-Encoding: {accept}");
        ingress.curl(&["-o", "/dev/null", "-w", "%{size_download} %header{content-encoding} %header{vary}", "-H", &accept, url])
    };
    for url in ["HTTP/", "HTTPS/"] {
        for name in ["gzip", "zstd"] {
            let seen = ask(name, url);
            let size: u32 = seen.split(' ').next().and_then(|size| size.parse().ok()).expect("a size");
            assert!(size < 1000 && seen.to_ascii_lowercase().ends_with(&format!(" {name} accept-encoding")), "{seen}");
        }
        assert!(ask("gzip;q=0", url).starts_with("20000 "), "not asked for");
        for name in ["gzip", "zstd", "deflate, gzip, br, zstd"] {
            let text = ingress.curl(&["--compressed", "-H", &format!("Accept-Encoding: {name}"), url]);
            assert!(text == "skep ".repeat(4000), "{name}, {url}: {} bytes", text.len());
        }
    }
    assert!(ask("gzip", "HTTP/image").starts_with("20000 "));
}
