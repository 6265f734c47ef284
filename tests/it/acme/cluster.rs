//! A cluster of one node without a swarm: the store, the leader's loop of certificates, and a process that serves what the views
//! have.

use super::pebble::{Pebble, PebbleConfig};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use skep::acme::{AcmeWorker, AcmeWorkerConfig, DnsHook};
use skep::clock::Clock;
use skep::http::UnixClient;
use skep::ingress::http::{HttpOptions, HttpPorts, HttpTable, table};
use skep::lab::eventually;
use skep::manager::dispatcher::view_of;
use skep::manager::{JoiningNode, bootstrap};
use skep::model::acme::AcmeSettings;
use skep::model::node::{ManagerStatus, NodeDescription};
use skep::model::{
    AcmeAccount, AcmeCertificate, Availability, NodeId, Payload, PayloadId, Revision, Role, Secret, ServiceSpec, Timestamp,
    fixture,
};
use skep::store::{Action, LocalProposer, StoreHandle};
use skep::trust::{PayloadVault, TunnelKey};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");
/// How much faster its clock runs: pauses after failures are minutes.
const FASTER: u32 = 120;

/// A clock that runs faster.
struct FastClock(Instant);

impl Clock for FastClock {
    fn now(&self) -> Timestamp {
        skep::clock::SystemClock.now().plus(self.0.elapsed() * FASTER)
    }
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time / FASTER))
    }
}

/// The cluster.
pub struct OneNode {
    pub pebble: Pebble,
    pub store: StoreHandle,
    pub vault: Arc<PayloadVault>,
    dir: PathBuf,
    /// The table has challenges, as it should.
    pub serves_challenges: Arc<AtomicBool>,
    /// The node says that it has applied its views.
    pub reports: Arc<AtomicBool>,
    applied: watch::Receiver<Revision>,
    process: Child,
    hook: Option<PathBuf>,
    started: Instant,
}

impl Drop for OneNode {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn node() -> NodeId {
    "n1".into()
}

/// A leader, until it is dropped.
pub struct Leader {
    leads: watch::Sender<bool>,
    worker: tokio::task::JoinHandle<()>,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.leads.send_replace(false);
        self.worker.abort();
    }
}

