//! `skep tunnel`: the process that owns the TUN device and its WireGuard sessions, and outlives the daemon. It does what
//! its control socket says; it decides nothing.

use super::beside;
use super::device::WireGuard;
use super::key::{private_key, public_key};
use super::namespace::Namespace;
use super::protocol::{Hello, LineError, PROTOCOL, Reply, Request, read_line, write_line};
use super::tun::Tun;
use super::udp::Socket;
use anyhow::{Context as _, anyhow, bail};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Arguments of `skep tunnel`, which the daemon gives.
#[derive(clap::Args, Clone, Debug)]
pub struct TunnelArgs {
    /// Where the mesh namespace is pinned
    #[arg(long)]
    pub mesh: PathBuf,
    /// Control socket to serve; the pid file lies beside it
    #[arg(long)]
    pub control: PathBuf,
    /// File of the private key, base 64
    #[arg(long)]
    pub key: PathBuf,
    /// UDP address and port
    #[arg(long)]
    pub listen: SocketAddr,
    /// MTU of the device, bytes
    #[arg(long)]
    pub mtu: u32,
    /// Name of the device
    #[arg(long)]
    pub device: String,
}

/// Body of `skep tunnel`: returns when told to stop.
///
/// # Errors
/// What [`super::open`] names; also printed as one line to standard error, where the daemon finds it.
#[expect(clippy::needless_pass_by_value, reason = "the arguments of a process are its own")]
pub fn process_main(args: TunnelArgs) -> anyhow::Result<()> {
    let result = run(&args);
    if let Err(error) = &result {
        eprintln!("{FAILED}{error:#}");
    }
    result
}

/// How the line begins that says why the process ended.
pub(super) const FAILED: &str = "skep tunnel failed: ";

fn run(args: &TunnelArgs) -> anyhow::Result<()> {
    // A session of its own: neither the daemon's terminal nor its process group ends it. Fails harmlessly for a leader.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // gotatun logs an error for each packet to a peer whose address is not known yet.
    let filter = tracing_subscriber::EnvFilter::new("info,gotatun=warn,gotatun::device=off");
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();

    let private = private_key(&args.key)?;
    let lock = lock_pid_file(&beside(&args.control, "pid"))?;
    let mesh = Namespace::open(&args.mesh)?;
    let hello = Hello {
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
        let socket = Socket::bind(args.listen)?;
        let tun = Tun::open(&mesh, &args.device, args.mtu)?;
        let wireguard = WireGuard::start(private, tun, socket, &args.device).await?;
        let listener = listen(&args.control)?;
        tracing::info!(pid = hello.pid, key = %hello.key.to_base64(), listen = %args.listen, device = args.device, "tunnel is up");
        serve(wireguard, listener, hello).await
    });
    if matches!(result, Ok(End::Told)) {
        let _ = std::fs::remove_file(&args.control);
        let _ = std::fs::remove_file(beside(&args.control, "pid"));
    }
    drop(lock);
    result.map(|_| ())
}

/// Writes the pid file and locks it: two processes never serve one socket.
fn lock_pid_file(path: &Path) -> anyhow::Result<File> {
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open().with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        bail!("another tunnel process (pid {}) holds {}", pid.trim(), path.display());
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // The lock is ours, so a socket that lies here belongs to nobody.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("cannot listen on {} (at most 107 characters)", path.display()))
}

/// Why serving ended.
enum End {
    /// By request.
    Told,
    /// By signal: the device stays for the next process.
    Signal,
}

type Asked = (Request, oneshot::Sender<Reply>);

async fn serve(mut wireguard: WireGuard, listener: UnixListener, hello: Hello) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, mut requests) = mpsc::channel::<Asked>(16);
    let (stopping, watched) = watch::channel(false);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { tokio::spawn(converse(stream, sender.clone(), watched.clone())); }
                Err(error) => {
                    tracing::warn!(%error, "accepting on the control socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some((request, answer)) = requests.recv() => {
                let reply = match request {
                    Request::Hello => Reply::Hello(hello.clone()),
                    Request::Observe => wireguard.observe().await.map_or_else(|error| error_reply(&error), Reply::State),
                    Request::Apply { steps } => wireguard.apply(&steps).await.map_or_else(|error| error_reply(&error), |()| Reply::Applied),
                    Request::Watch => continue,
                    Request::Stop { keep_device } => {
                        wireguard.stop(keep_device).await;
                        let _ = stopping.send(true);
                        drop(requests);
                        let _ = answer.send(Reply::Stopping);
                        // The connections write their last words.
                        let all_told = async { while !sender.is_closed() || sender.strong_count() > 1 { tokio::task::yield_now().await; } };
                        let _ = tokio::time::timeout(std::time::Duration::from_millis(200), all_told).await;
                        return Ok(End::Told);
                    }
                };
                let _ = answer.send(reply);
            }
            () = wireguard.wait() => return Err(anyhow!("the device {} is gone or its socket failed", hello.device)),
            _ = terminate.recv() => return Ok(End::Signal),
            _ = interrupt.recv() => return Ok(End::Signal),
            _ = hangup.recv() => {}
        }
    }
}

fn error_reply(error: &anyhow::Error) -> Reply {
    Reply::Error(format!("{error:#}"))
}

/// One connection. What cannot be read is answered with an error; only what cannot be told from the next line ends it.
async fn converse(stream: UnixStream, requests: mpsc::Sender<Asked>, mut stopping: watch::Receiver<bool>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let (reply, last) = match read_line(&mut reader).await {
            Ok(None) | Err(LineError::Io(_)) => return,
            Ok(Some(line)) => match serde_json::from_slice::<Request>(&line) {
                Ok(Request::Watch) => {
                    if stopping.wait_for(|stopping| *stopping).await.is_err() {
                        return;
                    }
                    (Reply::Stopping, true)
                }
                Ok(request) => {
                    let (answer, answered) = oneshot::channel();
                    if requests.send((request, answer)).await.is_err() {
                        return;
                    }
                    match answered.await {
                        Ok(reply) => (reply, false),
                        Err(_) => return,
                    }
                }
                Err(error) => (Reply::Error(format!("not a request: {error}")), false),
            },
            Err(error) => (Reply::Error(error.to_string()), true),
        };
        if write_line(&mut writer, &reply).await.is_err() || last {
            return;
        }
    }
}
