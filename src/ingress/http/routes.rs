//! The table in the form that requests are looked up in.

use super::counters::RouteCounters;
use super::health::ServiceHealth;
use super::index::{HostIndex, PathPrefix};
use super::route_load::RouteLoad;
use super::table::HttpTable;
use crate::model::http::claims::HttpClaim;
use crate::model::http::{HttpBackend, HttpRoute, HttpScheme, HttpService};
use crate::model::{ServiceId, TaskId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Host, prefix and service.
type RouteKey<'a> = (&'a str, &'a str, &'a str);

/// Service, prefix, port and bounds: routes of a service that differ in these count for themselves.
type LoadKey<'a> = (&'a str, &'a str, u16, [u32; 2], Option<(u32, u64, u32)>);

/// The routes of a table.
#[derive(Default)]
pub(super) struct Routes {
    /// Without TLS, and with.
    indexes: [HostIndex<Arc<Claim>>; 2],
    pub claims: Vec<Arc<Claim>>,
    /// The first route of each service, by its name.
    by_service: BTreeMap<String, Arc<ServedRoute>>,
}

/// A host and prefix with what its requests are shared among.
pub(super) struct Claim {
    pub host: String,
    pub prefix: String,
    pub tls: bool,
    pub choices: Vec<Arc<ServedRoute>>,
    weights: Vec<u32>,
    turn: Arc<AtomicUsize>,
    /// Requests without a body need nothing of pingora, whichever route is chosen.
    pub direct: bool,
}

/// A route of a service at a host and prefix.
pub(super) struct ServedRoute {
    pub service: Arc<HttpService>,
    pub route: HttpRoute,
    /// The tasks that get requests: those that were seen to listen, or all that run if none was.
    pub backends: Vec<HttpBackend>,
    /// Tasks that were seen to listen.
    pub ready: usize,
    pub counters: Arc<RouteCounters>,
    pub load: Arc<RouteLoad>,
    pub health: Arc<ServiceHealth>,
    turn: Arc<AtomicUsize>,
}

/// What of a route outlives a change of the table.
#[derive(Clone, Default)]
struct KeptOfRoute {
    counters: Arc<RouteCounters>,
    load: Arc<RouteLoad>,
    health: Arc<ServiceHealth>,
    turn: Arc<AtomicUsize>,
}

fn load_key<'a>(service: &'a str, route: &'a HttpRoute) -> LoadKey<'a> {
    let rate = route.rate.map(|rate| (rate.requests, rate.period_ms, rate.burst));
    (service, &route.prefix, route.port, [route.requests, route.client_requests], rate)
}

impl Routes {
    /// Of a table. Counters and turns of routes that there were before go on.
    pub fn new(table: &HttpTable, before: &Self) -> Self {
        let services: BTreeMap<&ServiceId, &Arc<HttpService>> = table.services.iter().map(|s| (&s.service_id, s)).collect();
        let mut all: BTreeMap<RouteKey<'_>, KeptOfRoute> = BTreeMap::new();
        // What is found out about a task is so for all routes that lead to the same port of it.
        let mut healths: BTreeMap<(&str, u16), Arc<ServiceHealth>> = BTreeMap::new();
        // Bounds are of the service, whatever the host: those of routes for other paths or ports are their own.
        let mut loads: BTreeMap<LoadKey<'_>, Arc<RouteLoad>> = BTreeMap::new();
        let mut turns: BTreeMap<(&str, &str, bool), Arc<AtomicUsize>> = BTreeMap::new();
        for claim in &before.claims {
            turns.insert((&claim.host, &claim.prefix, claim.tls), claim.turn.clone());
            for choice in &claim.choices {
                let service = choice.service.service_id.as_str();
                let kept = KeptOfRoute {
                    counters: choice.counters.clone(),
                    load: choice.load.clone(),
                    health: choice.health.clone(),
                    turn: choice.turn.clone(),
                };
                healths.insert((service, choice.route.port), choice.health.clone());
                loads.insert(load_key(service, &choice.route), choice.load.clone());
                all.insert((&claim.host, &claim.prefix, service), kept);
            }
        }
        let mut routes = Self::default();
        for claim in &table.claims {
            let mut choices = Vec::new();
            for choice in &claim.choices {
                // The same ones on both listeners.
                let kept = all.entry((&claim.host, &claim.prefix, choice.service.as_str())).or_default();
                let Some(service) = services.get(&choice.service) else { continue };
                let Some(route) = service.routes.get(choice.route) else { continue };
                kept.health = healths.entry((service.service_id.as_str(), route.port)).or_default().clone();
                kept.load = loads.entry(load_key(service.service_id.as_str(), route)).or_default().clone();
                choices.push((choice.weight, served(route, service, kept.clone())));
            }
            let turn = turns.get(&(claim.host.as_str(), claim.prefix.as_str(), claim.tls)).cloned().unwrap_or_default();
            routes.insert(claim, choices, turn);
        }
        routes
    }

