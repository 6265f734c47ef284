//! Routes of one service that ask for the same requests.

use super::route::HttpRoute;

/// What routes of one service ask for twice, for users, and whether one of two keeps out clients that the other one lets in. Routes that do the same with a request are no conflict.
pub(super) fn own_conflicts(routes: &[HttpRoute]) -> (Vec<String>, bool) {
    let (mut conflicts, mut opens) = (Vec::new(), false);
    for (at, route) in routes.iter().enumerate() {
        for earlier in &routes[..at] {
            let listener = route.entry.listeners().iter().find(|tls| earlier.entry.listeners().contains(tls));
            let host = route.hosts.iter().find(|host| earlier.hosts.contains(host));
            let (Some(tls), Some(host)) = (listener, host) else { continue };
            if route.prefix != earlier.prefix || does_the_same(route, earlier) {
                continue;
            }
            let scheme = if *tls { "https" } else { "http" };
            conflicts.push(format!(
                "a second route of the service for {scheme}://{host}{} does not do what the first one does",
                route.prefix
            ));
            opens |= (&route.auth, &route.allow) != (&earlier.auth, &earlier.allow);
        }
    }
    conflicts.dedup();
    (conflicts, opens)
}

/// Whether it makes no difference which of both a request is for.
fn does_the_same(a: &HttpRoute, b: &HttpRoute) -> bool {
    let without_place = |route: &HttpRoute| HttpRoute {
        hosts: Vec::new(),
        entry: super::HttpEntry::default(),
        yields_tls: false,
        acme: None,
        ..route.clone()
    };
    without_place(a) == without_place(b)
}

#[cfg(test)]
mod tests {
    use super::super::{BasicUser, HttpEntry};
    use super::*;

    #[test]
    fn routes_of_one_service_that_ask_for_the_same_requests_are_named() {
        let route = |entry, prefix: &str| HttpRoute {
            hosts: vec!["a.b".to_owned(), "c.d".to_owned()],
            prefix: prefix.to_owned(),
            entry,
            ..HttpRoute::default()
        };
        let auth = vec![BasicUser { name: "ann".to_owned(), hash: "h".into() }];
        let open = route(HttpEntry::Both, "/");
        let closed = HttpRoute { auth, ..route(HttpEntry::Tls, "/") };
        let other_port = HttpRoute { port: 81, ..open.clone() };
        let other_host = HttpRoute { hosts: vec!["e.f".to_owned()], ..other_port.clone() };
        for (routes, expected) in [
            (&[open.clone(), closed.clone()][..], (1, true)),
            (&[open.clone(), other_port.clone()], (1, false)),
            (&[open.clone(), open.clone()], (0, false)),
            (&[open.clone(), other_host], (0, false)),
            (&[HttpRoute { entry: HttpEntry::Plain, ..open.clone() }, closed], (0, false)),
            (&[open, HttpRoute { prefix: "/x".to_owned(), ..other_port }], (0, false)),
        ] {
            let (conflicts, opens) = own_conflicts(routes);
            assert_eq!((conflicts.len(), opens), expected, "{routes:?}: {conflicts:?}");
        }
    }
}
