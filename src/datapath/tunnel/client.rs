//! The daemon's side of the tunnel process: starts it, adopts it, replaces it, restarts it when it dies.

use super::super::{Tunnel, TunnelPeer, TunnelState, TunnelStep};
use super::TunnelConfig;
use super::difference::apply_step;
use super::key::public_key;
use super::link::IoctlSocket;
use super::namespace::Namespace;
use super::paths::{log_file, pid_file};
use super::process::FAILED;
use super::protocol::{PROTOCOL, TunnelHello, TunnelReply, TunnelRequest, read_line, write_line};
use crate::backoff::Backoff;
use crate::datapath::side_process::{is_run_by, is_zombie, kill_locked};
use crate::model::WgKey;
use anyhow::{Context as _, anyhow, bail};
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long a request may take: the process replies from memory.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the process may take to start or to end.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Time between checks of whether it did.
const POLL: Duration = Duration::from_millis(10);
/// Size above which the log is truncated before the next start, bytes.
const LOG_LIMIT: u64 = 1 << 20;
/// Between attempts to restart a process that died.
const RESTART_BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// The tunnel as a process.
pub(super) struct ProcessTunnel {
    config: TunnelConfig,
    /// The process is started in this namespace, whichever namespace the calling thread is in.
    host: Namespace,
    /// Peers as last observed or applied, with the endpoints learned: a restarted process gets them. Locked while a process is
    /// started, so that there is one start at a time.
    peers: Mutex<BTreeMap<WgKey, TunnelPeer>>,
    /// Stopped by [`super::close`]: not to be restarted.
    closed: AtomicBool,
}

impl ProcessTunnel {
    /// Adopts the running process, or starts one.
    pub(super) async fn open(config: TunnelConfig) -> anyhow::Result<Arc<Self>> {
        let this =
            Arc::new(Self { config, host: Namespace::current()?, peers: Mutex::default(), closed: AtomicBool::new(false) });
        this.ensure_running().await?;
        // Reads the peers of an adopted process, for the case that it dies before they change.
        this.observe().await?;
        Ok(this)
    }

    /// Adopts or starts a process that fits the configuration; a new one gets the peers.
    async fn ensure_running(&self) -> anyhow::Result<()> {
        let mut peers = self.peers.lock().await;
        if self.closed.load(Ordering::Acquire) {
            bail!("the tunnel was closed");
        }
        let socket = self.config.socket();
        if let Ok(hello) = hello(&socket).await {
            let Some(reason) = misfit(&hello, &self.config)? else {
                tracing::debug!(pid = hello.pid, "tunnel process adopted");
                self.change_key(&hello).await?;
                return self.set_mtu().await;
            };
            tracing::info!(pid = hello.pid, reason, "tunnel process is replaced");
            // If device and namespace are the same, the next process attaches to the device, which keeps addresses and routes.
            let keep = hello.device == self.config.device && hello.mesh == Namespace::open(&self.config.mesh_pin)?.id;
            // At its start this daemon knows no peers: the new process gets those of the old one, with the endpoints learned.
            if peers.is_empty()
                && let Ok(TunnelReply::State(state)) = request(&socket, &TunnelRequest::Observe).await
            {
                *peers = state.peers.into_iter().map(|(key, state)| (key, state.peer)).collect();
            }
            stop(&socket, keep).await?;
        }
        kill_unresponsive(&socket).await?;
        self.start().await?;
        if !peers.is_empty() {
            let steps = peers.iter().map(|(key, peer)| TunnelStep::Set(*key, peer.clone())).collect();
            expect_applied(request(&socket, &TunnelRequest::Apply { steps }).await?)?;
            tracing::info!(peers = peers.len(), "configured the peers of the new tunnel process");
        }
        Ok(())
    }

    /// The process has the key that it was started with, or has changed to; the file may have another one by now.
    async fn change_key(&self, hello: &TunnelHello) -> anyhow::Result<()> {
        let key = public_key(&self.config.private_key_file)?;
        if hello.key == key {
            return Ok(());
        }
        match request(&self.config.socket(), &TunnelRequest::Rekey).await? {
            TunnelReply::Hello(now) if now.key == key => Ok(()),
            other => bail!("the tunnel process answered {other:?} to a change of its key"),
        }
    }

    /// An adopted process may have been started with another MTU.
    async fn set_mtu(&self) -> anyhow::Result<()> {
        if self.config.keep_mtu {
            return Ok(());
        }
        let (device, mtu) = (self.config.device.clone(), self.config.mtu);
        let mesh = Namespace::open(&self.config.mesh_pin)?;
        mesh.run_async(move || {
            let ioctl = IoctlSocket::new()?;
            if ioctl.mtu(&device)? != mtu {
                ioctl.set_mtu(&device, mtu).with_context(|| format!("cannot set MTU {mtu} on {device}"))?;
            }
            Ok(())
        })
        .await
    }

