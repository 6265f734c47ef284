//! What tasks see of a request and clients of an answer.

use super::*;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 81, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 81, 0, 2);
/// Where nothing listens.
const NONE: Ipv4Addr = Ipv4Addr::new(127, 81, 0, 3);

#[tokio::test]
async fn labels_decide_what_is_sent_on_and_back() {
    let port = free_port();
    task::serve(ONE, port);
    let port_label = port.to_string();
    let hash = bcrypt::hash("secret", 4).expect("a hash");
    let site = |host: &str, more: &[(&str, &str)]| {
        let first = [("skep.http", host), ("skep.http.port", port_label.as_str())];
        Site::new(&first.iter().chain(more).copied().collect::<Vec<_>>(), &[ONE])
    };
    let ingress = Ingress::with(
        "labels",
        vec![
            site("shop.test", &[("skep.http.headers.request.X-From", "skep"), ("skep.http.headers.response.Server", "")]),
            site("shop.test/api", &[("skep.http.strip", "true"), ("skep.http.body", "10")]),
            site("shop.test/closed", &[("skep.http.allow", "192.0.2.0/24")]),
            site("shop.test/secure", &[("skep.http.redirect", "https")]),
            site("shop.test/moved", &[("skep.http.redirect", "other.test")]),
            site("shop.test/users", &[("skep.http.auth", &format!("ann:{hash}"))]),
            site("shop.test/quick", &[("skep.http.timeout", "200ms")]),
        ],
    )
    .await;
    let answer = ingress.curl(&[
        "HTTP/x?y=1",
        "-H",
        "X-Forwarded-For: 192.0.2.9",
        "-H",
        "Forwarded: for=192.0.2.9",
        "-H",
        "X-Forwarded-Proto: https",
    ]);
    let seen = shown(&answer);
    let headers = &seen["headers"];
    assert_eq!((&seen["path"], &headers["x-from"]), (&json!("/x?y=1"), &json!("skep")), "{answer}");
    assert_eq!((&headers["x-forwarded-for"], &headers["x-forwarded-proto"]), (&json!("127.0.0.1"), &json!("http")), "{answer}");
    assert_eq!(headers["x-forwarded-host"], json!(format!("shop.test:{}", ingress.ports.plain)), "{answer}");
    assert!(headers["forwarded"].as_str().is_some_and(|value| value.starts_with("for=127.0.0.1;host=")), "{answer}");
    assert!(headers["x-request-id"].as_str().is_some_and(|id| id.len() == 32), "{answer}");
    let head = ingress.curl(&["-D", "-", "-o", "/dev/null", "HTTP/"]);
    assert!(!head.to_ascii_lowercase().contains("server:"), "{head}");

    let stripped = shown(&ingress.curl(&["HTTP/api/v1?z"]));
    assert_eq!((&stripped["path"], &stripped["headers"]["x-forwarded-prefix"]), (&json!("/v1?z"), &json!("/api")));
    let secure = format!("308 https://shop.test:{}/secure/a?b", ingress.ports.tls);
    for (arguments, expected) in [
        (&["HTTP/api", "-d", "0123456789"][..], "\"body\":10"),
        (&["HTTP/api", "-d", "0123456789a"], "413 the body is larger"),
        (&["HTTP/api", "-H", "Transfer-Encoding: chunked", "-d", "0123456789a"], "413 the body is larger"),
        (&["HTTP/closed"], "403 this client may not use the route"),
        (&["HTTP/%63losed/x"], "403 this client"),
        (&["-w", "%{http_code} %{redirect_url}", "HTTP/secure/a?b"], secure.as_str()),
        (&["HTTPS/secure/a"], "\"path\":\"/secure/a\""),
        (&["-w", "%{http_code} %{redirect_url}", "HTTP/moved/a"], "308 http://other.test/moved/a"),
        (&["HTTP/users"], "401 name and password"),
        (&["-u", "ann:wrong", "HTTP/users"], "401 name and password"),
        (&["-u", "ann:secret", "HTTP/users"], "\"path\":\"/users\""),
        (&["HTTP/quick/slow"], "504 the task does not answer in time"),
        (&["HTTP/slow"], "\"path\":\"/slow\""),
        (&["HTTP/cut"], "502 the task ended the connection"),
        (&["--path-as-is", "HTTP/api/../closed"], "400 the path is not plain"),
        (&["--path-as-is", "HTTP//closed"], "400 the path is not plain"),
        (&["--path-as-is", "HTTP/./users"], "400 the path is not plain"),
        (&["--path-as-is", "HTTP/%2e/users"], "400 the path is not plain"),
        (&["--path-as-is", "HTTP/a//b"], "\"path\":\"/a//b\""),
        (&["-H", "Host: nowhere.test", "HTTP/"], "404 no route for nowhere.test"),
        (&["-I", "-H", "Host: nowhere.test", "HTTP/"], "404"),
        // Its end is the end of the connection.
        (&["--http1.0", "--max-time", "5", "-w", " exit %{exitcode}", "HTTP/"], " exit 0"),
    ] {
        let answer = ingress.curl(arguments);
        assert!(answer.contains(expected), "{arguments:?}: {answer}");
    }
    let counts: Vec<_> = ingress.status().await.routes.into_iter().map(|route| (route.prefix, route.counts)).collect();
    let of = |prefix: &str| &counts.iter().find(|(of, _)| of == prefix).expect("a route").1;
    assert_eq!((of("/closed").by_class, of("/moved").by_class), ([0, 0, 0, 2, 0], [0, 0, 1, 0, 0]));
    assert_eq!(of("/quick").by_class[4], 1);
    assert_eq!(of("/api").by_class, [0, 2, 0, 2, 0]);
}

