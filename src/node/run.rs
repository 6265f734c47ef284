//! Runs the daemon: its sockets, and the membership that is resumed at its start.

use super::control::DaemonControl;
use super::daemon::Daemon;
use super::environment::Environment;
use super::lifecycle::{Lifecycle, MembershipState};
use super::links::{CurrentLinks, CurrentSandboxes};
use super::manager_part::PreparedManager;
use super::member::Member;
use super::network::MeshNetwork;
use super::state_dir::{MembershipFile, StateDir};
use crate::api::Api;
use crate::clock::SystemClock;
use crate::datapath::interfaces::host_addresses;
use crate::http;
use crate::manager::dispatcher::view_of;
use crate::model::Role;
use crate::overlay::MtuChannels;
use crate::overlay::driver::{self, Driver};
use crate::runtime::DockerEngine;
use crate::settings::Settings;
use anyhow::Context as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs the daemon until shut down. Containers, tunnel, routes and rules keep running then.
///
/// # Errors
/// The sockets cannot be made, another daemon has the data directory, or the host lacks what skep needs.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(
        Path::new("/proc/sys/net/ipv6").exists(),
        "this kernel runs without IPv6 (ipv6.disable=1), which the mesh needs: remove that from the kernel's command line and reboot"
    );
    make_dir(&settings.data_dir, 0o700)?;
    make_dir(&settings.run_dir, 0o755)?;
    let state_dir = StateDir::new(&settings.data_dir);
    let _lock = state_dir.lock()?;
    let (daemon, driver) = open(settings, state_dir)?;
    let env = &daemon.env;

    // The driver first: an engine that starts without it waits many seconds per endpoint.
    let plugin = http::bind_unix(&env.settings.driver_socket())?;
    let servers = TaskTracker::new();
    servers.spawn(http::serve_unix(plugin, driver::router(driver), shutdown.clone()));

    if let Err(error) = resume(&daemon).await {
        let text = format!("{error:#}");
        tracing::error!(error = text, "the membership on disk could not be started");
        daemon.lifecycle.set(MembershipState::Pending { remotes: Vec::new(), error: text });
    }
    serve(&daemon, &servers, &shutdown)?;

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let (docker, admin) = (env.settings.docker_socket(), env.settings.admin_socket());
    tracing::info!(docker = %docker.display(), admin = %admin.display(), "ready");
    shutdown.cancelled().await;
    tracing::info!("shutting down; containers, tunnel and routes keep running");
    servers.close();
    let limit = Duration::from_millis(env.settings.timeouts.shutdown_ms);
    let _ = tokio::time::timeout(limit, async {
        servers.wait().await;
        if let MembershipState::Active(member) = daemon.lifecycle.state() {
            member.pause().await;
        }
    })
    .await;
    Ok(())
}

/// Builds the daemon and the network driver that it serves to the engine.
fn open(settings: Settings, state_dir: StateDir) -> anyhow::Result<(Arc<Daemon>, Arc<Driver>)> {
    let docker = Arc::new(DockerEngine::connect(&settings.engine)?);
    let mtus = MtuChannels::new(settings.tunnel_mtu());
    let links = Arc::new(CurrentLinks::default());
    let sandboxes = Arc::new(CurrentSandboxes::default());
    let driver = Arc::new(Driver::open(links.clone(), sandboxes.clone(), state_dir.endpoints(), mtus.device.subscribe())?);
    let env = Arc::new(Environment {
        settings,
        state_dir,
        clock: Arc::new(SystemClock),
        engine: docker.clone(),
        docker,
        links,
        sandboxes,
        joined: driver.joined(),
        mtus,
        takes_ports: AtomicBool::new(false),
    });
    Ok((Arc::new(Daemon { env, lifecycle: Lifecycle::new() }), driver))
}

/// Serves the admin socket and the Docker API.
fn serve(daemon: &Arc<Daemon>, servers: &TaskTracker, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let settings = &daemon.env.settings;
    let admin = http::bind_unix(&settings.admin_socket())?;
    servers.spawn(http::serve_unix(admin, crate::admin::router(daemon.clone()), shutdown.clone()));
    let control = Arc::new(DaemonControl(daemon.clone()));
    let api = Api::new(control, settings.engine_socket()?, daemon.env.clock.clone());
    let socket = http::bind_unix(&settings.docker_socket())?;
    if !settings.socket_group.is_empty() {
        http::give_to_group(&settings.docker_socket(), &settings.socket_group)?;
    }
    servers.spawn(api.serve(socket, shutdown.clone()));
    Ok(())
}

/// Starts the membership on disk, if there is one: from the ledger, without any manager.
async fn resume(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    let env = &daemon.env;
    let Some(membership) = MembershipFile::load(&env.state_dir)? else { return Ok(()) };
    let membership = with_current_addresses(membership).await?;
    let identity = env.state_dir.certificates().load(Some(&membership.cluster_id))?.with_context(|| {
        format!(
            "{} has a membership but no certificates: restore them from a backup, or run `skep leave --force` and join again",
            env.state_dir.path().display()
        )
    })?;
    let ledger = env.state_dir.ledger().load()?;
    let manager = match membership.role {
        Role::Manager => Some(PreparedManager::open(env, &membership).await?),
        Role::Worker => None,
    };
    // A manager's store is newer than its ledger.
    let view = match &manager {
        Some(manager) => view_of(&manager.store.store.read(), &membership.node_id).or(ledger),
        None => ledger,
    };
    let network = MeshNetwork::open(env, &membership.addresses()).await?;
    network.start_overlay(env, &membership.node_id, view);
    let member = Member::start(env, membership, identity, network, manager).await?;
    daemon.lifecycle.set(MembershipState::Active(Arc::new(member)));
    Ok(())
}

/// The membership with the addresses that the interfaces named by the user have now.
async fn with_current_addresses(membership: MembershipFile) -> anyhow::Result<MembershipFile> {
    let mut addresses = membership.addresses();
    if addresses.listen_interface.is_none() && addresses.advertise_interface.is_none() {
        return Ok(membership);
    }
    for problem in addresses.resolve_again(&host_addresses().await?) {
        tracing::warn!(problem, "an interface that this node is to use has no single address now, its last one is used");
    }
    Ok(membership.with_addresses(&addresses))
}

fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("cannot make {}", path.display()))
}