impl OneNode {
    /// With a service of these labels, and an authority. Nothing leads yet.
    pub async fn new(labels: &[(&str, &str)], config: PebbleConfig) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("skep-acme-{}-{number}", std::process::id()));
        let pebble = Pebble::start(&dir, config).await;
        let socket = dir.join("http.sock");
        let mut command = Command::new(SKEP);
        command.args(["http", "serve", "--log", "warn", "--mesh", "/proc/thread-self/ns/net", "--control"]).arg(&socket);
        let process = command.spawn().expect("started");

        let key = || TunnelKey::new(Secret::new([1; 32]));
        let vault = Arc::new(PayloadVault::new(node(), key()));
        let store = LocalProposer::handle();
        let first = JoiningNode {
            id: node(),
            role: Role::Manager,
            availability: Availability::Active,
            description: NodeDescription::default(),
            addr: None,
            key: key().public(),
            endpoints: Vec::new(),
            manager: Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".parse().expect("an address") }),
        };
        let mut actions = bootstrap(fixture::cluster(), "net".into(), first).expect("a cluster");
        actions.push(Action::create(vault.first_key("cluster".into(), &mut StdRng::seed_from_u64(1)).expect("a key").1));
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = ServiceSpec { name: "web".to_owned(), labels, ..ServiceSpec::default() };
        actions.push(Action::create(fixture::service("web", spec)));
        let settings = AcmeSettings {
            enabled: true,
            terms_agreed: true,
            directory: pebble.directory(),
            root_certificate: std::fs::read_to_string(pebble.listener()).expect("written"),
            email: "me@example.com".to_owned(),
            ..AcmeSettings::default()
        };
        actions.push(Action::create(AcmeAccount::new("cluster".into(), settings)));
        store.write(Timestamp(1), actions).await.expect("written");

        let (sender, applied) = watch::channel(Revision::default());
        let (serves_challenges, reports) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let one =
            Self { pebble, store, vault, dir, serves_challenges, reports, applied, process, hook: None, started: Instant::now() };
        let follower = Follower {
            control: UnixClient::new(socket),
            store: one.store.clone(),
            vault: one.vault.clone(),
            serves: one.serves_challenges.clone(),
            reports: one.reports.clone(),
        };
        tokio::spawn(follower.run(sender));
        one
    }

    /// With a program for TXT records, a shell script.
    pub fn with_hook(mut self, script: &str) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.join("hook");
        std::fs::write(&path, script).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("a program");
        self.hook = Some(path);
        self
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Changes what the user has set.
    pub async fn set(&self, change: impl FnOnce(&mut AcmeSettings)) {
        let mut account = self.store.read().acme_account().expect("an account").clone();
        change(&mut account.settings);
        self.store.write(Timestamp(2), vec![Action::update(account)]).await.expect("written");
    }

    /// A manager begins to lead.
    pub fn lead(&self) -> Leader {
        let (sender, leads) = watch::channel(true);
        let worker = AcmeWorker::new(AcmeWorkerConfig {
            store: self.store.clone(),
            leads,
            applied: self.applied.clone(),
            vault: self.vault.clone(),
            hook: self.hook.clone().map(|program| DnsHook { program }),
            clock: Arc::new(FastClock(self.started)),
        });
        Leader { leads: sender, worker: tokio::spawn(worker.run()) }
    }

    /// The record of a certificate once it is so.
    pub async fn once(&self, id: &str, what: &str, is_so: impl Fn(&AcmeCertificate) -> bool) -> AcmeCertificate {
        let found = eventually(what, Duration::from_secs(30), || async {
            let record = self.record(id);
            anyhow::ensure!(record.as_ref().is_some_and(&is_so), "{record:#?}\n{:#?}", self.store.read().acme_account());
            Ok(record.expect("there"))
        });
        match found.await {
            Ok(record) => record,
            Err(error) => panic!("{error:#}\n{}", self.pebble.log()),
        }
    }

    pub fn record(&self, id: &str) -> Option<AcmeCertificate> {
        self.store.read().get::<AcmeCertificate>(&id.into()).cloned()
    }

    /// What curl says of a host that it trusts by the authority's root alone.
    pub async fn trusts(&self, host: &str) -> anyhow::Result<String> {
        let root = self.pebble.root().await;
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(root);
        curl.args(["--resolve", &format!("{host}:443:127.0.0.1"), &format!("https://{host}/")]);
        skep::lab::output(&mut curl).await
    }

    /// Waits until a host is served with a certificate of the authority.
    pub async fn is_served(&self, host: &str) {
        let served = eventually("a trusted certificate", Duration::from_secs(10), || self.trusts(host)).await;
        assert_eq!(served.unwrap_or_else(|error| panic!("{error:#}")), "503", "{host}: the service has no task");
    }
}

/// The node: its process has the table of its view.
struct Follower {
    control: UnixClient,
    store: StoreHandle,
    vault: Arc<PayloadVault>,
    serves: Arc<AtomicBool>,
    reports: Arc<AtomicBool>,
}

impl Follower {
    async fn run(self, applied: watch::Sender<Revision>) {
        let mut sent = None;
        loop {
            let (revision, mut table) = self.table();
            if !self.serves.load(Ordering::Relaxed) {
                table.challenges.clear();
            }
            if sent.as_ref() != Some(&table) {
                let body = serde_json::to_vec(&table).expect("JSON");
                let reply = self.control.send("PUT", "/table", &[("Content-Type", "application/json")], body.into()).await;
                sent = reply.and_then(|reply| reply.ok()).ok().map(|()| table);
            }
            if sent.is_some() && self.reports.load(Ordering::Relaxed) {
                applied.send_if_modified(|before| std::mem::replace(before, revision) != revision);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn table(&self) -> (Revision, HttpTable) {
        let store = self.store.read();
        let mut view = view_of(&store, &node()).expect("a view");
        let key = self.vault.data_key(store.payload_keys().expect("stored")).expect("opened");
        let tasks = Arc::make_mut(&mut view.tasks);
        for issued in store.all::<AcmeCertificate>().filter_map(|record| record.issued.as_ref()) {
            let id = PayloadId::Secret(issued.payload.clone());
            let data = STANDARD.encode(key.open(&id, &issued.data).expect("opened").expose());
            tasks.payloads.insert(id, Arc::new(Payload { data: data.into(), templating: None }));
        }
        (
            view.revision,
            table(&view, &node(), &HttpOptions { ports: HttpPorts { plain: 80, tls: 443 }, ..HttpOptions::default() }),
        )
    }
}
