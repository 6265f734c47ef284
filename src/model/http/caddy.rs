//! Labels of caddy-docker-proxy, the common ones: `caddy=HOST` with `caddy.reverse_proxy={{upstreams PORT}}`, numbered (`caddy_0`) or
//! not.

use super::host_and_path::{host, path_prefix};
use super::route::{HttpRedirect, HttpRoute};
use std::collections::{BTreeMap, BTreeSet};

/// What labels of Caddy say: routes, and labels that are not carried out, each with its reason.
pub(super) type CaddyLabels = (Vec<HttpRoute>, Vec<String>);

/// Whether a label is one of Caddy's.
pub(super) fn is_label(key: &str) -> bool {
    site_of(key).is_some()
}

/// `caddy` or `caddy_0`, and what follows the first dot.
fn site_of(key: &str) -> Option<(&str, &str)> {
    let (site, option) = key.split_once('.').unwrap_or((key, ""));
    let number = site.strip_prefix("caddy")?;
    let is_number =
        number.is_empty() || number.strip_prefix('_').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    is_number.then_some((site, option))
}

/// Reads them; other labels are ignored.
pub(super) fn read(labels: &BTreeMap<String, String>) -> CaddyLabels {
    let sites: BTreeSet<&str> = labels.keys().filter_map(|key| site_of(key)).map(|(site, _)| site).collect();
    let (mut routes, mut refused) = (Vec::new(), Vec::new());
    for site in sites {
        match read_site(site, labels) {
            Ok(route) => routes.push(route),
            Err(why) => refused.push(format!("label {why}")),
        }
    }
    // A site that is left out may have kept clients from what another one of the service opens to all.
    if !refused.is_empty() {
        routes.clear();
    }
    (routes, refused)
}

fn read_site(site: &str, labels: &BTreeMap<String, String>) -> Result<HttpRoute, String> {
    // Caddy has a certificate for each host, and sends all there: so do we once there is one.
    let mut route = HttpRoute { redirect: Some(HttpRedirect::Https), redirects_if_certified: true, ..HttpRoute::default() };
    let options = labels.iter().filter_map(|(key, value)| Some((site_of(key)?, value.trim())).filter(|((of, _), _)| *of == site));
    let mut port = None;
    for ((_, option), value) in options {
        let wrong = |why: &str| format!("{site}{}{option}={value}: {why}", if option.is_empty() { "" } else { "." });
        match option {
            "" => {
                let hosts = value.split([',', ' ']).filter(|one| !one.is_empty()).map(host);
                route.hosts =
                    hosts.collect::<Option<Vec<_>>>().filter(|hosts| !hosts.is_empty()).ok_or_else(|| wrong("must be hosts"))?;
                route.hosts.sort_unstable();
                route.hosts.dedup();
            }
            "reverse_proxy" => {
                let upstreams =
                    value.split_once("{{upstreams").and_then(|(path, rest)| Some((path.trim(), rest.strip_suffix("}}")?.trim())));
                let (path, number) = upstreams.ok_or_else(|| wrong("must be {{upstreams PORT}}"))?;
                // A path without a star is that path alone, and one without the first slash is no path there.
                let prefix = if path.is_empty() { Some("/") } else { path.strip_suffix("/*") };
                route.prefix = prefix
                    .filter(|prefix| prefix.is_empty() || prefix.starts_with('/'))
                    .and_then(path_prefix)
                    .ok_or_else(|| wrong("must begin with a path as /api/*"))?;
                let number = if number.is_empty() { Some(80) } else { number.parse().ok().filter(|port| *port != 0) };
                port = Some(number.ok_or_else(|| wrong("must name the port of the containers"))?);
            }
            "tls" if value == "internal" => route.acme = Some(false),
            // The mail address that Caddy's authority writes to; skep has one for all.
            "tls" if value.contains('@') && !value.contains(' ') => {}
            _ => return Err(wrong("skep does not carry it out")),
        }
    }
    if route.hosts.is_empty() {
        return Err(format!("{site}: is missing: name the hosts"));
    }
    route.port = port.ok_or_else(|| format!("{site}.reverse_proxy: is missing: name the port, as {{{{upstreams 8080}}}}"))?;
    Ok(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_lines(lines: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let (routes, refused) = read(&lines.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        (routes.iter().map(|route| format!("{}{}:{}", route.hosts.join(","), route.prefix, route.port)).collect(), refused)
    }

    #[test]
    fn sites_become_routes() {
        let (routes, refused) = read_lines(&[
            ("caddy", "b.example.com, a.example.com"),
            ("caddy.reverse_proxy", "{{upstreams 8080}}"),
            ("caddy_1", "c.example.com"),
            ("caddy_1.reverse_proxy", "/api/* {{upstreams}}"),
            ("caddy_1.tls", "internal"),
            ("caddyx", "other"),
        ]);
        assert_eq!(
            (routes, refused),
            (vec!["a.example.com,b.example.com/:8080".to_owned(), "c.example.com/api:80".to_owned()], vec![])
        );
    }

    #[test]
    fn a_site_sends_its_clients_to_https_as_it_does_there() {
        for tls in [&[][..], &[("caddy.tls", "internal")], &[("caddy.tls", "me@example.com")]] {
            let site = [("caddy", "a.example.com"), ("caddy.reverse_proxy", "{{upstreams 80}}")];
            let labels = site.iter().chain(tls).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(read(&labels).0[0].redirect, Some(HttpRedirect::Https), "{tls:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (lines, expected) in [
            (&[("caddy", "a.b")][..], "caddy.reverse_proxy: is missing"),
            (&[("caddy.reverse_proxy", "{{upstreams 80}}")], "caddy: is missing"),
            (&[("caddy", "a.b"), ("caddy.reverse_proxy", "other:80")], "must be {{upstreams PORT}}"),
            (&[("caddy", "a.b"), ("caddy.reverse_proxy", "{{upstreams x}}")], "port of the containers"),
            (&[("caddy", "a.b"), ("caddy.reverse_proxy", "/a*b {{upstreams 80}}")], "as /api/*"),
            (&[("caddy", "a.b"), ("caddy.reverse_proxy", "/public {{upstreams 80}}")], "as /api/*"),
            (&[("caddy", "a.b"), ("caddy.reverse_proxy", "api/* {{upstreams 80}}")], "as /api/*"),
            (&[("caddy", "https://a.b"), ("caddy.reverse_proxy", "{{upstreams}}")], "must be hosts"),
            (&[("caddy", "a.b"), ("caddy.encode", "gzip")], "label caddy.encode=gzip: skep does not"),
        ] {
            let (routes, refused) = read_lines(lines);
            assert!(routes.is_empty() && refused.len() == 1 && refused[0].contains(expected), "{lines:?}: {refused:?}");
        }
    }
}
