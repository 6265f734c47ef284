//! The daemon's side of the tunnel process: starts it, adopts it, replaces it, starts it again when it dies.

use super::super::{Tunnel, TunnelPeer, TunnelState, TunnelStep};
use super::link::Control;
use super::namespace::Namespace;
use super::process::FAILED;
use super::protocol::{Hello, PROTOCOL, Reply, Request, read_line, write_line};
use super::{TunnelConfig, beside};
use crate::model::WgKey;
use anyhow::{Context as _, anyhow, bail};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long a request may take: the process answers from memory.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the process may take to come up or to end.
const START: Duration = Duration::from_secs(15);
/// Between looks at whether it did.
const LOOK: Duration = Duration::from_millis(10);
/// Size at which the log starts anew with the next process, bytes.
const LOG_LIMIT: u64 = 1 << 20;

/// The tunnel as a process.
pub(super) struct ProcessTunnel {
    config: TunnelConfig,
    key: WgKey,
    /// Where the process runs, whichever thread finds that it has to be started again.
    host: Namespace,
    /// Peers as last seen or applied, with the endpoints learned: what a process that has to be started again is given. Also the lock on starting.
    peers: Mutex<BTreeMap<WgKey, TunnelPeer>>,
    /// Told to stop by [`super::close`]: not to be started again.
    closed: AtomicBool,
}

impl ProcessTunnel {
    /// Adopts the running process or starts one.
    pub(super) async fn open(config: TunnelConfig, key: WgKey) -> anyhow::Result<Arc<Self>> {
        let this =
            Arc::new(Self { config, key, host: Namespace::current()?, peers: Mutex::default(), closed: AtomicBool::new(false) });
        this.ensure().await?;
        // An adopted process has peers; should it die before they change, the next one gets the same.
        this.observe().await?;
        tokio::spawn(keep_alive(Arc::downgrade(&this)));
        Ok(this)
    }

    /// Sees to it that a process runs that fits, and has the peers if it is a new one.
    async fn ensure(&self) -> anyhow::Result<()> {
        let peers = self.peers.lock().await;
        if self.closed.load(Ordering::Acquire) {
            bail!("the tunnel was closed");
        }
        let socket = self.config.socket();
        if let Ok(hello) = hello(&socket).await {
            let Some(reason) = misfit(&hello, &self.config, self.key)? else {
                tracing::debug!(pid = hello.pid, "tunnel process adopted");
                return self.set_mtu().await;
            };
            tracing::info!(pid = hello.pid, reason, "tunnel process is replaced");
            // In this namespace the next process takes the device over, with the addresses and routes that others gave it.
            let keep = hello.device == self.config.device && hello.mesh == Namespace::open(&self.config.mesh_pin)?.id;
            stop(&socket, keep).await?;
        }
        end_silent(&socket).await?;
        self.start().await?;
        if !peers.is_empty() {
            let steps = peers.iter().map(|(key, peer)| TunnelStep::Set(*key, peer.clone())).collect();
            expect_applied(request(&socket, &Request::Apply { steps }).await?)?;
            tracing::info!(peers = peers.len(), "peers given to the new tunnel process");
        }
        Ok(())
    }

    /// An adopted process may have been started with another MTU.
    async fn set_mtu(&self) -> anyhow::Result<()> {
        let (device, mtu) = (self.config.device.clone(), self.config.mtu);
        let mesh = Namespace::open(&self.config.mesh_pin)?;
        mesh.run_async(move || {
            let control = Control::new()?;
            if control.mtu(&device)? != mtu {
                control.set_mtu(&device, mtu).with_context(|| format!("cannot set MTU {mtu} on {device}"))?;
            }
            Ok(())
        })
        .await
    }