#[tokio::test]
async fn tasks_are_asked_in_turn_one_that_refuses_is_passed_over_and_a_cookie_keeps_a_client() {
    let port = free_port();
    task::serve(ONE, port);
    task::serve(TWO, port);
    let port_label = port.to_string();
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port_label)];
    let ingress = Ingress::with("turn", vec![Site::new(&labels, &[ONE, NONE, TWO])]).await;
    let asked = |arguments: &[&str]| shown(&ingress.curl(arguments))["at"].as_str().unwrap_or("no task").to_owned();
    let all: Vec<String> = (0..9).map(|_| asked(&["HTTP/"])).collect();
    assert!(all.contains(&ONE.to_string()) && all.contains(&TWO.to_string()) && !all.contains(&"no task".to_owned()), "{all:?}");
    assert!(ingress.status().await.routes[0].counts.retries > 0);

    let sticky = [labels[0], labels[1], ("skep.http.sticky", "stay")];
    ingress.set(vec![Site::new(&sticky, &[ONE, TWO])]).await;
    let head = ingress.curl(&["-D", "-", "-o", "/dev/null", "HTTP/"]).to_ascii_lowercase();
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next()).expect("a cookie").to_owned();
    let kept: Vec<String> = (0..4).map(|_| asked(&["-b", &cookie, "HTTP/"])).collect();
    assert!(cookie.ends_with(&kept[0]) && kept.iter().all(|at| *at == kept[0]), "{cookie} {kept:?}");
    let again = ingress.curl(&["-D", "-", "-b", &cookie, "HTTP/"]).to_ascii_lowercase();
    assert!(!again.contains("set-cookie"), "{again}");
    // Its task is gone: another one.
    let other = if kept[0] == ONE.to_string() { TWO } else { ONE };
    ingress.set(vec![Site::new(&sticky, &[other])]).await;
    assert_eq!(asked(&["-b", &cookie, "HTTP/"]), other.to_string());

    ingress.set(vec![Site::new(&labels, &[NONE])]).await;
    let answer = ingress.curl(&["HTTP/"]);
    assert!(answer.starts_with("503 no task of s0 is ready"), "{answer}");
    ingress.set(vec![Site::new(&labels, &[])]).await;
    let answer = ingress.curl(&["-D", "-", "HTTP/"]).to_ascii_lowercase();
    assert!(answer.contains("503 no task of s0 is ready") && answer.contains("retry-after: 1"), "{answer}");
}

