//! Which host names get a certificate. Pure. An authority counts what it refuses, so names are checked here first.

use crate::model::acme::{AcmeSettings, IssuedCertificate};
use crate::model::http::HttpEntry;
use crate::model::{AcmeCertificate, Service, Timestamp};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Domains that no public authority issues for.
const SPECIAL: [&str; 14] = [
    "alt",
    "arpa",
    "corp",
    "example",
    "home",
    "internal",
    "invalid",
    "lan",
    "local",
    "localhost",
    "localdomain",
    "mail",
    "onion",
    "test",
];

/// What is to have a certificate.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WantedNames {
    /// The names of each certificate by the first of them. A wildcard is first, and its parent with it if that is wanted too.
    pub certificates: BTreeMap<String, Vec<String>>,
    /// Hosts that are served with TLS and get none, with the reason.
    pub left_out: BTreeMap<String, String>,
}

/// The names that wildcards are good for that could not be had the last time: those of a certificate that still serves, or none. Other names wait
/// for other wildcards, as one order is for all of them.
pub type FailedWildcards = BTreeMap<String, Vec<String>>;

/// Those of the store's records.
#[must_use]
pub fn failed_wildcards(store: &Store, now: Timestamp) -> FailedWildcards {
    let is_failed = |record: &&AcmeCertificate| record.id.as_str().starts_with("*.") && record.failure.is_some();
    let names = |record: &AcmeCertificate| {
        let issued = record.issued.as_ref().filter(|issued| serves_on(issued, now));
        issued.map(|issued| issued.names.clone()).unwrap_or_default()
    };
    store.all::<AcmeCertificate>().filter(is_failed).map(|record| (record.id.to_string(), names(record))).collect()
}

/// More than a sixth of its life is left. It would have been renewed long before.
fn serves_on(issued: &IssuedCertificate, now: Timestamp) -> bool {
    now < issued.not_before.plus(issued.not_after.since(issued.not_before).mul_f64(5.0 / 6.0))
}

/// A host that routes name.
#[derive(Default)]
struct NamedHost {
    /// A service names a certificate for it.
    has_secret: bool,
    /// The label `skep.http.acme` of all routes: any `false` wins.
    label: Option<bool>,
}

/// The names of all routes with TLS that no secret is named for. `failed`: [`failed_wildcards`].
#[must_use]
pub fn wanted(store: &Store, settings: &AcmeSettings, failed: &FailedWildcards) -> WantedNames {
    let mut hosts: BTreeMap<String, NamedHost> = BTreeMap::new();
    for service in store.services() {
        read(service, &mut hosts);
    }
    let is_private = !settings.root_certificate.is_empty();
    let mut names = WantedNames::default();
    let mut single = BTreeSet::new();
    for (host, named) in hosts {
        let why = match named {
            NamedHost { has_secret: true, .. } => continue,
            NamedHost { label: Some(false), .. } => Some("the label skep.http.acme says so".to_owned()),
            NamedHost { label, .. } => check(&host, label == Some(true) || is_private).err(),
        };
        match why {
            Some(why) => drop(names.left_out.insert(host, why)),
            None => drop(single.insert(host)),
        }
    }
    // A wildcard is proved by DNS alone, which may not be set up: hosts that can prove themselves do not wait for it in vain.
    let is_good_for = |wildcard: &String, host: &String| failed.get(wildcard).is_none_or(|names| names.contains(host));
    let is_covered = |host: &str| {
        let wildcard = host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        wildcard.is_some_and(|wildcard| single.contains(&wildcard) && is_good_for(&wildcard, &wildcard))
    };
    for host in &single {
        if let Some(parent) = host.strip_prefix("*.") {
            let with_parent = single.contains(parent) && !is_covered(parent);
            let all = [host.clone()].into_iter().chain(with_parent.then(|| parent.to_owned())).collect();
            names.certificates.insert(host.clone(), all);
            continue;
        }
        let own = format!("*.{host}");
        let is_with_own = single.contains(&own) && is_good_for(&own, host);
        if !is_covered(host) && !is_with_own {
            names.certificates.insert(host.clone(), vec![host.clone()]);
        }
    }
    names
}

fn read(service: &Service, hosts: &mut BTreeMap<String, NamedHost>) {
    let labels = service.spec.http().unwrap_or_default();
    for route in labels.routes.iter().filter(|route| route.entry != HttpEntry::Plain) {
        for host in route.hosts.iter().filter(|host| *host != "*") {
            let named = hosts.entry(host.clone()).or_default();
            named.has_secret |= labels.certificate.is_some();
            named.label = match (named.label, route.acme) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (before, now) => now.or(before),
            };
        }
    }
}

