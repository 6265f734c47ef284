//! Secrets and configs with the stock CLI: what containers see of them, and that nothing else does.

use super::kit::*;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use skep::http::UnixClient;
use skep::lab::{Host, WHOAMI_IMAGE};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

const SECRET: &str = "planted-Secret-4711";
const CONFIG: &str = "planted-Config-4712\n";
const TEMPLATE: &str = "{{ .Service.Name }}.{{ .Task.Slot }} {{ env \"MODE\" }} {{ secret \"tok\" }} {{ .Service.Labels.color }}";

/// Runs `docker ARGS…` against a host's skep with this standard input: exit code, standard output, standard error.
async fn docker(host: &Host, args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = host.docker();
    command.args(args).env("DOCKER_CONFIG", "/nonexistent");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("docker");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("written");
    drop(stdin);
    let out = child.wait_with_output().await.expect("ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

async fn docker_ok(host: &Host, args: &[&str], input: &str) -> String {
    let (code, out, err) = docker(host, args, input).await;
    assert_eq!(code, Some(0), "docker {args:?}: {out}{err}");
    out.trim().to_owned()
}

/// The one container of a host's tasks.
async fn container(host: &Host) -> String {
    within(20, "a container", || async {
        let ids = docker_ok(host, &["ps", "-q", "--filter", "label=com.docker.swarm.service.name=app"], "").await;
        anyhow::ensure!(!ids.is_empty() && !ids.contains('\n'), "{ids:?}");
        Ok(ids)
    })
    .await
}

async fn inside(host: &Host, container: &str, command: &str) -> String {
    let args: Vec<&str> = ["exec", container].into_iter().chain(command.split_whitespace()).collect();
    docker_ok(host, &args, "").await
}

/// Every file below a directory that contains one of the texts.
fn files_with(dir: &Path, texts: &[String], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() {
            files_with(&path, texts, found);
        } else if kind.is_file() {
            let content = std::fs::read(&path).unwrap_or_default();
            let has = |text: &String| content.windows(text.len()).any(|part| part == text.as_bytes());
            found.extend(texts.iter().filter(|text| has(text)).map(|text| format!("{} has {text}", path.display())));
        }
    }
}

#[tokio::test]
async fn secrets_and_configs_reach_their_containers_and_nothing_else() {
    let swarm = swarm("payloads", 3, "log = \"trace\"\n").await;
    let manager = &swarm.hosts[0];
    docker_ok(manager, &["secret", "create", "--label", "a=b", "token", "-"], SECRET).await;
    docker_ok(manager, &["config", "create", "conf", "-"], CONFIG).await;
    docker_ok(manager, &["config", "create", "--template-driver", "golang", "tmpl", "-"], TEMPLATE).await;
    let create = [
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--name",
        "app",
        "--replicas",
        "2",
        "--constraint",
        "node.hostname!=n3",
        "--label",
        "color=red",
        "--secret",
        "source=token,target=tok,uid=7,gid=8,mode=0400",
        "--config",
        "source=conf,target=/etc/app.conf",
        "--config",
        "source=tmpl,target=rendered,mode=0440",
        "-e",
        "MODE=prod",
        "-e",
        "SLOT=s{{.Task.Slot}}",
        "--hostname",
        "{{.Service.Name}}-{{.Task.Slot}}",
        "--mount",
        "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770",
        "--mount",
        "type=volume,source=data-{{.Task.Slot}},target=/data,volume-label=slot={{.Task.Slot}}",
        "--log-driver",
        "json-file",
        "--log-opt",
        "max-size=1m",
        "--health-cmd",
        "/bin/ls /etc/app.conf",
        "--health-interval",
        "1s",
        "--ulimit",
        "nofile=1000:2000",
        "--stop-grace-period",
        "1s",
        WHOAMI_IMAGE,
    ];
    docker_ok(manager, &create, "").await;
    let tasks = swarm.running("app", 2).await;

    for host in &swarm.hosts[..2] {
        let (node, id) = (swarm.node_id(host).await, container(host).await);
        let slot = tasks.iter().find(|t| t["NodeID"] == node.as_str()).map(|t| t["Slot"].to_string()).expect("one task per node");
        assert_eq!(inside(host, &id, "cat /run/secrets/tok").await, SECRET);
        assert_eq!(inside(host, &id, "cat /etc/app.conf").await, CONFIG.trim());
        assert_eq!(inside(host, &id, "cat /rendered").await, format!("app.{slot} prod {SECRET} red"));
        let owner = inside(host, &id, "/bin/busybox stat -c %u:%g:%a /run/secrets/tok /etc/app.conf /rendered").await;
        assert_eq!(owner.split_whitespace().collect::<Vec<_>>(), ["7:8:400", "0:0:444", "0:0:440"]);
        let mounts = inside(host, &id, "cat /proc/mounts").await;
        for target in ["/run/secrets/tok", "/etc/app.conf", "/rendered"] {
            let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(target)).unwrap_or_default();
            assert!(line.contains(" tmpfs ro,"), "{target} is no file in memory: {line:?} of {mounts}");
        }
        let line = mounts.lines().find(|line| line.contains(" /t ")).unwrap_or_default();
        assert!(line.contains("size=1024k") && line.contains("mode=1770"), "{line}");
        assert_eq!(inside(host, &id, "hostname").await, format!("app-{slot}"));
        let environment = inside(host, &id, "cat /proc/1/environ").await;
        assert!(environment.split('\0').any(|entry| entry == format!("SLOT=s{slot}")), "{environment}");
        let inspected = docker_ok(host, &["inspect", &id], "").await;
        let shown: Value = serde_json::from_str(&inspected).expect("JSON");
        let host_config = &shown[0]["HostConfig"];
        assert_eq!(host_config["LogConfig"], json!({"Type": "json-file", "Config": {"max-size": "1m"}}));
        assert_eq!(host_config["Ulimits"], json!([{"Name": "nofile", "Hard": 2000, "Soft": 1000}]));
        assert_eq!(shown[0]["State"]["Health"]["Status"], "healthy");
        let volume: Value =
            serde_json::from_str(&docker_ok(host, &["volume", "inspect", &format!("data-{slot}")], "").await).expect("JSON");
        assert_eq!(volume[0]["Labels"], json!({ "slot": slot }));
        assert!(!inspected.contains("planted"), "{inspected}");
    }
    search(&swarm).await;
    without_a_task(&swarm).await;
    refusals(manager).await;

    docker_ok(manager, &["service", "rm", "app"], "").await;
    for host in &swarm.hosts {
        within(20, "no file of a task", || async {
            // A node that never had a task with one has no folder for them.
            let left = host.run(&format!("find {} -mindepth 1 -path */files/*", host.run_dir().display())).await?;
            anyhow::ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })
        .await;
    }
    docker_ok(manager, &["secret", "rm", "token"], "").await;
    docker_ok(manager, &["config", "rm", "conf", "tmpl"], "").await;
    swarm.stop().await;
}

