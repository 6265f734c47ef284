//! A private registry (Debian's docker-registry, with names and passwords) on a host of its own.

use super::super::lab::engine_root;
use super::kit::*;
use skep::lab::{Host, Lab, WHOAMI_IMAGE, output, whoami_image};
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};

const PORT: u16 = 5000;
/// `ann:swordfish`, as `htpasswd -nbB` prints it.
const USERS: &str = "ann:$2y$05$EyXwZcHqZ1m.IxvB1Kw6r.zFNo2v7QMyzmdrZATLshSultve22gIG\n";

/// Starts the registry on a host.
async fn registry(host: &Host) -> Child {
    let dir = host.dir();
    std::fs::write(dir.join("users"), USERS).expect("written");
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {0}/registry}}}}\nhttp: {{addr: '{1}:{PORT}'}}\n\
         auth: {{htpasswd: {{realm: lab, path: {0}/users}}}}\n",
        dir.display(),
        host.address()
    );
    std::fs::write(dir.join("registry.yml"), config).expect("written");
    let log = std::fs::File::create(dir.join("registry.log")).expect("a log");
    let mut command = host.command("docker-registry");
    command.arg("serve").arg(dir.join("registry.yml")).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    let child = command.spawn().expect("docker-registry: config/install-tools installs it");
    within(15, "the registry to answer", || async {
        let answer = host.run(&format!("curl -sS -o /dev/null -w %{{http_code}} http://{}:{PORT}/v2/", host.address())).await?;
        anyhow::ensure!(answer.trim() == "401", "{answer}");
        Ok(())
    })
    .await;
    child
}

