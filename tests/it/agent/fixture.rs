//! A host with a real engine, skep's driver on its plugin socket with links made by `ip`, and an agent.

use async_trait::async_trait;
use skep::agent::{AgentChannels, AgentConfig, run};
use skep::clock::SystemClock;
use skep::datapath::{LinkNetwork, Links};
use skep::http::{bind_unix, serve_unix};
use skep::lab::{Host, Lab, output, whoami_image};
use skep::model::fixture;
use skep::model::task::{Attachment, ContainerSpec, TaskSpec};
use skep::model::view::{NetworkPart, Networks, Tasks};
use skep::model::{Meta, NetworkId, NodeId, NodeView, Revision, ServiceId, Task, TaskId, TaskState, TaskStatus};
use skep::overlay::driver::{Driver, router};
use skep::runtime::{DockerEngine, Engine};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub const ME: &str = "agenttestnode";
const PATIENCE: Duration = Duration::from_secs(30);

/// Veth pairs into a namespace `mesh` of the host; enough for traffic on one node.
struct IpLinks {
    host: u32,
}

impl IpLinks {
    async fn ip(&self, line: &str) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.host.to_string(), "--net", "--mount", "--", "ip"]);
        output(command.args(line.split_whitespace())).await
    }
}

#[async_trait]
impl Links for IpLinks {
    async fn attach_to(&self, network: LinkNetwork, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        let gateway = network.gateway;
        let (host, mesh) = (format!("c{:08x}", address.to_bits()), format!("v{:08x}", address.to_bits()));
        self.detach(address).await?;
        self.ip(&format!("link add {host} mtu {mtu} type veth peer name {mesh} mtu {mtu} netns mesh")).await?;
        self.ip(&format!("-n mesh addr add {gateway}/32 dev {mesh}")).await?;
        self.ip(&format!("-n mesh link set {mesh} up")).await?;
        self.ip(&format!("-n mesh route add {address}/32 dev {mesh}")).await?;
        Ok(host)
    }
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        let _ = self.ip(&format!("-n mesh link del v{:08x}", address.to_bits())).await;
        Ok(())
    }
}

pub struct AgentFixture {
    lab: Lab,
    pub host: Host,
    pub engine: Arc<dyn Engine>,
    view: watch::Sender<Option<Arc<NodeView>>>,
    statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    last: BTreeMap<TaskId, TaskStatus>,
    pub seen: Vec<(TaskId, TaskState)>,
    mtu: watch::Sender<u32>,
    agent: CancellationToken,
    driver: CancellationToken,
    index: u64,
    /// Dropped last, so that a failed test leaves nothing behind either.
    _files: Files,
}