/// The contents are in no file of a node's, no log, no dump and no answer, but for the inspection of a config.
async fn search(swarm: &Swarm) {
    let base64 = |text: &str| STANDARD.encode(text).trim_end_matches('=').to_owned();
    let planted = ["planted-Secret", "planted-Config"].map(str::to_owned);
    let encoded = [base64(SECRET), base64(CONFIG), base64(TEMPLATE)];
    let all: Vec<String> = planted.into_iter().chain(encoded).collect();
    for host in &swarm.hosts {
        // The daemon writes what it knows, and the engine what it was asked for.
        let mut found = Vec::new();
        files_with(host.dir(), &all, &mut found);
        assert!(found.is_empty(), "{found:#?}");
        let admin = UnixClient::new(host.run_dir().join("admin.sock"));
        let api = UnixClient::new(host.skep_socket());
        let manager = &swarm.hosts[0];
        let paths = ["/services", "/services/app", "/tasks", "/secrets", "/secrets/token", "/nodes", "/info", "/containers/json"];
        let mut shown = Vec::new();
        for path in ["/dump", "/status", "/metrics", "/healthz"] {
            shown.push((path, admin.get(path).await.expect("answers")));
        }
        for path in paths.into_iter().filter(|path| host.name() == manager.name() || path.starts_with("/containers")) {
            shown.push((path, api.get(path).await.expect("answers")));
        }
        for (path, reply) in shown {
            let text = String::from_utf8_lossy(&reply.body);
            for text_planted in &all {
                assert!(!text.contains(text_planted), "{path} of {} shows {text_planted}", host.name());
            }
        }
    }
    let view = dump(&swarm.hosts[0]).await.expect("dump")["view"].to_string();
    assert!(view.contains("SecretName"), "what is searched has the tasks: {view}");
    assert_eq!(get(&swarm.hosts[0], "/configs/conf").await["Spec"]["Data"], STANDARD.encode(CONFIG));
}

/// The node that runs no task with them has not even their names; the others have the references in their ledgers.
async fn without_a_task(swarm: &Swarm) {
    let (manager, last) = (&swarm.hosts[0], &swarm.hosts[2]);
    let mut references: Vec<String> = ["SecretName", "ConfigName"].map(str::to_owned).into();
    for path in ["/secrets/token", "/configs/conf", "/configs/tmpl"] {
        references.push(get(manager, path).await["ID"].as_str().expect("an id").to_owned());
    }
    let in_ledger = |host: &Host| {
        let ledger = std::fs::read_to_string(host.data_dir().join("ledger.json")).expect("a ledger");
        references.iter().filter(|text| ledger.contains(*text)).count()
    };
    for host in &swarm.hosts[..2] {
        assert_eq!(in_ledger(host), references.len(), "{}: the search finds what is there", host.name());
    }
    // The others have run their tasks for a while: what this one was to get, it has.
    assert_eq!(in_ledger(last), 0, "no reference");
    let view = dump(last).await.expect("dump")["view"].to_string();
    assert!(references.iter().all(|text| !view.contains(text)), "{view}");
    let files = last.run(&format!("find {} -type f", last.run_dir().join("files").display())).await.unwrap_or_default();
    assert_eq!(files.trim(), "", "no file");
}

async fn refusals(manager: &Host) {
    for (args, words) in [
        (&["secret", "rm", "token"][..], "secret 'token' is in use by the following service: app"),
        (&["config", "rm", "conf"], "config 'conf' is in use by the following service: app"),
        (&["secret", "create", "token", "-"], "secret token already exists"),
        (&["secret", "create", "TOKEN", "-"], "secret TOKEN already exists"),
        (&["service", "create", "-d", "--no-resolve-image", "--hostname", "{{.Nope}}", "x"], "can't evaluate field Nope"),
        (&["service", "create", "-d", "--no-resolve-image", "--credential-spec", "file://x.json", "x"], "CredentialSpec"),
    ] {
        let (code, out, err) = docker(manager, args, "x").await;
        assert!(code == Some(1) && err.contains(words), "docker {args:?}: {code:?} {out}{err}");
    }
}
