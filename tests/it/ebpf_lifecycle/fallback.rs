//! Where the eBPF datapath cannot be had, or not all of it, skep says why and the userspace datapath serves.

use super::*;
use skep::http::UnixClient;
use skep::lab::output;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// What `skep status` prints on a host.
async fn shown(host: &Host) -> String {
    output(host.command(SKEP).arg("status").arg("--run-dir").arg(host.run_dir())).await.expect("skep status")
}

/// Makes a swarm of hosts whose daemons run, with a published service on a network, and who asks on the last host.
async fn serve(swarm: &Swarm) -> Host {
    init(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(swarm.hosts.len()).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let on = json!({ "Networks": [{ "Target": "back" }] });
    swarm.service("web", 2, Some(8080), on.clone()).await;
    swarm.service("ask", swarm.hosts.len(), None, on).await;
    swarm.running("web", 2).await;
    swarm.running("ask", swarm.hosts.len()).await;
    client(swarm).await
}

/// Both tasks answer by the port of every host.
async fn both_answer(swarm: &Swarm, client: &Host) {
    for host in &swarm.hosts {
        within(20, "both tasks to answer", || async {
            let mut who = BTreeSet::new();
            for _ in 0..8 {
                who.insert(ask(client, (host.address(), 8080).into()).await?.split(' ').next().unwrap_or_default().to_owned());
            }
            anyhow::ensure!(who.len() == 2, "{}: {who:?}", host.name());
            Ok(())
        })
        .await;
    }
}

/// On a host the name is told as its tasks' addresses, and each of them answers.
async fn names_answer_tasks(swarm: &Swarm, host: &Host) {
    let here = swarm.node_id(host).await;
    let tasks = swarm.running("ask", swarm.hosts.len()).await;
    let asker = tasks.iter().find(|task| task["NodeID"] == json!(here)).expect("one on each node");
    let asker = asker["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("container").to_owned();
    let vip = vip(swarm, "web").await.to_string();
    within(20, "the name to lead to tasks", || async {
        let said = output(host.engine_cli().args(["exec", &asker, "nslookup", "-type=a", "web"])).await?;
        let told: Vec<&str> =
            said.lines().skip_while(|l| !l.starts_with("Name")).filter_map(|l| l.strip_prefix("Address: ")).collect();
        anyhow::ensure!(told.len() == 2 && !told.contains(&vip.as_str()), "{said}");
        for address in told {
            output(host.engine_cli().args(["exec", &asker, "wget", "-q", "-O", "-", &format!("http://{address}/")])).await?;
        }
        Ok(())
    })
    .await;
}

/// Where the machine has its cgroup2 tree.
fn tree() -> PathBuf {
    let root = bpf::cgroup();
    std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).expect("a path")
}

async fn stop(swarm: Swarm, client: Host) {
    client.stop().await;
    swarm.stop().await;
}

/// Starts a daemon by a command of the test's own.
async fn start_as(host: &Host, mut command: tokio::process::Command) {
    let log = std::fs::File::options().create(true).append(true).open(host.dir().join("skep.log")).expect("a log");
    command.arg("daemon").arg("--config").arg(host.dir().join("skep.toml"));
    command.arg("--data-dir").arg(host.data_dir()).arg("--run-dir").arg(host.run_dir());
    command.arg("--engine").arg(format!("unix://{}", host.engine_socket().display()));
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log).stdin(std::process::Stdio::null());
    // It ends with its host.
    drop(command.spawn().expect("started"));
    let client = UnixClient::new(host.run_dir().join("admin.sock"));
    within(15, "the daemon to answer", || async { client.get("/healthz").await?.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_kernel_refuses_programs_the_base_plane_serves_and_says_why() {
    let mut swarm = hosts("fn", 2, AUTO).await;
    swarm.hosts[1].stop_daemon(false).await.expect("stopped");
    let mut command = swarm.hosts[1].command(SKEP);
    bpf::refuse(&mut command);
    start_as(&swarm.hosts[1], command).await;
    let client = serve(&swarm).await;
    let (with, without) = (&swarm.hosts[0], &swarm.hosts[1]);

    let status_of = status(without).await;
    assert_eq!(status_of["ebpf"]["up"], false);
    let reason = status_of["ebpf"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("not permitted"), "{reason}");
    let said = shown(without).await;
    assert!(said.contains("no eBPF datapath") && said.contains(reason), "{said}");
    assert!(said.contains("userspace"), "{said}");
    // The other node has one, but no backend that it could send to by it.
    serves(&swarm.hosts[..1], &[]).await;
    within(10, "the reason to be shown", || async {
        let said = shown(with).await;
        anyhow::ensure!(said.contains("userspace: node n2 has no eBPF datapath"), "{said}");
        Ok(())
    })
    .await;
    both_answer(&swarm, &client).await;
    names_answer_tasks(&swarm, without).await;
    stop(swarm, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cgroup_tree_ports_are_the_kernels_and_names_lead_to_tasks() {
    let swarm = hosts("fc", 2, AUTO).await;
    swarm.hosts[1].run(&format!("umount -l {}", tree().display())).await.expect("unmounted in the host's own namespace");
    let client = serve(&swarm).await;
    let host = &swarm.hosts[1];
    within(20, "the port to be the kernel's", || async {
        let ebpf = status(host).await["ebpf"].clone();
        let port = ebpf["ports"].as_array().is_some_and(|ports| ports.contains(&json!("8080/tcp")));
        anyhow::ensure!(ebpf["up"] == true && port, "{ebpf:#}");
        anyhow::ensure!(ebpf["unavailable"].as_object().is_some_and(|all| all.len() == bpf::CALLS.len()), "{ebpf:#}");
        Ok(())
    })
    .await;
    let said = shown(host).await;
    assert!(said.contains("no virtual addresses") && said.contains("no cgroup2 tree"), "{said}");
    both_answer(&swarm, &client).await;
    names_answer_tasks(&swarm, host).await;
    stop(swarm, client).await;
}

/// A cgroup of the test's own below the machine's root; goes with its last process.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = tree().join(format!("skep-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel may still be ending its processes.
        for _ in 0..100 {
            if prune(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{} stays", self.0.display());
    }
}

/// Removes a cgroup with those that engines made below it.
fn prune(cgroup: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            prune(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup)
}

/// In a cgroup namespace of its own the daemon takes the test's cgroup for the root of the tree: what is alone there is
/// alone for this daemon, and nothing of the machine is touched.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_program_that_has_connect_for_itself_is_named_and_all_else_works() {
    let cgroup = Cgroup::new("fx");
    let mut swarm = hosts("fx", 2, AUTO).await;
    swarm.hosts[1].stop_daemon(false).await.expect("stopped");
    let script = format!(
        "#!/bin/sh\necho 0 > {cgroup}/cgroup.procs && exec unshare --cgroup sh -c 'umount -l {tree} && mount -t cgroup2 none {tree} && exec {SKEP} \"$@\"' sh \"$@\"\n",
        cgroup = cgroup.0.display(),
        tree = tree().display(),
    );
    let program = swarm.hosts[1].dir().join("skep-in-cgroup");
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let foreign = bpf::Exclusive::attach(std::fs::File::open(&cgroup.0).expect("open")).expect("attached alone");
    let file = swarm.hosts[1].dir().join("skep.toml");
    swarm.hosts[1].start_daemon(&program, &["--config", file.to_str().expect("path")]).await.expect("daemon");
    let client = serve(&swarm).await;

    let host = &swarm.hosts[1];
    within(20, "all but connect to work", || async {
        let status = status(host).await;
        let ebpf = &status["ebpf"];
        let port = ebpf["ports"].as_array().is_some_and(|ports| ports.contains(&json!("8080/tcp")));
        anyhow::ensure!(ebpf["up"] == true && port, "{ebpf:#}");
        let why = ebpf["unavailable"]["connect4"].as_str().unwrap_or_default();
        anyhow::ensure!(why.contains("another program"), "{ebpf:#}");
        anyhow::ensure!(status["applied"]["ebpf"] == status["view_revision"], "nobody waits for it: {status:#}");
        Ok(())
    })
    .await;
    let said = shown(host).await;
    assert!(said.contains("no virtual addresses: connect4 cannot run") && said.contains("another program"), "{said}");
    both_answer(&swarm, &client).await;
    names_answer_tasks(&swarm, host).await;

    drop(foreign);
    within(30, "virtual addresses to be had once it is gone", || async {
        let ebpf = status(host).await["ebpf"].clone();
        anyhow::ensure!(ebpf["unavailable"] == json!({}), "{ebpf:#}");
        Ok(())
    })
    .await;
    stop(swarm, client).await;
    drop(cgroup);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_where_the_programs_shall_be_pinned_is_named() {
    let swarm = hosts("ff", 1, AUTO).await;
    let host = &swarm.hosts[0];
    let place = host.run_dir().join("bpf");
    std::fs::write(&place, "somebody's").expect("a file");
    let client = serve_alone(&swarm).await;
    let reason = status(host).await["ebpf"]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains(place.to_str().expect("path")), "{reason}");
    assert!(shown(host).await.contains(&reason));
    within(20, "the port to answer", || ask(&client, (host.address(), 8080).into())).await;
    stop(swarm, client).await;
}

async fn serve_alone(swarm: &Swarm) -> Host {
    init(&swarm.hosts[0]).await;
    swarm.service("web", 1, Some(8080), json!({})).await;
    swarm.running("web", 1).await;
    client(swarm).await
}
