//! `skep http serve`: the process that has the listeners and all requests, and outlives the daemon. It carries out the table that
//! it is sent; the daemon makes the decisions.

use super::protocol::{HttpHello, PROTOCOL, dashboard_socket, pid_file};
use super::server::HttpServer;
use super::table::HttpTable;
use crate::datapath::NamespaceSockets;
use crate::datapath::side_process::lock_pid_file;
use crate::http::{UnixClient, bind_unix, serve_unix};
use crate::sync::lock;
use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Time between readings of the counters, and between attempts to open listeners that the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);

/// Arguments of `skep http serve`, which the daemon passes.
#[derive(clap::Args, Clone, Debug)]
pub struct HttpServeArgs {
    /// Path of the mesh namespace's pin
    #[arg(long)]
    mesh: PathBuf,
    /// Control socket to serve; the pid file is beside it
    #[arg(long)]
    control: PathBuf,
    /// Filter of the log
    #[arg(long, default_value = "info")]
    log: String,
}

/// The main function of `skep http serve`: returns after a request to end, when its clients have their answers.
///
/// # Errors
/// Another process has the socket and does not hand over, no mesh namespace, no permission.
#[expect(clippy::needless_pass_by_value, reason = "the process is the only user of its arguments")]
pub fn process_main(args: HttpServeArgs) -> anyhow::Result<()> {
    // A new session: signals to the daemon's terminal or process group do not reach the process. Fails harmlessly for a leader.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // pingora logs an error for each client that goes away or fails a handshake, rustls a warning for each that sends an address as
    // server name: scanners would fill the disk.
    crate::telemetry::start(&format!("{},rustls=error,pingora_core=off,pingora_proxy=off,pingora_pool=off,h2=off", args.log))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(&args))
}

/// What the control socket reads.
struct HttpControl {
    server: HttpServer,
    mesh: (u64, u64),
    /// Of the pid file, until another process takes over.
    lock: Mutex<Option<File>>,
    drain: CancellationToken,
}

async fn run(args: &HttpServeArgs) -> anyhow::Result<()> {
    let mesh = NamespaceSockets::open(&args.mesh)?;
    let id = mesh.id()?;
    let before = UnixClient::new(&args.control);
    let (inherited, table) = take_over(&before).await;
    let lock = lock_pid_file(&pid_file(&args.control), "HTTP")?;
    let dashboard = dashboard_socket(args.control.parent().unwrap_or(Path::new("/")));
    let control = Arc::new(HttpControl {
        server: HttpServer::new(Arc::new(mesh), inherited, dashboard),
        mesh: id,
        lock: Mutex::new(Some(lock)),
        drain: CancellationToken::new(),
    });
    if let Some(table) = table {
        control.server.apply(table);
    }
    let listener = bind_unix(&args.control)?;
    tracing::info!(pid = std::process::id(), "HTTP ingress is up");
    let ended = CancellationToken::new();
    let served = tokio::spawn(serve_unix(listener, router(control.clone()), ended.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            () = control.drain.cancelled() => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {}
            () = tokio::time::sleep(RETRY) => {
                control.server.sample();
                control.server.retry();
            }
        }
    }
    control.server.close();
    // A next process may start while this one still answers.
    drop(crate::sync::lock(&control.lock).take());
    control.server.drain().await;
    ended.cancel();
    let _ = served.await;
    control.server.write_log();
    tracing::info!(pid = std::process::id(), "HTTP ingress has ended");
    Ok(())
}

/// The sockets and the table of the process that serves now, which accepts no more then. The kernel keeps clients waiting until this
/// process accepts them. Without such a process, or if it does not hand over, nothing.
async fn take_over(before: &UnixClient) -> (BTreeMap<SocketAddr, TcpListener>, Option<HttpTable>) {
    match handed_over(before).await {
        Ok((sockets, table)) => {
            tracing::info!(listeners = sockets.len(), "took over from the process before");
            (sockets, table)
        }
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "no process to take over from");
            (BTreeMap::new(), None)
        }
    }
}

async fn handed_over(before: &UnixClient) -> anyhow::Result<(BTreeMap<SocketAddr, TcpListener>, Option<HttpTable>)> {
    let hello: HttpHello = before.get("/hello").await?.json()?;
    let table = before.get("/table").await.and_then(|reply| reply.json::<HttpTable>());
    if let Err(error) = &table {
        tracing::warn!(error = format!("{error:#}"), "the table before is not readable: clients wait for the daemon's");
    }
    let sockets = sockets_of(&hello);
    if let Err(error) = &sockets {
        tracing::warn!(error = format!("{error:#}"), "the listeners cannot be taken over: clients are refused for a moment");
    }
    before.request("POST", "/drain", None).await?.ok()?;
    Ok((sockets.unwrap_or_default(), table.ok()))
}

/// Duplicates of another process's listeners.
fn sockets_of(hello: &HttpHello) -> anyhow::Result<BTreeMap<SocketAddr, TcpListener>> {
    let pid = i32::try_from(hello.pid).ok().and_then(Pid::from_raw).context("no process id")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("the process before cannot be opened")?;
    let mut sockets = BTreeMap::new();
    for listener in &hello.listeners {
        let socket = pidfd_getfd(&process, listener.fd, PidfdGetfdFlags::empty());
        let socket = TcpListener::from(socket.with_context(|| format!("the listener of {}", listener.address))?);
        let address = socket.local_addr()?;
        anyhow::ensure!(address.to_string() == listener.address, "{} is another socket by now: {address}", listener.address);
        sockets.insert(address, socket);
    }
    Ok(sockets)
}

fn router(control: Arc<HttpControl>) -> Router {
    Router::new()
        .route("/hello", get(hello))
        .route("/table", put(apply).get(async |State(control): State<Arc<HttpControl>>| Json(control.server.table())))
        .route("/state", get(async |State(control): State<Arc<HttpControl>>| Json(control.server.status())))
        .route("/waiting", get(async |State(control): State<Arc<HttpControl>>| control.server.waiting_changed().await))
        .route("/drain", post(drain))
        .route("/end", get(async || std::future::pending::<()>().await))
        .layer(DefaultBodyLimit::disable())
        .with_state(control)
}

async fn hello(State(control): State<Arc<HttpControl>>) -> Json<HttpHello> {
    Json(HttpHello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        mesh: control.mesh,
        listeners: control.server.fds(),
        draining: control.server.is_draining(),
    })
}

async fn apply(State(control): State<Arc<HttpControl>>, Json(table): Json<HttpTable>) -> Json<super::HttpStatus> {
    control.server.apply(table);
    Json(control.server.status())
}

async fn drain(State(control): State<Arc<HttpControl>>) {
    control.server.close();
    drop(lock(&control.lock).take());
    control.drain.cancel();
}
