use super::*;
use crate::model::http::HttpRedirect;

fn read_lines(text: &str) -> TraefikLabels {
    let pair = |line: &str| line.trim().split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    read(&text.lines().filter_map(pair).collect())
}

fn shown(labels: &TraefikLabels) -> Vec<String> {
    let route = |route: &HttpRoute| {
        let strip = if route.strip { " strip" } else { "" };
        assert_eq!(route.prefix_end == PrefixEnd::Segment, route.prefix == "/", "PathPrefix is of characters");
        format!("{:?} {}{}:{}{strip}", route.entry, route.hosts.join(","), route.prefix, route.port)
    };
    labels.routes.iter().map(route).collect()
}

const PORT: &str = "traefik.http.services.app.loadbalancer.server.port=3000";

#[test]
fn a_common_stack_is_read_as_it_is() {
    // Of the documentation of dockerswarm.rocks, with `web` for `http`.
    let read = read_lines(&format!(
        "traefik.enable=true
         traefik.docker.network=traefik-public
         traefik.constraint-label=traefik-public
         traefik.http.routers.app-http.rule=Host(`app.example.com`)
         traefik.http.routers.app-http.entrypoints=http
         traefik.http.routers.app-http.middlewares=https-redirect
         traefik.http.middlewares.https-redirect.redirectscheme.scheme=https
         traefik.http.middlewares.https-redirect.redirectscheme.permanent=true
         traefik.http.routers.app-https.rule=Host(`app.example.com`)
         traefik.http.routers.app-https.entrypoints=https
         traefik.http.routers.app-https.tls=true
         traefik.http.routers.app-https.tls.certresolver=le
         {PORT}"
    ));
    assert_eq!(read.refused, [""; 0]);
    assert_eq!(shown(&read), ["Plain app.example.com/:3000", "Tls app.example.com/:3000"]);
    assert_eq!(read.routes[0].redirect, Some(HttpRedirect::Https));
    assert_eq!(read.routes[1].redirect, None);
    assert_eq!((read.routes[0].acme, read.routes[1].acme, read.notes.len()), (None, Some(true), 0));
}

#[test]
fn a_router_without_tls_gets_no_request_with_tls_where_another_one_has_it() {
    let users = "traefik.http.middlewares.auth.basicauth.users=ann:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";
    let of = |open: &str, closed: &str| {
        read_lines(&format!(
            "traefik.http.routers.app.rule={open}
             traefik.http.routers.app.middlewares=https-redirect
             traefik.http.routers.app-secure.rule={closed}
             traefik.http.routers.app-secure.entrypoints=websecure
             traefik.http.routers.app-secure.tls=true
             traefik.http.routers.app-secure.middlewares=auth
             {users}
             {PORT}"
        ))
    };
    for (open, closed, expected) in [
        ("Host(`a`)", "Host(`a`)", ["Plain a/:3000", "Tls a/:3000"]),
        ("Host(`a`) && PathPrefix(`/admin`)", "Host(`a`)", ["Plain a/admin:3000", "Tls a/:3000"]),
        ("Host(`a`)", "PathPrefix(`/admin`)", ["Plain a/:3000", "Tls */admin:3000"]),
        ("Host(`a`)", "Host(`a`) && PathPrefix(`/admin`)", ["Both a/:3000", "Tls a/admin:3000"]),
        ("Host(`b`)", "Host(`a`)", ["Both b/:3000", "Tls a/:3000"]),
    ] {
        let read = of(open, closed);
        assert_eq!((read.refused.len(), shown(&read)), (0, expected.map(str::to_owned).to_vec()), "{:?}", read.refused);
        assert_eq!(read.routes[1].auth.len(), 1);
        assert_eq!(read.routes[0].yields_tls, expected[0].starts_with("Both"), "another service may have it");
    }
    let open = |path: &str| {
        let router = "traefik.http.routers.tls.rule=Host(`a`)\ntraefik.http.routers.tls.tls=true";
        read_lines(&format!("traefik.http.routers.r.rule=Host(`a`){path}\n{router}\n{PORT}"))
    };
    assert_eq!(shown(&open("")), ["Plain a/:3000", "Tls a/:3000"]);
    assert_eq!(shown(&open(" && PathPrefix(`/x`)")), ["Both a/x:3000", "Tls a/:3000"], "an entry point may have TLS for all");
}

