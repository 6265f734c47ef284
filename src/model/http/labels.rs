//! Labels of a service that describe its HTTP routes: `skep.http` and those that begin with it. Docker's spec has no field for
//! them, and every client passes labels through.

use super::duration::millis;
use super::host_and_path::{host, path_prefix};
use super::own_conflicts::own_conflicts;
use super::route::{HttpRedirect, HttpRoute, HttpScheme};
use super::values::{add_header, flag, is_token, users};
use super::{caddy, more_labels, nginx_proxy, size, traefik};
use crate::model::secret::shown_label;
use crate::model::source_prefixes::{PREFIXES, prefixes};
use std::collections::BTreeMap;

/// Hosts, and the path prefix if there is one: `shop.example.com,www.example.com/api`.
pub const HTTP: &str = "skep.http";

/// What further labels there are, after `skep.http.`; the last two have a header's name behind them.
const FURTHER: [&str; 14] = [
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
    "acme",
    "headers.request.",
    "headers.response.",
];

/// Hosts that a service may name.
const MOST_HOSTS: usize = 64;

/// Cookie of sticky sessions if the label names none.
const COOKIE: &str = "skep_task";

/// The parsed labels.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HttpLabels {
    pub routes: Vec<HttpRoute>,
    /// Name of the secret with certificate and key.
    pub certificate: Option<String>,
    /// Labels of Traefik and Caddy and variables of nginx-proxy that are not carried out, for users: whether that matters depends on whether these run too.
    pub refused: Vec<String>,
    /// What is carried out in another way than these do, for users.
    pub notes: Vec<String>,
    /// No route is served: two for the same requests differ in which clients they let in.
    pub is_closed: bool,
}

impl HttpLabels {
    /// Parses the labels of a service, those of Traefik and Caddy too, and the variables of nginx-proxy; others are ignored.
    ///
    /// # Errors
    /// Text for the user: which label of skep is wrong, and what is valid.
    pub fn of(labels: &BTreeMap<String, String>, env: &[String]) -> Result<Self, String> {
        // Most services have none, and managers ask for each of them in each round.
        let is_label = |key: &str| key.starts_with(HTTP) || traefik::is_label(key) || caddy::is_label(key);
        if !nginx_proxy::has_host(env) && !labels.keys().any(|key| is_label(key)) {
            return Ok(Self::default());
        }
        let of_traefik = traefik::read(labels);
        let (of_caddy, refused_of_caddy) = caddy::read(labels);
        let of_nginx = nginx_proxy::read(env);
        let others = [of_traefik.routes, of_caddy, of_nginx.routes].concat();
        let refused = [of_traefik.refused, refused_of_caddy, of_nginx.refused].concat();
        let mut all = Self::of_skep(labels, others, !refused.is_empty())?;
        (all.refused, all.notes) = (refused, [of_traefik.notes, of_nginx.notes].concat());
        let (conflicts, opens) = own_conflicts(&all.routes);
        // Either of both could be meant: no client is let in that one of them keeps out.
        if opens {
            all.routes.clear();
            all.is_closed = true;
        }
        all.refused.extend(conflicts);
        Ok(all)
    }

    /// As [`Self::of`], without variables.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        Self::of(labels, &[])
    }

    /// The labels of skep itself, and the `others`, to which certificates are for if there is no `skep.http`; `refuses`: some of these are
    /// refused.
    fn of_skep(labels: &BTreeMap<String, String>, mut others: Vec<HttpRoute>, refuses: bool) -> Result<Self, String> {
        let further = || labels.range(HTTP.to_owned()..).take_while(|(key, _)| key.starts_with(HTTP));
        let further = further().filter_map(|(key, value)| Some((key.strip_prefix(HTTP)?.strip_prefix('.')?, value.trim())));
        let mut certificate = None;
        let mut is_certificate = |key: &str, value: &str| {
            let name = Some(value).filter(|_| key == "tls").map(str::to_owned);
            certificate = name.or_else(|| certificate.take());
            match (key, value) {
                ("tls", "") => Err(wrong(key, value, "the name of a secret with certificate and key")),
                _ => Ok(key == "tls"),
            }
        };
        let Some(text) = labels.get(HTTP) else {
            let mut of_all = HttpRoute::default();
            for (key, value) in further {
                if !matches!(key, "tls" | "acme") || (others.is_empty() && !refuses) {
                    return Err(format!(
                        "label {HTTP}.{key} needs the label {HTTP} with the hosts beside it, as {HTTP}=shop.example.com"
                    ));
                }
                if !is_certificate(key, value)? {
                    read_further(&mut of_all, key, value)?;
                }
            }
            for route in others.iter_mut().filter(|_| of_all.acme.is_some()) {
                route.acme = of_all.acme;
            }
            return Ok(Self { routes: others, certificate, ..Self::default() });
        };
        let mut route = hosts_and_prefix(text.trim())?;
        for (key, value) in further {
            if !is_certificate(key, value)? {
                read_further(&mut route, key, value)?;
            }
        }
        if let Some(why) = more_labels::contradiction(&route) {
            return Err(format!("label {HTTP}.{why}"));
        }
        if route.strip && route.prefix == "/" {
            return Err(format!("label {HTTP}.strip: {HTTP}={text} has no prefix to strip: add one, as shop.example.com/api"));
        }
        others.insert(0, route);
        Ok(Self { routes: others, certificate, ..Self::default() })
    }
}

