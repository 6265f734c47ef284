//! What tasks get to know of the client: `X-Forwarded-*`, `Forwarded`, `X-Real-IP`, a request id and a trace.

use super::limits::HttpLimits;
use axum::http::HeaderName;
use pingora::Result;
use pingora::http::RequestHeader;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Headers that a client cannot set. Many frameworks read `X_Real_Ip` as they read `X-Real-Ip`.
const OWN: [&str; 9] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "x-request-id",
];

/// What frameworks believe of a proxy too. A client that is none cannot set them, nor what begins with `x-forwarded-`. (`Proxy` becomes
/// the variable `HTTP_PROXY` of CGI programs.)
const BELIEVED: [&str; 9] = [
    "cf-connecting-ip",
    "client-ip",
    "front-end-https",
    "proxy",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-url-scheme",
];

/// Addresses of a chain of proxies that are read.
const MOST_HOPS: usize = 32;

/// Who asks, and how.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Requester {
    /// The client; `None` if it is not known, as where a trusted proxy does not say which client asks.
    pub client: Option<IpAddr>,
    /// What `X-Forwarded-For` says: the client, and the trusted proxies that its request came through.
    chain: Vec<IpAddr>,
    /// The connection is from a trusted proxy.
    by_proxy: bool,
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

fn text<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

/// An address; some proxies add the port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}

/// Who asks. `peer`: where the connection is from; `host`: as the request names it; `port`: of the listener.
pub(super) fn requester(
    request: &RequestHeader,
    peer: Option<IpAddr>,
    limits: &HttpLimits,
    tls: bool,
    host: &str,
    port: u16,
) -> Requester {
    let by_proxy = peer.is_some_and(|peer| limits.trusts(peer));
    let mut requester = Requester { client: peer, chain: Vec::from_iter(peer), by_proxy, tls, host: host.to_owned(), port };
    if !by_proxy {
        return requester;
    }
    // From the last one, which the trusted proxy has added, to the first that is not trusted. What the client has written before it may be
    // no text at all.
    let lists: Vec<&[u8]> = request.headers.get_all("x-forwarded-for").iter().map(AsRef::as_ref).collect();
    let is_said = lists.iter().any(|list| !list.trim_ascii().is_empty());
    let hops = lists.iter().rev().flat_map(|list| list.rsplit(|byte| *byte == b','));
    for hop in hops.take(if is_said { MOST_HOPS } else { 0 }) {
        let Some(hop) = std::str::from_utf8(hop.trim_ascii()).ok().and_then(address) else {
            requester.client = None;
            break;
        };
        let hop = hop.to_canonical();
        requester.chain.insert(0, hop);
        requester.client = Some(hop);
        if !limits.trusts(hop) {
            break;
        }
    }
    match text(request, "x-forwarded-proto") {
        Some("https" | "wss") => requester.tls = true,
        Some("http" | "ws") => requester.tls = false,
        _ => {}
    }
    if let Some(host) = text(request, "x-forwarded-host").filter(|host| super::path::host(host).is_some()) {
        host.clone_into(&mut requester.host);
    }
    if let Some(port) = text(request, "x-forwarded-port").and_then(|port| port.parse().ok()) {
        requester.port = port;
    }
    requester
}

/// Takes away what the client says of itself, unless it may.
pub(super) fn clear(request: &mut RequestHeader, requester: &Requester) {
    // The names of almost all requests have none of these.
    let may_be = |name: &str| matches!(name.as_bytes()[0], b'c' | b'f' | b'p' | b't' | b'x');
    let is_spoofed = |name: &str| {
        let name = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
        let is_believed = || BELIEVED.contains(&&*name) || name.starts_with("x-forwarded-");
        OWN.contains(&&*name) || (!requester.by_proxy && is_believed())
    };
    let names = request.headers.keys().map(HeaderName::as_str);
    let spoofed: Vec<String> = names.filter(|name| may_be(name) && is_spoofed(name)).map(str::to_owned).collect();
    for name in spoofed {
        request.remove_header(name.as_str());
    }
}

/// The trace of a request: its own, or a new one in its place.
pub(super) fn trace(request: &mut RequestHeader) -> String {
    if let Some(trace) = text(request, "traceparent").filter(|trace| is_trace(trace)) {
        let trace = trace.to_owned();
        request.remove_header("traceparent");
        return trace;
    }
    request.remove_header("traceparent");
    request.remove_header("tracestate");
    let mut trace = String::with_capacity(55);
    trace.push_str("00-");
    hex(rand::random::<u128>(), 32, &mut trace);
    trace.push('-');
    hex(rand::random::<u64>().into(), 16, &mut trace);
    trace.push_str("-00");
    trace
}

