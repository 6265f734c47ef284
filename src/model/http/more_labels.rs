//! Labels of a route beyond what it leads to: bounds, health, and what is done to requests and answers on the way.

use super::duration::millis;
use super::host_and_path::is_path;
use super::route::{HttpCheck, HttpMirror, HttpRate, HttpRedirect, HttpRoute, HttpScheme};
use super::values::{flag, is_token};

/// After `skep.http.`.
pub(super) const MORE: [&str; 16] = [
    "requests",
    "requests.client",
    "rate",
    "rate.burst",
    "check.path",
    "check.host",
    "check.interval",
    "check.timeout",
    "slowstart",
    "proxy-protocol",
    "upgrade",
    "compress",
    "mirror",
    "mirror.percent",
    "maintenance",
    "dashboard",
];

/// Text of the maintenance answer if the label has none.
const MAINTENANCE: &str = "this site is being worked on; please come back later";
const MOST_TEXT: usize = 4096;

/// What a check has beside its path.
const INTERVAL_MS: u64 = 10_000;
const TIMEOUT_MS: u64 = 3_000;

/// Reads one of [`MORE`].
///
/// # Errors
/// What is valid.
pub(super) fn read(route: &mut HttpRoute, key: &str, value: &str) -> Result<(), String> {
    let number = |valid: &str| value.parse::<u32>().ok().filter(|number| *number > 0).ok_or_else(|| valid.to_owned());
    let time = || millis(value).ok_or_else(|| "a time up to 24h, as 10s".to_owned());
    match key {
        "requests" => route.requests = number("how many requests in flight the service takes from a node, as 200")?,
        "requests.client" => route.client_requests = number("how many requests in flight a client may have, as 20")?,
        "rate" => {
            let (requests, period_ms) =
                requests_in_time(value).ok_or("requests of one client in a time, as 100/s or 1000/10m")?;
            let rate = rate(route);
            (rate.requests, rate.period_ms) = (requests, period_ms);
            rate.burst = if rate.burst == 0 { requests } else { rate.burst };
        }
        "rate.burst" => rate(route).burst = number("how many requests of a client may come at once, as 50")?,
        "check.path" => {
            let path = value.starts_with('/') && is_path(value.split('?').next().unwrap_or_default());
            let is_plain = value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            let value = Some(value).filter(|_| path && is_plain).ok_or("a path, as /healthz")?;
            value.clone_into(&mut check(route).path);
        }
        "check.host" => {
            let host = super::host_and_path::host(value).filter(|host| !host.contains('*'));
            check(route).host = host.ok_or("a host, as shop.example.com")?;
        }
        "check.interval" => {
            check(route).interval_ms = Some(time()?).filter(|interval| *interval >= 100).ok_or("a time from 100ms, as 10s")?;
        }
        "check.timeout" => check(route).timeout_ms = time()?,
        "slowstart" => route.slow_start_ms = Some(time()?),
        "proxy-protocol" => {
            route.proxy_protocol = match value {
                "1" => Some(1),
                "2" => Some(2),
                _ => return Err("1 or 2, the version that the containers expect".to_owned()),
            }
        }
        "upgrade" => route.upgrade = protocols(value)?,
        "compress" => route.compress = flag(value).ok_or("true or false")?,
        "mirror" => {
            let is_name = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            let value = Some(value).filter(|_| is_name).ok_or("the name of a service with an HTTP route")?;
            value.clone_into(&mut mirror(route).service);
        }
        "mirror.percent" => {
            let percent = value.parse().ok().filter(|percent| (1..=100).contains(percent));
            mirror(route).percent = percent.ok_or("a number from 1 to 100")?;
        }
        "dashboard" => {
            route.dashboard = flag(value).ok_or("true or false")?;
            // It shows what is secret to others, after a password.
            if route.dashboard && route.redirect.is_none() {
                route.redirect = Some(HttpRedirect::Https);
            }
        }
        "maintenance" => {
            route.maintenance = match flag(value) {
                Some(true) => Some(MAINTENANCE.to_owned()),
                Some(false) => None,
                None if !value.is_empty() && value.len() <= MOST_TEXT => Some(value.to_owned()),
                None => return Err("true, false or the text of the answer".to_owned()),
            }
        }
        _ => return Err("one of skep's labels".to_owned()),
    }
    Ok(())
}

/// What is missing or contradicts another label.
pub(super) fn contradiction(route: &HttpRoute) -> Option<&'static str> {
    if route.check.as_ref().is_some_and(|check| check.path.is_empty()) {
        return Some("check.path is missing: name the path that tasks are checked by, as /healthz");
    }
    if route.rate.is_some_and(|rate| rate.requests == 0) {
        return Some("rate is missing: name how often a client may ask, as 100/s");
    }
    if route.dashboard && route.auth.is_empty() {
        return Some(
            "dashboard: the page shows the whole cluster: name who may see it, as skep.http.auth=ann:HASH of `htpasswd -nB ann`",
        );
    }
    if route.dashboard && route.redirect != Some(HttpRedirect::Https) {
        return Some("dashboard: its clients are redirected to https, whatever skep.http.redirect says: leave that label out");
    }
    if route.dashboard && route.prefix != "/" {
        return Some("dashboard: the page has a host of its own, without a path");
    }
    if !route.upgrade.is_empty() && route.scheme == HttpScheme::H2c {
        return Some("upgrade: HTTP/2 to the containers (skep.http.scheme=h2c) has none: leave one of both out");
    }
    if route.mirror.as_ref().is_some_and(|mirror| mirror.service.is_empty()) {
        return Some("mirror is missing: name the service that gets the copies");
    }
    None
}

