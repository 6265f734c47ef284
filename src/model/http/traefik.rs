//! Labels of Traefik, read as they are, so that a stack moves by removing its proxy: routers with their rules, services with
//! their ports, and the common middlewares.

use super::route::{HttpEntry, HttpRoute, HttpScheme, PrefixEnd};
use super::traefik_objects::{Options, TraefikObjects};
use super::values::{go_flag, is_token};
use super::{more_labels, traefik_middleware, traefik_rule};
use std::collections::BTreeMap;

/// What labels of Traefik say.
#[derive(Default)]
pub(super) struct TraefikLabels {
    pub routes: Vec<HttpRoute>,
    /// Routers and labels that are not carried out, each with its reason.
    pub refused: Vec<String>,
    /// What is carried out in another way.
    pub notes: Vec<String>,
}

/// Labels that say where Traefik finds the task, which skep knows.
const NEEDLESS: [&str; 6] =
    ["docker.network", "swarm.network", "docker.lbswarm", "swarm.lbswarm", "constraint-label", "constraint-label-stack"];

/// Entry points by their common names.
const PLAIN: [&str; 2] = ["web", "http"];
const TLS: [&str; 2] = ["websecure", "https"];

/// Routes that one service may have.
const MOST_ROUTES: usize = 64;

/// Whether a label is one of Traefik's, which knows no case.
pub(super) fn is_label(key: &str) -> bool {
    key.as_bytes().get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"traefik."))
}

/// Reads them; other labels are ignored.
pub(super) fn read(labels: &BTreeMap<String, String>) -> TraefikLabels {
    let mut read = TraefikLabels::default();
    let mut objects: BTreeMap<(String, String), Options> = BTreeMap::new();
    let mut enable = None;
    for (key, value) in labels {
        let key = key.to_ascii_lowercase();
        let Some(rest) = key.strip_prefix("traefik.") else { continue };
        if rest == "enable" {
            enable = go_flag(value.trim());
            if enable.is_none() {
                read.refused.push(format!("label {key}={value}: must be true or false"));
            }
            continue;
        }
        let mut steps = rest.splitn(4, '.');
        match (steps.next(), steps.next(), steps.next(), steps.next()) {
            (Some("http"), Some(kind @ ("routers" | "services" | "middlewares")), Some(name), Some(option)) => {
                let object = objects.entry((kind.to_owned(), name.to_owned())).or_default();
                object.insert(option.to_owned(), value.trim().to_owned());
            }
            _ if NEEDLESS.contains(&rest) => {}
            _ => read.refused.push(format!("label {key}: skep does not carry it out")),
        }
    }
    if enable == Some(false) {
        return TraefikLabels::default();
    }
    let objects = TraefikObjects::new(objects);
    for (name, options) in objects.of("routers") {
        match objects.router(options) {
            Ok(routes) => read.routes.extend(routes),
            Err(why) => read.refused.push(format!("label traefik.http.routers.{name}{why}")),
        }
    }
    if read.routes.len() > MOST_ROUTES {
        read.refused
            .push(format!("labels traefik.http.routers: {} routes, and a service may have {MOST_ROUTES}", read.routes.len()));
        read.routes.clear();
    }
    let names_tls: Vec<HttpRoute> = read.routes.iter().filter(|route| route.entry == HttpEntry::Tls).cloned().collect();
    for route in read.routes.iter_mut().filter(|route| route.yields_tls) {
        let is_for = |other: &HttpRoute| route.takes_from(other) && (other.prefix == route.prefix || other.keeps_clients_out());
        if names_tls.iter().any(is_for) {
            (route.entry, route.yields_tls) = (HttpEntry::Plain, false);
        }
    }
    // A router that is left out may have kept clients from what another one of the service opens to all.
    if !read.refused.is_empty() {
        read.routes.clear();
    }
    if enable == Some(true) && read.routes.is_empty() && read.refused.is_empty() {
        read.notes.push("label traefik.enable: there is no router with a rule, so the service has no HTTP route".to_owned());
    }
    read
}

