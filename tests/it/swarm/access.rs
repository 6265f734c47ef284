//! The access point as its users see it: the stock CLI on a manager, the engines of three hosts.

use super::kit::*;
use crate::api::tls::certificates;
use serde_json::{Value, json};
use skep::clock::{Clock as _, SystemClock};
use skep::http::UnixClient;
use skep::lab::{Host, WHOAMI_IMAGE, output};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

const SETTINGS: &str = "[access_point]\nenabled = true\n";

/// The CLI at the access point of a host.
fn cli(host: &Host) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_CONTEXT").arg("-H").arg(format!("unix://{}", host.run_dir().join("cluster.sock").display()));
    command.kill_on_drop(true);
    command
}

/// Runs a command line of the CLI; words are split at blanks, IMAGE is the image.
async fn docker(host: &Host, line: &str) -> anyhow::Result<String> {
    let words = line.split(' ').map(|word| if word == "IMAGE" { WHOAMI_IMAGE } else { word });
    Ok(output(cli(host).args(words)).await?.trim().to_owned())
}

async fn done(host: &Host, line: &str) -> String {
    docker(host, line).await.unwrap_or_else(|error| panic!("docker {line}: {error:#}"))
}

async fn refused(host: &Host, line: &str) -> String {
    match docker(host, line).await {
        Ok(printed) => panic!("docker {line} was not refused: {printed}"),
        Err(error) => format!("{error:#}"),
    }
}

