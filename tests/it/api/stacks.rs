//! `docker stack` with the stock CLI: ten files in the shape of well-known ones, deployed twice and removed; and what else a user
//! does with a stack.

use super::docker_cli::{docker, docker_refused, run_docker};
use super::fixture::ApiFixture;
use super::managed::ManagedSwarm;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/stacks")
}

/// The names of the files, without their ends.
const STACKS: [&str; 10] =
    ["voting", "monitoring", "portainer", "traefik", "wordpress", "gitlab", "celery", "elk", "ghost", "nextcloud"];

/// Objects of each kind with a stack's label.
async fn objects(swarm: &ManagedSwarm, stack: &str) -> Vec<Value> {
    let filter = format!("%7B%22label%22%3A%5B%22com.docker.stack.namespace%3D{stack}%22%5D%7D");
    let mut all = Vec::new();
    for kind in ["services", "networks", "secrets", "configs"] {
        let found: Value = swarm.api.client.get(&format!("/{kind}?filters={filter}")).await.unwrap().json().unwrap();
        all.extend(found.as_array().unwrap().iter().cloned());
    }
    all
}

async fn deploy(swarm: &ManagedSwarm, file: &Path, stack: &str) {
    docker(&swarm.api, &format!("stack deploy -d --resolve-image never -c {} {stack}", file.display())).await;
    settled(swarm).await;
}

/// On a network, as the services of the stacks: its tasks are stopped as theirs are, so later than those that were to stop before.
async fn canary(api: &ApiFixture) {
    docker(api, "network create -d overlay canary").await;
    docker(api, "service create -d --no-resolve-image --name canary --network canary --stop-grace-period 1s lab:1").await;
}