/// A swarm whose engines take the registry without TLS.
async fn swarm_with(lab: Lab, registry: &Host) -> Swarm {
    let mut hosts = Vec::new();
    for number in 1..=2 {
        let mut host = lab.host(&format!("n{number}"), number).await.expect("host");
        let config = format!("{{\"insecure-registries\": [\"{}:{PORT}\"]}}", registry.address());
        std::fs::write(host.dir().join("engine.json"), config).expect("written");
        std::fs::write(host.dir().join("skep.toml"), "[access_point]\nenabled = true\n").expect("written");
        host.start_engine(&engine_root()).await.expect("engine");
        start(&mut host).await;
        hosts.push(host);
    }
    let swarm = Swarm { lab, hosts };
    init(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    let manager = swarm.hosts[0].address();
    let join = format!("swarm join --availability pause --token {token} {manager}:2377");
    swarm.hosts[1].docker_run(&join).await.expect("join");
    swarm.ready(2).await;
    let node = get(&swarm.hosts[0], "/nodes/n2").await;
    assert_eq!(node["Spec"]["Availability"], "pause");
    swarm.hosts[0].docker_run("node update --availability active n2").await.expect("active");
    swarm
}

/// What docker's CLI says, with the passwords in `config`.
async fn cli(mut command: Command, config: &Path, line: &str) -> anyhow::Result<String> {
    command.env("DOCKER_CONFIG", config).args(line.split_whitespace());
    output(&mut command).await
}

/// Another image under the same name, in the registry.
async fn push(host: &Host, config: &Path, image: &str, text: &str) {
    let file = host.dir().join("Dockerfile");
    std::fs::write(&file, format!("FROM {WHOAMI_IMAGE}\nLABEL version={text}\n")).expect("written");
    let mut build = host.engine_cli();
    build.env("DOCKER_BUILDKIT", "0").args(["build", "-q", "-t", image, "-f"]).arg(&file).arg(host.dir().join("image/www"));
    output(&mut build).await.expect("built");
    cli(host.engine_cli(), config, &format!("push -q {image}")).await.expect("pushed");
}

async fn image_of(host: &Host, service: &str) -> String {
    let service = get(host, &format!("/services/{service}")).await;
    service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str().expect("an image").to_owned()
}

/// A spec without a digest, as docker-py and Portainer post it: nodes that have the image under the tag look for a newer one.
async fn unpinned_follows_its_tag(swarm: &Swarm, config: &Path, store: &Host) {
    let manager = &swarm.hosts[0];
    let image = format!("{}:{PORT}/shop/moves:1", store.address());
    let labels = async || {
        let mut labels = Vec::new();
        for host in &swarm.hosts {
            let filters =
                ["label=com.docker.swarm.service.name=moves", "status=running"].map(|filter| format!("--filter={filter}"));
            let mut command = host.engine_cli();
            command.arg("ps").args(filters).args(["--format", "{{.Label \"version\"}}"]);
            let shown = output(&mut command).await.expect("containers");
            labels.push(shown.trim().to_owned());
        }
        labels
    };
    push(manager, config, &image, "old").await;
    let options = "--with-registry-auth --detach=false --no-resolve-image";
    let create = format!("service create {options} --name moves --replicas 2 --update-monitor 1s {image}");
    cli(manager.docker(), config, &create).await.expect("created");
    assert_eq!(labels().await, ["old", "old"]);
    push(manager, config, &image, "new").await;
    output(manager.engine_cli().args(["rmi", "-f", &image])).await.expect("removed");
    cli(manager.docker(), config, "service update --with-registry-auth --detach=false --no-resolve-image --force moves")
        .await
        .expect("updated");
    assert_eq!(image_of(manager, "moves").await, image, "not pinned");
    within(20, "the new image on both nodes", || async {
        let labels = labels().await;
        anyhow::ensure!(labels == ["new", "new"], "{labels:?}");
        Ok(())
    })
    .await;
}

/// A pull at the access point is one on every engine, with the client's password.
async fn pulled_by_all(swarm: &Swarm, config: &Path, store: &Host) {
    let manager = &swarm.hosts[0];
    let image = format!("{}:{PORT}/shop/everywhere:1", store.address());
    push(manager, config, &image, "everywhere").await;
    output(manager.engine_cli().args(["rmi", &image])).await.expect("removed");
    let mut command = Command::new("docker");
    command.arg("-H").arg(format!("unix://{}", manager.run_dir().join("cluster.sock").display()));
    let said = cli(command, config, &format!("pull {image}")).await.expect("pulled");
    assert!(said.contains("n1") && said.contains("n2"), "{said}");
    for host in &swarm.hosts {
        output(host.engine_cli().args(["image", "inspect", &image])).await.expect("on every engine");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_reaches_the_worker_is_pinned_by_digest_and_follows_its_tag() {
    let lab = Lab::new(super::super::lab::lab_dir("reg")).await.expect("lab");
    let store = lab.host("store", 9).await.expect("host");
    let _registry = registry(&store).await;
    let swarm = swarm_with(lab, &store).await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    whoami_image(manager).await.expect("image");
    let image = format!("{}:{PORT}/shop/app:1", store.address());
    let (with, without) = (manager.dir().join("with"), manager.dir().join("without"));
    for dir in [&with, &without] {
        std::fs::create_dir_all(dir).expect("a directory");
    }
    let login = format!("login -u ann -p swordfish {}:{PORT}", store.address());
    cli(manager.engine_cli(), &with, &login).await.expect("logged in");
    push(manager, &with, &image, "one").await;

    let create =
        format!("service create --with-registry-auth --detach=false --name app --replicas 2 --update-monitor 1s {image}");
    let said = cli(manager.docker(), &with, &create).await.expect("created");
    assert!(said.contains("converged"), "{said}");
    let pinned = image_of(manager, "app").await;
    assert!(pinned.starts_with(&format!("{image}@sha256:")), "{pinned}");
    let tasks = swarm.running("app", 2).await;
    let nodes: std::collections::BTreeSet<&str> = tasks.iter().filter_map(|task| task["NodeID"].as_str()).collect();
    assert_eq!(nodes.len(), 2, "a task on each node: {tasks:#?}");
    let pulled =
        cli(worker.engine_cli(), &without, "images --digests --format {{.Repository}}@{{.Digest}}").await.expect("images");
    let digest = pinned.split('@').nth(1).expect("a digest");
    assert!(pulled.contains(digest), "{pulled}");

    // As image updaters do (Shepherd, gantry): the same tag again. Nothing changes while it is the same image.
    let update = format!("service update --with-registry-auth --detach=false --image {image} app");
    cli(manager.docker(), &with, &update).await.expect("updated");
    assert_eq!(image_of(manager, "app").await, pinned);
    let ids =
        |tasks: &[serde_json::Value]| tasks.iter().map(|task| task["ID"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&swarm.running("app", 2).await), ids(&tasks), "no task is replaced");
    push(manager, &with, &image, "two").await;
    let said = cli(manager.docker(), &with, &update).await.expect("updated");
    assert!(said.contains("converged"), "{said}");
    assert_ne!(image_of(manager, "app").await, pinned);
    let replaced = swarm.running("app", 2).await;
    assert!(ids(&replaced).is_disjoint(&ids(&tasks)), "{replaced:#?}");

    unpinned_follows_its_tag(&swarm, &with, &store).await;
    pulled_by_all(&swarm, &with, &store).await;

    // Without a password no engine has it. The text is the real swarm's.
    let image = format!("{}:{PORT}/shop/other:1", store.address());
    push(manager, &with, &image, "three").await;
    output(manager.engine_cli().args(["rmi", &image])).await.expect("removed");
    let create = format!("service create --detach --name other {image}");
    cli(manager.docker(), &without, &create).await.expect("created");
    within(30, "a task that says why", || async {
        let tasks = swarm.tasks("other").await;
        let why = tasks.iter().any(|task| task["Status"]["Err"].as_str().is_some_and(|why| why.contains("No such image")));
        anyhow::ensure!(why, "{tasks:#?}");
        Ok(())
    })
    .await;
    store.stop().await;
    swarm.stop().await;
}
