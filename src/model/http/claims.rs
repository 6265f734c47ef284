//! Which service has which host and prefix. Pure: every node decides the same from the same services.

use super::{HttpEntry, HttpRoute, HttpService, PrefixEnd};
use crate::model::ServiceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A host and prefix, and the routes that its requests are shared among.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpClaim {
    pub host: String,
    pub prefix: String,
    /// That of the route which has it first.
    #[serde(default, skip_serializing_if = "is_segment")]
    pub prefix_end: PrefixEnd,
    /// On the listener with TLS, or on the one without.
    pub tls: bool,
    /// One, unless all name a weight.
    pub choices: Vec<HttpChoice>,
}

/// A route of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpChoice {
    pub service: ServiceId,
    /// Index in [`HttpService::routes`].
    pub route: usize,
    /// Share of the requests.
    pub weight: u32,
}

/// The claims, sorted by host and prefix, and what of the services is not served, for users. The oldest service has a host and
/// prefix that several name, unless all of them name a weight. The cluster's page has a host for itself: what another route served
/// there would have the page's origin in a browser, and with it what the page may ask for.
pub fn decide(services: &[Arc<HttpService>]) -> (Vec<HttpClaim>, Vec<String>) {
    let mut by_age: Vec<&Arc<HttpService>> = services.iter().collect();
    by_age.sort_by_key(|service| (service.created_at, &service.service_id));
    let names: BTreeMap<&ServiceId, &str> = services.iter().map(|s| (&s.service_id, s.service_name.as_str())).collect();
    let mut claims: BTreeMap<(&str, &str, bool), Claimants> = BTreeMap::new();
    let mut problems = Vec::new();
    let is_closed = |route: &&HttpRoute| route.entry == HttpEntry::Tls && route.keeps_clients_out();
    let mut closed: BTreeMap<&str, Vec<&HttpRoute>> = BTreeMap::new();
    for route in services.iter().flat_map(|service| &service.routes).filter(is_closed) {
        for host in &route.hosts {
            closed.entry(host).or_default().push(route);
        }
    }
    // The route that has a host first, and whether it is that of the page.
    let mut hosts: BTreeMap<&str, HostOwner> = BTreeMap::new();
    for service in by_age {
        let of_service = service.problems.iter().map(|problem| format!("service {}: {problem}", service.service_name));
        problems.extend(of_service);
        for (index, route) in service.routes.iter().enumerate() {
            let listeners = if yields_tls(route, &closed) {
                problems.push(format!(
                    "service {}: {}{} is served without TLS alone: its router names no entry point, and one with TLS that keeps clients out \
                     names its host",
                    service.service_name,
                    route.hosts.join(","),
                    route.prefix
                ));
                HttpEntry::Plain.listeners()
            } else {
                route.entry.listeners()
            };
            let mut served = Vec::new();
            for host in &route.hosts {
                let first = *hosts.entry(host).or_insert(HostOwner { service, index, dashboard: route.dashboard });
                let is_own = (first.index, &first.service.service_id) == (index, &service.service_id);
                if is_own || !(first.dashboard || route.dashboard) {
                    served.push(host);
                    continue;
                }
                problems.push(format!(
                    "service {}: {host}{} shares its host with {}, which is older: the page of the cluster has a host for itself, name \
                     another one",
                    service.service_name, route.prefix, first.service.service_name
                ));
            }
            for (host, tls) in served.into_iter().flat_map(|host| listeners.iter().map(move |tls| (host, *tls))) {
                let claim = claims.entry((host, &route.prefix, tls)).or_default();
                let choice = HttpChoice { service: service.service_id.clone(), route: index, weight: route.weight.unwrap_or(1) };
                match claim.choices.first() {
                    Some(first) if !(claim.weighted && route.weight.is_some()) => {
                        let owner = names.get(&first.service).copied().unwrap_or_default();
                        problems.push(format!(
                            "service {}: {host}{} is {owner}'s, which is older: name another host or prefix, or a weight in both",
                            service.service_name, route.prefix,
                        ));
                    }
                    _ => {
                        claim.weighted = route.weight.is_some();
                        if claim.choices.is_empty() {
                            claim.prefix_end = route.prefix_end;
                        }
                        claim.choices.push(choice);
                    }
                }
            }
        }
    }
    let claim = |((host, prefix, tls), claimants): ((&str, &str, bool), Claimants)| HttpClaim {
        host: host.to_owned(),
        prefix: prefix.to_owned(),
        prefix_end: claimants.prefix_end,
        tls,
        choices: claimants.choices,
    };
    // A route on both listeners meets the same other route on both.
    problems.dedup();
    (claims.into_iter().map(claim).collect(), problems)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_segment(end: &PrefixEnd) -> bool {
    *end == PrefixEnd::Segment
}

/// Whether requests with TLS for the route are left to one of these, by host, which have TLS alone and keep clients out.
fn yields_tls(route: &HttpRoute, closed: &BTreeMap<&str, Vec<&HttpRoute>>) -> bool {
    let hosts = route.hosts.iter().map(String::as_str).chain(["*"]);
    route.yields_tls && hosts.filter_map(|host| closed.get(host)).flatten().any(|other| route.takes_from(other))
}

/// The first route of a host.
#[derive(Clone, Copy)]
struct HostOwner<'a> {
    service: &'a HttpService,
    index: usize,
    dashboard: bool,
}

#[derive(Default)]
struct Claimants {
    choices: Vec<HttpChoice>,
    /// All of them name a weight.
    weighted: bool,
    prefix_end: PrefixEnd,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::http::{HTTP, HttpLabels, HttpRoute};

