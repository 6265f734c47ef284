//! The composition root: the only file and folder that know every room. Builds the daemon, opens its sockets, starts what
//! a membership needs, and takes it down again. Decides nothing itself.

mod address;
mod admission;
mod control;
mod links;
mod manager;
mod manager_settings;
mod member;
mod network;
mod report;
mod session;
mod state_dir;

use crate::api::Api;
use crate::clock::{Clock, SystemClock};
use crate::datapath::tunnel;
use crate::http;
use crate::model::node::NodeDescription;
use crate::overlay::driver::{self, Driver};
use crate::runtime::{DockerEngine, Engine};
use crate::settings::Settings;
use crate::trust::CertificateFiles;
use anyhow::Context as _;
use links::{LateLinks, LateSandboxes};
use member::Member;
use network::Network;
use state_dir::MembershipFile;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The node daemon.
pub(crate) struct Daemon {
    settings: Settings,
    clock: Arc<dyn Clock>,
    engine: Arc<dyn Engine>,
    docker: Arc<DockerEngine>,
    links: Arc<LateLinks>,
    sandboxes: Arc<LateSandboxes>,
    /// Containers' namespaces, as the driver knows them.
    joined: watch::Receiver<Vec<crate::datapath::Sandbox>>,
    mtu: watch::Receiver<u32>,
    /// The eBPF datapath takes packets of published ports from other nodes.
    takes_ports: std::sync::atomic::AtomicBool,
    /// Init, join and leave, one at a time.
    turn: tokio::sync::Mutex<()>,
    state: RwLock<State>,
}

/// Where the node stands.
#[derive(Clone)]
enum State {
    Inactive,
    /// A join is under way, or the membership on disk could not be started.
    Pending {
        remotes: Vec<String>,
        error: String,
    },
    Active(Arc<Member>),
}

impl Daemon {
    fn state(&self) -> State {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
    fn set_state(&self, state: State) {
        *self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }
    fn tunnel_key_file(&self) -> PathBuf {
        self.settings.data_dir.join("tunnel.key")
    }
    fn ledger_file(&self) -> PathBuf {
        self.settings.data_dir.join("ledger.json")
    }
    /// What this node says of itself; without an answering engine only what the kernel knows.
    async fn description(&self) -> NodeDescription {
        let ebpf_datapath = self.takes_ports.load(std::sync::atomic::Ordering::Relaxed);
        if let Ok(Ok(description)) = tokio::time::timeout(Duration::from_secs(5), self.engine.describe()).await {
            return NodeDescription { ebpf_datapath, ..description };
        }
        let uname = rustix::system::uname();
        NodeDescription {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            os: "linux".to_owned(),
            ebpf_datapath,
            ..NodeDescription::default()
        }
    }
}

/// Runs the daemon until shut down. Containers, tunnel, routes and rules keep running then.
///
/// # Errors
/// The sockets cannot be made, another daemon has the data directory, or the host is not fit for skep.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::path::Path::new("/proc/sys/net/ipv6").exists(),
        "this kernel runs without IPv6 (ipv6.disable=1), which the mesh needs: remove that from the kernel's command line and reboot"
    );
    make_dir(&settings.data_dir, 0o700)?;
    make_dir(&settings.run_dir, 0o755)?;
    let _lock = lock(&settings)?;
    let docker = Arc::new(DockerEngine::connect(&settings.engine)?);
    let (_mtu, mtu) = watch::channel(settings.tunnel_mtu());
    let links = Arc::new(LateLinks::default());
    // The driver first: an engine that finds none at boot waits many seconds per endpoint.
    let sandboxes = Arc::new(LateSandboxes::default());
    let driver = Driver::open(links.clone(), sandboxes.clone(), settings.data_dir.join("endpoints.json"), mtu.clone())?;
    let driver = Arc::new(driver);
    let daemon = Arc::new(Daemon {
        clock: Arc::new(SystemClock),
        engine: docker.clone(),
        docker,
        links,
        sandboxes,
        joined: driver.joined(),
        mtu,
        takes_ports: std::sync::atomic::AtomicBool::new(false),
        turn: tokio::sync::Mutex::new(()),
        state: RwLock::new(State::Inactive),
        settings,
    });
    let settings = &daemon.settings;

    let plugin = http::bind_unix(&settings.driver_socket())?;
    let servers = tokio_util::task::TaskTracker::new();
    servers.spawn(http::serve_unix(plugin, driver::router(driver), shutdown.clone()));

    if let Err(error) = resume(&daemon).await {
        let text = format!("{error:#}");
        tracing::error!(error = text, "the membership on disk could not be started");
        daemon.set_state(State::Pending { remotes: Vec::new(), error: text });
    }

    let admin = http::bind_unix(&settings.admin_socket())?;
    servers.spawn(http::serve_unix(admin, crate::admin::router(daemon.clone()), shutdown.clone()));
    let api = Api::new(Arc::new(control::Control(daemon.clone())), settings.engine_socket()?, daemon.clock.clone());
    let socket = http::bind_unix(&settings.docker_socket())?;
    servers.spawn(api.serve(socket, shutdown.clone()));

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(docker = %settings.docker_socket().display(), admin = %settings.admin_socket().display(), "ready");
    shutdown.cancelled().await;
    tracing::info!("shutting down; containers, tunnel and routes keep running");
    servers.close();
    let limit = Duration::from_millis(settings.timeouts.shutdown_ms);
    let _ = tokio::time::timeout(limit, async {
        servers.wait().await;
        if let State::Active(member) = daemon.state() {
            member.pause().await;
        }
    })
    .await;
    Ok(())
}