    fn insert(&mut self, of: &HttpClaim, choices: Vec<(u32, Arc<ServedRoute>)>, turn: Arc<AtomicUsize>) {
        let (weights, choices): (Vec<u32>, Vec<_>) = choices.into_iter().unzip();
        for choice in &choices {
            let choice: &Arc<ServedRoute> = choice;
            self.by_service.entry(choice.service.service_name.clone()).or_insert_with(|| choice.clone());
        }
        let (host, prefix) = (of.host.clone(), of.prefix.clone());
        let direct = choices.iter().all(|choice| is_direct(&choice.route));
        let claim = Arc::new(Claim { host, prefix, tls: of.tls, choices, weights, turn, direct });
        let prefix = PathPrefix { end: of.prefix_end, ..PathPrefix::segments(&claim.prefix) };
        self.indexes[usize::from(claim.tls)].insert(&claim.host, prefix, claim.clone());
        self.claims.push(claim);
    }

    /// The same route in this table, with the tasks that there are now.
    pub fn again(&self, route: &ServedRoute) -> Option<Arc<ServedRoute>> {
        let mut all = self.claims.iter().flat_map(|claim| &claim.choices);
        // Counters belong to a host, a prefix and a service: another host of the same route is another claim.
        let is_it = |other: &&Arc<ServedRoute>| Arc::ptr_eq(&other.counters, &route.counters) && other.route == route.route;
        all.find(is_it).cloned()
    }

    /// A route of the service of this name.
    pub fn of_service(&self, name: &str) -> Option<Arc<ServedRoute>> {
        self.by_service.get(name).cloned()
    }

