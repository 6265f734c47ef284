//! Real clients beside the docker CLI, over a swarm with a leader's loops and simulated nodes.

use super::managed::ManagedSwarm;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

const TIMEOUT: Duration = Duration::from_secs(90);

/// The Docker SDK for Python, as Debian packages it (python3-docker).
#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_for_python_creates_updates_scales_and_removes() {
    run_script("docker_py.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ansibles_modules_send_is_carried_out_and_the_same_again_touches_no_task() {
    run_script("ansible_calls.py").await;
}

/// Runs a script of `clients` with the socket of a new swarm; it says `ok` at its end.
async fn run_script(name: &str) {
    let swarm = ManagedSwarm::new().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients").join(name);
    let run = Command::new("/usr/bin/python3").arg(script).arg(&swarm.api.socket).kill_on_drop(true).output();
    let out = tokio::time::timeout(TIMEOUT, run).await.expect("in time").expect("python3");
    let (out, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.trim() == "ok", "{out}\n{err}");
}

/// Ansible's modules for swarms, as Debian packages them: the second run of a playbook changes nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Debian's packages ansible and python3-jsondiff, 260 MB: make soak"]
async fn a_playbook_of_ansible_is_carried_out_once() {
    if std::process::Command::new("ansible-playbook").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("not tested: ansible is not installed (apt-get install ansible python3-jsondiff)");
        return;
    }
    let swarm = ManagedSwarm::new().await;
    let playbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients/ansible.yml");
    let home = swarm.api.socket.parent().unwrap().join("ansible");
    let run = async || {
        let mut command = Command::new("ansible-playbook");
        command.args(["-i", "localhost,", "-e", "ansible_python_interpreter=/usr/bin/python3"]).arg(&playbook);
        command
            .env("DOCKER_HOST", format!("unix://{}", swarm.api.socket.display()))
            .env("HOME", &home)
            .env("ANSIBLE_HOME", &home);
        let out = tokio::time::timeout(TIMEOUT, command.kill_on_drop(true).output()).await.expect("in time").expect("ansible");
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && said.contains("failed=0"), "{said}");
        said
    };
    let first = run().await;
    assert!(first.contains("changed=7"), "{first}");
    swarm.converged().await;
    let tasks = || swarm.store.read().tasks().map(|task| task.id.clone()).collect::<std::collections::BTreeSet<_>>();
    let before = tasks();
    let second = run().await;
    assert!(second.contains("changed=0"), "{second}");
    swarm.converged().await;
    assert_eq!(tasks(), before, "no task is touched");
}

/// Prometheus with its own discovery of swarms: a job for each role.
#[tokio::test(flavor = "multi_thread")]
async fn prometheus_discovers_nodes_services_and_tasks() {
    let swarm = ManagedSwarm::new().await;
    let api = &swarm.api;
    super::docker_cli::docker(api, "network create -d overlay back").await;
    let create = "service create -d --no-resolve-image --name web --replicas 2 --network back -p 8080:80 --label team=a lab:1";
    super::docker_cli::docker(api, create).await;
    // One without a port or a network of its own, on the network of the host's services.
    super::docker_cli::docker(api, "service create -d --no-resolve-image --name plain lab:1").await;
    swarm.converged().await;

    let dir = api.socket.parent().unwrap();
    let job = |role: &str| {
        format!(
            "  - job_name: {role}\n    dockerswarm_sd_configs: [{{host: 'unix://{}', role: {role}, refresh_interval: 200ms}}]\n",
            api.socket.display()
        )
    };
    let config = format!("global: {{scrape_interval: 1h}}\nscrape_configs:\n{}{}{}", job("nodes"), job("services"), job("tasks"));
    std::fs::write(dir.join("prometheus.yml"), config).unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("prometheus.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus");
    let end = Instant::now() + TIMEOUT;
    let log = || std::fs::read_to_string(dir.join("prometheus.log")).unwrap_or_default();
    let found = loop {
        let found = targets(address).await.unwrap_or_default();
        let count = |role: &str| found.get(role).map_or(0, Vec::len);
        // A task is a target by its address on each network: those of web on back and ingress.
        if count("nodes") == 3 && count("services") >= 2 && count("tasks") >= 4 {
            break found;
        }
        assert!(Instant::now() < end, "{found:#?}\n{}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let labels = |role: &str, label: &str| -> Vec<&str> {
        let mut all: Vec<&str> = found[role].iter().filter_map(|target| target[label].as_str()).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    assert_eq!(labels("nodes", "__meta_dockerswarm_node_hostname"), ["lab1", "lab2", "lab3"]);
    assert_eq!(labels("nodes", "__meta_dockerswarm_node_status"), ["ready"]);
    assert!(labels("services", "__meta_dockerswarm_service_name").contains(&"web"));
    assert_eq!(labels("services", "__meta_dockerswarm_service_endpoint_port_name"), Vec::<&str>::new());
    assert_eq!(labels("services", "__meta_dockerswarm_service_label_team"), ["a"]);
    assert!(labels("tasks", "__meta_dockerswarm_network_name").contains(&"back"));
    assert!(labels("tasks", "__meta_dockerswarm_task_state").contains(&"running"));
    assert!(!log().contains("error while parsing address"), "{}", log());
    prometheus.kill().await.unwrap();
}

/// The labels of all targets as they were discovered, by job.
async fn targets(address: std::net::SocketAddr) -> Option<BTreeMap<String, Vec<Value>>> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(b"GET /api/v1/targets HTTP/1.0\r\n\r\n").await.ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.ok()?;
    let body: Value = serde_json::from_str(reply.split_once("\r\n\r\n")?.1).ok()?;
    let mut all = BTreeMap::<String, Vec<Value>>::new();
    for target in body["data"]["activeTargets"].as_array()? {
        let labels = target["discoveredLabels"].clone();
        all.entry(labels["job"].as_str()?.to_owned()).or_default().push(labels);
    }
    Some(all)
}
