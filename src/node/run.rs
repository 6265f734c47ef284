//! Runs the daemon: its sockets, and the membership that is resumed at its start.

use super::backup_contents;
use super::control::DaemonControl;
use super::daemon::Daemon;
use super::environment::Environment;
use super::inherited_socket;
use super::keyring::Keyring;
use super::lifecycle::{Lifecycle, MembershipState};
use super::links::{CurrentLinks, CurrentSandboxes};
use super::resume::resume;
use super::state_dir::StateDir;
use super::supervisor::{Blockers, Supervisor};
use crate::api::{Api, ApiTls, PlacementRules, serve_tls};
use crate::backoff::Backoff;
use crate::clock::SystemClock;
use crate::dashboard::{DaemonSockets, behind_route};
use crate::datapath::Sockets as _;
use crate::datapath::sockets::HereSockets;
use crate::durable::ignore_missing;
use crate::http::{self, UnixClient};
use crate::ingress::http::dashboard_socket;
use crate::overlay::MtuChannels;
use crate::overlay::driver::attachments::Attachments;
use crate::overlay::driver::{self, Driver};
use crate::runtime::DockerEngine;
use crate::settings::{AccessPointSettings, Settings};
use crate::trust::TunnelKeys;
use anyhow::Context as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Name of the API's socket in `skep.socket`.
const DOCKER_SOCKET: &str = "docker.sock";
/// Name of the network driver's socket in `skep-driver.socket`.
const DRIVER_SOCKET: &str = "driver.sock";
/// Name of the membership among the blockers.
const NODE: &str = "node";
/// Pauses between attempts to start a membership.
const START_AGAIN: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

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
    state_dir.remove_leftovers()?;
    // Those that were not fetched.
    backup_contents::remove(&settings.run_dir)?;
    let (daemon, driver) = open(settings, state_dir)?;
    let env = &daemon.env;

    // The driver first: an engine that starts without it waits many seconds per endpoint.
    let plugin = inherited_socket::listen(DRIVER_SOCKET, &env.settings.driver_socket())?;
    let mut servers = env.daemon_supervisor();
    servers.stop = shutdown.clone();
    let router = driver::router(driver);
    serve_on(&servers, "network driver", plugin, move |socket, stop| http::serve_unix(socket, router.clone(), stop));

    // What was left is not started again, whatever is on disk beside it.
    let mut started = env.state_dir.is_left() || start_again(&daemon, 1).await;
    let kept = daemon.clone();
    // After a panic the membership may be half started: it is started again.
    servers.keep_until_stopped("start", move || keep_membership(kept.clone(), std::mem::take(&mut started)));
    serve(&daemon, &servers)?;

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let (docker, admin) = (env.settings.docker_socket(), env.settings.admin_socket());
    tracing::info!(docker = %docker.display(), admin = %admin.display(), "ready");
    shutdown.cancelled().await;
    tracing::info!("shutting down; containers, tunnel and routes keep running");
    if let MembershipState::Active(member) = daemon.lifecycle.state() {
        member.announce_restart();
    }
    let limit = Duration::from_millis(env.settings.timeouts.shutdown_ms);
    let _ = tokio::time::timeout(limit, async {
        servers.end().await;
        match daemon.lifecycle.state() {
            MembershipState::Active(member) => member.pause().await,
            MembershipState::Locked(node) => node.pause().await,
            MembershipState::Inactive | MembershipState::Pending { .. } => {}
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
    let clock = Arc::new(SystemClock);
    let attachments = Arc::new(Attachments::new(state_dir.attachments(), clock.clone()));
    let driver = Driver::new(links.clone(), sandboxes.clone(), state_dir.endpoints(), mtus.device.subscribe());
    let driver = Arc::new(driver.with_attachments(attachments.clone()));
    // Before the engine asks. What cannot be read is named, and read again, when the membership starts.
    let _ = driver.load().and_then(|()| attachments.load());
    let keyring = Arc::new(Keyring::new(&state_dir));
    let env = Arc::new(Environment {
        settings,
        certificates: state_dir.certificates().sealed_by(keyring.clone()),
        keyring,
        tunnel_keys: TunnelKeys::default(),
        state_dir,
        clock,
        engine: docker.clone(),
        docker,
        links,
        sandboxes,
        joined: driver.joined(),
        driver: driver.clone(),
        attachments,
        mtus,
        blockers: Blockers::default(),
        failed: Arc::default(),
        takes_ports: AtomicBool::new(false),
    });
    Ok((Arc::new(Daemon { env, lifecycle: Lifecycle::new() }), driver))
}

/// Serves the admin socket and the Docker API.
fn serve(daemon: &Arc<Daemon>, servers: &Supervisor) -> anyhow::Result<()> {
    let settings = &daemon.env.settings;
    let shutdown = &servers.stop;
    let page = http::bind_unix(&dashboard_socket(&settings.run_dir))?;
    let sockets =
        DaemonSockets { admin: UnixClient::new(settings.admin_socket()), docker: UnixClient::new(settings.docker_socket()) };
    let router = behind_route(sockets);
    serve_on(servers, "dashboard", page, move |socket, stop| http::serve_unix(socket, router.clone(), stop));
    let control = Arc::new(DaemonControl(daemon.clone()));
    let api = Api::new(control, settings.engine_socket()?, daemon.env.clock.clone());
    let socket = inherited_socket::listen(DOCKER_SOCKET, &settings.docker_socket())?;
    if !settings.socket_group.is_empty() {
        http::give_to_group(&settings.docker_socket(), &settings.socket_group)?;
    }
    let tls = || ApiTls::read(&settings.api.tls_ca, &settings.api.tls_certificate, &settings.api.tls_key);
    if !settings.api.listen.is_empty() {
        let (listener, tls, connection) = (listen_tcp(&settings.api.listen)?, tls()?, api.connection());
        serve_on(servers, "API over TCP", listener, move |listener, stop| {
            serve_tls(listener, tls.clone(), connection.clone(), stop)
        });
    }
    if settings.access_point.enabled {
        let AccessPointSettings { strategy, overcommit, ref listen, .. } = settings.access_point;
        let access_point = api.access_point(PlacementRules { strategy, overcommit });
        if !listen.is_empty() {
            let (listener, tls, connection) = (listen_tcp(listen)?, tls()?, access_point.connection());
            serve_on(servers, "access point over TCP", listener, move |listener, stop| {
                serve_tls(listener, tls.clone(), connection.clone(), stop)
            });
        }
        let path = settings.access_point_socket();
        let socket = http::bind_unix(&path)?;
        if !settings.socket_group.is_empty() {
            http::give_to_group(&path, &settings.socket_group)?;
        }
        servers.keep("access point", access_point.watcher(shutdown.clone()));
        serve_on(servers, "access point's socket", socket, move |socket, stop| access_point.clone().serve(socket, stop));
    } else {
        // Of an earlier run.
        ignore_missing(std::fs::remove_file(settings.access_point_socket()))?;
    }
    servers.keep("events", api.event_follower(shutdown.clone()));
    serve_on(servers, "Docker API", socket, move |socket, stop| api.clone().serve(socket, stop));
    // Last: once the daemon's health is answered, its other sockets accept connections.
    let admin = http::bind_unix(&settings.admin_socket())?;
    let router = crate::admin::router(daemon.clone());
    serve_on(servers, "admin socket", admin, move |socket, stop| http::serve_unix(socket, router.clone(), stop));
    Ok(())
}

/// Serves a socket until the daemon stops; again after a failure, on the same socket.
fn serve_on<L, F>(
    servers: &Supervisor,
    name: &'static str,
    listener: L,
    serve: impl Fn(Arc<L>, CancellationToken) -> F + Send + 'static,
) where
    L: Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, stop) = (Arc::new(listener), servers.stop.clone());
    servers.keep(name, move || serve(listener.clone(), stop.clone()));
}

