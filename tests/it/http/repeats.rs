//! Requests that are sent twice, as the connection to the task was left just then: what is counted and copied of them is counted and copied
//! once. And clients that say no more before they have their answer.

use super::*;
use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 95, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 95, 0, 2);

/// Answers; if it `leaves`, it answers the first request of each connection, and ends it with the second one. Returns how many it has read.
fn serve(address: Ipv4Addr, port: u16, leaves: bool) -> Arc<AtomicU32> {
    let (listener, count) = (TcpListener::bind((address, port)).expect("a listener"), Arc::<AtomicU32>::default());
    let read = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let read = read.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut number = 0;
                while request(&mut reader).is_some() {
                    read.fetch_add(1, Ordering::SeqCst);
                    number += 1;
                    if leaves && number > 1 {
                        return;
                    }
                    let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    count
}

/// Reads a request with its body.
fn request(reader: &mut impl std::io::BufRead) -> Option<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim_end().parse().ok()?;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_sent_again_is_counted_and_copied_once() {
    let port = free_port();
    let (asked, copies) = (serve(ONE, port, true), serve(TWO, port, false));
    let port = port.to_string();
    let site = |host: &str, task, more: &[(&str, &str)]| {
        Site::new(&[&[("skep.http", host), ("skep.http.port", port.as_str())][..], more].concat(), &[task])
    };
    let bound = [("skep.http.body", "1k"), ("skep.http.mirror", "s1")];
    let ingress = Ingress::with("repeats", vec![site("shop.test", ONE, &bound), site("copy.test", TWO, &[])]).await;
    let body = "x".repeat(700);
    let put = || ingress.curl(&["-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", "-d", &body, "HTTP/"]);
    assert_eq!(put(), "200");
    assert_eq!(put(), "200", "it is less than the bound");
    assert_eq!(asked.load(Ordering::SeqCst), 3, "the second one was sent twice");
    eventually("the copies", Duration::from_secs(5), || async {
        anyhow::ensure!(copies.load(Ordering::SeqCst) >= 2, "not yet");
        Ok(())
    })
    .await
    .expect("sent");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(copies.load(Ordering::SeqCst), 2, "one of each");
}

/// As with nginx: nothing tells it from one that is gone.
#[tokio::test]
async fn a_client_that_half_closes_its_connection_is_counted_as_gone_and_harms_no_other() {
    let port = free_port();
    task::serve(ONE, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("half-closed", vec![Site::new(&labels, &[ONE])]).await;
    let mut halves = Vec::new();
    for bytes in [
        "GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop",
        "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 9\r\n\r\nx",
    ] {
        let mut stream = TcpStream::connect(ingress.plain()).expect("connected");
        stream.write_all(bytes.as_bytes()).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
        halves.push(stream);
    }
    for mut half in halves {
        half.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        let mut answer = String::new();
        half.read_to_string(&mut answer).expect("the connection is closed");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    eventually("it is counted", Duration::from_secs(5), || async {
        anyhow::ensure!(ingress.status().await.routes[0].counts.gone >= 1, "not yet");
        Ok(())
    })
    .await
    .expect("counted");
    assert!(ingress.curl(&["HTTP/"]).contains("\"path\":\"/\""), "others are served");
}
