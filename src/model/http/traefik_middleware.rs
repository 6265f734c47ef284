//! Middlewares of Traefik that routes have a field for.

use super::duration::millis;
use super::host_and_path::path_prefix;
use super::route::{HttpEntry, HttpRate, HttpRedirect, HttpRoute};
use super::traefik_objects::{Options, TraefikObjects};
use super::values::{add_header, go_flag, users};
use crate::model::secret::shown_label;
use crate::model::source_prefixes::{PREFIXES, prefixes};
use std::collections::BTreeMap;

/// The redirect to https, by the names that it has in public stacks: it is in the labels of Traefik's own service, or in its files, and so it
/// goes with the proxy.
const REDIRECTS: [&str; 4] = ["https-redirect", "redirect-https", "redirect-to-https", "https-redirectscheme"];

/// Chains in each other.
const DEEPEST: usize = 8;

/// Puts a middleware into the route; prefixes that it strips go to `strips`.
///
/// # Errors
/// What is not carried out.
pub(super) fn apply(
    objects: &TraefikObjects,
    name: &str,
    route: &mut HttpRoute,
    strips: &mut Vec<String>,
    depth: usize,
) -> Result<(), String> {
    if depth > DEEPEST {
        return Err("chains of middlewares are too deep".to_owned());
    }
    let options = match objects.middleware(name) {
        Err(_) if is_redirect_of_proxy(name) => {
            redirect_to_tls(route);
            return Ok(());
        }
        options => options?,
    };
    let (mut sts, mut limited) = (None, false);
    for (option, value) in options {
        let wrong = |why: &str| format!("{option}={}: {why}", shown_label(option, value));
        let (kind, rest) = option.split_once('.').unwrap_or((option, ""));
        match (kind, rest) {
            ("chain", "middlewares") => {
                for one in value.split(',').map(str::trim).filter(|one| !one.is_empty()) {
                    apply(objects, one, route, strips, depth + 1)?;
                }
            }
            ("redirectscheme", "scheme") if value == "https" => redirect_to_tls(route),
            ("redirectscheme", "port") if value == "443" => {}
            ("redirectscheme", "permanent") if go_flag(value).is_some() => {}
            ("stripprefix", "prefixes") => {
                let all: Option<Vec<String>> = value.split(',').map(|one| path_prefix(one.trim())).collect();
                strips.extend(all.ok_or_else(|| wrong("must be paths separated by commas"))?);
            }
            ("stripprefix", "forceslash") | ("basicauth", "realm") => {}
            ("basicauth", "users") if !route.auth.is_empty() => return Err(wrong("a router may have it once")),
            ("basicauth", "users") => route.auth.extend(users(value).map_err(|why| wrong(&format!("must be {why}")))?),
            ("basicauth", "removeheader") if go_flag(value) == Some(true) => {}
            ("ipallowlist" | "ipwhitelist", "sourcerange") if !route.allow.is_empty() => {
                return Err(wrong("a router may have it once"));
            }
            ("ipallowlist" | "ipwhitelist", "sourcerange") => {
                route.allow =
                    prefixes(value).ok_or_else(|| wrong(&format!("must be client prefixes separated by {PREFIXES}")))?;
            }
            ("buffering", "maxrequestbodybytes") if route.body.is_some() => return Err(wrong("a router may have it once")),
            ("buffering", "maxrequestbodybytes") => {
                let most = value.parse().ok().filter(|bytes| *bytes > 0);
                route.body = Some(most.ok_or_else(|| wrong("must be a number of bytes"))?);
            }
            ("inflightreq", "amount") if route.requests == 0 => {
                let most = value.parse().ok().filter(|most| *most > 0);
                route.requests = most.ok_or_else(|| wrong("must be a number of requests"))?;
            }
            ("ratelimit", "average" | "burst" | "period") => limited = true,
            ("compress", "") if go_flag(value).is_some() => route.compress |= go_flag(value) == Some(true),
            ("headers", "stsseconds" | "stsincludesubdomains" | "stspreload") => sts = Some(options),
            ("headers", rest) => headers(rest, value, route).map_err(|why| wrong(&why))?,
            _ => return Err(wrong("skep does not carry it out")),
        }
    }
    if options.keys().any(|option| option.starts_with("basicauth.")) && !options.contains_key("basicauth.users") {
        return Err("basicauth: it has no users".to_owned());
    }
    if limited && route.rate.is_some() {
        return Err("ratelimit: a router may have it once".to_owned());
    }
    if limited {
        route.rate = rate(options)?;
    }
    if let Some(value) = sts.and_then(strict_transport_security) {
        route.response_headers.insert("strict-transport-security".to_owned(), value);
    }
    Ok(())
}