/// The id of a trace that is kept, as the flags of a `traceparent` say.
pub(super) fn sampled(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-').skip(1);
    let (trace, flags) = (parts.next()?, parts.nth(1)?);
    u8::from_str_radix(flags, 16).ok().filter(|flags| flags & 1 == 1).map(|_| trace)
}

/// A new id of a request.
pub(super) fn request_id() -> String {
    let mut id = String::with_capacity(32);
    hex(rand::random(), 32, &mut id);
    id
}

/// The last digits of a number.
fn hex(number: u128, digits: usize, out: &mut String) {
    let bytes = number.to_be_bytes();
    let digit = |at: usize| if at.is_multiple_of(2) { bytes[at / 2] >> 4 } else { bytes[at / 2] & 15 };
    let text: [u8; 32] = std::array::from_fn(|at| b"0123456789abcdef"[usize::from(digit(at))]);
    out.push_str(std::str::from_utf8(&text[32 - digits..]).unwrap_or_default());
}

/// What is said of the client, field by field.
///
/// # Errors
/// Those of `set`.
pub(super) fn fields(
    requester: &Requester,
    request_id: &str,
    trace: &str,
    mut set: impl FnMut(&'static str, &str) -> Result<()>,
) -> Result<()> {
    let proto = if requester.tls { "https" } else { "http" };
    if let Some(client) = requester.client {
        let client_text = client.to_string();
        if requester.chain == [client] {
            set("X-Forwarded-For", &client_text)?;
        } else {
            let chain: Vec<String> = requester.chain.iter().map(ToString::to_string).collect();
            set("X-Forwarded-For", &chain.join(", "))?;
        }
        set("X-Real-IP", &client_text)?;
    }
    set("X-Forwarded-Proto", proto)?;
    set("X-Forwarded-Host", &requester.host)?;
    set("X-Forwarded-Port", &requester.port.to_string())?;
    set("Forwarded", &forwarded(requester, proto))?;
    set("X-Request-Id", request_id)?;
    set("Traceparent", trace)
}

/// RFC 7239: `for=192.0.2.1;host=shop.example.com;proto=https`, an element for each hop.
fn forwarded(requester: &Requester, proto: &str) -> String {
    let mut out = String::new();
    for (number, hop) in requester.chain.iter().enumerate() {
        let separator = if number > 0 { ", " } else { "" };
        let _ = match hop {
            IpAddr::V4(v4) => write!(out, "{separator}for={v4}"),
            IpAddr::V6(v6) => write!(out, "{separator}for=\"[{v6}]\""),
        };
    }
    let separator = if out.is_empty() { "" } else { ";" };
    let is_token =
        !requester.host.is_empty() && requester.host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let _ = if is_token {
        write!(out, "{separator}host={};proto={proto}", requester.host)
    } else {
        let quoted: String = requester.host.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
        write!(out, "{separator}host=\"{quoted}\";proto={proto}")
    };
    out
}

/// W3C: version, trace, parent and flags, in lower case; neither of the ids is zero.
fn is_trace(value: &str) -> bool {
    let parts: Vec<&str> = value.split('-').collect();
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_set = |text: &str| text.bytes().any(|byte| byte != b'0');
    matches!(parts[..], [version, trace, parent, flags, ref more @ ..]
        if is_hex(version, 2) && version != "ff" && (more.is_empty() || version != "00")
            && is_hex(trace, 32) && is_set(trace) && is_hex(parent, 16) && is_set(parent) && is_hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    /// As a task gets it.
    fn set(request: &mut RequestHeader, requester: &Requester, request_id: &str) -> Result<()> {
        clear(request, requester);
        let trace = trace(request);
        fields(requester, request_id, &trace, |name, value| request.insert_header(name, value))
    }

    fn limits(trusted: &str) -> HttpLimits {
        HttpLimits { trusted_proxies: vec![trusted.parse().unwrap()], ..HttpLimits::default() }
    }

    #[test]
    fn a_client_that_writes_nonsense_is_not_taken_for_the_proxy_that_adds_its_address() {
        let peer = "10.0.0.1".parse().ok();
        let client = |fields: &[&[u8]]| {
            let mut asked = request(&[]);
            for field in fields {
                asked.append_header("x-forwarded-for", *field).unwrap();
            }
            requester(&asked, peer, &limits("10.0.0.0/8"), false, "a.b", 80).client.map(|client| client.to_string())
        };
        let its = Some("203.0.113.9".to_owned());
        assert_eq!(client(&[b"\xff, 203.0.113.9"]), its);
        assert_eq!(client(&[b"\xff", b"203.0.113.9, 10.0.0.2"]), its);
        assert_eq!(client(&[b"198.51.100.1,\xc3\xa4,203.0.113.9"]), its);
        for of_proxy in [&b"203.0.113.9, garbage"[..], b"203.0.113.9, \xff", b"203.0.113.9,", b"unknown, 10.0.0.2", b"\xff"] {
            assert_eq!(client(&[of_proxy]), None, "neither the proxy nor what the client says of itself");
        }
        assert_eq!(client(&[b"203.0.113.9", b""]), None);
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_as_far_as_they_are() {
        let peer = "10.0.0.1".parse().ok();
        for (trusted, header, client, chain) in [
            ("192.0.2.0/24", "203.0.113.9", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.0/8", "203.0.113.9", "203.0.113.9", "203.0.113.9, 10.0.0.1"),
            ("10.0.0.0/8", "198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9", "203.0.113.9, 10.0.0.2, 10.0.0.1"),
            ("10.0.0.0/8", "", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.0/8", "2001:db8::1", "2001:db8::1", "2001:db8::1, 10.0.0.1"),
            ("10.0.0.0/8", "203.0.113.9:4711", "203.0.113.9", "203.0.113.9, 10.0.0.1"),
            ("10.0.0.0/8", "[2001:db8::1]:4711", "2001:db8::1", "2001:db8::1, 10.0.0.1"),
        ] {
            let mut asked =
                request(&[("x-forwarded-for", header), ("x-forwarded-proto", "https"), ("X_Forwarded_For", "spoofed")]);
            let requester = requester(&asked, peer, &limits(trusted), false, "shop.test:80", 80);
            assert_eq!(requester.client, client.parse().ok(), "{header}");
            set(&mut asked, &requester, "id").unwrap();
            assert_eq!(text(&asked, "x-forwarded-for"), Some(chain), "{header}");
            assert_eq!(text(&asked, "x-forwarded-proto"), Some(if trusted == "10.0.0.0/8" { "https" } else { "http" }));
            assert_eq!(asked.headers.get_all("x_forwarded_for").iter().count(), 0, "{header}");
        }
    }

    #[test]
    fn what_frameworks_believe_of_a_proxy_no_client_can_say() {
        let names = ["x-forwarded-ssl", "X_Forwarded_Scheme", "true-client-ip", "proxy", "x-forwarded-user"];
        let peer = "10.0.0.1".parse().ok();
        for (trusted, kept) in [("192.0.2.0/24", 0), ("10.0.0.0/8", names.len())] {
            let mut asked = request(&names.map(|name| (name, "spoofed")));
            asked.append_header("x-frame", "kept").unwrap();
            let requester = requester(&asked, peer, &limits(trusted), false, "shop.test", 80);
            set(&mut asked, &requester, "id").unwrap();
            assert_eq!(names.iter().filter(|name| asked.headers.contains_key(**name)).count(), kept, "{trusted}");
            assert!(asked.headers.contains_key("x-frame"));
        }
    }

    #[test]
    fn the_standard_header_quotes_what_is_no_token() {
        let requester = |client: &str, host: &str| {
            let client = client.parse().ok();
            Requester { client, chain: Vec::from_iter(client), by_proxy: false, tls: true, host: host.to_owned(), port: 443 }
        };
        assert_eq!(forwarded(&requester("192.0.2.1", "shop.test"), "https"), "for=192.0.2.1;host=shop.test;proto=https");
        assert_eq!(
            forwarded(&requester("2001:db8::1", "shop.test:81"), "http"),
            "for=\"[2001:db8::1]\";host=\"shop.test:81\";proto=http"
        );
        assert_eq!(forwarded(&requester("", "shop.test"), "http"), "host=shop.test;proto=http");
    }

    #[test]
    fn a_trace_goes_on_and_what_is_none_is_replaced() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (value, kept) in [
            (valid, true),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", false),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", true),
            ("", false),
        ] {
            let mut asked = request(&[("traceparent", value), ("tracestate", "a=b")]);
            set(&mut asked, &Requester::default(), "id").unwrap();
            assert_eq!(text(&asked, "traceparent") == Some(value), kept, "{value}");
            assert!(text(&asked, "traceparent").is_some_and(is_trace), "{value}");
            assert_eq!(text(&asked, "tracestate").is_some(), kept, "{value}");
        }
    }
}