/// `tcp,spdy/3.1`: names as in the header `Upgrade`.
fn protocols(text: &str) -> Result<Vec<String>, String> {
    let list = || text.split(',').map(|one| one.trim().to_ascii_lowercase());
    let is_valid = |protocol: &String| match protocol.split_once('/') {
        Some((name, version)) => is_token(name) && is_token(version),
        None => is_token(protocol),
    };
    if !list().all(|protocol| is_valid(&protocol)) {
        return Err("protocols that the containers take over a connection for, as tcp,spdy/3.1".to_owned());
    }
    // What is behind them would be requests that no rule of the route is asked about, or nothing that the containers could see.
    let is_http = |protocol: &String| matches!(protocol.split('/').next(), Some("h2c" | "h2" | "http" | "tls"));
    if let Some(protocol) = list().find(is_http) {
        return Err(format!(
            "without {protocol}: skep speaks HTTP/2 and TLS with clients itself, and passes no request on unread"
        ));
    }
    let mut all: Vec<String> = list().collect();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// `100/s`, `1000/10m`.
fn requests_in_time(text: &str) -> Option<(u32, u64)> {
    let (requests, period) = text.split_once('/')?;
    let period = if period.starts_with(|c: char| c.is_ascii_digit()) { millis(period)? } else { millis(&format!("1{period}"))? };
    let requests = requests.parse().ok().filter(|requests| *requests > 0)?;
    Some((requests, period))
}

fn rate(route: &mut HttpRoute) -> &mut HttpRate {
    route.rate.get_or_insert(HttpRate { requests: 0, period_ms: 1000, burst: 0 })
}

fn check(route: &mut HttpRoute) -> &mut HttpCheck {
    route.check.get_or_insert_with(|| HttpCheck {
        path: String::new(),
        host: String::new(),
        interval_ms: INTERVAL_MS,
        timeout_ms: TIMEOUT_MS,
    })
}

fn mirror(route: &mut HttpRoute) -> &mut HttpMirror {
    route.mirror.get_or_insert_with(|| HttpMirror { service: String::new(), percent: 100 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http::BasicUser;

    #[test]
    fn each_label_has_its_field() {
        let mut route = HttpRoute::default();
        for (key, value) in [
            ("requests", "200"),
            ("requests.client", "20"),
            ("rate.burst", "50"),
            ("rate", "1000/10m"),
            ("check.path", "/healthz?full=1"),
            ("check.host", "shop.test"),
            ("check.interval", "1s"),
            ("check.timeout", "500ms"),
            ("slowstart", "30s"),
            ("proxy-protocol", "2"),
            ("upgrade", "tcp, SPDY/3.1,tcp"),
            ("compress", "true"),
            ("mirror", "shop-next"),
            ("mirror.percent", "10"),
            ("maintenance", "back at 5"),
            ("dashboard", "true"),
        ] {
            assert_eq!(read(&mut route, key, value), Ok(()), "{key}");
        }
        route.auth = vec![BasicUser { name: "ann".to_owned(), hash: String::new().into() }];
        let expected = HttpRoute {
            requests: 200,
            client_requests: 20,
            rate: Some(HttpRate { requests: 1000, period_ms: 600_000, burst: 50 }),
            check: Some(HttpCheck {
                path: "/healthz?full=1".to_owned(),
                host: "shop.test".to_owned(),
                interval_ms: 1000,
                timeout_ms: 500,
            }),
            slow_start_ms: Some(30_000),
            proxy_protocol: Some(2),
            upgrade: vec!["spdy/3.1".to_owned(), "tcp".to_owned()],
            compress: true,
            mirror: Some(HttpMirror { service: "shop-next".to_owned(), percent: 10 }),
            maintenance: Some("back at 5".to_owned()),
            dashboard: true,
            redirect: Some(HttpRedirect::Https),
            auth: vec![BasicUser { name: "ann".to_owned(), hash: String::new().into() }],
            ..HttpRoute::default()
        };
        assert_eq!((&route, contradiction(&route)), (&expected, None));
        let stored = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<HttpRoute>(&stored).unwrap(), expected);
    }

    #[test]
    fn other_values_are_refused() {
        for (key, value) in [
            ("requests", "0"),
            ("requests.client", "many"),
            ("rate", "100"),
            ("rate", "0/s"),
            ("rate", "100/"),
            ("rate", "100/d"),
            ("rate", "/s"),
            ("rate.burst", "0"),
            ("check.path", "healthz"),
            ("check.path", "/a b"),
            ("check.path", "/../b"),
            ("check.host", "*.a.b"),
            ("check.interval", "1ms"),
            ("check.timeout", "1"),
            ("slowstart", "fast"),
            ("proxy-protocol", "3"),
            ("upgrade", ""),
            ("upgrade", "tcp,"),
            ("upgrade", "a b"),
            ("upgrade", "/1"),
            ("upgrade", "tcp, H2C"),
            ("upgrade", "HTTP/2.0"),
            ("upgrade", "TLS/1.0"),
            ("compress", "gzip"),
            ("mirror", "a b"),
            ("mirror.percent", "0"),
            ("maintenance", ""),
        ] {
            assert!(read(&mut HttpRoute::default(), key, value).is_err(), "{key}={value}");
        }
        for (key, value) in [("dashboard", "true"), ("check.interval", "1s"), ("mirror.percent", "5"), ("rate.burst", "5")] {
            let mut route = HttpRoute::default();
            read(&mut route, key, value).unwrap();
            assert!(contradiction(&route).is_some(), "{key}");
        }
        let mut route = HttpRoute { scheme: HttpScheme::H2c, ..HttpRoute::default() };
        read(&mut route, "upgrade", "tcp").unwrap();
        assert!(contradiction(&route).is_some_and(|why| why.contains("h2c")));
    }
}
