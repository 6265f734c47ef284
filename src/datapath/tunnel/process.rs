//! `skep tunnel`: the process that owns the TUN device and its WireGuard sessions, and outlives the daemon. It carries out the
//! requests on its control socket; the daemon makes the decisions.

use super::device::WireGuard;
use super::key::{private_key, public_key};
use super::namespace::Namespace;
use super::paths::pid_file;
use super::protocol::{LineError, PROTOCOL, TunnelHello, TunnelReply, TunnelRequest, read_line, write_line};
use super::tun::Tun;
use super::udp::TunnelSocket;
use crate::datapath::side_process::lock_pid_file;
use anyhow::{Context as _, anyhow};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Arguments of `skep tunnel`, which the daemon passes.
#[derive(clap::Args, Clone, Debug)]
pub struct TunnelArgs {
    /// Path of the mesh namespace's pin
    #[arg(long)]
    pub mesh: PathBuf,
    /// Control socket to serve; the pid file is beside it
    #[arg(long)]
    pub control: PathBuf,
    /// File that contains the private key, base 64
    #[arg(long)]
    pub key: PathBuf,
    /// UDP address and port
    #[arg(long)]
    pub listen: SocketAddr,
    /// MTU of the device in bytes
    #[arg(long)]
    pub mtu: u32,
    /// Name of the device
    #[arg(long)]
    pub device: String,
}

/// The main function of `skep tunnel`: returns after a request to stop.
///
/// # Errors
/// As [`super::open`]; also printed as one line to standard error, from where the daemon reads it.
#[expect(clippy::needless_pass_by_value, reason = "the process is the only user of its arguments")]
pub fn process_main(args: TunnelArgs) -> anyhow::Result<()> {
    let result = run(&args);
    if let Err(error) = &result {
        eprintln!("{FAILED}{error:#}");
    }
    result
}

/// Prefix of the line with the reason why the process failed.
pub(super) const FAILED: &str = "skep tunnel failed: ";

fn run(args: &TunnelArgs) -> anyhow::Result<()> {
    // A new session: signals to the daemon's terminal or process group do not reach the process. Fails harmlessly for a leader.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // gotatun logs an error for each packet to a peer without an endpoint.
    let filter = tracing_subscriber::EnvFilter::new("info,gotatun=warn,gotatun::device=off");
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();

    let private = private_key(&args.key)?;
    let lock = lock_pid_file(&pid_file(&args.control), "tunnel")?;
    let mesh = Namespace::open(&args.mesh)?;
    let hello = TunnelHello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        instance: rand::random(),
        key: public_key(&args.key)?,
        listen: args.listen,
        device: args.device.clone(),
        mesh: mesh.id,
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores.clamp(2, 8)).enable_all().build()?;
    let result = runtime.block_on(async {
        let socket = TunnelSocket::bind(args.listen)?;
        let tun = Tun::open(&mesh, &args.device, args.mtu)?;
        let wireguard = WireGuard::start(*private.expose(), tun, socket, &args.device)?;
        let listener = listen(&args.control)?;
        tracing::info!(pid = hello.pid, key = %hello.key.to_base64(), listen = %args.listen, device = args.device, "tunnel is up");
        serve(wireguard, listener, hello, &args.key).await
    });
    if matches!(result, Ok(StopReason::Requested)) {
        let _ = std::fs::remove_file(&args.control);
        let _ = std::fs::remove_file(pid_file(&args.control));
    }
    drop(lock);
    result.map(|_| ())
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // This process has the lock, so an existing socket is stale.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("cannot listen on {} (at most 107 characters)", path.display()))
}

/// Why the process stops.
enum StopReason {
    Requested,
    /// The device stays for the next process.
    Signal,
}

/// A request and where its reply goes.
type PendingRequest = (TunnelRequest, oneshot::Sender<TunnelReply>);

async fn serve(
    mut wireguard: WireGuard,
    listener: UnixListener,
    mut hello: TunnelHello,
    key_file: &Path,
) -> anyhow::Result<StopReason> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, mut requests) = mpsc::channel::<PendingRequest>(16);
    let (stopping, stopping_receiver) = watch::channel(false);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { tokio::spawn(serve_connection(stream, sender.clone(), stopping_receiver.clone())); }
                Err(error) => {
                    tracing::warn!(%error, "accepting on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some((request, reply_to)) = requests.recv() => {
                if let TunnelRequest::Stop { keep_device } = request {
                    wireguard.stop(keep_device);
                    let _ = stopping.send(true);
                    drop(requests);
                    let _ = reply_to.send(TunnelReply::Stopping);
                    wait_for_connections(&sender).await;
                    return Ok(StopReason::Requested);
                }
                let _ = reply_to.send(carry_out(&wireguard, &mut hello, key_file, request));
            }
            () = wireguard.wait() => return Err(anyhow!("the device {} is gone or its socket failed", hello.device)),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {}
        }
    }
    wireguard.stop(true);
    Ok(StopReason::Signal)
}

/// Carries out a request that the process survives.
fn carry_out(wireguard: &WireGuard, hello: &mut TunnelHello, key_file: &Path, request: TunnelRequest) -> TunnelReply {
    match request {
        TunnelRequest::Hello => TunnelReply::Hello(hello.clone()),
        TunnelRequest::Observe => wireguard.observe().map_or_else(|error| error_reply(&error), TunnelReply::State),
        TunnelRequest::Apply { steps } => {
            wireguard.apply(&steps);
            TunnelReply::Applied
        }
        TunnelRequest::Rekey => match private_key(key_file) {
            Ok(private) => {
                hello.key = wireguard.rekey(*private.expose());
                tracing::info!(key = %hello.key.to_base64(), "the tunnel has another key");
                TunnelReply::Hello(hello.clone())
            }
            Err(error) => error_reply(&error),
        },
        TunnelRequest::Watch | TunnelRequest::Stop { .. } => TunnelReply::Error("handled before it gets here".to_owned()),
    }
}

/// Waits until the connections have written their last replies.
async fn wait_for_connections(sender: &mpsc::Sender<PendingRequest>) {
    let closed = async {
        while !sender.is_closed() || sender.strong_count() > 1 {
            tokio::task::yield_now().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(200), closed).await;
}

fn error_reply(error: &anyhow::Error) -> TunnelReply {
    TunnelReply::Error(format!("{error:#}"))
}

/// Serves one connection. An invalid request gets an error reply; only a truncated or overlong line ends the connection.
async fn serve_connection(stream: UnixStream, requests: mpsc::Sender<PendingRequest>, mut stopping: watch::Receiver<bool>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let (reply, last) = match read_line(&mut reader).await {
            Ok(None) | Err(LineError::Io(_)) => return,
            Ok(Some(line)) => match serde_json::from_slice::<TunnelRequest>(&line) {
                Ok(TunnelRequest::Watch) => {
                    if stopping.wait_for(|stopping| *stopping).await.is_err() {
                        return;
                    }
                    (TunnelReply::Stopping, true)
                }
                Ok(request) => {
                    let (reply_to, replied) = oneshot::channel();
                    if requests.send((request, reply_to)).await.is_err() {
                        return;
                    }
                    match replied.await {
                        Ok(reply) => (reply, false),
                        Err(_) => return,
                    }
                }
                Err(error) => (TunnelReply::Error(format!("not a request: {error}")), false),
            },
            Err(error) => (TunnelReply::Error(error.to_string()), true),
        };
        if write_line(&mut writer, &reply).await.is_err() || last {
            return;
        }
    }
}
