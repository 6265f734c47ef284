//! What the page answers, and what it refuses.

use super::{EVIL, PASSWORD, start};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_token_sees_the_cluster_and_no_other_site_or_name_does() {
    let page = start("requests").await;
    // The token is in a part of the address that a browser sends to no server; the page holds nothing, and comes without.
    assert_eq!(page.address, format!("http://{}/#token={}", page.at, page.token()));
    let html = page.send("GET", "/", &["Host: localhost:1"]);
    assert!(!html.head.contains("set-cookie") && !html.body.contains(page.token()), "{}", html.head);
    assert_eq!((html.status, html.body.contains("<h1>skep</h1>")), (200, true));
    for line in ["content-security-policy: default-src 'none';", "x-content-type-options: nosniff", "cache-control: no-store"] {
        assert!(html.head.contains(line), "{}", html.head);
    }
    for file in ["/app.js", "/parts.js", "/map.js", "/style.css", "/icon.svg"] {
        assert_eq!(page.ask(file).status, 200, "{file}");
    }

    let overview = page.ask("/api/overview");
    let shown: Value = serde_json::from_str(&overview.body).expect("JSON");
    assert_eq!(shown["nodes"][1]["hostname"], EVIL);
    assert_eq!((&shown["services"][1]["name"], &shown["services"][1]["running"]), (&Value::from("web"), &Value::from(2)));
    assert_eq!((shown["tasks"].as_array().map(Vec::len), &shown["tasks"][1]["node"]), (Some(2), &Value::from("n2")));
    assert_eq!(shown["http"]["routes"][0]["rates"]["requests"], 400);
    assert!(shown["http"]["routes"][0]["certificate_seconds_left"].as_u64().is_some_and(|left| left > 86_400));
    assert_eq!(shown["drops"][0]["count"], 7);
    assert!(!overview.body.contains(PASSWORD), "{}", overview.body);
    let history: Value = serde_json::from_str(&page.ask("/api/history/s1").body).expect("JSON");
    assert_eq!(history[0]["Event"], "created");
    assert_eq!(page.ask("/api/history/none").status, 502);
    for odd in ["..", "%2e%2e%2fnodes", "a%2Fb", "a%3Fb"] {
        assert_eq!(page.ask(&format!("/api/history/{odd}")).status, 400, "{odd}");
    }

    let token = page.header();
    let status = |method: &str, target: &str, lines: &[&str]| page.send(method, target, lines).status;
    assert_eq!(status("GET", "/api/overview", &["Host: localhost"]), 401);
    // Where a browser would send it to other ports too, or write it down, it does not count.
    let cookie = format!("Cookie: skep-dashboard-{}={}", page.at.port(), page.token());
    assert_eq!(status("GET", "/api/overview", &["Host: localhost", &cookie]), 401);
    assert_eq!(status("GET", &format!("/api/overview?token={}", page.token()), &["Host: localhost"]), 401);
    assert_eq!(status("GET", "/%61pi/overview", &["Host: localhost"]), 401);
    assert_eq!(status("GET", "/api/overview", &["Host: rebound.example.com", &token]), 421);
    assert_eq!(status("GET", "/", &["Host: rebound.example.com"]), 421);
    assert_eq!(status("GET", "/api/overview", &["Host: localhost", &token, "Sec-Fetch-Site: cross-site"]), 403);
    assert_eq!(status("POST", "/api/overview", &["Host: localhost", &token, "Content-Length: 0"]), 405);
    assert_eq!(status("GET", "/../etc/passwd", &["Host: localhost", &token]), 404);
    let refused = page.send("GET", "/api/overview", &["Host: localhost"]);
    assert!(refused.head.contains("content-security-policy") && refused.body.contains("skep dashboard"), "{}", refused.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_gone_is_said_and_the_page_is_not_served_beyond_loopback() {
    let page = start("gone").await;
    page.end.cancel();
    let _ = std::fs::remove_file(page.dir.join("admin.sock"));
    let answer = page.ask("/api/overview");
    assert_eq!((answer.status, answer.body.contains("admin.sock")), (502, true), "{}", answer.body);
    let run = |listen: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_skep"));
        let output = command.args(["dashboard", "--listen", listen, "--run-dir"]).arg(&page.dir).output().expect("run");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run("0.0.0.0:0").contains("ssh -L"));
    assert!(run("127.0.0.1:0").contains("start it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_answer_is_not_waited_for_and_a_connection_is_for_one_request() {
    let page = start("silent").await;
    // The client would go on; it is the server that closes.
    let mut stream = std::net::TcpStream::connect(page.at).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut html = String::new();
    stream.read_to_string(&mut html).expect("closed after the answer");
    assert!(html.starts_with("HTTP/1.1 200"), "{html}");
    page.end.cancel();
    let _ = std::fs::remove_file(page.dir.join("admin.sock"));
    // It accepts, and that is all.
    let _silent = std::os::unix::net::UnixListener::bind(page.dir.join("admin.sock")).expect("a socket");
    let answer = page.ask("/api/overview");
    assert_eq!((answer.status, answer.body.contains("no answer within 5 s")), (502, true), "{}", answer.body);
}