/// Starts the membership that is on disk, if there is one: from the ledger, without asking any manager.
async fn resume(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    let settings = &daemon.settings;
    let Some(record) = MembershipFile::load(&settings.data_dir)? else { return Ok(()) };
    let identity = CertificateFiles::under(&settings.data_dir).load(Some(&record.cluster_id))?.with_context(|| {
        format!(
            "{} has a membership but no certificates: restore them from a backup, or run `skep leave --force` and join again",
            settings.data_dir.display()
        )
    })?;
    let ledger = crate::agent::ledger::Ledger::new(daemon.ledger_file()).load()?;
    let replicated = match record.raft_id {
        Some(raft_id) if manager::is_manager(&record) => {
            let outer = manager::bind(record.listen)?;
            Some((manager::Replicated::start(daemon, raft_id, false).await?, outer))
        }
        _ => None,
    };
    // A manager knows better than its ledger.
    let view = match &replicated {
        Some((replicated, _)) => crate::manager::dispatcher::view_of(&replicated.store.read(), &record.node_id).or(ledger),
        None => ledger,
    };
    let network = Network::open(daemon, &record.place()).await?;
    network.follow(&record.node_id, view, daemon.joined.clone());
    let member = Member::start(daemon, record, identity, network, replicated).await?;
    daemon.set_state(State::Active(Arc::new(member)));
    Ok(())
}

fn make_dir(path: &std::path::Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// One daemon per data directory.
fn lock(settings: &Settings) -> anyhow::Result<std::fs::File> {
    let path = settings.data_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another skep daemon runs on {}", settings.data_dir.display()))?;
    Ok(file)
}

/// Address that a member advertises.
fn advertised(member: &Member) -> Option<IpAddr> {
    member.record.advertise.or_else(|| {
        let view = member.view()?;
        view.cluster.node(&member.record.node_id)?.endpoints.first().map(std::net::SocketAddr::ip)
    })
}

/// Makes the tunnel's key if there is none, and gives its public half.
fn tunnel_key(daemon: &Daemon) -> anyhow::Result<crate::model::WgKey> {
    let path = daemon.tunnel_key_file();
    if path.exists() { tunnel::public_key(&path) } else { tunnel::generate_key(&path) }
}
