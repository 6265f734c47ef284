//! The access log, which is read by somebody else: no request waits for that.

use super::*;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

const TASK: Ipv4Addr = Ipv4Addr::new(127, 90, 0, 1);
/// Bytes of a path, and requests: more than a pipe holds, and than the process keeps.
const PATH: usize = 8_000;
const REQUESTS: usize = 1_500;

#[tokio::test]
async fn requests_are_answered_while_the_access_log_is_not_read() {
    let port = free_port();
    task::serve(TASK, port);
    let port = port.to_string();
    let mut ingress = Ingress::starting("log-stalls", Stdio::piped()).await;
    ingress.access_log = HttpAccessLog::Json;
    // Answered by the ingress itself: the log alone is tried.
    let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str()), ("skep.http.maintenance", "later")];
    ingress.set(vec![Site::new(&labels, &[TASK])]).await;
    let mut stream = TcpStream::connect(ingress.plain()).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let request = format!("GET /{} HTTP/1.1\r\nHost: shop.test\r\n\r\n", "x".repeat(PATH));
    for number in 0..REQUESTS {
        stream.write_all(request.as_bytes()).expect("sent");
        let mut first = String::new();
        reader.read_line(&mut first).expect("an answer");
        assert!(first.contains(" 503 "), "{number}: {first}");
        let mut line = first;
        let mut length = 0;
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line).expect("a field");
            length = line
                .to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map_or(length, |text| text.trim().parse().expect("a number"));
        }
        reader.read_exact(&mut vec![0; length]).expect("a body");
    }
    let dropped = ingress.status().await.log_lines_dropped;
    assert!((1..REQUESTS as u64).contains(&dropped), "{dropped}");
    // What had room is there, each line whole.
    let log = BufReader::new(ingress.child.stdout.take().expect("a pipe"));
    let read = std::thread::spawn(move || {
        let whole = |line: String| serde_json::from_str::<Value>(&line).is_ok_and(|line| line["status"] == 503);
        log.lines().map_while(Result::ok).filter(|line| whole(line.clone())).count()
    });
    ingress.control().request("POST", "/drain", None).await.expect("an answer");
    assert_eq!(read.join().expect("read") as u64, REQUESTS as u64 - dropped);
}