    /// Whether two paths of a host have one route, or both none.
    pub fn have_one_route(&self, tls: bool, host: &str, a: &str, b: &str) -> bool {
        let index = &self.indexes[usize::from(tls)];
        match (index.find(host, a), index.find(host, b)) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// What a request falls under: on which listener, host in lower case, decoded path.
    pub fn find(&self, tls: bool, host: &str, path: &str) -> Option<&Arc<Claim>> {
        self.indexes[usize::from(tls)].find(host, path)
    }
}

/// Whether tasks are spoken to in HTTP/1 and without TLS, and nothing but heads is changed.
fn is_direct(route: &HttpRoute) -> bool {
    route.scheme == HttpScheme::Http
        && route.proxy_protocol.is_none()
        && route.mirror.is_none()
        && !route.compress
        && !route.dashboard
}

fn served(route: &HttpRoute, service: &Arc<HttpService>, kept: KeptOfRoute) -> Arc<ServedRoute> {
    let listening: Vec<HttpBackend> = service.backends.iter().filter(|b| b.ports.contains(&route.port)).cloned().collect();
    let ready = listening.len();
    let backends = if listening.is_empty() { service.backends.clone() } else { listening };
    let KeptOfRoute { counters, load, health, turn } = kept;
    health.follow(&backends);
    let (service, route) = (service.clone(), route.clone());
    Arc::new(ServedRoute { service, route, backends, ready, counters, load, health, turn })
}

impl Claim {
    /// By weight, in turn; the one whose task the client stays with. A choice without a task is passed over while another one has some.
    pub fn choose<'a>(&self, cookie: impl Fn(&str) -> Option<&'a str>) -> Option<Arc<ServedRoute>> {
        if let [only] = &self.choices[..] {
            return Some(only.clone());
        }
        let is_kept = |choice: &Arc<ServedRoute>, weight: u32| {
            let sticky = &choice.route.sticky;
            let task = if sticky.is_empty() || weight == 0 { None } else { cookie(sticky) };
            task.is_some_and(|task| choice.backends.iter().any(|backend| backend.task_id.as_str() == task))
        };
        if let Some((kept, _)) = self.choices.iter().zip(&self.weights).find(|(choice, weight)| is_kept(choice, **weight)) {
            return Some(kept.clone());
        }
        // One that may have no task is asked all the same: its request waits for one.
        let serves = |choice: &Arc<ServedRoute>| !choice.backends.is_empty() || choice.service.holds;
        let has_task = self.choices.iter().any(serves);
        let weight = |at: usize| if has_task && !serves(&self.choices[at]) { 0 } else { self.weights[at] as usize };
        let total: usize = (0..self.choices.len()).map(weight).sum();
        if total == 0 {
            return self.choices.first().cloned();
        }
        // Not all of one, and then all of the next.
        let mut left = self.turn.fetch_add(1, Ordering::Relaxed) % total * stride(total) % total;
        for (at, choice) in self.choices.iter().enumerate() {
            if left < weight(at) {
                return Some(choice.clone());
            }
            left -= weight(at);
        }
        None
    }
}

/// A step that goes through all of `total` places before it comes to one again, and lies the golden ratio of them apart.
fn stride(total: usize) -> usize {
    let divisor = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (total * 618 / 1000..=total).find(|step| divisor(*step, total) == 1).unwrap_or(1)
}