#[test]
fn flags_are_words_of_go() {
    let good = format!("traefik.http.routers.r.rule=Host(`a`)\n{PORT}");
    for (word, routes, refused) in
        [("0", 0, 0), ("f", 0, 0), ("FALSE", 0, 0), ("1", 1, 0), ("True", 1, 0), ("no", 0, 1), ("", 0, 1)]
    {
        let read = read_lines(&format!("traefik.enable={word}\n{good}"));
        assert_eq!((read.routes.len(), read.refused.len()), (routes, refused), "{word}: {:?}", read.refused);
        assert!(read.refused.iter().all(|why| why.contains(&format!("traefik.enable={word}: must be true or false"))));
    }
    let tls = read_lines(&format!("{good}\ntraefik.http.routers.r.tls=T"));
    assert_eq!(shown(&tls), ["Tls a/:3000"]);
}

#[test]
fn a_prefix_to_strip_is_that_of_the_rule_with_or_without_its_slash() {
    let read = read_lines(&format!(
        "traefik.http.routers.r.rule=Host(`a`) && PathPrefix(`/api/`)
         traefik.http.routers.r.middlewares=s
         traefik.http.middlewares.s.stripprefix.prefixes=/api
         {PORT}"
    ));
    assert_eq!(shown(&read), ["Both a/api:3000 strip"], "{:?}", read.refused);
    assert_eq!(read.routes[0].prefix_end, PrefixEnd::Slash);
}

#[test]
fn the_redirect_of_the_proxy_itself_is_known_by_its_name_and_nothing_else_of_it_is() {
    for (middleware, redirects) in [
        ("https-redirect", true),
        ("https-redirect@docker", true),
        ("redirect-to-https@file", true),
        ("admin-auth", false),
        ("https-redirects", false),
        ("secure-headers@file", false),
    ] {
        let read = read_lines(&format!(
            "traefik.http.routers.a.rule=Host(`a.b`)\ntraefik.http.routers.a.entrypoints=http\ntraefik.http.routers.a.middlewares={middleware}\n{PORT}"
        ));
        let redirect = read.routes.first().and_then(|route| route.redirect.clone());
        assert_eq!(
            (redirect, read.refused.len()),
            (redirects.then_some(HttpRedirect::Https), usize::from(!redirects)),
            "{middleware}"
        );
    }
    // One of these labels is what it says.
    let own = "traefik.http.middlewares.https-redirect.compress=true";
    let read = read_lines(&format!(
        "traefik.http.routers.a.rule=Host(`a.b`)\ntraefik.http.routers.a.middlewares=https-redirect\n{own}\n{PORT}"
    ));
    assert_eq!((read.routes[0].redirect.clone(), read.routes[0].compress), (None, true));
}

#[test]
fn a_rate_limit_has_the_defaults_of_traefik() {
    let of = |options: &[&str]| {
        let options: Vec<String> = options.iter().map(|one| format!("traefik.http.middlewares.l.ratelimit.{one}")).collect();
        let options = options.join("\n");
        read_lines(&format!("traefik.http.routers.a.rule=Host(`a.b`)\ntraefik.http.routers.a.middlewares=l\n{options}\n{PORT}"))
    };
    let rate = |requests, period_ms, burst| Some(crate::model::http::HttpRate { requests, period_ms, burst });
    for (options, expected) in [
        (&["average=100"][..], rate(100, 1000, 1)),
        (&["average=100", "burst=50", "period=1m"], rate(100, 60_000, 50)),
        (&["average=5", "period=10"], rate(5, 10_000, 1)),
        (&["average=0", "burst=50"], None),
        (&["burst=50"], None),
    ] {
        let read = of(options);
        assert_eq!((&read.refused[..], read.routes[0].rate), (&[] as &[String], expected), "{options:?}");
    }
    for option in ["average=many", "average=5\ntraefik.http.middlewares.l.ratelimit.sourcecriterion.requesthost=true"] {
        let read = of(&[option]);
        assert!(read.routes.is_empty() && read.refused[0].contains("ratelimit"), "{option}: {:?}", read.refused);
    }
}