    async fn start(&self) -> anyhow::Result<()> {
        let config = &self.config;
        let socket = config.socket();
        let path = beside(&socket, "log");
        let mut log = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .with_context(|| format!("cannot open the tunnel's log {}", path.display()))?;
        if log.metadata()?.len() > LOG_LIMIT {
            log.set_len(0)?;
        }
        let before = log.metadata()?.len();
        let mut command = tokio::process::Command::new(&config.program);
        command
            .arg("tunnel")
            .arg("--mesh")
            .arg(&config.mesh_pin)
            .arg("--control")
            .arg(&socket)
            .arg("--key")
            .arg(&config.private_key_file)
            .arg("--listen")
            .arg(config.listen.to_string())
            .arg("--mtu")
            .arg(config.mtu.to_string())
            .arg("--device")
            .arg(&config.device)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        let runtime = tokio::runtime::Handle::current();
        let mut child = self
            .host
            .run_async(move || {
                let _entered = runtime.enter();
                Ok(command.spawn()?)
            })
            .await
            .with_context(|| format!("cannot start {} tunnel", config.program.display()))?;
        let come_up = async {
            loop {
                if hello(&socket).await.is_ok_and(|hello| Some(hello.pid) == child.id()) {
                    return Ok(());
                }
                if let Some(status) = child.try_wait()? {
                    return Err(
                        why_it_ended(&mut log, before).unwrap_or_else(|| anyhow!("the tunnel process ended with {status}"))
                    );
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let Ok(result) = timeout(START, come_up).await else {
            let _ = child.kill().await;
            bail!("the tunnel process did not answer within {START:?} (log: {})", path.display());
        };
        result.with_context(|| format!("the tunnel does not start (log: {})", path.display()))?;
        // It outlives this daemon; tokio reaps it should it end before.
        drop(child);
        Ok(())
    }

    /// Asks; if nobody answers, starts the process and asks again.
    async fn call(&self, message: &Request) -> anyhow::Result<Reply> {
        let socket = self.config.socket();
        match request(&socket, message).await {
            Ok(reply) => Ok(reply),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the tunnel process does not answer");
                self.ensure().await?;
                request(&socket, message).await
            }
        }
    }
}

#[async_trait::async_trait]
impl Tunnel for ProcessTunnel {
    async fn observe(&self) -> anyhow::Result<TunnelState> {
        match self.call(&Request::Observe).await? {
            Reply::State(state) => {
                let now = state.peers.iter().map(|(key, state)| (*key, state.peer.clone()));
                *self.peers.lock().await = now.collect();
                Ok(state)
            }
            Reply::Error(error) => Err(anyhow!(error).context("the tunnel process cannot say what is there")),
            other => bail!("the tunnel process answered {other:?} instead of its state"),
        }
    }

    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        expect_applied(self.call(&Request::Apply { steps: steps.to_vec() }).await?)?;
        let mut peers = self.peers.lock().await;
        for step in steps {
            match step {
                TunnelStep::Set(key, peer) => drop(peers.insert(*key, peer.clone())),
                TunnelStep::Remove(key) => drop(peers.remove(key)),
            }
        }
        Ok(())
    }
}

fn expect_applied(reply: Reply) -> anyhow::Result<()> {
    match reply {
        Reply::Applied => Ok(()),
        Reply::Error(error) => Err(anyhow!(error).context("the tunnel process refused the change of its peers")),
        other => bail!("the tunnel process answered {other:?} to a change of its peers"),
    }
}

/// Waits on a connection for the process to die, and starts it again; ends with the tunnel.
async fn keep_alive(tunnel: Weak<ProcessTunnel>) {
    let mut pause = Duration::from_millis(100);
    loop {
        let Some(socket) = tunnel.upgrade().map(|tunnel| tunnel.config.socket()) else { return };
        let stopped = wait_for_end(&socket, &tunnel).await;
        let Some(this) = tunnel.upgrade() else { return };
        if stopped {
            this.closed.store(true, Ordering::Release);
            return;
        }
        match this.ensure().await {
            Ok(()) => pause = Duration::from_millis(100),
            Err(_) if this.closed.load(Ordering::Acquire) => return,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the tunnel process died and does not start again");
                drop(this);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
    }
}

/// Whether it was told to stop. Looks now and then whether anybody still wants to know.
async fn wait_for_end(socket: &Path, tunnel: &Weak<ProcessTunnel>) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
    if write_line(&mut stream, &Request::Watch).await.is_err() {
        return false;
    }
    let mut reader = BufReader::new(stream);
    let line = read_line(&mut reader);
    tokio::pin!(line);
    loop {
        match timeout(Duration::from_secs(1), &mut line).await {
            Ok(Ok(Some(line))) => return matches!(serde_json::from_slice(&line), Ok(Reply::Stopping)),
            Ok(_) => return false,
            Err(_) if tunnel.strong_count() == 0 => return false,
            Err(_) => {}
        }
    }
}

/// Asks one thing.
async fn request(socket: &Path, message: &Request) -> anyhow::Result<Reply> {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        write_line(&mut stream, message).await?;
        let line = read_line(&mut BufReader::new(stream)).await?.context("it closed the connection without an answer")?;
        Ok::<_, anyhow::Error>(serde_json::from_slice(&line)?)
    };
    timeout(ANSWER, ask)
        .await
        .map_err(|_| anyhow!("no answer within {ANSWER:?}"))
        .flatten()
        .with_context(|| format!("asking the tunnel process at {}", socket.display()))
}

