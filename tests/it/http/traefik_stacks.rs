//! Labels as three public stacks have them, which are written for Traefik: each site is served as they say, without Traefik. The middleware
//! `https-redirect` is in the labels of Traefik's own service, as in all stacks of that family, and so it is not there.

use super::*;

const TASKS: [Ipv4Addr; 4] =
    [Ipv4Addr::new(127, 91, 0, 1), Ipv4Addr::new(127, 91, 0, 2), Ipv4Addr::new(127, 91, 0, 3), Ipv4Addr::new(127, 91, 0, 4)];

/// The two routers that such a service has.
fn routers(name: &str, rule: &str, port: u16, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("traefik.enable", "true"),
        ("traefik.docker.network", "traefik-public"),
        ("traefik.constraint-label", "traefik-public"),
    ]
    .into_iter()
    .chain(more.iter().copied())
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    for (router, option, value) in [
        ("http", "rule", rule),
        ("http", "entrypoints", "http"),
        ("http", "middlewares", "https-redirect"),
        ("https", "rule", rule),
        ("https", "entrypoints", "https"),
        ("https", "tls", "true"),
        ("https", "tls.certresolver", "le"),
    ] {
        labels.insert(format!("traefik.http.routers.{name}-{router}.{option}"), value.to_owned());
    }
    labels.insert(format!("traefik.http.services.{name}.loadbalancer.server.port"), port.to_string());
    labels
}

#[tokio::test]
async fn three_stacks_that_are_written_for_traefik_are_served_without_it() {
    let port = free_port();
    for address in TASKS {
        task::serve(address, port);
    }
    let api = "Host(`app.test`) && (PathPrefix(`/api`) || PathPrefix(`/docs`) || PathPrefix(`/redoc`))";
    let user = format!("ann:{}", bcrypt::hash("secret", 4).expect("a hash"));
    let auth = [
        ("traefik.http.middlewares.admin-auth.basicauth.users", user.as_str()),
        ("traefik.http.routers.prometheus-https.middlewares", "admin-auth"),
    ];
    let all = [
        // A management page.
        routers("portainer", "Host(`portainer.test`)", port, &[]),
        // An application with its interface below paths of the same host.
        routers("backend", api, port, &[]),
        routers("frontend", "Host(`app.test`) || Host(`www.app.test`)", port, &[]),
        // Monitoring, behind a password.
        routers("prometheus", "Host(`prometheus.test`)", port, &auth),
    ];
    let site = |(labels, task): (BTreeMap<String, String>, Ipv4Addr)| Site {
        labels,
        tasks: vec![(format!("task{task}"), task)],
        certificate: None,
    };
    for labels in &all {
        assert_eq!(HttpLabels::read(labels).expect("labels").refused, [""; 0]);
    }
    let ingress = Ingress::with("traefik-stacks", all.into_iter().zip(TASKS).map(site).collect()).await;
    let ask = |scheme: &str, address: &str, more: &[&str]| {
        let (host, path) = address.split_once('/').expect("a path");
        let port = if scheme == "https" { ingress.ports.tls } else { ingress.ports.plain };
        let url = format!("{scheme}://{host}:{port}/{path}");
        ingress.curl(&[&["-w", "%{http_code} %{redirect_url}", url.as_str()][..], more].concat())
    };
    for (address, task) in
        [("portainer.test/", 0), ("app.test/api/users", 1), ("app.test/docs", 1), ("app.test/", 2), ("www.app.test/apis", 2)]
    {
        let answer = ask("https", address, &[]);
        assert_eq!(shown(&answer)["at"], TASKS[task].to_string(), "{address}: {answer}");
        let (host, path) = address.split_once('/').expect("a path");
        let redirect = ask("http", address, &["-o", "/dev/null"]);
        assert_eq!(redirect, format!("308 https://{host}:{}/{path}", ingress.ports.tls), "{address}");
    }
    assert!(ask("https", "prometheus.test/", &[]).contains("401"));
    let answer = ask("https", "prometheus.test/graph", &["-u", "ann:secret"]);
    assert_eq!(shown(&answer)["at"], TASKS[3].to_string(), "{answer}");
    let with = |stack: &BTreeMap<String, String>, more: &[(&str, &str)]| {
        let mut labels = stack.clone();
        labels.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        site((labels, TASKS[0]))
    };
    // The first router is for both listeners but for the second one's requests, and what it redirects has a password.
    let mut of_both = routers("prometheus", "Host(`prometheus.test`)", port, &auth);
    of_both.remove("traefik.http.routers.prometheus-http.entrypoints");
    let closed = routers("closed", "Host(`app.test`) && PathPrefix(`/admin`)", port, &[]);
    let auth = [auth[0], ("traefik.http.routers.closed-https.middlewares", "admin-auth")];
    let open = routers("open", "Host(`app.test`)", port, &[]);
    ingress.set(vec![with(&of_both, &[]), with(&closed, &auth), with(&open, &[])]).await;
    assert!(ask("https", "prometheus.test/", &[]).contains("401"));
    let redirect = ask("http", "prometheus.test/", &["-o", "/dev/null"]);
    assert_eq!(redirect, format!("308 https://prometheus.test:{}/", ingress.ports.tls));
    // Where the proxy's own settings send all sites to https there is no router without TLS.
    let mut with_tls = routers("portainer", "Host(`portainer.test`)", port, &[]);
    with_tls.retain(|key, _| !key.contains("portainer-http."));
    ingress.set(vec![with(&of_both, &[]), with(&closed, &auth), with(&open, &[]), with(&with_tls, &[])]).await;
    let redirect = ask("http", "portainer.test/x", &["-o", "/dev/null"]);
    assert_eq!(redirect, format!("308 https://portainer.test:{}/x", ingress.ports.tls));
    for (path, status) in [("admin", "401"), ("admin/x", "401"), ("admin.php", "401"), ("administer", "401"), ("adm", "200")] {
        let answer = ask("https", &format!("app.test/{path}"), &["-o", "/dev/null"]);
        assert!(answer.starts_with(status), "a prefix is of characters there: {path}: {answer}");
    }
}