fn listen_tcp(setting: &str) -> anyhow::Result<TcpListener> {
    let listener = HereSockets.listen(Settings::tcp_address(setting)?).with_context(|| format!("cannot listen on {setting}"))?;
    Ok(TcpListener::from_std(listener)?)
}

/// Starts the membership on disk, and names what prevents that. Returns whether it runs, or there is none.
async fn start_again(daemon: &Arc<Daemon>, attempt: u32) -> bool {
    let env = &daemon.env;
    // Without them nothing is known of the links of containers: a node that went on would take those that run for none of its own.
    let loaded = env.driver.load().and_then(|()| env.attachments.load());
    let started = match loaded {
        Ok(()) => resume(daemon).await,
        Err(error) => Err(error),
    };
    match started {
        Ok(()) => {
            daemon.env.blockers.clear(NODE);
            true
        }
        Err(error) => {
            let text = format!("{error:#}");
            if attempt.is_power_of_two() {
                tracing::error!(error = text, attempt, "the membership on disk could not be started, it is tried again");
            }
            daemon.env.blockers.set(NODE, text.clone());
            daemon.lifecycle.set(MembershipState::Pending { remotes: Vec::new(), error: text });
            false
        }
    }
}

/// Finishes a leave that an earlier run has begun. Starts a membership that could not be started again and again, and one of
/// which a part has failed.
async fn keep_membership(daemon: Arc<Daemon>, mut started: bool) {
    daemon.keep_leaving().await;
    let mut attempt = 1_u32;
    loop {
        if started {
            daemon.env.failed.notified().await;
        } else {
            tokio::time::sleep(START_AGAIN.pause(attempt)).await;
        }
        let _lock = daemon.lifecycle.lock().await;
        match daemon.lifecycle.state() {
            MembershipState::Active(member) => {
                member.pause().await;
                daemon.env.blockers.clear_membership();
            }
            MembershipState::Locked(node) => {
                node.pause().await;
                daemon.env.blockers.clear_membership();
            }
            MembershipState::Pending { .. } => {}
            // The user left meanwhile.
            MembershipState::Inactive => {
                daemon.env.blockers.clear(NODE);
                started = true;
                continue;
            }
        }
        attempt = if started { 1 } else { attempt.saturating_add(1) };
        started = start_again(&daemon, attempt).await;
    }
}

fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("cannot make {}", path.display()))
}
