//! Where the eBPF datapath, or a part of it, is unavailable, skep reports the reason and the userspace datapath serves.

use super::*;
use skep::http::UnixClient;
use skep::lab::output;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// Output of `skep status` on a host.
async fn skep_status(host: &Host) -> String {
    output(host.command(SKEP).arg("status").arg("--run-dir").arg(host.run_dir())).await.expect("skep status")
}

/// Creates a swarm of hosts whose daemons run, and a published service on a network. Returns a client host.
async fn create_swarm(swarm: &Swarm) -> Host {
    init(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(swarm.hosts.len()).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let on = json!({ "Networks": [{ "Target": "back" }] });
    swarm.service("web", 2, Some(8080), on.clone()).await;
    swarm.service("caller", swarm.hosts.len(), None, on).await;
    swarm.running("web", 2).await;
    swarm.running("caller", swarm.hosts.len()).await;
    client(swarm).await
}

/// The task that answers by the port of a host.
async fn server(client: &Host, host: &Host) -> anyhow::Result<String> {
    Ok(ask(client, (host.address(), 8080).into()).await?.split(' ').next().unwrap_or_default().to_owned())
}

/// Both tasks answer by the port of each of these hosts.
async fn both_answer(hosts: &[Host], client: &Host) {
    for host in hosts {
        within(20, "both tasks to answer", || async {
            let mut servers = BTreeSet::new();
            for _ in 0..8 {
                servers.insert(server(client, host).await?);
            }
            anyhow::ensure!(servers.len() == 2, "{}: {servers:?}", host.name());
            Ok(())
        })
        .await;
    }
}

/// On a host the name resolves to the tasks' addresses, and each of them answers.
async fn name_resolves_to_tasks(swarm: &Swarm, host: &Host) {
    let node = swarm.node_id(host).await;
    let tasks = swarm.running("caller", swarm.hosts.len()).await;
    let caller = tasks.iter().find(|task| task["NodeID"] == json!(node)).expect("one on each node");
    let caller = caller["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("container").to_owned();
    let vip = vip(swarm, "web").await.to_string();
    within(20, "the name to resolve to the tasks", || async {
        let printed = output(host.engine_cli().args(["exec", &caller, "nslookup", "-type=a", "web"])).await?;
        let addresses: Vec<&str> =
            printed.lines().skip_while(|l| !l.starts_with("Name")).filter_map(|l| l.strip_prefix("Address: ")).collect();
        anyhow::ensure!(addresses.len() == 2 && !addresses.contains(&vip.as_str()), "{printed}");
        for address in addresses {
            output(host.engine_cli().args(["exec", &caller, "wget", "-q", "-O", "-", &format!("http://{address}/")])).await?;
        }
        Ok(())
    })
    .await;
}

/// Mount point of the machine's cgroup2 tree.
fn cgroup_tree() -> PathBuf {
    let root = bpf::cgroup();
    std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).expect("a path")
}

async fn stop(swarm: Swarm, client: Host) {
    client.stop().await;
    swarm.stop().await;
}

/// Starts a daemon by the test's command.
async fn start_by(host: &Host, mut command: tokio::process::Command) {
    let log = std::fs::File::options().create(true).append(true).open(host.dir().join("skep.log")).expect("a log");
    command.arg("daemon").arg("--config").arg(host.dir().join("skep.toml"));
    command.arg("--data-dir").arg(host.data_dir()).arg("--run-dir").arg(host.run_dir());
    command.arg("--engine").arg(format!("unix://{}", host.engine_socket().display()));
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log).stdin(std::process::Stdio::null());
    // The process ends with its host.
    drop(command.spawn().expect("started"));
    let client = UnixClient::new(host.run_dir().join("admin.sock"));
    within(15, "the daemon to answer", || async { client.get("/healthz").await?.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn userspace_serves_where_the_kernel_refuses_programs() {
    let mut swarm = hosts("fn", 2, AUTO).await;
    swarm.hosts[1].stop_daemon(false).await.expect("stopped");
    let mut command = swarm.hosts[1].command(SKEP);
    bpf::refuse(&mut command);
    start_by(&swarm.hosts[1], command).await;
    let client = create_swarm(&swarm).await;
    let (with, without) = (&swarm.hosts[0], &swarm.hosts[1]);

    let status_of = status(without).await;
    assert_eq!(status_of["ebpf"]["up"], false);
    let reason = status_of["ebpf"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("not permitted"), "{reason}");
    let said = skep_status(without).await;
    assert!(said.contains("no eBPF datapath") && said.contains(reason), "{said}");
    assert!(said.contains("userspace datapath"), "{said}");
    // The other node has one, which cannot send to a task of a node without: it uses its own task. Whose connections enter by
    // the node without gets either.
    serves(&swarm.hosts[..1], &["8080/tcp"]).await;
    both_answer(&swarm.hosts[1..], &client).await;
    let mut servers = BTreeSet::new();
    for _ in 0..8 {
        servers.insert(server(&client, with).await.expect("an answer"));
    }
    assert_eq!(servers.len(), 1, "{servers:?}");
    within(10, "the packets of the eBPF datapath to be counted", || async {
        anyhow::ensure!(count(with, "port_in").await > 0, "none");
        Ok(())
    })
    .await;
    name_resolves_to_tasks(&swarm, without).await;
    stop(swarm, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cgroup_tree_ports_are_on_ebpf_and_names_resolve_to_tasks() {
    let swarm = hosts("fc", 2, AUTO).await;
    swarm.hosts[1].run(&format!("umount -l {}", cgroup_tree().display())).await.expect("unmounted in the host's own namespace");
    let client = create_swarm(&swarm).await;
    let host = &swarm.hosts[1];
    within(20, "the port to be on the eBPF datapath", || async {
        let ebpf = status(host).await["ebpf"].clone();
        let port = ebpf["ports"].as_array().is_some_and(|ports| ports.contains(&json!("8080/tcp")));
        anyhow::ensure!(ebpf["up"] == true && port, "{ebpf:#}");
        anyhow::ensure!(ebpf["unavailable"].as_object().is_some_and(|all| all.len() == bpf::CALLS.len()), "{ebpf:#}");
        Ok(())
    })
    .await;
    let said = skep_status(host).await;
    assert!(said.contains("no virtual addresses") && said.contains("no cgroup2 tree"), "{said}");
    both_answer(&swarm.hosts, &client).await;
    name_resolves_to_tasks(&swarm, host).await;
    stop(swarm, client).await;
}

/// A cgroup below the machine's root, removed with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = cgroup_tree().join(format!("skep-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes may not have ended yet.
        for _ in 0..100 {
            if remove_tree(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{} could not be removed", self.0.display());
    }
}

/// Removes a cgroup and those below it that engines created.
fn remove_tree(cgroup: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup)
}

/// In a separate cgroup namespace the test's cgroup is the root of the tree for the daemon: a program that is exclusive there
/// is so for this daemon only.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_program_with_exclusive_connect_is_named_and_other_hooks_work() {
    let cgroup = Cgroup::new("fx");
    let mut swarm = hosts("fx", 2, AUTO).await;
    swarm.hosts[1].stop_daemon(false).await.expect("stopped");
    let script = format!(
        "#!/bin/sh\necho 0 > {cgroup}/cgroup.procs && exec unshare --cgroup sh -c 'umount -l {tree} && mount -t cgroup2 none {tree} && exec {SKEP} \"$@\"' sh \"$@\"\n",
        cgroup = cgroup.0.display(),
        tree = cgroup_tree().display(),
    );
    let program = swarm.hosts[1].dir().join("skep-in-cgroup");
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let foreign = bpf::Exclusive::attach(std::fs::File::open(&cgroup.0).expect("open")).expect("attached exclusively");
    let file = swarm.hosts[1].dir().join("skep.toml");
    swarm.hosts[1].start_daemon(&program, &["--config", file.to_str().expect("path")]).await.expect("daemon");
    let client = create_swarm(&swarm).await;

    let host = &swarm.hosts[1];
    within(20, "all but connect to work", || async {
        let status = status(host).await;
        let ebpf = &status["ebpf"];
        let port = ebpf["ports"].as_array().is_some_and(|ports| ports.contains(&json!("8080/tcp")));
        anyhow::ensure!(ebpf["up"] == true && port, "{ebpf:#}");
        let why = ebpf["unavailable"]["connect4"].as_str().unwrap_or_default();
        anyhow::ensure!(why.contains("another program"), "{ebpf:#}");
        anyhow::ensure!(status["applied"]["ebpf"] == status["view_revision"], "the hook does not delay it: {status:#}");
        Ok(())
    })
    .await;
    let said = skep_status(host).await;
    assert!(said.contains("no virtual addresses: connect4 cannot run") && said.contains("another program"), "{said}");
    both_answer(&swarm.hosts, &client).await;
    name_resolves_to_tasks(&swarm, host).await;

    drop(foreign);
    within(30, "virtual addresses to be available without it", || async {
        let ebpf = status(host).await["ebpf"].clone();
        anyhow::ensure!(ebpf["unavailable"] == json!({}), "{ebpf:#}");
        Ok(())
    })
    .await;
    stop(swarm, client).await;
    drop(cgroup);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_at_the_directory_for_pins_is_named() {
    let swarm = hosts("ff", 1, AUTO).await;
    let host = &swarm.hosts[0];
    let file = host.run_dir().join("bpf");
    std::fs::write(&file, "foreign").expect("a file");
    let client = create_swarm_of_one(&swarm).await;
    let reason = status(host).await["ebpf"]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains(file.to_str().expect("path")), "{reason}");
    assert!(skep_status(host).await.contains(&reason));
    within(20, "the port to answer", || ask(&client, (host.address(), 8080).into())).await;
    stop(swarm, client).await;
}

async fn create_swarm_of_one(swarm: &Swarm) -> Host {
    init(&swarm.hosts[0]).await;
    swarm.service("web", 1, Some(8080), json!({})).await;
    swarm.running("web", 1).await;
    client(swarm).await
}