    /// Starts a process and waits until it answers.
    async fn start(&self) -> anyhow::Result<()> {
        let control = self.config.socket();
        let path = log_file(&control);
        let mut log = open_log(&path)?;
        let log_start = log.metadata()?.len();
        let mut command = self.command(&control, &log, self.mtu().await?)?;
        let runtime = tokio::runtime::Handle::current();
        let mut child = self
            .host
            .run_async(move || {
                let _entered = runtime.enter();
                Ok(command.spawn()?)
            })
            .await
            .with_context(|| format!("cannot start {} tunnel", self.config.program.display()))?;
        let answers = async {
            loop {
                if hello(&control).await.is_ok_and(|hello| Some(hello.pid) == child.id()) {
                    return Ok(());
                }
                if let Some(status) = child.try_wait()? {
                    let reason = exit_reason(&mut log, log_start);
                    return Err(reason.unwrap_or_else(|| anyhow!("the tunnel process ended with {status}")));
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let Ok(result) = timeout(START_TIMEOUT, answers).await else {
            let _ = child.kill().await;
            bail!("the tunnel process did not answer within {START_TIMEOUT:?} (log: {})", path.display());
        };
        result.with_context(|| format!("the tunnel does not start (log: {})", path.display()))?;
        // The process outlives this daemon. If it ends before, tokio reaps it.
        drop(child);
        Ok(())
    }

    /// The MTU to start a process with: that of a device which an earlier process has left, or the configured one.
    async fn mtu(&self) -> anyhow::Result<u32> {
        let (device, mtu) = (self.config.device.clone(), self.config.mtu);
        if !self.config.keep_mtu {
            return Ok(mtu);
        }
        let mesh = Namespace::open(&self.config.mesh_pin)?;
        mesh.run_async(move || Ok(IoctlSocket::new()?.mtu(&device).unwrap_or(mtu))).await
    }

    fn command(&self, control: &Path, log: &File, mtu: u32) -> anyhow::Result<tokio::process::Command> {
        let config = &self.config;
        let mut command = tokio::process::Command::new(&config.program);
        command
            .arg("tunnel")
            .arg("--mesh")
            .arg(&config.mesh_pin)
            .arg("--control")
            .arg(control)
            .arg("--key")
            .arg(&config.private_key_file)
            .arg("--listen")
            .arg(config.listen.to_string())
            .arg("--mtu")
            .arg(mtu.to_string())
            .arg("--device")
            .arg(&config.device)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        Ok(command)
    }

    /// Sends a request; if there is no reply, starts the process and sends it again.
    async fn call(&self, message: &TunnelRequest) -> anyhow::Result<TunnelReply> {
        let socket = self.config.socket();
        match request(&socket, message).await {
            Ok(reply) => Ok(reply),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the tunnel process does not answer");
                self.ensure_running().await?;
                request(&socket, message).await
            }
        }
    }
}

#[async_trait::async_trait]
impl Tunnel for ProcessTunnel {
    async fn observe(&self) -> anyhow::Result<TunnelState> {
        match self.call(&TunnelRequest::Observe).await? {
            TunnelReply::State(state) => {
                let now = state.peers.iter().map(|(key, state)| (*key, state.peer.clone()));
                *self.peers.lock().await = now.collect();
                Ok(state)
            }
            TunnelReply::Error(error) => Err(anyhow!(error).context("the tunnel process cannot read the state of its device")),
            other => bail!("the tunnel process answered {other:?} instead of its state"),
        }
    }

    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        expect_applied(self.call(&TunnelRequest::Apply { steps: steps.to_vec() }).await?)?;
        let mut peers = self.peers.lock().await;
        for step in steps {
            apply_step(&mut peers, step);
        }
        Ok(())
    }

    async fn rekey(&self) -> anyhow::Result<()> {
        match hello(&self.config.socket()).await {
            Ok(hello) => self.change_key(&hello).await,
            // It is started with the key of the file.
            Err(_) => self.ensure_running().await,
        }
    }

    async fn keep_running(&self) {
        let mut failures = 0;
        loop {
            if wait_until_it_ends(&self.config.socket()).await {
                self.closed.store(true, Ordering::Release);
                return std::future::pending().await;
            }
            match self.ensure_running().await {
                Ok(()) => failures = 0,
                Err(_) if self.closed.load(Ordering::Acquire) => return std::future::pending().await,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the tunnel process died and cannot be restarted");
                    failures += 1;
                    tokio::time::sleep(RESTART_BACKOFF.pause(failures)).await;
                }
            }
        }
    }
}

fn expect_applied(reply: TunnelReply) -> anyhow::Result<()> {
    match reply {
        TunnelReply::Applied => Ok(()),
        TunnelReply::Error(error) => Err(anyhow!(error).context("the tunnel process refused the change of its peers")),
        other => bail!("the tunnel process answered {other:?} to a change of its peers"),
    }
}

