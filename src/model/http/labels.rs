//! Labels of a service that describe its HTTP routes: `skep.http` and those that begin with it. Docker's spec has no field for
//! them, and every client passes labels through.

use super::duration::millis;
use super::route::{BasicUser, HttpRedirect, HttpRoute, HttpScheme};
use super::size;
use crate::model::source_prefixes::{PREFIXES, prefixes};
use std::collections::BTreeMap;

/// Hosts, and the path prefix if there is one: `shop.example.com,www.example.com/api`.
pub const HTTP: &str = "skep.http";

/// What further labels there are, after `skep.http.`; the last two have a header's name behind them.
const FURTHER: [&str; 13] = [
    "port",
    "strip",
    "scheme",
    "redirect",
    "sticky",
    "allow",
    "body",
    "timeout",
    "auth",
    "weight",
    "tls",
    "headers.request.",
    "headers.response.",
];

/// Hosts that a service may name.
const MOST_HOSTS: usize = 64;

/// Headers that the proxy itself decides about.
const OWN_HEADERS: [&str; 6] = ["connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"];

/// Cookie of sticky sessions if the label names none.
const COOKIE: &str = "skep_task";

/// The parsed labels.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HttpLabels {
    pub routes: Vec<HttpRoute>,
    /// Name of the secret with certificate and key.
    pub certificate: Option<String>,
}

impl HttpLabels {
    /// Parses the labels of a service; those of others are ignored.
    ///
    /// # Errors
    /// Text for the user: which label is wrong, and what is valid.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let further = || labels.range(HTTP.to_owned()..).take_while(|(key, _)| key.starts_with(HTTP));
        let further = further().filter_map(|(key, value)| Some((key.strip_prefix(HTTP)?.strip_prefix('.')?, value.trim())));
        let Some(text) = labels.get(HTTP) else {
            return match further.into_iter().next() {
                Some((key, _)) => {
                    Err(format!("label {HTTP}.{key} needs the label {HTTP} with the hosts beside it, as {HTTP}=shop.example.com"))
                }
                None => Ok(Self::default()),
            };
        };
        let mut route = hosts_and_prefix(text.trim())?;
        let mut certificate = None;
        for (key, value) in further {
            if key == "tls" {
                let name = Some(value).filter(|name| !name.is_empty());
                certificate = Some(name.ok_or_else(|| wrong(key, value, "the name of a secret with certificate and key"))?);
            } else {
                read_further(&mut route, key, value)?;
            }
        }
        if route.strip && route.prefix == "/" {
            return Err(format!("label {HTTP}.strip: {HTTP}={text} has no prefix to strip: add one, as shop.example.com/api"));
        }
        Ok(Self { routes: vec![route], certificate: certificate.map(str::to_owned) })
    }
}

fn wrong(key: &str, value: &str, valid: &str) -> String {
    format!("label {HTTP}.{key}={value}: must be {valid}")
}

/// Parses `host[,host2][/prefix]`.
fn hosts_and_prefix(text: &str) -> Result<HttpRoute, String> {
    let refuse = || {
        format!(
            "label {HTTP}={text}: must be hosts separated by commas, and a path prefix if there is one, as \
             shop.example.com,*.shop.example.com/api; `*` is every host"
        )
    };
    let (hosts, prefix) = text.find('/').map_or((text, "/"), |at| text.split_at(at));
    let hosts: Option<Vec<String>> = hosts.split(',').map(|one| host(one.trim())).collect();
    let mut hosts = hosts.ok_or_else(refuse)?;
    hosts.sort_unstable();
    hosts.dedup();
    if hosts.len() > MOST_HOSTS {
        return Err(format!("label {HTTP}: {} hosts, and a service may name {MOST_HOSTS}", hosts.len()));
    }
    let prefix = path_prefix(prefix).ok_or_else(refuse)?;
    Ok(HttpRoute { hosts, prefix, ..HttpRoute::default() })
}

/// A host in lower case, `*.` before it or `*` alone allowed.
fn host(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if text == "*" {
        return Some(text);
    }
    let name = text.strip_prefix("*.").unwrap_or(&text);
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    (name.len() <= 253 && name.split('.').all(is_label)).then_some(text)
}

/// A prefix without a slash at its end.
fn path_prefix(text: &str) -> Option<String> {
    let is_path = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'*' | b',' | b'"' | b'\\'));
    let is_plain = !text.contains("//") && text.split('/').all(|segment| !matches!(segment, "." | ".."));
    let trimmed = text.trim_end_matches('/');
    (is_path && is_plain).then(|| if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}