    /// A service created at this time whose label `skep.http` is `hosts`.
    pub fn service(name: &str, created: i64, hosts: &str, weight: Option<u32>) -> Arc<HttpService> {
        let mut labels = BTreeMap::from([(HTTP.to_owned(), hosts.to_owned())]);
        labels.extend(weight.map(|weight| (format!("{HTTP}.weight"), weight.to_string())));
        Arc::new(HttpService {
            service_id: name.into(),
            service_name: name.to_owned(),
            created_at: Timestamp(created),
            routes: HttpLabels::read(&labels).unwrap().routes,
            certificate: None,
            problems: Vec::new(),
            holds: false,
            backends: Vec::new(),
        })
    }

    fn shown(claims: &[HttpClaim]) -> Vec<String> {
        let choice = |choice: &HttpChoice| format!("{}*{}", choice.service, choice.weight);
        let line = |claim: &HttpClaim| {
            format!("{}{} {}", claim.host, claim.prefix, claim.choices.iter().map(choice).collect::<Vec<_>>().join(","))
        };
        claims.iter().filter(|claim| !claim.tls).map(line).collect()
    }

    #[test]
    fn the_oldest_service_has_a_host_and_prefix_whatever_the_order() {
        let mut services = vec![
            service("young", 9, "a.example.com,b.example.com", None),
            service("old", 3, "a.example.com", None),
            service("api", 5, "a.example.com/api", Some(2)),
        ];
        for _ in 0..3 {
            services.rotate_left(1);
            let (claims, problems) = decide(&services);
            assert_eq!(shown(&claims), ["a.example.com/ old*1", "a.example.com/api api*2", "b.example.com/ young*1"]);
            let [problem] = &problems[..] else { panic!("{problems:?}") };
            assert!(problem.contains("service young: a.example.com/ is old's"), "{problem}");
        }
        // Created at the same time: by id.
        let (claims, _) = decide(&[service("y", 1, "a.b", None), service("x", 1, "a.b", None)]);
        assert_eq!(shown(&claims), ["a.b/ x*1"]);
    }

    #[test]
    fn a_route_of_one_listener_leaves_the_other_to_another_service() {
        let of = |name: &str, created, entry| {
            let service = service(name, created, "a.b", None);
            let routes = service.routes.iter().map(|route| HttpRoute { entry, ..route.clone() }).collect();
            Arc::new(HttpService { routes, ..(*service).clone() })
        };
        let (claims, problems) = decide(&[of("p", 1, HttpEntry::Plain), of("t", 2, HttpEntry::Tls), of("b", 3, HttpEntry::Both)]);
        let owners: Vec<_> = claims.iter().map(|claim| (claim.tls, claim.choices[0].service.to_string())).collect();
        assert_eq!(owners, [(false, "p".to_owned()), (true, "t".to_owned())]);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn a_router_that_names_no_entry_point_leaves_tls_to_one_that_has_it() {
        let of = |name: &str, created, hosts: &str, entry| {
            let service = service(name, created, hosts, None);
            let allow = if entry == HttpEntry::Tls { vec!["192.0.2.0/24".parse().unwrap()] } else { Vec::new() };
            let route = |route: &HttpRoute| HttpRoute {
                entry,
                allow: allow.clone(),
                yields_tls: entry == HttpEntry::Both,
                ..route.clone()
            };
            Arc::new(HttpService { routes: service.routes.iter().map(route).collect(), ..(*service).clone() })
        };
        for (open, closed, yields) in [
            ("a.b/admin", "a.b", true),
            ("a.b", "*/admin", true),
            ("*", "a.b", false),
            ("a.b", "a.b/admin", false),
            ("a.b", "c.d", false),
        ] {
            let services = [of("open", 1, open, HttpEntry::Both), of("closed", 2, closed, HttpEntry::Tls)];
            let (claims, problems) = decide(&services);
            let has_tls = claims.iter().any(|claim| claim.tls && claim.choices[0].service.as_str() == "open");
            assert_eq!((has_tls, problems.len()), (!yields, usize::from(yields)), "{open} {closed}: {problems:?}");
        }
        let (claims, problems) = decide(&[of("open", 1, "a.b", HttpEntry::Both)]);
        assert_eq!((claims.len(), problems.len()), (2, 0), "no other one has TLS");
    }

    #[test]
    fn the_page_of_the_cluster_has_its_host_for_itself() {
        let page = |created| {
            let service = service("page", created, "skep.b", None);
            let routes = service.routes.iter().map(|route| HttpRoute { dashboard: true, ..route.clone() }).collect();
            Arc::new(HttpService { routes, ..(*service).clone() })
        };
        let (path, other) = (service("path", 5, "skep.b/api", Some(1)), service("other", 5, "shop.b/api", None));
        let (claims, problems) = decide(&[page(1), path.clone(), other.clone()]);
        assert_eq!(shown(&claims), ["shop.b/api other*1", "skep.b/ page*1"]);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.contains("service path: skep.b/api shares its host with page, which is older"), "{problem}");
        let (claims, problems) = decide(&[page(9), path, other]);
        assert_eq!(shown(&claims), ["shop.b/api other*1", "skep.b/api path*1"], "the older one keeps what it had");
        assert!(problems[0].contains("service page: skep.b/ shares its host with path"), "{problems:?}");
    }

    #[test]
    fn services_that_all_name_a_weight_share() {
        let canary = service("canary", 9, "a.b", Some(1));
        let (claims, problems) = decide(&[canary.clone(), service("main", 3, "a.b", Some(9))]);
        assert_eq!((shown(&claims), problems.len()), (vec!["a.b/ main*9,canary*1".to_owned()], 0));
        let (claims, problems) = decide(&[canary, service("main", 3, "a.b", None)]);
        assert_eq!((shown(&claims), problems.len()), (vec!["a.b/ main*1".to_owned()], 1), "only one of them does");
    }
}