#[tokio::test]
async fn an_upgraded_connection_goes_on_through_a_change_of_the_table() {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    let address = Ipv4Addr::new(127, 81, 0, 5);
    let port = free_port();
    task::serve(address, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("upgrade", vec![Site::new(&labels, &[address])]).await;
    let mut stream = std::net::TcpStream::connect(ingress.plain()).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let head = format!("GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut first = String::new();
    reader.read_line(&mut first).expect("an answer");
    assert!(first.contains("101"), "{first}");
    let mut line = first;
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).expect("the head");
    }
    let mut echo = |text: &[u8]| {
        stream.write_all(text).expect("sent");
        let mut back = vec![0; text.len()];
        reader.read_exact(&mut back).expect("sent back");
        assert_eq!(back, text);
    };
    echo(b"before");
    ingress.set(Vec::new()).await;
    echo(b"after");
    assert!(ingress.status().await.connections > 0);
}

/// The daemon is replaced by a socket with a fixed answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_the_cluster_is_behind_tls_and_a_password() {
    let hash = bcrypt::hash("secret", 4).expect("a hash");
    let auth = format!("ann:{hash}");
    let labels = [("skep.http", "shop.test"), ("skep.http.dashboard", "true"), ("skep.http.auth", auth.as_str())];
    let ingress = Ingress::with("page", vec![Site::new(&labels, &[])]).await;
    let ask = |arguments: &[&str]| ingress.curl(&[&["-w", " %{http_code} %{redirect_url}"], arguments].concat());
    assert!(ask(&["-u", "ann:secret", "HTTP/"]).contains(&format!(" 308 https://shop.test:{}/", ingress.ports.tls)));
    assert!(ask(&["HTTPS/"]).contains("401 name and password"));
    let gone = ask(&["-u", "ann:secret", "HTTPS/"]);
    assert!(gone.contains("503 the daemon of this node does not answer"), "{gone}");
    let page = async |headers: axum::http::HeaderMap| format!("page {}", headers.contains_key("authorization"));
    let socket = skep::ingress::http::dashboard_socket(&ingress.dir);
    let listener = skep::http::bind_unix(&socket).expect("bound");
    let end = tokio_util::sync::CancellationToken::new();
    let router = axum::Router::new().route("/api/overview", axum::routing::get(page));
    tokio::spawn(skep::http::serve_unix(listener, router, end.clone()));
    for _ in 0..3 {
        let shown = ask(&["-u", "ann:secret", "HTTPS/api/overview"]);
        assert!(shown.starts_with("page false 200"), "the password goes no further: {shown}");
    }
    end.cancel();
    assert!(HttpLabels::read(&labels[..2].iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()).is_err(), "no user");
}

#[tokio::test]
async fn services_share_a_host_by_weight_and_without_one_the_older_has_it() {
    let port = free_port();
    task::serve(ONE, port);
    task::serve(TWO, port);
    let port = port.to_string();
    let site = |task, weight: Option<&str>| {
        let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str())].into_iter();
        Site::new(&labels.chain(weight.map(|weight| ("skep.http.weight", weight))).collect::<Vec<_>>(), &[task])
    };
    let ingress = Ingress::start("weights").await;
    let urls = format!("http://shop.test:{}/[1-60]", ingress.ports.plain);
    for (first, second, expected) in [
        (Some("1"), Some("1"), &[ONE, TWO][..]),
        (Some("0"), Some("5"), &[TWO]),
        (Some("5"), Some("0"), &[ONE]),
        (None, Some("5"), &[ONE]),
    ] {
        ingress.set(vec![site(ONE, first), site(TWO, second)]).await;
        let answers = ingress.curl(&[&urls]);
        let asked: std::collections::BTreeSet<String> =
            answers.lines().map(|line| shown(line)["at"].as_str().unwrap_or(line).to_owned()).collect();
        assert_eq!(asked, expected.iter().map(ToString::to_string).collect(), "{first:?} {second:?}");
    }
}