fn read_further(route: &mut HttpRoute, key: &str, value: &str) -> Result<(), String> {
    let wrong = |valid: &str| wrong(key, value, valid);
    match key {
        "port" => {
            let port = value.parse().ok().filter(|port| *port != 0);
            route.port = port.ok_or_else(|| wrong("the port on which the containers listen, 1 to 65535"))?;
        }
        "strip" => route.strip = flag(value).ok_or_else(|| wrong("true or false"))?,
        "scheme" => {
            route.scheme = match value {
                "http" => HttpScheme::Http,
                "h2c" => HttpScheme::H2c,
                "https" => HttpScheme::Https,
                _ => return Err(wrong("http, h2c or https")),
            }
        }
        "redirect" => {
            let to_host = || host(value).filter(|host| !host.contains('*')).map(HttpRedirect::Host);
            let redirect = if value == "https" { Some(HttpRedirect::Https) } else { to_host() };
            route.redirect = Some(redirect.ok_or_else(|| wrong("https, or the host to go to"))?);
        }
        "sticky" => {
            route.sticky = match flag(value) {
                Some(false) => String::new(),
                Some(true) => COOKIE.to_owned(),
                None if is_token(value) => value.to_owned(),
                None => return Err(wrong("true, or the name of the cookie")),
            }
        }
        "allow" => route.allow = prefixes(value).ok_or_else(|| wrong(&format!("client prefixes separated by {PREFIXES}")))?,
        "body" => route.body = Some(size::bytes(value).ok_or_else(|| wrong("the largest body of a request, as 10m"))?),
        "timeout" => route.timeout_ms = Some(millis(value).ok_or_else(|| wrong("a time up to 24h, as 30s"))?),
        "auth" => route.auth = users(value).map_err(|why| wrong(&why))?,
        "weight" => {
            let weight = value.parse().ok().filter(|weight| *weight <= 1000);
            route.weight = Some(weight.ok_or_else(|| wrong("a number from 0 to 1000"))?);
        }
        _ => {
            let header = |list: &mut BTreeMap<String, String>, name: &str| {
                let name = name.to_ascii_lowercase();
                if !is_token(&name) || OWN_HEADERS.contains(&name.as_str()) {
                    return Err(format!("label {HTTP}.{key}: {name:?} is no header that can be set"));
                }
                if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
                    return Err(wrong("printable ASCII; empty to remove the header"));
                }
                list.insert(name, value.to_owned());
                Ok(())
            };
            if let Some(name) = key.strip_prefix("headers.request.") {
                return header(&mut route.request_headers, name);
            }
            if let Some(name) = key.strip_prefix("headers.response.") {
                return header(&mut route.response_headers, name);
            }
            let known = FURTHER.map(|label| format!("{HTTP}.{label}{}", if label.ends_with('.') { "NAME" } else { "" }));
            return Err(format!(
                "label {HTTP}.{key}: skep has no such label: leave it out; there are {HTTP}, {}",
                known.join(", ")
            ));
        }
    }
    Ok(())
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// A token of RFC 9110: the name of a header or cookie.
fn is_token(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(is_token)
}

/// Users as htpasswd writes them, separated by commas.
fn users(text: &str) -> Result<Vec<BasicUser>, String> {
    let valid = "user:hash with a hash of `htpasswd -nB`, several separated by commas";
    let user = |one: &str| {
        let (name, hash) = one.trim().split_once(':')?;
        // Compose files double each $.
        let hash = hash.replace("$$", "$");
        (!name.is_empty() && is_bcrypt(&hash)).then(|| BasicUser { name: name.to_owned(), hash })
    };
    text.split(',').map(user).collect::<Option<Vec<_>>>().ok_or_else(|| valid.to_owned())
}

