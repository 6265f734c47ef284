//! HTTP routes of a swarm as a user sees them: on every node, with real engines, through updates, a killed daemon and an upgrade.

use super::super::load::{Load, Target, of_host, server};
use super::super::ports::client;
use super::kit::*;
use serde_json::{Value, json};
use skep::http::UnixClient;
use skep::lab::Host;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// Creates the test server as a service with these labels and further parts of its spec.
pub async fn create(swarm: &Swarm, name: &str, replicas: usize, labels: Value, more: Value) {
    let mut spec = json!({
        "Name": name, "Labels": labels, "Mode": { "Replicated": { "Replicas": replicas } },
        "UpdateConfig": { "Parallelism": 1, "Monitor": 1_000_000_000 },
    });
    let mut template = server::template(&json!([]));
    template["ContainerSpec"]["Image"] = json!(skep::lab::WHOAMI_IMAGE);
    spec["TaskTemplate"] = template;
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
}

/// Waits until so many tasks of the first route are ready on every host.
pub async fn ready(hosts: &[Host], count: usize) {
    for host in hosts {
        within(40, "ready tasks of the route", || async {
            let http = status(host).await["http"].take();
            anyhow::ensure!(http["routes"][0]["ready"] == json!(count), "{}: {http:#}", host.name());
            Ok(())
        })
        .await;
    }
}

/// What curl says, from a host.
pub async fn curl(from: &Host, arguments: &str) -> String {
    from.run(&format!("curl -sS --max-time 10 {arguments}")).await.unwrap_or_else(|error| format!("{error:#}"))
}

/// Waits until no program of the host listens on the ports of HTTP.
async fn no_listener(host: &Host) {
    within(15, "the process to end", || async {
        let listens = host.run("ss -Hlnt").await?;
        anyhow::ensure!(!listens.contains(":80 ") && !listens.contains(":443 "), "{listens}");
        Ok(())
    })
    .await;
}