/// The names of all containers, in order.
async fn names(host: &Host, more: &str) -> Vec<String> {
    let printed = done(host, &format!("ps -a --format {{{{.Names}}}}{more}")).await;
    let mut names: Vec<String> = printed.lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_stock_cli_runs_and_uses_containers_of_three_engines_at_one_socket() {
    let swarm = swarm("access", 3, SETTINGS).await;
    let [m, _, worker] = &swarm.hosts[..] else { panic!("three hosts") };
    placement(m).await;
    streams(m).await;
    lists(m, &swarm.hosts).await;

    // A worker has no store: it says so.
    let said = refused(worker, "ps").await;
    assert!(said.contains("not a swarm manager"), "{said}");
    // The socket is for root and its group only.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(m.run_dir().join("cluster.sock")).expect("the socket").permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
    swarm.stop().await;
}

async fn placement(m: &Host) {
    done(m, "run -d --name web -e constraint:node==n2 -e A=1 IMAGE").await;
    done(m, "run -d --name beside -e affinity:container==web IMAGE").await;
    done(m, "run -d --name apart -e affinity:container!=web -e constraint:node!=n1 IMAGE").await;
    done(m, "run -d --name spread IMAGE").await;
    assert_eq!(names(m, "").await, ["n1/spread", "n2/beside", "n2/web", "n3/apart"]);
    assert_eq!(names(m, " --filter node=n2").await, ["n2/beside", "n2/web"]);
    done(m, "run -d --name linked --volumes-from apart IMAGE").await;
    assert_eq!(names(m, " --filter name=linked").await, ["n3/linked"]);
    let said = refused(m, "run -d --name web -e constraint:node==n1 IMAGE").await;
    assert!(said.contains("Conflict. The container name \"/web\" is already in use"), "{said}");
    let said = refused(m, "run -d -e constraint:node==/^n[4-9]$/ IMAGE").await;
    assert!(said.contains("[constraint node==/^n[4-9]$/]"), "{said}");
    // What is gone holds no name and no port.
    for _ in 0..2 {
        done(m, "run --rm --name job IMAGE echo").await;
        done(m, "run -d --name published -p 8099:80 -e constraint:node==n3 IMAGE").await;
        done(m, "rm -f published").await;
    }
    let inspected = done(m, "inspect --format {{.Node.Name}}|{{.Config.Env}}|{{.Name}} n2/web").await;
    assert!(inspected.starts_with("n2|[A=1 ") || inspected.starts_with("n2|[A=1]"), "{inspected}");
    assert!(inspected.ends_with("|/web"), "{inspected}");
    assert!(refused(m, "inspect n1/web").await.to_ascii_lowercase().contains("no such"), "it is on n2");
}

async fn streams(m: &Host) {
    assert_eq!(done(m, "run --rm -e constraint:node==n3 IMAGE echo attached").await, "attached");
    assert_eq!(done(m, "exec n2/web echo there").await, "there");
    // Input that ends: cat ends then too.
    let mut cat = cli(m).args(["exec", "-i", "web", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
    cat.stdin.take().expect("input").write_all(b"through the mesh").await.expect("written");
    let echoed = tokio::time::timeout(Duration::from_secs(20), cat.wait_with_output()).await.expect("it ends").expect("cat");
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "through the mesh");
    attach(m).await;
    // A terminal.
    let line = format!("docker -H unix://{} exec -it web sh -c 'echo to a terminal'", m.run_dir().join("cluster.sock").display());
    let typed = output(Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null())).await.expect("exec -it");
    assert!(typed.contains("to a terminal"), "{typed}");

    let script = "for i in 1 2 3; do echo line $i; sleep 0.3; done";
    output(cli(m).args(["run", "-d", "--name", "ticker", "-e", "constraint:node==n3", WHOAMI_IMAGE, "sh", "-c", script]))
        .await
        .expect("run");
    let followed = tokio::time::timeout(Duration::from_secs(20), docker(m, "logs -f ticker")).await;
    assert_eq!(followed.expect("it ends with the container").expect("logs"), "line 1\nline 2\nline 3");
    assert_eq!(done(m, "wait ticker").await, "0");

    let file = m.dir().join("copied");
    std::fs::write(&file, "copied").expect("a file");
    done(m, &format!("cp {} n2/web:/tmp/copied", file.display())).await;
    assert_eq!(done(m, "exec web cat /tmp/copied").await, "copied");
    let back = m.dir().join("back");
    done(m, &format!("cp web:/tmp/copied {}", back.display())).await;
    assert_eq!(std::fs::read_to_string(back).expect("copied back"), "copied");

    assert!(done(m, "top web").await.contains("httpd"));
    let stats = done(m, "stats --no-stream --format {{.Name}} n2/web n3/apart").await;
    assert_eq!(stats.lines().collect::<Vec<_>>(), ["web", "apart"]);

    let format = "{{.Action}} {{index .Actor.Attributes \"node.name\"}} {{.Actor.Attributes.name}}";
    let mut command = cli(m);
    command.args([
        "events",
        "--filter",
        "type=container",
        "--filter",
        "event=kill",
        "--filter",
        "event=rename",
        "--format",
        format,
    ]);
    let mut events = command.stdout(Stdio::piped()).spawn().expect("events");
    let mut lines = BufReader::new(events.stdout.take().expect("output")).lines();
    // The client cannot say when it listens on every node: an event of each shows it.
    let mut seen = Vec::new();
    for (container, wanted) in [("spread", "kill n1 spread"), ("apart", "kill n3 apart"), ("web", "kill n2 web")] {
        let begun = Instant::now();
        while !seen.iter().any(|line| line == wanted) {
            assert!(begun.elapsed() < Duration::from_secs(20), "no event: {seen:?}");
            done(m, &format!("kill -s CONT {container}")).await;
            while let Ok(line) = tokio::time::timeout(Duration::from_millis(300), lines.next_line()).await {
                seen.push(line.expect("read").expect("no end"));
            }
        }
    }
    done(m, "rename n2/beside n2/renamed").await;
    while !seen.iter().any(|line| line == "rename n2 renamed") {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        seen.push(line.unwrap_or_else(|_| panic!("the event is missing: {seen:?}")).expect("read").expect("no end"));
    }
    let said = refused(m, "rename renamed web").await;
    assert!(said.contains("Conflict"), "{said}");
}

/// Input and output of a container's own process, named with its node.
async fn attach(m: &Host) {
    let script = "read line; echo $line";
    let reads = ["run", "-d", "-i", "--name", "reads", "-e", "constraint:node==n2", WHOAMI_IMAGE, "sh", "-c", script];
    output(cli(m).args(reads)).await.expect("run");
    let mut command = cli(m);
    command.args(["attach", "n2/reads"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attached = command.spawn().expect("attach");
    // It stays open: an engine ends the output of an attached client with its input.
    let mut input = attached.stdin.take().expect("input");
    input.write_all(b"through attach\n").await.expect("written");
    let ended =
        tokio::time::timeout(Duration::from_secs(20), attached.wait_with_output()).await.expect("it ends").expect("attach");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((String::from_utf8_lossy(&ended.stdout).as_ref(), said.as_ref()), ("through attach\n", ""));
    done(m, "rm n2/reads").await;
}

async fn lists(m: &Host, hosts: &[Host]) {
    done(m, "volume create n3/data").await;
    let volumes = done(m, "volume ls --format {{.Name}}").await;
    assert!(volumes.lines().any(|name| name == "n3/data"), "{volumes}");
    done(m, "run -d --name uses-data -v n3/data:/data IMAGE").await;
    assert_eq!(names(m, " --filter name=uses-data").await, ["n3/uses-data"]);
    assert_eq!(done(m, "volume inspect --format {{.Name}} n3/data").await, "data");
    // One without a node is on all of them: compose looks for it by its name, makes it if it is not there, and removes it.
    for _ in 0..2 {
        done(m, "volume create everywhere").await;
        assert_eq!(done(m, "volume inspect --format {{.Name}} everywhere").await, "everywhere");
    }
    assert_eq!(done(m, "volume ls -q").await.lines().filter(|name| name.ends_with("/everywhere")).count(), 3);
    done(m, "volume rm everywhere").await;
    assert!(!done(m, "volume ls -q").await.contains("everywhere"));
    let drawn = done(m, "volume create").await;
    assert_eq!(done(m, "volume ls -q").await.lines().filter(|name| name.ends_with(&format!("/{drawn}"))).count(), 3);
    done(m, &format!("volume rm {drawn}")).await;
    for command in ["volume inspect everywhere", "volume rm everywhere"] {
        let said = refused(m, command).await.to_ascii_lowercase();
        assert!(said.contains("no such volume"), "{command}: {said}");
    }
    let networks = done(m, "network ls --format {{.Name}}").await;
    for expected in ["n1/bridge", "n2/bridge", "n3/bridge", "ingress"] {
        assert_eq!(networks.lines().filter(|name| name == &expected).count(), 1, "{expected}: {networks}");
    }
    // A network without a driver is one of the swarm: compose makes such a one for a project.
    let posted = json!({ "Name": "project_default", "Driver": "", "Attachable": false, "Labels": { "com.docker.compose.project": "project" } });
    let http = UnixClient::new(m.run_dir().join("cluster.sock"));
    let made = http.request("POST", "/v1.41/networks/create", Some(&posted)).await.expect("sent");
    assert_eq!(made.status.as_u16(), 201, "{}", String::from_utf8_lossy(&made.body));
    let shown = done(m, "network inspect --format {{.Driver}}/{{.Attachable}}/{{.Scope}} project_default").await;
    assert_eq!(shown, "overlay/true/swarm");
    done(m, "network rm project_default").await;
    // A network of the swarm joins containers of two nodes.
    done(m, "network create -d overlay --attachable back").await;
    done(m, "run -d --name server --network back -e constraint:node==n2 IMAGE").await;
    let client = "run --rm --network back -e constraint:node==n3 IMAGE wget -q -O - http://server/";
    within(20, "an answer across nodes", || async { docker(m, client).await }).await;

    // An image comes to every engine, and goes from every engine.
    let archive = m.dir().join("image.tar");
    let import = format!("import {} skep/every:1", archive.display());
    done(m, &import).await;
    for host in hosts {
        output(host.engine_cli().args(["image", "inspect", "skep/every:1"])).await.expect("every engine has it");
    }
    done(m, "tag skep/every:1 skep/every:2").await;
    let listed = done(m, "images --format {{.Repository}}:{{.Tag}} skep/every").await;
    assert!(listed.contains("skep/every:1") && listed.contains("skep/every:2"), "{listed}");
    done(m, "rmi skep/every:1 skep/every:2").await;
    for host in hosts {
        assert!(output(host.engine_cli().args(["image", "inspect", "skep/every:2"])).await.is_err(), "{} has it", host.name());
    }
    // A build runs on this manager, and what it has made is run there.
    let built = m.dir().join("built");
    std::fs::create_dir_all(&built).expect("a directory");
    std::fs::write(built.join("Dockerfile"), format!("FROM {WHOAMI_IMAGE}\nENV BUILT=here\n")).expect("a file");
    let built = built.display().to_string();
    output(cli(m).env("DOCKER_BUILDKIT", "0").args(["build", "-q", "-t", "skep/built:1", &built])).await.expect("built");
    for name in ["one", "two"] {
        done(m, &format!("run -d --name built-{name} skep/built:1")).await;
    }
    assert_eq!(names(m, " --filter name=built-").await, ["n1/built-one", "n1/built-two"]);

    let said = refused(m, "pull nosuch.invalid/x:1").await;
    assert!(said.contains("node n1") || said.contains("nosuch.invalid"), "{said}");

    let info = done(m, "info").await;
    for part in ["Strategy: spread", "Nodes: 3", "n3: 192.0.2.3", "Status: Healthy", "Reserved Memory: "] {
        assert!(info.contains(part), "{part}: {info}");
    }
    assert!(done(m, "service ls").await.starts_with("ID"), "the swarm's own commands work here too");
    let said = refused(m, "system df").await;
    assert!(said.contains("not served for all engines"), "{said}");
    prunes(m).await;
}

/// What a user spares stays, on every node, and the usual prune by age runs to its end at a node's own socket too.
async fn prunes(m: &Host) {
    for (name, label) in [("kept", "--label keep=1"), ("loose", "--label other=1")] {
        done(m, &format!("create --name {name} {label} -e constraint:node==n2 IMAGE")).await;
    }
    for prune in ["container prune -f --filter label!=keep --filter until=1h", "container prune -f --filter label!=keep"] {
        let before = names(m, " --filter label=other=1").await;
        assert_eq!(before, ["n2/loose"], "{prune}");
        done(m, prune).await;
    }
    assert_eq!(names(m, " --filter label=keep=1").await, ["n2/kept"]);
    assert_eq!(names(m, " --filter label=other=1").await, [""; 0]);
    m.docker_run("system prune -f --filter until=24h --filter label!=keep").await.expect("to its end");
    assert!(m.docker_run("network ls").await.expect("lists").contains("back"), "it is newer");
}

#[tokio::test]
async fn a_lost_node_delays_nothing_and_its_container_is_made_again_elsewhere() {
    let swarm = swarm("access-loss", 3, SETTINGS).await;
    let m = &swarm.hosts[0];
    done(m, "run -d --name moves -e constraint:node!=n1 -e affinity:container!=stays -e reschedule:on-node-failure -m 32m IMAGE")
        .await;
    let first = names(m, " --filter name=moves").await[0].clone();
    let lost = swarm.hosts.iter().find(|host| first.starts_with(&format!("{}/", host.name()))).expect("its host");
    let other = swarm.hosts[1..].iter().find(|host| host.name() != lost.name()).expect("the other host");
    done(m, &format!("run -d --name stays -e constraint:node=={} IMAGE", lost.name())).await;
    let both = SystemClock.now().to_rfc3339();
    within(20, "the manager to have seen both", || async {
        let info = docker(m, "info").await?;
        let read: Vec<&str> = info.lines().filter_map(|line| Some(line.split_once("UpdatedAt: ")?.1)).collect();
        anyhow::ensure!(read.len() == 3 && read.iter().all(|at| *at > both.as_str()), "{both}: {info}");
        Ok(())
    })
    .await;

    swarm.lab.cut(lost).await.expect("cut off");
    let begun = Instant::now();
    done(m, "ps").await;
    assert!(begun.elapsed() < Duration::from_secs(8), "a node that has just been lost delayed a list for {:?}", begun.elapsed());
    within(20, "the container to run elsewhere", || async {
        let running = docker(m, "ps --format {{.Names}}|{{.Status}} --filter name=moves").await?;
        let place = format!("{}/moves|Up", other.name());
        anyhow::ensure!(running.lines().any(|line| line.starts_with(&place)), "{running}");
        Ok(())
    })
    .await;
    let begun = Instant::now();
    let all = done(m, "ps --format {{.Names}}|{{.Status}}").await;
    assert!(begun.elapsed() < Duration::from_secs(3), "a node that is down is asked: {:?}", begun.elapsed());
    assert!(all.lines().any(|line| line == format!("{}/stays|Host Down", lost.name())), "{all}");
    let reply = UnixClient::new(m.run_dir().join("cluster.sock")).get("/containers/json").await.expect("answered");
    let named = reply.headers.get("skep-missing-nodes").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(named.contains(&format!("node {} cannot be asked: it is down", lost.name())), "{named:?}");
    let info = done(m, "info").await;
    assert!(info.contains("Unhealthy") && info.contains("it is down"), "{info}");

    swarm.lab.heal(lost).await.expect("healed");
    within(40, "the older one to be removed", || async {
        let left = output(lost.engine_cli().args(["ps", "-a", "--format", "{{.Names}}"])).await?;
        anyhow::ensure!(!left.lines().any(|name| name == "moves") && left.lines().any(|name| name == "stays"), "{left}");
        Ok(())
    })
    .await;
    let limit = done(m, &format!("inspect --format {{{{.HostConfig.Memory}}}} {}/moves", other.name())).await;
    assert_eq!(limit, "33554432", "as it was made");
    swarm.stop().await;
}

/// A group of this machine other than root's: name and number.
fn other_group() -> (String, u32) {
    let groups = std::fs::read_to_string("/etc/group").expect("the groups");
    let mut all = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let group = all.find_map(|fields| Some((fields.first()?.to_string(), fields.get(2)?.parse().ok().filter(|id| *id != 0)?)));
    group.expect("a group")
}

/// Group and permissions of the API's sockets that there are.
fn sockets(host: &Host) -> Vec<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let both = ["docker.sock", "cluster.sock"].map(|name| std::fs::metadata(host.run_dir().join(name)));
    both.into_iter().flatten().map(|socket| (socket.gid(), socket.mode() & 0o777)).collect()
}

#[tokio::test]
async fn both_apis_are_served_over_tcp_with_mutual_tls_only_and_a_node_may_refuse_the_access_point() {
    let mut swarm = swarm("access-tls", 2, "").await;
    let (files, foreign) = (swarm.lab.dir().join("pki"), swarm.lab.dir().join("foreign"));
    certificates(&files, "192.0.2.1");
    certificates(&foreign, "192.0.2.1");
    assert!(!swarm.hosts[0].run_dir().join("cluster.sock").exists(), "it is off unless it is switched on");
    let file = |name: &str| files.join(name).display().to_string();
    let tls = format!(
        "[api]\nlisten = \"tcp://0.0.0.0:2376\"\ntls_ca = {:?}\ntls_certificate = {:?}\ntls_key = {:?}\n",
        file("ca.pem"),
        file("server.pem"),
        file("server-key.pem")
    );
    let (group, id) = other_group();
    assert!(sockets(&swarm.hosts[0]).iter().all(|(owner, _)| *owner != id), "the group is not theirs by itself");
    let settings = [
        format!("socket_group = {group:?}\n{tls}[access_point]\nenabled = true\nlisten = \"tcp://0.0.0.0:3376\"\n"),
        "[access_point]\nrelay = false\n".to_owned(),
    ];
    for (host, settings) in swarm.hosts.iter_mut().zip(settings) {
        host.stop_daemon(false).await.expect("stopped");
        std::fs::write(host.dir().join("skep.toml"), settings).expect("settings");
        start(host).await;
    }
    swarm.ready(2).await;
    let m = &swarm.hosts[0];
    assert_eq!(sockets(m), [(id, 0o660); 2], "members of {group} may connect, and no others");
    let with = async |files: &Path, port: u16, words: &[&str]| {
        let mut command = m.command("docker");
        let file = |name: &str| files.join(name).display().to_string();
        command.args(["--tlsverify", "--tlscacert"]).arg(files.join("ca.pem").display().to_string());
        command.args(["--tlscert", &file("client.pem"), "--tlskey", &file("client-key.pem")]);
        output(command.args(["-H", &format!("tcp://192.0.2.1:{port}")]).args(words)).await
    };
    assert!(with(&files, 2376, &["node", "ls"]).await.expect("docker.sock's API").contains("n2"));
    with(&files, 3376, &["run", "-d", "--name", "web", WHOAMI_IMAGE]).await.expect("the only node that takes part");
    assert_eq!(with(&files, 3376, &["exec", "n1/web", "echo", "there"]).await.expect("exec").trim(), "there");
    let said = with(&files, 3376, &["run", "-e", "constraint:node==n2", WHOAMI_IMAGE]).await.expect_err("refused").to_string();
    assert!(said.contains("[constraint node==n2]"), "{said}");
    let reply = UnixClient::new(m.run_dir().join("cluster.sock")).get("/containers/json").await.expect("answered");
    let named = reply.headers.get("skep-missing-nodes").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(named.contains("node n2") && named.contains("access_point.relay is false"), "{named:?}");
    assert_eq!(reply.json::<Value>().expect("a list").as_array().map(Vec::len), Some(1));

    for port in [2376, 3376] {
        // A certificate of another CA, none, and no TLS.
        std::fs::copy(files.join("ca.pem"), foreign.join("ca.pem")).expect("the server is trusted");
        with(&foreign, port, &["ps"]).await.expect_err("another CA's client");
        let ca = file("ca.pem");
        let address = format!("tcp://192.0.2.1:{port}");
        let mut none = m.command("docker");
        output(none.args(["--tlsverify", "--tlscacert", &ca, "--tlscert", "", "--tlskey", "", "-H", &address, "ps"]))
            .await
            .expect_err("without a certificate");
        output(m.command("docker").args(["-H", &address, "ps"])).await.expect_err("without TLS");
    }

    swarm.stop().await;
}