#[test]
fn middlewares_become_fields_of_the_route() {
    let read = read_lines(&format!(
        "Traefik.HTTP.Routers.API.rule=Host(`a.b`) && PathPrefix(`/api`)
         traefik.http.routers.api.middlewares=all@docker
         traefik.http.middlewares.all.chain.middlewares=strip,head,body,users
         traefik.http.middlewares.strip.stripprefix.prefixes=/api,/other
         traefik.http.middlewares.head.headers.customrequestheaders.X-From=t
         traefik.http.middlewares.head.headers.customresponseheaders.Server=
         traefik.http.middlewares.head.headers.stsseconds=60
         traefik.http.middlewares.head.headers.stsincludesubdomains=true
         traefik.http.middlewares.head.headers.framedeny=true
         traefik.http.middlewares.body.buffering.maxrequestbodybytes=1000
         traefik.http.middlewares.users.ipallowlist.sourcerange=192.0.2.0/24
         traefik.http.middlewares.unused.ratelimit.average=1
         traefik.http.services.app.loadbalancer.sticky.cookie.name=stay
         {PORT}"
    ));
    assert_eq!((read.refused.len(), shown(&read)), (0, vec!["Both a.b/api:3000 strip".to_owned()]), "{:?}", read.refused);
    let route = &read.routes[0];
    let headers: Vec<String> = route.response_headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(headers, ["server=", "strict-transport-security=max-age=60; includeSubDomains", "x-frame-options=DENY"]);
    assert_eq!((route.request_headers["x-from"].expose().as_str(), route.body, route.sticky.as_str()), ("t", Some(1000), "stay"));
    assert_eq!(route.allow.len(), 1);
}

#[test]
fn bounds_compression_and_checks_become_fields_of_the_route() {
    let read = read_lines(&format!(
        "traefik.http.routers.app.rule=Host(`a.b`)
         traefik.http.routers.app.middlewares=most,small
         traefik.http.middlewares.most.inflightreq.amount=20
         traefik.http.middlewares.small.compress=true
         traefik.http.services.app.loadbalancer.healthcheck.path=/ping
         traefik.http.services.app.loadbalancer.healthcheck.interval=5s
         traefik.http.services.app.loadbalancer.healthcheck.hostname=a.b
         {PORT}"
    ));
    assert_eq!(read.refused, [""; 0]);
    let route = &read.routes[0];
    let check = route.check.as_ref().map(|check| (check.path.as_str(), check.interval_ms, check.host.as_str()));
    assert_eq!((route.requests, route.compress, check), (20, true, Some(("/ping", 5000, "a.b"))));
    let without = read_lines(&format!(
        "traefik.http.routers.app.rule=Host(`a.b`)
         traefik.http.services.app.loadbalancer.healthcheck.interval=5s
         {PORT}"
    ));
    assert!(without.refused[0].contains("check.path is missing"), "{:?}", without.refused);
}

#[test]
fn what_is_not_understood_is_refused_by_name_and_no_router_of_the_service_is_served() {
    let good = format!("traefik.http.routers.good.rule=Host(`g.example.com`)\n{PORT}");
    for (labels, expected) in [
        ("traefik.http.routers.r.rule=HostRegexp(`.+`)", "routers.r.rule=HostRegexp(`.+`): HostRegexp is not carried out"),
        ("traefik.http.routers.r.tls=true", "routers.r.rule: is missing"),
        ("traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.priority=5", "routers.r.priority=5"),
        ("traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.entrypoints=ssh", "entrypoints=ssh: skep has web"),
        ("traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.service=api@internal", "service=api@internal"),
        ("traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.middlewares=m", "middlewares=m: m is not in"),
        ("traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.middlewares=m@file", "m@file is not in"),
        (
            "traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.middlewares=m\ntraefik.http.middlewares.m.basicauth.realm=x",
            "basicauth: it has no users",
        ),
        (
            "traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.middlewares=m\ntraefik.http.middlewares.m.retry.attempts=1",
            "retry.attempts=1: skep does not",
        ),
        (
            "traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.middlewares=m\ntraefik.http.middlewares.m.chain.middlewares=m",
            "too deep",
        ),
        (
            "traefik.http.routers.r.rule=Host(`a`)\ntraefik.http.routers.r.middlewares=m\ntraefik.http.middlewares.m.stripprefix.prefixes=/x",
            "not among the prefixes to strip",
        ),
        ("traefik.tcp.routers.r.rule=HostSNI(`*`)", "label traefik.tcp.routers.r.rule: skep does not"),
    ] {
        let read = read_lines(&format!("{good}\n{labels}"));
        let [refused] = &read.refused[..] else { panic!("{labels}: {:?}", read.refused) };
        assert!(refused.starts_with("label traefik.") && refused.contains(expected), "{refused}");
        assert_eq!(shown(&read), [""; 0], "{labels}");
        assert!(read_lines(&format!("traefik.enable=false\n{good}\n{labels}")).refused.is_empty());
    }
    let without_port = read_lines("traefik.http.routers.r.rule=Host(`a`)");
    assert!(without_port.refused[0].contains("loadbalancer.server.port=8080"), "{:?}", without_port.refused);
}