fn wrong(key: &str, value: &str, valid: &str) -> String {
    format!("label {HTTP}.{key}={}: must be {valid}", shown_label(key, value))
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
        "acme" => route.acme = Some(flag(value).ok_or_else(|| wrong("true or false"))?),
        "weight" => {
            let weight = value.parse().ok().filter(|weight| *weight <= 1000);
            route.weight = Some(weight.ok_or_else(|| wrong("a number from 0 to 1000"))?);
        }
        _ if more_labels::MORE.contains(&key) => more_labels::read(route, key, value).map_err(|why| wrong(&why))?,
        _ => {
            if let Some(name) = key.strip_prefix("headers.request.") {
                return add_header(&mut route.request_headers, name, value).map_err(|why| wrong(&why));
            }
            if let Some(name) = key.strip_prefix("headers.response.") {
                return add_header(&mut route.response_headers, name, value).map_err(|why| wrong(&why));
            }
            let name = |label: &&str| format!("{HTTP}.{label}{}", if label.ends_with('.') { "NAME" } else { "" });
            let known: Vec<String> = more_labels::MORE.iter().chain(&FURTHER).map(name).collect();
            return Err(format!(
                "label {HTTP}.{key}: skep has no such label: leave it out; there are {HTTP}, {}",
                known.join(", ")
            ));
        }
    }
    Ok(())
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
            "a.b/my%20admin",
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
            request_headers: [("x-from".to_owned(), "skep".into())].into(),
            response_headers: [("server".to_owned(), String::new())].into(),
            ..HttpRoute::default()
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
            ("mirror.percent", "0"),
            ("requests", "0"),
            ("headers", "x"),
        ] {
            let label = format!("skep.http.{key}");
            let why = read(&[(HTTP, "a.b/c"), (&label, value)]).unwrap_err();
            assert!(why.contains(&label), "{why}");
        }
        for (key, value) in [("auth", "ann:planted"), ("headers.request.X-Key", "planted é")] {
            let why = read(&[(HTTP, "a.b"), (&format!("skep.http.{key}"), value)]).unwrap_err();
            assert!(why.contains(key) && !why.contains("planted"), "{why}");
        }
        assert!(read(&[("skep.http.port", "80")]).unwrap_err().contains("skep.http=shop.example.com"));
        assert!(read(&[(HTTP, "a.b"), ("skep.http.strip", "true")]).unwrap_err().contains("no prefix"));
    }

    #[test]
    fn routes_of_other_proxies_have_a_certificate_of_a_secret_without_a_host_of_skep() {
        let router = [
            ("traefik.http.routers.r.rule", "Host(`a.b`)"),
            ("traefik.http.services.s.loadbalancer.server.port", "80"),
            ("skep.http.tls", "cert"),
            ("skep.http.acme", "false"),
        ];
        let labels = read(&router).unwrap();
        assert_eq!((labels.routes.len(), labels.routes[0].acme, labels.certificate.as_deref()), (1, Some(false), Some("cert")));
        let env = ["VIRTUAL_HOST=a.b".to_owned(), "VIRTUAL_PORT=80".to_owned()];
        let labels = HttpLabels::of(&BTreeMap::from([("skep.http.tls".to_owned(), "cert".to_owned())]), &env).unwrap();
        assert_eq!((labels.routes.len(), labels.certificate.as_deref()), (1, Some("cert")));
        let with = |key: &'static str, value: &'static str| read(&[&router[..2], &[(key, value)]].concat());
        assert!(with("skep.http.auth", "x").unwrap_err().contains("needs the label skep.http"));
        assert!(with("skep.http.tls", "").unwrap_err().contains("name of a secret"));
        assert!(read(&router[2..3]).unwrap_err().contains("needs the label skep.http"));
    }

    #[test]
    fn two_routes_of_a_service_for_the_same_requests_are_refused_and_no_password_is_lost() {
        let hash = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";
        let users = format!("ann:{hash}");
        let router = [
            ("traefik.http.routers.r.rule", "Host(`a.b`)"),
            ("traefik.http.services.s.loadbalancer.server.port", "80"),
            ("traefik.http.middlewares.m.basicauth.users", &users),
            (HTTP, "a.b"),
        ];
        let same = read(&router).unwrap();
        assert_eq!((same.routes.len(), same.refused), (2, Vec::<String>::new()), "either does the same");
        let auth = [&router[..], &[("traefik.http.routers.r.middlewares", "m")]].concat();
        let closed = read(&auth).unwrap();
        assert_eq!((closed.routes.len(), closed.is_closed, same.is_closed), (0, true, false));
        assert!(closed.refused[0].contains("http://a.b/"), "{:?}", closed.refused);
        let port = read(&[&router[..], &[("skep.http.port", "81")]].concat()).unwrap();
        assert_eq!((port.routes.len(), port.refused.len()), (2, 1), "the first one is served");
    }

    #[test]
    fn users_have_a_hash_of_htpasswd() {
        let hash = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";
        let doubled = hash.replace('$', "$$");
        let users = route(&[("skep.http.auth", &format!("ann:{hash},bob:{doubled}"))]).auth;
        assert_eq!(
            users.iter().map(|u| (u.name.as_str(), u.hash.expose().as_str())).collect::<Vec<_>>(),
            [("ann", hash), ("bob", hash)]
        );
        let older = "$apr1$salt$Xxd1irWT9ycqoYxGFn4cb.";
        let users = route(&[("skep.http.auth", &format!("ann:{}", older.replace('$', "$$")))]).auth;
        assert_eq!(users[0].hash.expose(), older);
        for wrong in
            ["$apr1$salt$short", "$apr1$$Xxd1irWT9ycqoYxGFn4cb.", "$1$salt$Xxd1irWT9ycqoYxGFn4cb.", "{SHA}x", "$apr1$salt"]
        {
            let why = read(&[(HTTP, "a.b"), ("skep.http.auth", &format!("ann:{wrong}"))]).unwrap_err();
            assert!(why.contains("htpasswd"), "{wrong}: {why}");
        }
    }
}