/// Who answers at `socket`.
pub(super) async fn hello(socket: &Path) -> anyhow::Result<Hello> {
    match request(socket, &Request::Hello).await? {
        Reply::Hello(hello) => Ok(hello),
        other => bail!("{} answered {other:?} instead of saying who it is", socket.display()),
    }
}

/// Why the process cannot be adopted; `None` if it can.
pub(super) fn misfit(hello: &Hello, config: &TunnelConfig, key: WgKey) -> anyhow::Result<Option<String>> {
    let mesh = Namespace::open(&config.mesh_pin)?.id;
    let reason = if hello.protocol != PROTOCOL {
        format!("it speaks protocol {}, this daemon {PROTOCOL}", hello.protocol)
    } else if hello.key != key {
        format!("its key is {}, the node's {}", hello.key.to_base64(), key.to_base64())
    } else if hello.listen != config.listen {
        format!("it listens on {}, wanted is {}", hello.listen, config.listen)
    } else if hello.device != config.device {
        format!("its device is {}, wanted is {}", hello.device, config.device)
    } else if hello.mesh != mesh {
        "its device is in an earlier mesh namespace".into()
    } else {
        return Ok(None);
    };
    Ok(Some(reason))
}

/// Stops the process that answers at `socket` and waits until it is gone.
pub(super) async fn stop(socket: &Path, keep_device: bool) -> anyhow::Result<()> {
    let pid = hello(socket).await?.pid;
    request(socket, &Request::Stop { keep_device }).await?;
    let gone = async {
        while Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid) {
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(START, gone).await.map_err(|_| anyhow!("the tunnel process {pid} did not end within {START:?}"))
}

/// Ends whatever process there is; none is fine.
pub(super) async fn close(socket: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(socket).await {
        Err(_) => end_silent(socket).await,
        Ok(_) => match stop(socket, false).await {
            Ok(()) => Ok(()),
            Err(_) => end_silent(socket).await,
        },
    }
}

/// Ends a process that lives, for it holds its pid file, but does not answer: hung, or its socket was deleted.
async fn end_silent(socket: &Path) -> anyhow::Result<()> {
    let path = beside(socket, "pid");
    let Ok(file) = File::open(&path) else { return Ok(()) };
    let held = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
    if !held() {
        return Ok(());
    }
    // Twice more: a machine may be slow, and the sessions that end with it are worth a moment.
    for _ in 0..2 {
        if hello(socket).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(LOOK * 10).await;
    }
    let pid = std::fs::read_to_string(&path)?.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{} holds no process id", path.display()))?;
    tracing::warn!(pid = pid.as_raw_nonzero(), "the tunnel process does not answer and is ended");
    kill_process(pid, Signal::KILL).with_context(|| format!("cannot end the tunnel process {pid:?}"))?;
    let gone = async {
        while held() {
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(START, gone).await.map_err(|_| anyhow!("the tunnel process {pid:?} did not end within {START:?}"))
}

/// Ended, and its parent has not looked yet.
fn is_zombie(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// What the process wrote before it ended.
fn why_it_ended(log: &mut File, since: u64) -> Option<anyhow::Error> {
    log.seek(SeekFrom::Start(since)).ok()?;
    let mut bytes = Vec::new();
    log.take(1 << 16).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let said = text.lines().rev().find_map(|line| line.strip_prefix(FAILED));
    said.or_else(|| text.lines().rev().find(|line| !line.trim().is_empty())).map(|line| anyhow!(line.to_owned()))
}
