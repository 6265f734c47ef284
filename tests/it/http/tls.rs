//! Certificates by host, HTTP/2.

use super::*;
use skep::clock::{Clock as _, SystemClock};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 82, 0, 1);

#[tokio::test]
async fn a_host_has_the_certificate_of_its_secret_and_a_self_signed_one_without() {
    let port = free_port();
    task::serve(ONE, port);
    let port_label = port.to_string();
    let site = |host: &str, certificate: Option<String>| Site {
        certificate,
        ..Site::new(&[("skep.http", host), ("skep.http.port", &port_label)], &[ONE])
    };
    let ingress = Ingress::start("tls").await;
    let own = pem("shop.test");
    let trusted = ingress.dir.join("ca.pem");
    std::fs::write(&trusted, &own).expect("written");
    let trusts = || {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "10", "--cacert"]).arg(&trusted);
        command.args(["--resolve", &format!("shop.test:{}:127.0.0.1", ingress.ports.tls)]);
        command.arg(format!("https://shop.test:{}/", ingress.ports.tls)).output().expect("curl").status.success()
    };
    ingress.set(vec![site("shop.test", None)]).await;
    let answer = ingress.curl(&["-w", "%{http_version}", "HTTPS/a", "-H", "Cookie: a=1", "-H", "Cookie: b=2"]);
    let seen = shown(&answer);
    assert_eq!((&seen["path"], answer.lines().last()), (&json!("/a"), Some("2")), "{answer}");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
    assert!(seen["headers"]["cookie"].as_str().is_some_and(|all| all.contains("a=1") && all.contains("b=2")), "{answer}");
    assert!(ingress.curl(&["--http1.1", "-w", "%{http_version}", "HTTPS/"]).ends_with("1.1"));
    assert!(!trusts(), "self-signed");

    let status = ingress.set(vec![site("shop.test", Some(own)), site("other.test", Some("garbage".to_owned()))]).await;
    let certificates: Vec<_> = status.routes.iter().map(|route| (route.host.as_str(), route.certificate.as_str())).collect();
    assert_eq!(certificates, [("other.test", "self-signed: the secret has no certificate in PEM"), ("shop.test", "secret")]);
    let ends: Vec<_> = status.routes.iter().map(|route| route.certificate_end > Some(SystemClock.now())).collect();
    assert_eq!(ends, [false, true], "{:?}", status.routes);
    assert!(trusts(), "that of the secret, from the next handshake on");
    let other = ingress.curl(&["-w", "%{http_code}", &format!("https://other.test:{}/", ingress.ports.tls)]);
    assert!(other.ends_with("200"), "another secret that is no certificate harms only its own host: {other}");
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let port = free_port();
    task::serve(ONE, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let ingress = Ingress::with("tls-versions", vec![Site::new(&labels, &[ONE])]).await;
    // Its own library is set to speak whatever it can.
    let ask = |least: &str, most: &str| {
        ingress.curl(&[
            least,
            "--tls-max",
            most,
            "--ciphers",
            "DEFAULT@SECLEVEL=0",
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
            "HTTPS/",
        ])
    };
    for (least, most, served) in
        [("--tlsv1.3", "1.3", true), ("--tlsv1.2", "1.2", true), ("--tlsv1.1", "1.1", false), ("--tlsv1.0", "1.0", false)]
    {
        let answer = ask(least, most);
        assert_eq!(answer == "200", served, "{most}: {answer}");
        assert!(served || answer.contains("alert"), "{most}: refused by the server: {answer}");
    }
}