/// Traefik's values: a second where no time is named, one request at once where no burst is, no bound without an average.
fn rate(options: &Options) -> Result<Option<HttpRate>, String> {
    let number = |name: &str, default: u32| {
        let Some(value) = options.get(&format!("ratelimit.{name}")) else { return Ok(default) };
        value.parse::<u32>().map_err(|_| format!("ratelimit.{name}={value}: must be a number of requests"))
    };
    let period_ms = match options.get("ratelimit.period") {
        Some(value) => millis(value)
            .or_else(|| millis(&format!("{value}s")))
            .ok_or_else(|| format!("ratelimit.period={value}: must be a time up to 24h, as 1m"))?,
        None => 1000,
    };
    let (requests, burst) = (number("average", 0)?, number("burst", 1)?.max(1));
    Ok((requests > 0).then_some(HttpRate { requests, period_ms, burst }))
}

fn headers(option: &str, value: &str, route: &mut HttpRoute) -> Result<(), String> {
    let must_be = |why: String| format!("must be {why}");
    if let Some(name) = option.strip_prefix("customrequestheaders.") {
        return add_header(&mut route.request_headers, name, value).map_err(must_be);
    }
    if let Some(name) = option.strip_prefix("customresponseheaders.") {
        return add_header(&mut route.response_headers, name, value).map_err(must_be);
    }
    let answers: &mut BTreeMap<String, String> = &mut route.response_headers;
    match (option, go_flag(value)) {
        ("framedeny" | "contenttypenosniff" | "browserxssfilter" | "forcestsheader", Some(false)) => Ok(()),
        ("framedeny", Some(true)) => add_header(answers, "x-frame-options", "DENY"),
        ("contenttypenosniff", Some(true)) => add_header(answers, "x-content-type-options", "nosniff"),
        ("browserxssfilter", Some(true)) => add_header(answers, "x-xss-protection", "1; mode=block"),
        ("customframeoptionsvalue", _) => add_header(answers, "x-frame-options", value),
        ("referrerpolicy", _) => add_header(answers, "referrer-policy", value),
        ("contentsecuritypolicy", _) => add_header(answers, "content-security-policy", value),
        ("permissionspolicy", _) => add_header(answers, "permissions-policy", value),
        _ => Err("skep does not carry it out".to_owned()),
    }
}

fn strict_transport_security(options: &Options) -> Option<String> {
    let option = |name: &str| options.get(&format!("headers.{name}")).map(String::as_str);
    let seconds: u64 = option("stsseconds")?.parse().ok().filter(|seconds| *seconds > 0)?;
    let mut value = format!("max-age={seconds}");
    if option("stsincludesubdomains").and_then(go_flag) == Some(true) {
        value.push_str("; includeSubDomains");
    }
    if option("stspreload").and_then(go_flag) == Some(true) {
        value.push_str("; preload");
    }
    Some(value)
}

fn is_redirect_of_proxy(name: &str) -> bool {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    REDIRECTS.iter().any(|redirect| name.eq_ignore_ascii_case(redirect))
}

/// A redirect to TLS is of no use on a route that has it.
fn redirect_to_tls(route: &mut HttpRoute) {
    if route.entry != HttpEntry::Tls {
        route.redirect = Some(HttpRedirect::Https);
    }
}