async fn pid_of_http(host: &Host) -> Value {
    status(host).await["http"]["pid"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_on_every_node_and_a_killed_daemon_an_upgrade_and_rollouts_lose_no_request() {
    let mut swarm = swarm("ht", 2, "").await;
    let client = client(&swarm).await;
    create(&swarm, "shop", 2, json!({ "skep.http": "test,shop.example.com" }), json!({})).await;
    swarm.running("shop", 2).await;
    ready(&swarm.hosts, 2).await;
    for host in &swarm.hosts {
        let to = host.address();
        let plain = curl(&client, &format!("-w %{{http_code}}/%{{http_version}} -H Host:shop.example.com http://{to}/")).await;
        assert!(plain.contains(" ok ") && plain.ends_with("200/1.1"), "{plain}");
        let resolve = format!("--resolve shop.example.com:443:{to}");
        let tls = curl(&client, &format!("-k -w %{{http_code}}/%{{http_version}} {resolve} https://shop.example.com/")).await;
        assert!(tls.contains(" ok ") && tls.ends_with("200/2"), "{tls}");
        let unknown = curl(&client, &format!("http://{to}/")).await;
        assert!(unknown.starts_with("404 no route for"), "{unknown}");
    }
    shown_by_the_dashboard(&swarm).await;
    let outside = of_host(&client);
    let targets = || swarm.hosts.iter().map(|host| Target::new(&outside, SocketAddr::from((host.address(), 80)), host.name()));
    let pause = Duration::from_millis(20);
    let loads = [
        ("new", Load::http(targets(), pause, false)),
        ("kept", Load::http(targets(), pause, true)),
        ("HTTP/2", Load::http2(targets(), pause)),
        ("upgraded", Load::upgraded(targets(), pause)),
    ];

    let before = pid_of_http(&swarm.hosts[0]).await;
    ledger_is_written(&swarm.hosts[0]).await;
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    let killed_at = loads[0].1.answers();
    within(10, "answers without a daemon", || async {
        let now = loads[0].1.answers();
        anyhow::ensure!(now.iter().zip(&killed_at).all(|(now, before)| *now > before + 20), "{killed_at:?} {now:?}");
        Ok(())
    })
    .await;
    start(&mut swarm.hosts[0]).await;
    ready(&swarm.hosts[..1], 2).await;
    assert_eq!(pid_of_http(&swarm.hosts[0]).await, before, "the process is adopted");

    // Another build: the same program and a byte.
    let other = swarm.lab.dir().join("skep-next");
    std::fs::copy(SKEP, &other).expect("copied");
    std::fs::OpenOptions::new().append(true).open(&other).and_then(|mut file| file.write_all(b"\n")).expect("appended");
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    start_as(&mut swarm.hosts[0], &other).await;
    ready(&swarm.hosts[..1], 2).await;
    within(20, "the new build's process", || async {
        let now = pid_of_http(&swarm.hosts[0]).await;
        anyhow::ensure!(now != before && now.is_u64(), "{now}");
        Ok(())
    })
    .await;

    let said = swarm.hosts[0].docker_run("service update --env-add ROUND=1 shop").await.expect("updated");
    assert!(said.contains("converged"), "{said}");
    for (what, load) in loads {
        for tally in load.stop().await {
            eprintln!(
                "{what} {}: {} answers, {} lost, slowest {:?}",
                tally.label,
                tally.answers(),
                tally.failed.len(),
                tally.slowest
            );
            assert!(
                tally.failed.is_empty(),
                "{what} {}: {:?}",
                tally.label,
                tally.failed.iter().map(|f| &f.why).collect::<Vec<_>>()
            );
            // An upgraded connection stays with its task.
            let least = if what == "upgraded" { 2 } else { 4 };
            assert!(tally.answered.len() >= least, "old and new tasks are reached: {:?}", tally.answered);
        }
    }

    // Without a route there is no process and no listener.
    let api = UnixClient::new(swarm.hosts[0].skep_socket());
    ok(&api.request("DELETE", "/services/shop", None).await.expect("skep answers"));
    for host in &swarm.hosts {
        no_listener(host).await;
    }
    client.stop().await;
    swarm.stop().await;
}

async fn shown_by_the_dashboard(swarm: &Swarm) {
    let manager = super::dashboard::overview(&swarm.hosts[0]).await;
    assert_eq!(manager["services"][0]["name"], "shop", "{manager:#}");
    assert_eq!(manager["services"][0]["running"], 2, "{manager:#}");
    assert_eq!(manager["tasks"].as_array().map(Vec::len), Some(2), "{manager:#}");
    assert_eq!(manager["nodes"].as_array().map(Vec::len), Some(2), "{manager:#}");
    assert!(manager["http"]["routes"][0]["requests"].is_u64(), "{manager:#}");
    let worker = super::dashboard::overview(&swarm.hosts[1]).await;
    let says_why = worker["cluster_error"].as_str().is_some_and(|why| why.contains("manager"));
    assert!(says_why || worker["services"][0]["name"] == "shop", "{worker:#}");
    assert_eq!((worker["nodes"].as_array().map(Vec::len), worker["this"]["role"].as_str()), (Some(2), Some("worker")));
}

/// A stack as it is written for Traefik and nginx-proxy, and a certificate from a secret.
const STACK: &str = r#"
version: "3.8"
services:
  site:
    image: IMAGE
    deploy:
      labels:
        - traefik.enable=true
        - traefik.docker.network=traefik-public
        - traefik.http.routers.site-http.rule=Host(`site.test`)
        - traefik.http.routers.site-http.entrypoints=http
        - traefik.http.routers.site-http.middlewares=https-redirect
        - traefik.http.middlewares.https-redirect.redirectscheme.scheme=https
        - traefik.http.routers.site.rule=Host(`site.test`)
        - traefik.http.routers.site.entrypoints=https
        - traefik.http.routers.site.tls=true
        - traefik.http.routers.site.tls.certresolver=le
        - traefik.http.services.site.loadbalancer.server.port=80
        - skep.http=other.test
        - skep.http.tls=cert
  api:
    image: IMAGE
    deploy:
      labels:
        traefik.enable: "true"
        traefik.http.routers.api.rule: Host(`site.test`) && PathPrefix(`/api`)
        traefik.http.routers.api.middlewares: strip
        traefik.http.middlewares.strip.stripprefix.prefixes: /api
        traefik.http.services.api.loadbalancer.server.port: "80"
  legacy:
    image: IMAGE
    environment:
      VIRTUAL_HOST: old.test
      VIRTUAL_PORT: "80"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_for_traefik_runs_without_it_and_conflicts_are_named_on_every_node() {
    let swarm = swarm("hs", 2, "").await;
    let client = client(&swarm).await;
    let first = &swarm.hosts[0];
    std::fs::write(client.dir().join("cert.pem"), super::super::http::pem("other.test")).expect("written");
    let file = client.dir().join("stack.yml");
    std::fs::write(&file, STACK.replace("IMAGE", skep::lab::WHOAMI_IMAGE)).expect("written");
    first.docker_run(&format!("secret create cert {}", client.dir().join("cert.pem").display())).await.expect("a secret");
    let deployed =
        first.docker_run(&format!("stack deploy -d --resolve-image never -c {} st", file.display())).await.expect("deployed");
    assert!(deployed.contains("st_site"), "{deployed}");
    // Younger than the stack, whose services are created in any order.
    let taken = "service create -d --no-resolve-image --name taken --label skep.http=other.test skep/whoami:1";
    first.docker_run(taken).await.expect("created");
    let refused = first
        .docker_run("service create -d --no-resolve-image --name x --label skep.http.prot=1 --label skep.http=a.b skep/whoami:1")
        .await;
    let refused = format!("{:#}", refused.expect_err("refused"));
    assert!(refused.contains("skep.http.prot: skep has no such label"), "{refused}");
    for host in &swarm.hosts {
        within(40, "all routes", || async {
            let http = status(host).await["http"].take();
            let routes = http["routes"].as_array().cloned().unwrap_or_default();
            anyhow::ensure!(routes.len() == 4 && routes.iter().all(|route| route["ready"] == 1), "{http:#}");
            let certificate = |host: &str| routes.iter().find(|r| r["host"] == host).map(|r| r["certificate"].clone());
            let of_secret = certificate("other.test").is_some_and(|text| text.as_str().is_some_and(|t| t == "secret"));
            anyhow::ensure!(of_secret, "{http:#}");
            let problems = http["problems"].to_string();
            anyhow::ensure!(problems.contains("service taken: other.test/ is st_site's"), "{problems}");
            Ok(())
        })
        .await;
        let to = host.address();
        let resolve = format!("--resolve site.test:443:{to} --resolve other.test:443:{to}");
        let code = "-o /dev/null -w %{http_code}:%{redirect_url}";
        let redirect = curl(&client, &format!("{code} -H Host:site.test http://{to}/a")).await;
        assert_eq!(redirect, "308:https://site.test/a");
        let page = curl(&client, &format!("-k {resolve} https://site.test/cgi-bin/index.cgi")).await;
        let api = curl(&client, &format!("-k {resolve} https://site.test/api/cgi-bin/index.cgi")).await;
        let legacy = curl(&client, &format!("-H Host:old.test http://{to}/cgi-bin/index.cgi")).await;
        assert!(legacy.lines().count() == 1 && legacy.contains(' '), "by the variables of nginx-proxy: {legacy}");
        let node = |answer: &str| answer.split(' ').next().map(str::to_owned);
        assert!(page.lines().count() == 1 && api.lines().count() == 1 && node(&page) != node(&api), "{page} {api}");
        let trusted = curl(
            &client,
            &format!("--cacert {} {resolve} https://other.test/cgi-bin/index.cgi", client.dir().join("cert.pem").display()),
        )
        .await;
        assert_eq!(node(&trusted), node(&page), "served with the certificate of the secret: {trusted}");
        let listed = host
            .command(SKEP)
            .args(["http", "routes", "--run-dir"])
            .arg(host.run_dir())
            .output()
            .await
            .expect("skep http routes");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("site.test   /api  st_api"), "{listed}");
    }
    within(20, "the conflict is an error of the task", || async {
        let errors = first.docker_run("service ps --no-trunc --format {{.Error}} taken").await?;
        anyhow::ensure!(errors.contains("HTTP route: other.test/ is st_site's"), "{errors}");
        Ok(())
    })
    .await;
    let kept = first.docker_run("secret rm cert").await.expect_err("its service needs it");
    assert!(format!("{kept:#}").contains("secret 'cert' is in use by the following service: st_site"), "{kept:#}");
    // A node that leaves serves no more.
    let second = &swarm.hosts[1];
    ok(&post(second, "/swarm/leave?force=true", &json!({})).await);
    no_listener(second).await;
    client.stop().await;
    swarm.stop().await;
}