impl TraefikObjects {
    /// The routes of a router.
    ///
    /// # Errors
    /// What is not carried out: the rest of the label's name, and why.
    fn router(&self, options: &Options) -> Result<Vec<HttpRoute>, String> {
        let mut base = HttpRoute::default();
        let (mut rule, mut service, mut middlewares) = (None, None, "");
        let (mut entry, mut tls) = (None, false);
        for (option, value) in options {
            let wrong = |why: &str| format!(".{option}={value}: {why}");
            match option.as_str() {
                "rule" => rule = Some(traefik_rule::parse(value).map_err(|why| wrong(&why))?),
                "service" => service = Some(value.as_str()),
                "middlewares" => middlewares = value,
                "entrypoints" => entry = Some(entry_points(value).map_err(|why| wrong(&why))?),
                "tls" => tls = go_flag(value).ok_or_else(|| wrong("must be true or false"))?,
                "tls.certresolver" => (tls, base.acme) = (true, Some(true)),
                _ if option.starts_with("tls.domains[") => {}
                _ => return Err(wrong("skep does not carry it out")),
            }
        }
        base.entry = match (entry, tls) {
            (Some(entry), _) => entry,
            (None, true) => HttpEntry::Tls,
            // Requests with TLS are for routers with `tls` there, wherever its entry points have it for none.
            (None, false) => {
                base.yields_tls = true;
                HttpEntry::Both
            }
        };
        self.service(service, &mut base)?;
        let mut strips = Vec::new();
        for middleware in middlewares.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let applied = traefik_middleware::apply(self, middleware, &mut base, &mut strips, 0);
            applied.map_err(|why| format!(".middlewares={middleware}: {why}"))?;
        }
        let rule = rule.ok_or(".rule: is missing: name the host, as Host(`shop.example.com`)")?;
        let mut routes = Vec::new();
        for alternative in rule {
            let hosts = if alternative.hosts.is_empty() { vec!["*".to_owned()] } else { alternative.hosts };
            let every = || vec![("/".to_owned(), PrefixEnd::default())];
            let prefixes = if alternative.prefixes.is_empty() { every() } else { alternative.prefixes };
            for (prefix, prefix_end) in prefixes {
                let strip = strips.contains(&prefix);
                if !strips.is_empty() && !strip {
                    return Err(format!(".middlewares: {prefix} is not among the prefixes to strip: strip that of the rule"));
                }
                let mut hosts = hosts.clone();
                hosts.sort_unstable();
                hosts.dedup();
                routes.push(HttpRoute { hosts, prefix, prefix_end, strip, ..base.clone() });
            }
        }
        Ok(routes)
    }

    /// Port and scheme of the service that a router names, or of the only one.
    fn service(&self, name: Option<&str>, route: &mut HttpRoute) -> Result<(), String> {
        let name = name.map(|name| name.split_once('@').unwrap_or((name, "swarm")));
        let options = match name {
            Some((name, "swarm" | "docker")) => {
                self.get("services", name).ok_or_else(|| format!(".service={name}: it is not in these labels"))?
            }
            Some((name, provider)) => return Err(format!(".service={name}@{provider}: it is not in these labels")),
            None => {
                let mut all = self.of("services");
                let first = all.next();
                if all.next().is_some() {
                    return Err(": there are several services in these labels: name one with .service".to_owned());
                }
                let missing = ": name the port of the containers, as traefik.http.services.NAME.loadbalancer.server.port=8080";
                first.ok_or(missing)?.1
            }
        };
        let mut port = None;
        for (option, value) in options {
            let wrong = |why: &str| format!(": its service's {option}={value}: {why}");
            match option.as_str() {
                "loadbalancer.server.port" => port = value.parse::<u16>().ok().filter(|port| *port != 0),
                "loadbalancer.server.scheme" => {
                    route.scheme = match value.as_str() {
                        "http" => HttpScheme::Http,
                        "https" => HttpScheme::Https,
                        "h2c" => HttpScheme::H2c,
                        _ => return Err(wrong("must be http, https or h2c")),
                    }
                }
                "loadbalancer.passhostheader" | "loadbalancer.sticky.cookie.httponly" if go_flag(value) == Some(true) => {}
                "loadbalancer.sticky" | "loadbalancer.sticky.cookie" if go_flag(value) == Some(true) => {
                    if route.sticky.is_empty() {
                        "skep_task".clone_into(&mut route.sticky);
                    }
                }
                "loadbalancer.healthcheck.path"
                | "loadbalancer.healthcheck.interval"
                | "loadbalancer.healthcheck.timeout"
                | "loadbalancer.healthcheck.hostname" => {
                    let name = option.strip_prefix("loadbalancer.healthcheck.").unwrap_or_default();
                    let key = format!("check.{}", name.strip_suffix("name").unwrap_or(name));
                    more_labels::read(route, &key, value).map_err(|why| wrong(&format!("must be {why}")))?;
                }
                "loadbalancer.sticky.cookie.name" if is_token(value) => value.clone_into(&mut route.sticky),
                _ => return Err(wrong("skep does not carry it out")),
            }
        }
        if let Some(why) = more_labels::contradiction(route) {
            return Err(format!(": its service's loadbalancer.healthcheck: {why}"));
        }
        route.port = port.ok_or(": its service's loadbalancer.server.port must be the port of the containers, 1 to 65535")?;
        Ok(())
    }
}

fn entry_points(value: &str) -> Result<HttpEntry, String> {
    let (mut plain, mut tls) = (false, false);
    for one in value.split(',').map(|one| one.trim().to_ascii_lowercase()) {
        if PLAIN.contains(&one.as_str()) {
            plain = true;
        } else if TLS.contains(&one.as_str()) {
            tls = true;
        } else {
            return Err("skep has web (also http) and websecure (also https)".to_owned());
        }
    }
    Ok(match (plain, tls) {
        (true, false) => HttpEntry::Plain,
        (false, true) => HttpEntry::Tls,
        _ => HttpEntry::Both,
    })
}

#[cfg(test)]
mod tests;