impl ServedRoute {
    /// The task to ask: the one that the client stays with if it is there and in health, otherwise the next in turn; none of `tried`.
    pub fn backend(&self, stays_with: Option<&str>, tried: &[TaskId]) -> Option<&HttpBackend> {
        let left_out = self.health.left_out(&self.backends);
        let is_left = |backend: &&HttpBackend| !tried.contains(&backend.task_id);
        let is_usable = |backend: &&HttpBackend| is_left(backend) && !left_out.contains(&backend.task_id);
        let same = stays_with.and_then(|task| self.backends.iter().find(|backend| backend.task_id.as_str() == task));
        if let Some(same) = same.filter(is_usable) {
            return Some(same);
        }
        let (count, turn) = (self.backends.len(), self.turn.fetch_add(1, Ordering::Relaxed));
        let in_turn = || (0..count).map(|step| &self.backends[turn.wrapping_add(step) % count]);
        let takes_it = |backend: &&HttpBackend| {
            is_usable(backend) && !self.health.passes_on(&backend.task_id, self.route.slow_start_ms, turn)
        };
        in_turn().find(takes_it).or_else(|| in_turn().find(is_usable)).or_else(|| in_turn().find(is_left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http::claims::{self, tests::service};

    fn backend(task: &str, ports: &[u16]) -> HttpBackend {
        HttpBackend { task_id: task.into(), node_id: "n1".into(), address: [10, 0, 0, 5].into(), ports: ports.to_vec() }
    }

    fn with(service: &HttpService, backends: &[(&str, &[u16])]) -> Arc<HttpService> {
        let backends = backends.iter().map(|(task, ports)| backend(task, ports)).collect();
        Arc::new(HttpService { backends, ..service.clone() })
    }

    fn routes(services: Vec<Arc<HttpService>>, before: &Routes) -> Routes {
        let (claims, _) = claims::decide(&services);
        Routes::new(&HttpTable { services, claims, ..HttpTable::default() }, before)
    }

    fn chosen(routes: &Routes) -> Arc<ServedRoute> {
        routes.find(false, "a.b", "/").and_then(|claim| claim.choose(|_| None)).unwrap()
    }

    fn asked(route: &ServedRoute, stays: Option<&str>, tried: &[&str]) -> Option<String> {
        let tried: Vec<TaskId> = tried.iter().map(|task| (*task).into()).collect();
        route.backend(stays, &tried).map(|backend| backend.task_id.to_string())
    }

    #[test]
    fn only_tasks_that_listen_are_asked_in_turn_and_none_twice() {
        let web = with(&service("web", 1, "a.b", None), &[("t1", &[80]), ("t2", &[]), ("t3", &[80]), ("t4", &[81])]);
        let routes = routes(vec![web.clone()], &Routes::default());
        let route = chosen(&routes);
        assert_eq!(route.ready, 2);
        let turns: Vec<_> = (0..4).map(|_| asked(&route, None, &[]).unwrap()).collect();
        assert_eq!(turns, ["t1", "t3", "t1", "t3"]);
        assert_eq!(asked(&route, None, &["t1"]).as_deref(), Some("t3"));
        assert_eq!(asked(&route, None, &["t1", "t3"]), None);
        for _ in 0..3 {
            assert_eq!(asked(&route, Some("t3"), &[]).as_deref(), Some("t3"), "the client stays");
        }
        assert_eq!(asked(&route, Some("t3"), &["t3"]).as_deref(), Some("t1"));
        assert_eq!(asked(&route, Some("t2"), &[]).map(|task| task != "t2"), Some(true), "it does not listen any more");
    }

    #[test]
    fn all_are_asked_while_none_was_seen_to_listen() {
        let web = with(&service("web", 1, "a.b", None), &[("t1", &[]), ("t2", &[])]);
        let route = chosen(&routes(vec![web], &Routes::default()));
        assert_eq!((route.ready, asked(&route, None, &["t1"]).as_deref()), (0, Some("t2")));
        let none = chosen(&routes(vec![service("web", 1, "a.b", None)], &Routes::default()));
        assert_eq!(asked(&none, None, &[]), None);
    }

    /// A slow one would refuse the clients of a fast one, and the requests without a bound fill the one that has.
    #[test]
    fn hosts_of_a_service_share_their_bounds_and_routes_with_other_bounds_count_for_themselves() {
        let mut of_two = (*with(&service("web", 1, "a.b", None), &[("t1", &[80])])).clone();
        let first = of_two.routes[0].clone();
        of_two.routes = vec![
            HttpRoute { hosts: vec!["a.b".to_owned(), "b.b".to_owned()], ..first.clone() },
            HttpRoute { hosts: vec!["admin.b".to_owned()], requests: 5, ..first },
        ];
        let web = Arc::new(of_two);
        let before = routes(vec![web.clone()], &Routes::default());
        let after = routes(vec![web], &before);
        for routes in [&before, &after] {
            let load = |host| routes.find(false, host, "/").and_then(|claim| claim.choose(|_| None)).unwrap().load.clone();
            assert!(Arc::ptr_eq(&load("a.b"), &load("b.b")) && !Arc::ptr_eq(&load("a.b"), &load("admin.b")));
        }
    }

    #[test]
    fn requests_are_shared_by_weight_among_services_that_have_a_task() {
        let (main, canary) = (service("main", 1, "a.b", Some(3)), service("canary", 2, "a.b", Some(1)));
        let shares = |routes: &Routes| {
            let names = (0..8).map(|_| chosen(routes).service.service_name.clone());
            names.filter(|name| name == "canary").count()
        };
        let both = vec![with(&main, &[("t1", &[80])]), with(&canary, &[("t2", &[80])])];
        assert_eq!(shares(&routes(both, &Routes::default())), 2);
        let one = vec![main, with(&canary, &[("t2", &[80])])];
        assert_eq!(shares(&routes(one, &Routes::default())), 8);
    }

    #[test]
    fn shares_are_not_taken_in_runs_and_go_on_after_a_change() {
        let both = |before: &Routes| {
            let (main, canary) = (service("main", 1, "a.b", Some(900)), service("canary", 2, "a.b", Some(100)));
            routes(vec![with(&main, &[("t1", &[80]), ("t3", &[80])]), with(&canary, &[("t2", &[80])])], before)
        };
        let canaries = |routes: &Routes, count| (0..count).filter(|_| chosen(routes).service.service_name == "canary").count();
        let table = both(&Routes::default());
        for hundred in 0..10 {
            assert!((5..=15).contains(&canaries(&table, 100)), "the hundred {hundred}");
        }
        let (mut after, mut of_canary) = (both(&table), 0);
        for _ in 0..100 {
            of_canary += canaries(&after, 1);
            after = both(&after);
        }
        assert!((5..=15).contains(&of_canary), "{of_canary} of 100 though the table changes with each");
        let first = asked(&after.of_service("main").unwrap(), None, &[]);
        let then = asked(&both(&after).of_service("main").unwrap(), None, &[]);
        assert_ne!(first, then, "tasks have their turn too");
    }

    #[test]
    fn bounds_are_of_the_service_whatever_the_host() {
        let web = service("web", 1, "a.b,c.d", None);
        let table = routes(vec![web.clone(), service("other", 2, "e.f", None)], &Routes::default());
        let load = |routes: &Routes, host: &str| routes.find(true, host, "/").unwrap().choices[0].load.clone();
        assert!(Arc::ptr_eq(&load(&table, "a.b"), &load(&table, "c.d")));
        assert!(!Arc::ptr_eq(&load(&table, "a.b"), &load(&table, "e.f")));
        let further = routes(vec![service("web", 1, "a.b,c.d,g.h", None)], &table);
        assert!(Arc::ptr_eq(&load(&table, "a.b"), &load(&further, "g.h")), "also one that has come later");
    }

    #[test]
    fn a_client_stays_with_its_task_among_services_that_share() {
        let sticky = |name: &str, created, weight, task: &str| {
            let service = with(&service(name, created, "a.b", Some(weight)), &[(task, &[80])]);
            let routes = service.routes.iter().map(|route| HttpRoute { sticky: "c".to_owned(), ..route.clone() }).collect();
            Arc::new(HttpService { routes, ..(*service).clone() })
        };
        let asked = |routes: &Routes, task: &'static str| {
            let names = (0..8).map(|_| {
                routes
                    .find(false, "a.b", "/")
                    .and_then(|claim| claim.choose(|_| Some(task)))
                    .unwrap()
                    .service
                    .service_name
                    .clone()
            });
            names.filter(|name| name == "canary").count()
        };
        let both = routes(vec![sticky("main", 1, 3, "t1"), sticky("canary", 2, 1, "t2")], &Routes::default());
        assert_eq!((asked(&both, "t2"), asked(&both, "t1"), asked(&both, "gone")), (8, 0, 2));
        let none = routes(vec![sticky("main", 1, 3, "t1"), sticky("canary", 2, 0, "t2")], &Routes::default());
        assert_eq!(asked(&none, "t2"), 0, "a weight of 0 ends it");
    }

    #[test]
    fn counters_go_on_after_a_change() {
        let before = routes(vec![service("web", 1, "a.b,c.d", None)], &Routes::default());
        chosen(&before).counters.count(200, std::time::Duration::ZERO, "");
        let after = routes(vec![with(&service("web", 1, "a.b", None), &[("t1", &[80])])], &before);
        assert_eq!(chosen(&after).counters.read().requests(), 1);
        let renamed = routes(vec![service("other", 1, "a.b", None)], &after);
        assert_eq!(chosen(&renamed).counters.read().requests(), 0);
    }
}