/// Waits until the orchestrator has seen everything that was written before: it carries out a later change of another service.
async fn settled(swarm: &ManagedSwarm) {
    let force = docker(&swarm.api, "service update -d --force --no-resolve-image canary").await;
    assert!(force.contains("canary"), "{force}");
    let version = swarm.store.read().service_named("canary").unwrap().spec_version;
    swarm
        .until("the canary's new task", |store| {
            store.tasks().any(|t| {
                t.service_name == "canary" && t.spec_version == version && t.status.state == skep::model::TaskState::Running
            })
        })
        .await;
    swarm.converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_well_known_stacks_are_deployed_again_without_a_new_task_and_removed() {
    let swarm = ManagedSwarm::new().await;
    let api = &swarm.api;
    docker(api, "network create -d overlay --attachable traefik-public").await;
    run_docker(api, &["secret", "create", "db_password", "-"], "secret").await;
    run_docker(api, &["config", "create", "php_settings", "-"], "memory_limit=1G").await;
    canary(api).await;
    for stack in STACKS {
        let file = folder().join(format!("{stack}.yml"));
        deploy(&swarm, &file, stack).await;
        let before = of_stack(&swarm, stack);
        assert!(before.len() > 1, "{stack}: {before:?}");
        let specs = spec_versions(&swarm, stack);
        deploy(&swarm, &file, stack).await;
        assert_eq!(of_stack(&swarm, stack), before, "{stack}: nothing has changed, so no task is replaced");
        assert_eq!(spec_versions(&swarm, stack), specs, "{stack}");
        let listed = docker(api, "stack ls --format {{.Name}}={{.Services}}").await;
        assert_eq!(listed.trim(), format!("{stack}={}", specs.len()));
        let services = docker(api, &format!("stack services --format {{{{.Name}}}}={{{{.Replicas}}}} {stack}")).await;
        assert_eq!(services.lines().count(), specs.len());
        let tasks = docker(api, &format!("stack ps -q --filter desired-state=running {stack}")).await;
        assert_eq!(tasks.lines().count(), before.len(), "{stack}: {tasks}");
        docker(api, &format!("stack rm {stack}")).await;
        assert_eq!(objects(&swarm, stack).await, Vec::<Value>::new(), "{stack}: nothing of it is left");
    }
    for external in ["network inspect traefik-public", "secret inspect db_password", "config inspect php_settings"] {
        docker(api, external).await;
    }
}

/// Wanted tasks of a stack, by id with the service's name.
fn of_stack(swarm: &ManagedSwarm, stack: &str) -> BTreeMap<String, String> {
    let prefix = format!("{stack}_");
    swarm.tasks().into_iter().filter(|(service, _)| service.starts_with(&prefix)).map(|(service, id)| (id, service)).collect()
}

/// By service: the version of the spec that its tasks follow.
fn spec_versions(swarm: &ManagedSwarm, stack: &str) -> BTreeMap<String, u64> {
    let (store, prefix) = (swarm.store.read(), format!("{stack}_"));
    store.services().filter(|s| s.spec.name.starts_with(&prefix)).map(|s| (s.spec.name.clone(), s.spec_version)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_changes_by_what_its_files_change_and_is_pruned() {
    let swarm = ManagedSwarm::new().await;
    let (api, dir) = (&swarm.api, swarm.api.socket.parent().unwrap().to_owned());
    canary(api).await;
    let write = |name: &str, text: &str| {
        let file = dir.join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let settings = write("settings.txt", "first");
    let base = write(
        "base.yml",
        "services:\n  web: {image: 'lab:1', configs: [settings], deploy: {replicas: 2}}\n  db: {image: 'lab:1'}\n  old: {image: 'lab:1'}\n\
         configs:\n  settings: {file: ./settings.txt}\n",
    );
    deploy(&swarm, &base, "shop").await;
    let before = of_stack(&swarm, "shop");
    assert_eq!(before.len(), 4);

    // A second file changes one service: that one's tasks alone are replaced.
    let more =
        write("more.yml", "services:\n  db: {image: 'lab:2', environment: {A: b}, deploy: {update_config: {monitor: 4s}}}\n");
    let both = format!("stack deploy -d --resolve-image never -c {} -c {} shop", base.display(), more.display());
    docker(api, &both).await;
    settled(&swarm).await;
    let after = of_stack(&swarm, "shop");
    let new: Vec<&String> = after.iter().filter(|(id, _)| !before.contains_key(*id)).map(|(_, service)| service).collect();
    assert_eq!(new, ["shop_db"]);
    let shown = docker(api, &format!("stack config -c {} -c {}", base.display(), more.display())).await;
    assert!(shown.contains("lab:2") && shown.contains("A: b"), "{shown}");

    // What is in no file any more goes with --prune alone.
    let fewer = write(
        "fewer.yml",
        "services:\n  web: {image: 'lab:1', configs: [settings], deploy: {replicas: 2}}\nconfigs:\n  settings: {file: ./settings.txt}\n",
    );
    deploy(&swarm, &fewer, "shop").await;
    assert_eq!(spec_versions(&swarm, "shop").len(), 3);
    docker(api, &format!("stack deploy -d --prune --resolve-image never -c {} shop", fewer.display())).await;
    assert_eq!(spec_versions(&swarm, "shop").into_keys().collect::<Vec<_>>(), ["shop_web"]);

    // A config's content cannot change; what is external must exist, and be the swarm's.
    std::fs::write(&settings, "second").unwrap();
    let deploy_fewer = format!("stack deploy -d --resolve-image never -c {} shop", fewer.display());
    assert!(docker_refused(api, &deploy_fewer).await.contains("only updates to Labels are allowed"));
    let external = write(
        "external.yml",
        "services:\n  web: {image: 'lab:1', networks: [n], secrets: [s]}\nnetworks:\n  n: {external: true, name: NET}\nsecrets:\n  s: {external: true}\n",
    );
    let deploy_external = format!("stack deploy -d --resolve-image never -c {} ext", external.display());
    let text = std::fs::read_to_string(&external).unwrap();
    for (network, refusal) in [
        (
            "missing",
            "network \"missing\" is declared as external, but could not be found. You need to create a swarm-scoped network",
        ),
        ("bridge0", "is declared as external, but it is not in the right scope: \"local\" instead of \"swarm\""),
    ] {
        std::fs::write(&external, text.replace("NET", network)).unwrap();
        let refused = docker_refused(api, &deploy_external).await;
        assert!(refused.contains(refusal) || network == "bridge0" && refused.contains("could not be found"), "{refused}");
    }
    docker(api, "network create -d overlay shared").await;
    std::fs::write(&external, text.replace("NET", "shared")).unwrap();
    assert!(docker_refused(api, &deploy_external).await.contains("secret not found: s"));
    run_docker(api, &["secret", "create", "s", "-"], "secret").await;
    docker(api, &deploy_external).await;

    // Removing ends well while tasks still stop, twice, and says when there is nothing.
    let removed = docker(api, "stack rm shop ext").await;
    assert!(removed.contains("Removing service shop_web") && removed.contains("Removing config shop_settings"), "{removed}");
    let nothing = run_docker(api, &["stack", "rm", "shop"], "").await;
    // Ansible compares the whole text.
    assert_eq!(format!("{}{}", nothing.1, nothing.2).trim(), "Nothing found in stack: shop");
    assert_eq!(objects(&swarm, "shop").await, Vec::<Value>::new());
}
