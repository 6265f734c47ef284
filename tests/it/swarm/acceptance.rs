//! What a user of Docker Swarm checks first, with the stock CLI on three managers with real engines: the rows of
//! `compatibility/features.tsv` that no other test of whole swarms shows. All stand on one swarm; checks of a file run at the same
//! time, each with services of its own.

mod containers;
mod names;
mod nodes;
mod unhealthy;
mod updates;

use super::super::ports::client;
use super::super::shared_fixture::{Fixture, SharedFixture};
use super::kit::*;
use super::managers::managers_with;
use serde_json::Value;
use skep::lab::{Host, WHOAMI_IMAGE, output};
use skep::model::Timestamp;
use std::collections::BTreeMap;

static ACCEPTANCE: SharedFixture<AcceptanceSwarm> = SharedFixture::new(module_path!());

/// On a starved machine the bounds of the wait for other nodes must not end it.
const SETTINGS: &str = "[manager]\nstop_hold_ms = 60000\nnode_lag_ms = 120000\n";
/// The same image under another name.
const SECOND_IMAGE: &str = "skep/whoami:2";

/// Three managers, the attachable network `back`, and on each host a plain container `caller` on it.
struct AcceptanceSwarm {
    swarm: Swarm,
    client: Host,
}

impl Fixture for AcceptanceSwarm {
    async fn set_up() -> Self {
        let swarm = managers_with("acc", SETTINGS).await;
        let client = client(&swarm).await;
        swarm.hosts[0].docker_run("network create -d overlay --attachable back").await.expect("network");
        for host in &swarm.hosts {
            host.docker_run(&format!("tag {WHOAMI_IMAGE} {SECOND_IMAGE}")).await.expect("tag");
            let name = format!("caller-{}", host.name());
            host.docker_run(&format!("run -d --name {name} --network back {WHOAMI_IMAGE}")).await.expect("caller");
        }
        Self { swarm, client }
    }
    async fn take_down(self) {
        self.client.stop().await;
        self.swarm.stop().await;
    }
}

/// One line of `docker service ps`.
#[derive(Debug)]
struct ListedTask {
    id: String,
    node: String,
    current: String,
    error: String,
}

impl AcceptanceSwarm {
    fn manager(&self) -> &Host {
        &self.swarm.hosts[0]
    }

    fn host(&self, name: &str) -> &Host {
        self.swarm.hosts.iter().find(|host| host.name() == name).expect("a host")
    }

    /// Runs `docker …` for the manager; arguments are split at blanks.
    async fn docker(&self, line: &str) -> String {
        for attempt in 0.. {
            match self.manager().docker_run(line).await {
                Ok(said) => return said.trim().to_owned(),
                // An update that goes on writes its progress between the two requests of the CLI.
                Err(error) if attempt < 5 && error.to_string().contains("update out of sequence") => {}
                Err(error) => panic!("docker {line}: {error:#}"),
            }
        }
        unreachable!("it ends with a panic")
    }

    /// Creates a service. Each option is a flag and, after the first blank, its value.
    async fn create(&self, name: &str, options: &[&str], command: &[&str]) {
        let mut docker = self.manager().docker();
        // Its processes ignore SIGTERM as process 1 of their namespace: nothing is gained by waiting for them.
        docker.args(["service", "create", "-d", "--no-resolve-image", "--name", name, "--stop-signal", "KILL"]);
        for option in options {
            docker.args(option.splitn(2, ' '));
        }
        output(docker.arg(WHOAMI_IMAGE).args(command)).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }

    async fn remove(&self, services: &str) {
        self.docker(&format!("service rm {services}")).await;
    }

    async fn ps(&self, service: &str) -> Vec<ListedTask> {
        let format = "{{.ID}}|{{.Node}}|{{.CurrentState}}|{{.Error}}";
        let shown = self.docker(&format!("service ps --no-trunc --format {format} {service}")).await;
        let listed = |line: &str| {
            let parts: Vec<String> = line.splitn(4, '|').map(str::to_owned).collect();
            let [id, node, current, error] = <[String; 4]>::try_from(parts).expect("four parts");
            ListedTask { id, node, current, error }
        };
        shown.lines().map(listed).collect()
    }

    /// Running and wanted tasks, as `docker service ls` counts them.
    async fn replicas(&self, service: &str) -> String {
        self.docker(&format!("service ls --filter name={service} --format {{{{.Replicas}}}}")).await
    }

    /// Number of running tasks by node.
    async fn per_node(&self, service: &str, count: usize) -> BTreeMap<String, usize> {
        self.swarm.running(service, count).await;
        let mut nodes = BTreeMap::new();
        for task in self.ps(service).await.into_iter().filter(|task| task.current.starts_with("Running")) {
            *nodes.entry(task.node).or_default() += 1;
        }
        nodes
    }

    /// Waits until the newest update of the service is in this state; its message.
    async fn until_update(&self, service: &str, state: &str) -> String {
        until_update_on(self.manager(), service, state).await
    }
}

async fn until_update_on(manager: &Host, service: &str, state: &str) -> String {
    within(60, &format!("the update to be {state}"), || async {
        let status = get(manager, &format!("/services/{service}")).await["UpdateStatus"].take();
        anyhow::ensure!(status["State"] == state, "{service}: {status}");
        Ok(status["Message"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

/// Their ids, in an order of their own.
fn ids(tasks: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = tasks.iter().filter_map(|task| task["ID"].as_str().map(str::to_owned)).collect();
    ids.sort_unstable();
    ids
}

fn container(task: &Value) -> String {
    task["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("a container").to_owned()
}

fn time(text: &Value) -> Timestamp {
    Timestamp::parse(text.as_str().expect("a time")).expect("a time")
}