/// Whether an authority may issue for a host. `any`: a private authority, or the user says that it can.
///
/// # Errors
/// Why not.
fn check(host: &str, any: bool) -> Result<(), String> {
    if host.parse::<IpAddr>().is_ok() {
        return if any {
            Ok(())
        } else {
            Err("it is an address: the label skep.http.acme=true asks for a certificate".to_owned())
        };
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let labels: Vec<&str> = name.split('.').collect();
    if name.contains('_') {
        return Err("certificates have no names with `_`".to_owned());
    }
    // `*.` takes two bytes.
    if host.len() > 253 {
        return Err("it is longer than 253 characters".to_owned());
    }
    let is_unusual = |label: &&str| label.get(2..4) == Some("--") && !label.starts_with("xn--");
    if let Some(label) = labels.iter().copied().find(is_unusual) {
        return Err(format!("the label {label} is reserved"));
    }
    let last = labels.last().copied().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("no name ends with .{last}"));
    }
    if any {
        return Ok(());
    }
    let asks = "the label skep.http.acme=true asks for a certificate all the same";
    if labels.len() < 2 {
        return Err(format!("it is no public name: {asks}"));
    }
    if SPECIAL.contains(&last) {
        return Err(format!("names below .{last} are not public: {asks}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ServiceSpec, Timestamp, fixture};
    use crate::store::{Action, Transaction};

    fn store(services: &[&[(&str, &str)]]) -> Store {
        let mut store = Store::default();
        let actions = services.iter().enumerate().map(|(number, labels)| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let spec = ServiceSpec { name: format!("s{number}"), labels, ..ServiceSpec::default() };
            Action::create(fixture::service(&format!("s{number}"), spec))
        });
        store.apply(1, &Transaction::new(Timestamp(1), actions.collect())).unwrap();
        store
    }

    fn shown(services: &[&[(&str, &str)]]) -> (Vec<String>, Vec<String>) {
        let names = wanted(&store(services), &AcmeSettings::default(), &FailedWildcards::default());
        (names.certificates.values().map(|names| names.join("+")).collect(), names.left_out.into_keys().collect())
    }

    #[test]
    fn public_names_of_routes_with_tls_and_without_a_secret() {
        let (names, left_out) = shown(&[
            &[("skep.http", "shop.example.com,www.example.com/api")],
            &[("skep.http", "own.example.com"), ("skep.http.tls", "secret")],
            &[("skep.http", "own.example.com/other")],
            &[("skep.http", "off.example.com"), ("skep.http.acme", "false")],
            &[("skep.http", "*,localhost,a.local,192.0.2.7,a_b.example.com")],
            &[("skep.http", "in.local,192.0.2.8"), ("skep.http.acme", "true")],
        ]);
        assert_eq!(names, ["192.0.2.8", "in.local", "shop.example.com", "www.example.com"]);
        assert_eq!(left_out, ["192.0.2.7", "a.local", "a_b.example.com", "localhost", "off.example.com"]);
    }

    #[test]
    fn a_wildcard_has_its_parent_with_it_and_covers_one_label() {
        let (names, _) = shown(&[&[("skep.http", "*.a.example.com,a.example.com,x.a.example.com,y.x.a.example.com")]]);
        assert_eq!(names, ["*.a.example.com+a.example.com", "y.x.a.example.com"]);
    }

    #[test]
    fn a_wildcard_that_has_failed_and_has_no_certificate_covers_nothing() {
        let store = store(&[&[("skep.http", "*.a.example.com,a.example.com,x.a.example.com")]]);
        let wanted = |has: &[&str]| {
            let has = has.iter().map(|name| (*name).to_owned()).collect();
            let failed = FailedWildcards::from([("*.a.example.com".to_owned(), has)]);
            let names = wanted(&store, &AcmeSettings::default(), &failed).certificates;
            names.values().map(|names| names.join("+")).collect::<Vec<_>>()
        };
        let both = "*.a.example.com+a.example.com";
        assert_eq!(wanted(&[]), [both, "a.example.com", "x.a.example.com"]);
        assert_eq!(wanted(&["*.a.example.com"]), [both, "a.example.com"], "it serves, without its parent");
        assert_eq!(wanted(&["*.a.example.com", "a.example.com"]), [both]);
    }

    #[test]
    fn a_private_authority_issues_for_any_name() {
        let store = store(&[&[("skep.http", "a.internal,b.test,c")]]);
        let settings = AcmeSettings { root_certificate: "PEM".to_owned(), ..AcmeSettings::default() };
        let none = FailedWildcards::default();
        assert_eq!(wanted(&store, &settings, &none).certificates.len(), 3);
        assert_eq!(wanted(&store, &AcmeSettings::default(), &none).certificates.len(), 0);
    }
}
