//! The same routes in the words of each proxy.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use skep::ingress::http::{HttpOptions, HttpPorts, HttpTable, table};
use skep::model::http::{HttpBackend, HttpLabels, HttpService};
use skep::model::payload::PayloadId;
use skep::model::view::{ClusterPart, Tasks};
use skep::model::{Payload, SecretId, Timestamp, fixture};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Where the backend listens.
pub const BACKEND: u16 = 8000;

/// The host of a route.
pub fn host(number: usize) -> String {
    format!("h{number}.bench.test")
}

/// Certificate and key in PEM.
pub fn pem() -> String {
    let made = skep::trust::self_signed(vec![host(3)]).unwrap();
    let mut text = String::new();
    for (label, der) in [("CERTIFICATE", &made.certificate), ("PRIVATE KEY", made.key.expose())] {
        let body = STANDARD.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        write!(text, "-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).unwrap();
    }
    text
}

/// What skep's daemon would send: a service with one task for each host.
pub fn skep(routes: usize, ports: HttpPorts, pem: &str) -> HttpTable {
    let mut peer = fixture::peer(1);
    peer.ingress_addr = Ipv4Addr::LOCALHOST;
    let me = peer.node_id.clone();
    let secret = SecretId::from("certificate");
    let service = |number: usize| {
        let labels = [("skep.http".to_owned(), host(number)), ("skep.http.port".to_owned(), BACKEND.to_string())];
        let backend = HttpBackend {
            task_id: format!("task{number}").as_str().into(),
            node_id: me.clone(),
            address: Ipv4Addr::LOCALHOST,
            ports: vec![BACKEND],
        };
        Arc::new(HttpService {
            service_id: format!("s{number}").as_str().into(),
            service_name: format!("s{number}"),
            created_at: Timestamp(i64::try_from(number).unwrap()),
            routes: HttpLabels::read(&labels.into()).unwrap().routes,
            certificate: Some(secret.clone()),
            problems: Vec::new(),
            holds: false,
            backends: vec![backend],
        })
    };
    let cluster = ClusterPart { http: (0..routes).map(service).collect(), ..fixture::cluster_part(vec![peer]) };
    let mut view = fixture::node_view(1, Vec::new(), cluster);
    let payload = Payload { data: STANDARD.encode(pem).into(), templating: None };
    view.tasks = Arc::new(Tasks { payloads: [(PayloadId::Secret(secret), Arc::new(payload))].into(), ..Tasks::default() });
    table(&view, &me, &HttpOptions { ports, ..HttpOptions::default() })
}

pub fn haproxy(routes: usize, (plain, tls): (u16, u16), dir: &str) -> String {
    let mut names = String::new();
    for number in 0..routes {
        writeln!(names, "{} b{number}", host(number)).unwrap();
    }
    std::fs::write(format!("{dir}/haproxy.map"), names).unwrap();
    let mut text = format!(
        "global\n nbthread 1\n maxconn 4096\ndefaults\n mode http\n timeout connect 2s\n timeout client 60s\n timeout server 60s\n \
         http-reuse always\n option forwardfor\n unique-id-format %{{+X}}o%ci%cp%Ts%rt%pid\n unique-id-header X-Request-Id\n\
         frontend in\n bind 127.0.0.1:{plain}\n bind 127.0.0.1:{tls} ssl crt {dir}/pem alpn h2,http/1.1\n \
         http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n http-request set-header X-Forwarded-Host %[req.hdr(host)]\n \
         use_backend %[req.hdr(host),field(1,:),lower,map({dir}/haproxy.map)]\n"
    );
    for number in 0..routes {
        write!(text, "backend b{number}\n server s 127.0.0.1:{BACKEND}\n").unwrap();
    }
    text
}

/// What both of nginx's roles begin with.
fn nginx_base(dir: &str, name: &str) -> String {
    let mut text = format!(
        "daemon off; master_process off; pid {dir}/{name}.pid; error_log /dev/null crit;\nevents {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 75; sendfile on; tcp_nopush on; client_body_temp_path {dir}/body;\n"
    );
    for module in ["proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "{module}_temp_path {dir}/{module};").unwrap();
    }
    text
}

/// Answers of 60 bytes, 1 kB and 100 kB.
pub fn backend(dir: &str) -> String {
    std::fs::write(format!("{dir}/1k"), [b'x'; 1_000]).unwrap();
    std::fs::write(format!("{dir}/100k"), vec![b'x'; 100_000]).unwrap();
    let small = "x".repeat(60);
    nginx_base(dir, "backend")
        + &format!(
            "server {{ listen 127.0.0.1:{BACKEND} backlog=4096; root {dir}; location = / {{ return 200 {small}; }} }} }}\n"
        )
}

pub fn nginx(routes: usize, (plain, tls): (u16, u16), dir: &str) -> String {
    let mut text = nginx_base(dir, "nginx");
    write!(
        text,
        "server_names_hash_bucket_size 128; ssl_certificate {dir}/pem; ssl_certificate_key {dir}/pem; ssl_protocols TLSv1.2 TLSv1.3;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Request-Id $request_id;\n\
         proxy_buffers 16 16k; proxy_max_temp_file_size 0;\n"
    )
    .unwrap();
    for number in 0..routes {
        write!(
            text,
            "upstream u{number} {{ server 127.0.0.1:{BACKEND}; keepalive 128; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl http2; server_name {}; location / {{ proxy_pass http://u{number}; }} }}\n",
            host(number)
        )
        .unwrap();
    }
    text + "}\n"
}