/// Removes a directory once its host is removed.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        for _ in 0..40 {
            if std::fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl AgentFixture {
    /// A host without an engine yet, an agent that waits for it.
    pub async fn without_engine(name: &str) -> Self {
        let dir = PathBuf::from(format!("/tmp/agent-{name}-{}", std::process::id()));
        let lab = Lab::new(&dir).await.expect("a lab");
        let host = lab.host("one", 1).await.expect("a host");
        host.run("ip netns add mesh").await.expect("a namespace");
        host.run("ip -n mesh link set lo up").await.expect("a loopback");
        host.run("nsenter --net=/run/netns/mesh sysctl -qw net.ipv4.ip_forward=1").await.expect("forwards");
        let engine = DockerEngine::connect(&format!("unix://{}", host.engine_socket().display())).expect("a URL");
        let (view, _) = watch::channel(None);
        let mut fixture = Self {
            lab,
            host,
            engine: Arc::new(engine),
            view,
            statuses: mpsc::channel(1).1,
            last: BTreeMap::new(),
            seen: Vec::new(),
            mtu: watch::channel(1400).0,
            agent: CancellationToken::new(),
            driver: CancellationToken::new(),
            index: 0,
            _files: Files(dir),
        };
        fixture.start_agent();
        fixture
    }

    pub async fn new(name: &str) -> Self {
        let mut fixture = Self::without_engine(name).await;
        fixture.start_driver();
        fixture.start_engine().await;
        fixture
    }

    pub async fn start_engine(&mut self) {
        self.restart_engine().await;
        whoami_image(&self.host).await.expect("an image");
    }

    /// Starts the engine with its state from before.
    pub async fn restart_engine(&mut self) {
        self.host.stop_engine().await.expect("stops");
        self.host.start_engine(&crate::lab::engine_root()).await.expect("an engine");
    }

    /// Starts the driver (again), from its file.
    pub fn start_driver(&mut self) {
        self.driver.cancel();
        self.driver = CancellationToken::new();
        let links = Arc::new(IpLinks { host: self.host.pid() });
        let ledger = self.host.dir().join("endpoints.json");
        let driver = Driver::new(links, Arc::new(skep::datapath::NoSandboxes), ledger, self.mtu.subscribe());
        driver.load().expect("loads");
        let listener = bind_unix(&self.plugin_socket()).expect("binds");
        tokio::spawn(serve_unix(listener, router(Arc::new(driver)), self.driver.clone()));
    }

    /// Removes the driver's socket, as when the daemon does not run.
    pub fn stop_driver(&mut self) {
        self.driver.cancel();
        std::fs::remove_file(self.plugin_socket()).expect("removes the socket");
    }

    /// The host has its own /run, reached through its first process.
    fn plugin_socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run/docker/plugins/skep.sock", self.host.pid()))
    }

    /// Starts the agent (again), with nothing but the last view.
    pub fn start_agent(&mut self) {
        self.agent.cancel();
        self.agent = CancellationToken::new();
        self.last.clear();
        let (status, statuses) = mpsc::channel(16);
        self.statuses = statuses;
        let skep = Some(self.host.dir().join("skep.sock"));
        let files = self.host.dir().join("files");
        let mut config = AgentConfig::new(NodeId::from(ME), self.host.engine_socket(), skep, files, self.mtu.subscribe());
        config.unassigned_grace = Duration::from_millis(500);
        let applied = watch::channel(Revision::default()).0;
        let (session, engine_answers) = (watch::channel(true).1, watch::channel(true).0);
        let channels = AgentChannels { view: self.view.subscribe(), status, applied, engine_answers, session };
        tokio::spawn(run(config, channels, self.engine.clone(), Arc::new(SystemClock), self.agent.clone()));
    }

    /// The managers want exactly these tasks.
    pub fn want(&mut self, tasks: &[Task]) {
        self.index += 1;
        let mut by_id = BTreeMap::new();
        for attachment in tasks.iter().flat_map(|t| &t.attachments) {
            let subnet = attachment.address.trunc();
            let part = NetworkPart {
                internal: attachment.network_id.as_str().starts_with("internal"),
                ..fixture::network_part(attachment.network_id.as_str(), subnet, Vec::new())
            };
            by_id.insert(attachment.network_id.clone(), part);
        }
        self.view.send_replace(Some(Arc::new(NodeView {
            tasks: Arc::new(Tasks {
                by_id: tasks.iter().map(|t| (t.id.clone(), Arc::new(t.clone()))).collect(),
                ..Tasks::default()
            }),
            networks: Arc::new(Networks { by_id }),
            ..fixture::node_view(self.index, Vec::new(), fixture::cluster_part(Vec::new()))
        })));
    }

    /// Waits until the task is reported in this state.
    pub async fn until(&mut self, task: &Task, state: TaskState) -> TaskStatus {
        self.wait(task, &format!("{state:?}"), |seen| seen == state).await
    }

    /// Waits until the task is in any final state: a signal before the shell has set its trap kills it.
    pub async fn until_final(&mut self, task: &Task) -> TaskStatus {
        self.wait(task, "final", TaskState::is_final).await
    }

    async fn wait(&mut self, task: &Task, what: &str, good: impl Fn(TaskState) -> bool) -> TaskStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.last.get(&task.id).filter(|status| good(status.state)) {
                return status.clone();
            }
            let got = tokio::time::timeout_at(deadline, self.statuses.recv()).await;
            let (id, status) =
                got.unwrap_or_else(|_| panic!("{} is not {what}: {:#?}", task.id, self.last)).expect("the agent runs");
            self.seen.push((id.clone(), status.state));
            self.last.insert(id, status);
        }
    }

    /// `docker …` against the host's engine.
    pub async fn docker(&self, words: &[&str]) -> anyhow::Result<String> {
        output(self.host.engine_cli().args(words)).await.map(|text| text.trim().to_owned())
    }

    /// A command in the task's container.
    pub async fn exec(&self, task: &Task, line: &str) -> anyhow::Result<String> {
        let name = task.container_name();
        let words: Vec<&str> = ["exec", &name].into_iter().chain(line.split_whitespace()).collect();
        self.docker(&words).await
    }

    /// Waits until `docker …` prints exactly this.
    pub async fn until_docker(&self, words: &[&str], expected: &str) {
        skep::lab::eventually(&format!("docker {words:?}"), PATIENCE, || async {
            let seen = self.docker(words).await?;
            anyhow::ensure!(seen == expected, "printed {seen:?}, not {expected:?}");
            Ok(())
        })
        .await
        .expect("in time");
    }

    pub async fn stop(self) {
        self.agent.cancel();
        // The driver last: an engine without it waits half a minute per endpoint that it removes.
        self.host.stop().await;
        self.driver.cancel();
        self.lab.stop().await.expect("removes its files");
    }
}

/// A task of service `web` that runs a shell line.
pub fn task(slot: u64, line: &str) -> Task {
    Task {
        id: TaskId::from(format!("task{slot:021}")),
        meta: Meta::default(),
        spec: TaskSpec {
            container_spec: ContainerSpec {
                image: skep::lab::WHOAMI_IMAGE.to_owned(),
                command: vec!["/bin/sh".to_owned(), "-c".to_owned()],
                args: vec![line.to_owned()],
                ..Default::default()
            },
            ..Default::default()
        }
        .into(),
        spec_version: 1,
        service_id: ServiceId::from("service0000000000000000id"),
        service_name: "web".to_owned(),
        service_labels: std::sync::Arc::default(),
        slot,
        slot_node: None,
        job_iteration: None,
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: Some(NodeId::from(ME)),
        desired_state: TaskState::Running,
        status: TaskStatus { state: TaskState::Assigned, ..Default::default() },
        attachments: Vec::new(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: skep::model::task::EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
    }
}

pub fn on(mut task: Task, network: &str, address: &str) -> Task {
    task.attachments.push(Attachment { network_id: NetworkId::from(network), address: address.parse().expect("an address") });
    task
}

pub fn wanting(task: &Task, state: TaskState) -> Task {
    Task { desired_state: state, ..task.clone() }
}

/// Exits with 0 on SIGTERM.
pub const POLITE: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
/// Ignores SIGTERM.
pub const STUBBORN: &str = "trap '' TERM; while :; do sleep 1; done";