/// Returns when the process ends: `true` if it was stopped by request.
async fn wait_until_it_ends(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
    if write_line(&mut stream, &TunnelRequest::Watch).await.is_err() {
        return false;
    }
    let line = read_line(&mut BufReader::new(stream)).await;
    matches!(line, Ok(Some(line)) if matches!(serde_json::from_slice(&line), Ok(TunnelReply::Stopping)))
}

/// Sends one request on a new connection.
async fn request(socket: &Path, message: &TunnelRequest) -> anyhow::Result<TunnelReply> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        write_line(&mut stream, message).await?;
        let line = read_line(&mut BufReader::new(stream)).await?.context("it closed the connection without a reply")?;
        Ok::<_, anyhow::Error>(serde_json::from_slice(&line)?)
    };
    timeout(REPLY_TIMEOUT, exchange)
        .await
        .map_err(|_| anyhow!("no reply within {REPLY_TIMEOUT:?}"))
        .flatten()
        .with_context(|| format!("the tunnel process at {} does not answer", socket.display()))
}

/// Identifies the process that serves `socket`.
pub(super) async fn hello(socket: &Path) -> anyhow::Result<TunnelHello> {
    match request(socket, &TunnelRequest::Hello).await? {
        TunnelReply::Hello(hello) => Ok(hello),
        other => bail!("{} answered {other:?} instead of identifying itself", socket.display()),
    }
}

/// Why the process cannot be adopted; `None` if it can. Its key may be another one: it takes the node's.
pub(super) fn misfit(hello: &TunnelHello, config: &TunnelConfig) -> anyhow::Result<Option<String>> {
    let mesh = Namespace::open(&config.mesh_pin)?.id;
    let reason = if hello.protocol != PROTOCOL {
        format!("it speaks protocol {}, this daemon {PROTOCOL}", hello.protocol)
    } else if hello.listen != config.listen {
        format!("it listens on {}, configured is {}", hello.listen, config.listen)
    } else if hello.device != config.device {
        format!("its device is {}, configured is {}", hello.device, config.device)
    } else if hello.mesh != mesh {
        "its device is in an earlier mesh namespace".into()
    } else if !is_run_by(&config.program, hello.pid) {
        format!("it runs another build (version {}) than {}", hello.version, config.program.display())
    } else {
        return Ok(None);
    };
    Ok(Some(reason))
}

/// Stops the process that serves `socket` and waits until it has ended.
pub(super) async fn stop(socket: &Path, keep_device: bool) -> anyhow::Result<()> {
    let pid = hello(socket).await?.pid;
    request(socket, &TunnelRequest::Stop { keep_device }).await?;
    let ended = async {
        while Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid) {
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(START_TIMEOUT, ended).await.map_err(|_| anyhow!("the tunnel process {pid} did not end within {START_TIMEOUT:?}"))
}

/// Ends the process, if there is one.
pub(super) async fn close(socket: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(socket).await {
        Err(_) => kill_unresponsive(socket).await,
        Ok(_) => match stop(socket, false).await {
            Ok(()) => Ok(()),
            Err(_) => kill_unresponsive(socket).await,
        },
    }
}

/// Kills a process that is alive, because it has its pid file locked, but does not answer: it hangs, or its socket was deleted.
async fn kill_unresponsive(socket: &Path) -> anyhow::Result<()> {
    let path = pid_file(socket);
    let Ok(file) = File::open(&path) else { return Ok(()) };
    let is_locked = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
    if !is_locked() {
        return Ok(());
    }
    // Two more attempts: the host may be slow, and killing the process loses its sessions.
    for _ in 0..2 {
        if hello(socket).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(POLL * 10).await;
    }
    kill_locked(&path, "tunnel", START_TIMEOUT).await
}

/// Opens the log to append, and truncates a long one.
fn open_log(path: &Path) -> anyhow::Result<File> {
    let log = File::options()
        .create(true)
        .append(true)
        .read(true)
        .open(path)
        .with_context(|| format!("cannot open the tunnel's log {}", path.display()))?;
    if log.metadata()?.len() > LOG_LIMIT {
        log.set_len(0)?;
    }
    Ok(log)
}

/// Why the process ended: its own error, or the last line that it logged after `since`.
fn exit_reason(log: &mut File, since: u64) -> Option<anyhow::Error> {
    log.seek(SeekFrom::Start(since)).ok()?;
    let mut bytes = Vec::new();
    log.take(1 << 16).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let failure = text.lines().rev().find_map(|line| line.strip_prefix(FAILED));
    failure.or_else(|| text.lines().rev().find(|line| !line.trim().is_empty())).map(|line| anyhow!(line.to_owned()))
}
