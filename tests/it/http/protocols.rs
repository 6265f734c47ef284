//! What tasks are spoken to with, by real clients and servers: gRPC and other HTTP/2, TLS to the task, WebSocket, events.

use super::*;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

const GRPC: Ipv4Addr = Ipv4Addr::new(127, 86, 0, 1);
const SECURE: Ipv4Addr = Ipv4Addr::new(127, 86, 0, 2);
const EVENTS: Ipv4Addr = Ipv4Addr::new(127, 86, 0, 3);
const SOCKET: Ipv4Addr = Ipv4Addr::new(127, 86, 0, 4);

/// A program of `tests/it/http/clients`.
fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/http/clients").join(script)).args(arguments);
    command
}

/// A server, which ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and waits until it listens.
async fn running(mut command: Command, address: Ipv4Addr, port: u16) -> Running {
    let running = Running(command.spawn().expect("started"));
    eventually("the server", Duration::from_secs(20), || async { Ok(TcpStream::connect((address, port)).map(drop)?) })
        .await
        .expect("it listens");
    running
}

fn output(mut command: Command) -> Vec<String> {
    let output = command.output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_has_its_trailers_streams_and_statuses_with_and_without_tls() {
    let port = free_port();
    let labels = |host: &'static str, scheme: &'static str, port: &str| {
        Site::new(
            &[("skep.http", host), ("skep.http.port", port), ("skep.http.scheme", scheme)],
            &[if scheme == "h2c" { GRPC } else { SECURE }],
        )
    };
    let ingress = Ingress::start("grpc").await;
    let own = pem("grpc.test");
    let (certificate, key) = own.split_at(own.find("-----BEGIN PRIVATE KEY").expect("a key"));
    let file = |name: &str, text: &str| {
        let path = ingress.dir.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let (certificate_file, key_file) = (file("cert.pem", certificate), file("key.pem", key));
    let port_text = port.to_string();
    let _plain = running(python("grpc_task.py", &[&GRPC.to_string(), &port_text]), GRPC, port).await;
    let secure = ["grpc_task.py", &SECURE.to_string(), &port_text, &certificate_file, &key_file];
    let _secure = running(python(secure[0], &secure[1..]), SECURE, port).await;
    let with_certificate = |site: Site| Site { certificate: Some(own.clone()), ..site };
    ingress.set(vec![with_certificate(labels("grpc.test", "h2c", &port_text)), labels("secure.test", "https", &port_text)]).await;
    let (plain, tls) = (format!("127.0.0.1:{}", ingress.ports.plain), format!("127.0.0.1:{}", ingress.ports.tls));
    let expected = [
        "unary hello OK yes 127.0.0.1",
        "large 300000",
        "status FAILED_PRECONDITION as you wish yes",
        "missing UNIMPLEMENTED",
        "down 0 1 2 3 4",
        "up 50000",
        "both ONE TWO THREE 0",
        "many 1225",
        "after still",
    ];
    for (what, arguments) in [
        ("TLS, h2c to the task", &[tls.as_str(), "grpc.test", &certificate_file][..]),
        ("without TLS, h2c to the task", &[&plain, "grpc.test"]),
        ("without TLS, TLS to the task", &[&plain, "secure.test"]),
    ] {
        assert_eq!(output(python("grpc_client.py", arguments)), expected, "{what}");
    }
    let status = ingress.status().await;
    let counts = status.routes.iter().find(|route| route.host == "grpc.test").map(|route| route.counts.clone()).expect("a route");
    assert_eq!(counts.by_class[4], 0, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_stays_and_works_in_both_directions() {
    let port = free_port();
    let port_text = port.to_string();
    let _task = running(python("websocket_task.py", &[&SOCKET.to_string(), &port_text]), SOCKET, port).await;
    let limits = HttpLimits { head_ms: 1000, idle_ms: 1000, body_ms: 1000, ..HttpLimits::default() };
    let own = pem("ws.test");
    let site = Site {
        certificate: Some(own.clone()),
        ..Site::new(&[("skep.http", "ws.test"), ("skep.http.port", &port_text)], &[SOCKET])
    };
    let ingress = Ingress::bounded("websocket", limits, vec![site]).await;
    let trusted = ingress.dir.join("cert.pem");
    std::fs::write(&trusted, own).expect("written");
    let expected = ["text text", "large 1000000", "ping ok None", "later later", "closed 1000", "pushed 10"];
    for (scheme, port) in [("ws", ingress.ports.plain), ("wss", ingress.ports.tls)] {
        let arguments = [&format!("{scheme}://ws.test/echo"), "127.0.0.1", &port.to_string(), &trusted.to_string_lossy()];
        assert_eq!(output(python("websocket_client.py", &arguments)), expected, "{scheme}");
    }
}

/// An event each 300 ms, without a length.
fn serve_events(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone()?).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")?;
                for number in 0..8 {
                    stream.write_all(format!("data: {number}\n\n").as_bytes())?;
                    std::thread::sleep(Duration::from_millis(300));
                }
                Ok::<(), std::io::Error>(())
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_one_by_one_though_the_answer_is_compressed_otherwise() {
    let port = free_port();
    serve_events(EVENTS, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string()), ("skep.http.compress", "true")];
    let limits = HttpLimits { head_ms: 1000, idle_ms: 1000, body_ms: 1000, ..HttpLimits::default() };
    let ingress = Ingress::bounded("events", limits, vec![Site::new(&labels, &[EVENTS])]).await;
    for url in [format!("http://shop.test:{}/", ingress.ports.plain), format!("https://shop.test:{}/", ingress.ports.tls)] {
        let mut curl = Command::new("curl");
        curl.args(["-sSNk", "--compressed"]);
        for port in [ingress.ports.plain, ingress.ports.tls] {
            curl.args(["--resolve", &format!("shop.test:{port}:127.0.0.1")]);
        }
        let mut child = curl.arg(url).stdout(std::process::Stdio::piped()).spawn().expect("curl");
        let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
        let (mut line, began) = (String::new(), std::time::Instant::now());
        reader.read_line(&mut line).expect("an event");
        assert_eq!(line, "data: 0\n");
        assert!(began.elapsed() < Duration::from_millis(1500), "the first one comes at once: {:?}", began.elapsed());
        reader.read_to_string(&mut line).expect("the others");
        assert!(line.contains("data: 7") && child.wait().expect("ended").success(), "{line}");
    }
}