/// `$2y$10$` and 53 characters.
fn is_bcrypt(hash: &str) -> bool {
    let is_known = ["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind));
    let cost = hash.get(4..6).and_then(|cost| cost.parse::<u32>().ok());
    let tail = hash.get(7..).unwrap_or_default();
    let is_tail = tail.len() == 53 && tail.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'));
    // A cost of 14 takes a second of the processor for each new client.
    is_known && hash.as_bytes().get(6) == Some(&b'$') && cost.is_some_and(|cost| (4..=14).contains(&cost)) && is_tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> Result<HttpLabels, String> {
        HttpLabels::read(&labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }
    fn route(labels: &[(&str, &str)]) -> HttpRoute {
        let with_host: Vec<_> = [(HTTP, "shop.example.com/api")].into_iter().chain(labels.iter().copied()).collect();
        read(&with_host).unwrap().routes.remove(0)
    }

    #[test]
    fn hosts_and_prefix_of_the_first_label() {
        for (text, hosts, prefix) in [
            ("Shop.Example.com", &["shop.example.com"][..], "/"),
            ("b.example.com, a.example.com,b.example.com/api/", &["a.example.com", "b.example.com"], "/api"),
            ("*.example.com/a/b", &["*.example.com"], "/a/b"),
            ("*/", &["*"], "/"),
            ("localhost", &["localhost"], "/"),
            ("192.0.2.7", &["192.0.2.7"], "/"),
        ] {
            let read = read(&[(HTTP, text)]).unwrap();
            assert_eq!(
                (&read.routes[0].hosts[..], read.routes[0].prefix.as_str()),
                (&hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()[..], prefix),
                "{text}"
            );
        }
        for text in [
            "",
            "/api",
            "a..b",
            "-a.b",
            "a b",
            "a.example.com:80",
            "http://a.b",
            "a,,b",
            "*a.b",
            "a.*.b",
            "a.b/x?y",
            "a.b/../c",
            "a.b//c",
            "a.b/x,c.d",
        ] {
            let why = read(&[(HTTP, text)]).unwrap_err();
            assert!(why.contains("skep.http=") && why.contains("shop.example.com"), "{text}: {why}");
        }
        assert_eq!(read(&[("skep.https", "x"), ("com.example", "y")]), Ok(HttpLabels::default()));
    }

    #[test]
    fn further_labels() {
        let all = route(&[
            ("skep.http.port", "8080"),
            ("skep.http.strip", "true"),
            ("skep.http.scheme", "h2c"),
            ("skep.http.redirect", "https"),
            ("skep.http.sticky", "true"),
            ("skep.http.allow", "192.0.2.0/24, 2001:db8::1"),
            ("skep.http.body", "10m"),
            ("skep.http.timeout", "30s"),
            ("skep.http.weight", "10"),
            ("skep.http.headers.request.X-From", "skep"),
            ("skep.http.headers.response.Server", ""),
        ]);
        let prefixes = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::1/128".parse().unwrap()];
        let expected = HttpRoute {
            hosts: vec!["shop.example.com".to_owned()],
            prefix: "/api".to_owned(),
            port: 8080,
            strip: true,
            scheme: HttpScheme::H2c,
            redirect: Some(HttpRedirect::Https),
            sticky: COOKIE.to_owned(),
            allow: prefixes,
            body: Some(10 << 20),
            timeout_ms: Some(30_000),
            weight: Some(10),
            request_headers: [("x-from".to_owned(), "skep".to_owned())].into(),
            response_headers: [("server".to_owned(), String::new())].into(),
            auth: Vec::new(),
        };
        assert_eq!(all, expected);
        let to_host = route(&[("skep.http.redirect", "www.example.com")]).redirect;
        assert_eq!(to_host, Some(HttpRedirect::Host("www.example.com".to_owned())));
        let stored = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<HttpRoute>(&stored).unwrap(), expected);
        assert_eq!(read(&[(HTTP, "a.b"), ("skep.http.tls", "cert")]).unwrap().certificate.as_deref(), Some("cert"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (key, value) in [
            ("port", "0"),
            ("port", "http"),
            ("strip", "yes"),
            ("scheme", "fcgi"),
            ("redirect", "*.example.com"),
            ("sticky", "a b"),
            ("allow", ""),
            ("body", "big"),
            ("timeout", "30"),
            ("weight", "1001"),
            ("tls", ""),
            ("auth", "user"),
            ("auth", "user:{SHA}plain"),
            ("headers.request.Connection", "x"),
            ("headers.request.", "x"),
            ("headers.response.X", "a\r\nb"),
            ("mirror", "x"),
            ("headers", "x"),
        ] {
            let label = format!("skep.http.{key}");
            let why = read(&[(HTTP, "a.b/c"), (&label, value)]).unwrap_err();
            assert!(why.contains(&label), "{why}");
        }
        assert!(read(&[("skep.http.port", "80")]).unwrap_err().contains("skep.http=shop.example.com"));
        assert!(read(&[(HTTP, "a.b"), ("skep.http.strip", "true")]).unwrap_err().contains("no prefix"));
    }

    #[test]
    fn users_have_a_hash_of_bcrypt() {
        let hash = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";
        let doubled = hash.replace('$', "$$");
        let users = route(&[("skep.http.auth", &format!("ann:{hash},bob:{doubled}"))]).auth;
        assert_eq!(users.iter().map(|u| (u.name.as_str(), u.hash.as_str())).collect::<Vec<_>>(), [("ann", hash), ("bob", hash)]);
    }
}
