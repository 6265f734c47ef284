//! The node's side of a session: finds the leader, keeps a session to it, detects its loss, searches again. Knows nothing
//! of tasks: messages are exchanged through channels.

use super::super::frame::{FrameError, FrameReader, FrameWriter};
use super::super::search::{AttemptOutcome, LeaderSearch};
use super::super::tls::{self, ClientReader, ClientWriter};
use crate::backoff::Backoff;
use crate::clock::{self, Clock};
use crate::datapath::Sockets;
use crate::model::view::Peer;
use crate::model::{FormatRange, NodeId, Revision, Timestamp};
use crate::protocol::MAX_FRAME;
use crate::protocol::view_stream::ViewDecoder;
use crate::protocol::{FORMATS, NoCommonFormat, ToManager, ToNode, format_in_refusal};
use crate::trust::{CaDigest, Identity};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// The node that has a mesh address, as far as the caller knows.
pub type NodeAt = Arc<dyn Fn(IpAddr) -> Option<NodeId> + Send + Sync>;

/// Called with a manager that another one names as the leader.
pub type LearnManager = Arc<dyn Fn(&Peer) + Send + Sync>;

/// How to keep a session.
pub struct SessionConfig {
    /// The node's identity. When it changes, the session is opened again with it.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The time that certificates are checked against.
    pub clock: Arc<dyn Clock>,
    /// Managers' mesh addresses with port.
    pub candidates: watch::Receiver<Vec<SocketAddr>>,
    /// Which node has a mesh address: only that one is accepted there.
    pub node_at: NodeAt,
    /// Is to make the leader's address one that can be reached.
    pub learn: LearnManager,
    /// Makes sockets in the mesh namespace.
    pub sockets: Arc<dyn Sockets>,
    /// The node's own mesh address.
    pub source: IpAddr,
    /// Time between heartbeats, unless the leader's `Welcome` names another.
    pub heartbeat: Duration,
    /// The leader counts as lost when nothing was received for this long.
    pub dead_after: Duration,
    /// Time for TCP, the TLS handshake and the first message.
    pub connect: Duration,
    /// Pauses between failed attempts.
    pub backoff: Backoff,
    /// Seed of the jitter and of the first manager that is tried.
    pub seed: u64,
}

impl SessionConfig {
    /// The defaults: any manager is accepted at any address, heartbeat 500 ms, dead after 2 s, 2 s to connect, pauses of 100 ms to 2 s.
    pub fn new(
        identity: watch::Receiver<Arc<Identity>>,
        clock: Arc<dyn Clock>,
        candidates: watch::Receiver<Vec<SocketAddr>>,
        sockets: Arc<dyn Sockets>,
        source: IpAddr,
    ) -> Self {
        Self {
            identity,
            clock,
            candidates,
            node_at: Arc::new(|_| None),
            learn: Arc::new(|_| {}),
            sockets,
            source,
            heartbeat: Duration::from_millis(500),
            dead_after: Duration::from_secs(2),
            connect: Duration::from_secs(2),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(2)),
            seed: rand::random(),
        }
    }
}

/// The channels of a session.
pub struct SessionChannels {
    /// The leader's messages, `Alive` and `NotLeader` excepted. After a `Welcome`, which begins a new session, everything
    /// is to be reported again.
    pub incoming: mpsc::Sender<ToNode>,
    /// Messages to the leader. Those that arrive while no session is open are dropped: they would be outdated by then.
    pub outgoing: mpsc::Receiver<ToManager>,
    /// Revision that every loop of the node has applied; sent with heartbeats, and at once when it changes.
    pub applied: watch::Receiver<Revision>,
    pub state: watch::Sender<SessionState>,
}

/// The session as shown to people.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SessionState {
    /// The leader, while a session is open.
    pub leader: Option<SocketAddr>,
    /// When the session was opened, or when the last one was lost.
    pub since: Timestamp,
    /// Why the last attempt or session ended.
    pub last_error: Option<String>,
    /// Digest of the node's root CA, if the managers do not accept its certificates any more.
    pub refused_issuer: Option<CaDigest>,
}

/// The other side does not accept the CA of this node's certificate.
#[derive(Debug, thiserror::Error)]
#[error("it does not accept this node's certificate ({0:?}): it is another cluster's, or of a root CA that was replaced")]
struct IssuerRefused(rustls::AlertDescription);

/// Why [`keep_session`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEnd {
    /// It was shut down, the receiver of its messages was dropped, or the node has sent `Leave`: then it opens no new
    /// session.
    Shutdown,
    /// The node is no longer a member; the leader's reason. The message was passed on as well.
    Removed(String),
}

/// How an attempt to open a session, or the session, ended.
enum AttemptEnd {
    /// Search on; the text is for people.
    Search(AttemptOutcome, String),
    /// Open no further session.
    End(SessionEnd),
}

impl AttemptEnd {
    fn failed(why: impl Into<String>) -> Self {
        Self::Search(AttemptOutcome::Failed, why.into())
    }
    fn renewed(why: impl Into<String>) -> Self {
        Self::Search(AttemptOutcome::Renewed, why.into())
    }
    fn lost(why: impl Into<String>) -> Self {
        Self::Search(AttemptOutcome::Lost, why.into())
    }
}

/// An open connection and the leader's first message.
struct Opened {
    reader: ClientReader,
    writer: ClientWriter,
    first: ToNode,
    /// End of the manager's certificate.
    ends: Option<Timestamp>,
}

/// Keeps a session to the leader until shut down, removed or left. `hello` makes the first message of each attempt.
pub async fn keep_session(
    config: SessionConfig,
    hello: impl Fn() -> ToManager + Send + Sync,
    mut channels: SessionChannels,
    shutdown: CancellationToken,
) -> SessionEnd {
    let clock = config.clock.clone();
    let end = search(config, hello, &mut channels, shutdown).await;
    channels.state.send_modify(|s| {
        if s.leader.take().is_some() {
            s.since = clock.now();
        }
    });
    end
}

async fn search(
    mut config: SessionConfig,
    hello: impl Fn() -> ToManager + Send + Sync,
    channels: &mut SessionChannels,
    shutdown: CancellationToken,
) -> SessionEnd {
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut search = LeaderSearch::new(config.backoff);
    channels.state.send_modify(|s| s.since = config.clock.now());
    loop {
        let candidates = config.candidates.borrow_and_update().clone();
        let next = search.next(&candidates, &mut rng);
        let pause = next.map_or(config.backoff.longest, |(pause, _)| pause);
        if let Some(end) = wait(&mut config, channels, &shutdown, pause, next.is_none()).await {
            return end;
        }
        let Some((_, address)) = next else { continue };
        match attempt(&mut config, hello(), channels, &mut search, &shutdown, address).await {
            AttemptEnd::End(end) => return end,
            AttemptEnd::Search(outcome @ AttemptOutcome::Renewed, why) => {
                tracing::info!(%address, why, "the session is opened again");
                search.ended(outcome);
            }
            AttemptEnd::Search(outcome, error) => {
                record_failure(&config, channels, address, &error);
                search.ended(outcome);
            }
        }
    }
}

/// Logs and publishes why an attempt or a session ended.
fn record_failure(config: &SessionConfig, channels: &SessionChannels, address: SocketAddr, error: &str) {
    let was_open = channels.state.borrow().leader.is_some();
    if was_open {
        tracing::info!(%address, error, "session lost");
    } else {
        tracing::debug!(%address, error, "no session");
    }
    channels.state.send_modify(|s| {
        if was_open {
            s.since = config.clock.now();
        }
        s.leader = None;
        s.last_error = Some(format!("{address}: {error}"));
    });
}

/// Waits for a pause and drops the node's messages meanwhile. With `for_candidates` the first manager that becomes known
/// ends the wait.
async fn wait(
    config: &mut SessionConfig,
    channels: &mut SessionChannels,
    shutdown: &CancellationToken,
    pause: Duration,
    for_candidates: bool,
) -> Option<SessionEnd> {
    let end = tokio::time::sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Some(SessionEnd::Shutdown),
            () = &mut end => return None,
            Ok(()) = config.candidates.changed(), if for_candidates => return None,
            dropped = channels.outgoing.recv() => if dropped.is_none() { return Some(SessionEnd::Shutdown) },
        }
    }
}

/// One attempt, and the session if it succeeds.
async fn attempt(
    config: &mut SessionConfig,
    hello: ToManager,
    channels: &mut SessionChannels,
    search: &mut LeaderSearch,
    shutdown: &CancellationToken,
    address: SocketAddr,
) -> AttemptEnd {
    let identity = config.identity.borrow_and_update().clone();
    // What changed after this attempt's hello was made: the manager would not hear of it until the next change.
    let mut newer_hello = None;
    let opened = {
        let opening = tokio::time::timeout(config.connect, open_in_common(config, &identity, hello, address));
        tokio::pin!(opening);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return AttemptEnd::End(SessionEnd::Shutdown),
                opened = &mut opening => break opened,
                dropped = channels.outgoing.recv() => match dropped {
                    None => return AttemptEnd::End(SessionEnd::Shutdown),
                    Some(hello @ ToManager::Hello { .. }) => newer_hello = Some(hello),
                    Some(_) => {}
                },
            }
        }
    };
    let mut opened = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            if error.is::<IssuerRefused>() {
                let issuer = identity.ca_digest().ok();
                channels.state.send_if_modified(|state| std::mem::replace(&mut state.refused_issuer, issuer) != issuer);
            }
            return AttemptEnd::failed(format!("{error:#}"));
        }
        Err(_) => return AttemptEnd::failed(format!("no answer within {} ms", config.connect.as_millis())),
    };
    if let ToNode::NotLeader { manager: Some(manager), .. } = &opened.first {
        (config.learn)(manager);
    }
    let (heartbeat, format) = match accept(&opened.first, config.heartbeat) {
        Ok(accepted) => accepted,
        Err(end) => {
            if matches!(end, AttemptEnd::End(SessionEnd::Removed(_))) {
                let _ = channels.incoming.send(opened.first).await;
            }
            return end;
        }
    };
    let now = config.clock.now();
    channels.state.send_modify(|s| *s = SessionState { leader: Some(address), since: now, ..SessionState::default() });
    tracing::info!(%address, "session open");
    // At least two heartbeats: the leader answers each one, so silence means that it is lost.
    let silence = config.dead_after.max(heartbeat * 2);
    let outdated = outdated(&mut config.identity, config.clock.as_ref(), opened.ends);
    let bounds = SessionBounds { heartbeat, silence, format, learn: config.learn.clone() };
    if let Some(hello) = newer_hello
        && let Err(error) = opened.writer.write(&hello).await
    {
        return AttemptEnd::failed(format!("{error:#}"));
    }
    run_session(opened, channels, search, bounds, shutdown, outdated).await
}

/// Waits until a session is to be opened again because of a certificate; returns why. `ends` is the end of the manager's.
async fn outdated(identity: &mut watch::Receiver<Arc<Identity>>, clock: &dyn Clock, ends: Option<Timestamp>) -> &'static str {
    let expired = async {
        match ends {
            Some(end) => clock::reached(clock, end).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Ok(()) = identity.changed() => "this node has a new certificate",
        // The manager has a newer one, or the next handshake fails. The end of this node's own is the manager's to watch:
        // by a clock that is ahead, this would open one session after the other.
        () = expired => "the manager's certificate of this session has expired",
    }
}

/// Judges the leader's first message; returns the time between heartbeats and the format of the session.
fn accept(first: &ToNode, default_heartbeat: Duration) -> Result<(Duration, u32), AttemptEnd> {
    match first {
        ToNode::Welcome { format, .. } if !FORMATS.contains(*format) => {
            let error = NoCommonFormat { manager: FormatRange::only(*format), node: FORMATS };
            Err(AttemptEnd::failed(error.to_string()))
        }
        ToNode::Welcome { format, heartbeat_ms: 0 } => Ok((default_heartbeat, *format)),
        ToNode::Welcome { format, heartbeat_ms } => Ok((Duration::from_millis(*heartbeat_ms), *format)),
        ToNode::NotLeader { leader, .. } => {
            Err(AttemptEnd::Search(AttemptOutcome::NotLeader(*leader), "it does not lead".to_owned()))
        }
        ToNode::Refused(why) => Err(AttemptEnd::failed(format!("it refuses: {why}"))),
        ToNode::Removed(why) => Err(AttemptEnd::End(SessionEnd::Removed(why.clone()))),
        ToNode::View { .. } | ToNode::Piece(_) | ToNode::Alive => Err(AttemptEnd::failed("it does not begin with a welcome")),
    }
}

/// What holds for one session.
struct SessionBounds {
    /// Time between heartbeats.
    heartbeat: Duration,
    /// The leader counts as lost after this long without a message.
    silence: Duration,
    /// Of the protocol.
    format: u32,
    learn: LearnManager,
}

/// Exchanges messages until the session ends.
async fn run_session(
    opened: Opened,
    channels: &mut SessionChannels,
    search: &mut LeaderSearch,
    bounds: SessionBounds,
    shutdown: &CancellationToken,
    outdated: impl Future<Output = &'static str>,
) -> AttemptEnd {
    let Opened { mut reader, mut writer, first, .. } = opened;
    let SessionChannels { incoming, outgoing, applied, .. } = channels;
    let passed = tokio::select! {
        () = shutdown.cancelled() => false,
        passed = incoming.send(first) => passed.is_ok(),
    };
    if !passed {
        return AttemptEnd::End(SessionEnd::Shutdown);
    }
    reader.set_idle_limit(bounds.silence);
    let mut left = false;
    // Concurrently: neither direction waits for the other.
    let end = tokio::select! {
        end = receive(&mut reader, incoming, search, &bounds.learn) => end,
        end = send(&mut writer, outgoing, applied, &bounds, shutdown, &mut left) => end,
        why = outdated => AttemptEnd::renewed(why),
    };
    if matches!(end, AttemptEnd::Search(AttemptOutcome::Renewed, _)) {
        writer.close().await;
    }
    match end {
        // The leader closes the session of a node that leaves; a new session would make the node a member again.
        AttemptEnd::Search(..) if left => AttemptEnd::End(SessionEnd::Shutdown),
        end => end,
    }
}

/// [`open`]; a manager that knows no ranges and refuses the number in the hello gets another hello, with its own number, if
/// this build has that.
async fn open_in_common(
    config: &SessionConfig,
    identity: &Identity,
    mut hello: ToManager,
    address: SocketAddr,
) -> anyhow::Result<Opened> {
    let opened = open(config, identity, &hello, address).await?;
    let ToManager::Hello { format: named, .. } = &mut hello else { return Ok(opened) };
    let ToNode::Refused(why) = &opened.first else { return Ok(opened) };
    match format_in_refusal(why, *named) {
        Some(format) => {
            *named = format;
            open(config, identity, &hello, address).await
        }
        None => Ok(opened),
    }
}

/// Connects, sends the hello, reads the first answer.
async fn open(config: &SessionConfig, identity: &Identity, hello: &ToManager, address: SocketAddr) -> anyhow::Result<Opened> {
    use anyhow::Context as _;
    let socket = config.sockets.stream(SocketAddr::new(config.source, 0)).context("no socket in the mesh")?;
    let stream = socket.connect(address).await.context("cannot connect")?;
    let _ = stream.set_nodelay(true);
    let tls = TlsConnector::from(Arc::new(tls::session_config(identity, config.clock.clone(), (config.node_at)(address.ip()))?));
    let now = config.clock.now();
    let stream = tls.connect(tls::server_name()?, stream).await.map_err(|e| explain(e, identity, now))?;
    let ends = tls::peer_validity(stream.get_ref().1.peer_certificates()).map(|validity| validity.end());
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_FRAME, config.connect);
    let mut writer = FrameWriter::new(write, MAX_FRAME, config.dead_after);
    let written = writer.write(hello).await;
    match reader.message().await {
        Ok(Some(first)) => Ok(Opened { reader, writer, first, ends }),
        Ok(None) => anyhow::bail!("it closed the connection"),
        Err(FrameError::Io(error)) => Err(explain(error, identity, now)),
        Err(error) => Err(written.err().unwrap_or(error).into()),
    }
}

/// A TLS error for people; an alert is the server's verdict on this node's certificate, or on what it speaks.
pub(in super::super) fn explain(error: std::io::Error, identity: &Identity, now: Timestamp) -> anyhow::Error {
    use rustls::AlertDescription::{CertificateExpired, DecryptError, NoApplicationProtocol, UnknownCA};
    match tls::tls_error(&error) {
        Some(rustls::Error::AlertReceived(CertificateExpired)) if identity.validity().is_over(now) => {
            anyhow::anyhow!("this node's certificate has expired at {}", identity.expires().to_rfc3339())
        }
        Some(rustls::Error::AlertReceived(CertificateExpired)) => anyhow::anyhow!(
            "its clock differs: this node's certificate is not expired here, but is there (it is valid from {} to {})",
            identity.validity().not_before.to_rfc3339(),
            identity.expires().to_rfc3339()
        ),
        Some(rustls::Error::AlertReceived(NoApplicationProtocol)) => {
            anyhow::anyhow!("it does not speak this protocol: install the same version of skep on both")
        }
        // A signature of another root of the same name is not this root's.
        Some(rustls::Error::AlertReceived(alert @ (UnknownCA | DecryptError))) => IssuerRefused(*alert).into(),
        Some(rustls::Error::AlertReceived(alert)) => {
            anyhow::anyhow!("it does not accept this node's certificate ({alert:?}): another cluster's")
        }
        Some(rustls::Error::InvalidCertificate(why)) => match tls::distrust(&error) {
            Some(distrust) => anyhow::anyhow!("it cannot be trusted: {distrust}"),
            None => anyhow::anyhow!("it cannot be trusted: {why}"),
        },
        _ => anyhow::Error::from(error).context("TLS failed"),
    }
}

/// Passes the leader's messages on.
async fn receive(
    reader: &mut ClientReader,
    incoming: &mpsc::Sender<ToNode>,
    search: &mut LeaderSearch,
    learn: &LearnManager,
) -> AttemptEnd {
    let mut decoder = ViewDecoder::default();
    loop {
        let message = match reader.expanded_message::<ToNode>().await {
            Ok(Some(message)) => message,
            Ok(None) => return AttemptEnd::lost("the leader closed the session"),
            Err(error @ FrameError::Silent(_)) => return AttemptEnd::Search(AttemptOutcome::Silent, error.to_string()),
            Err(error) => return AttemptEnd::lost(error.to_string()),
        };
        match message {
            ToNode::Alive => search.leader_answers(),
            ToNode::NotLeader { leader, manager } => {
                if let Some(manager) = manager {
                    learn(&manager);
                }
                return AttemptEnd::Search(AttemptOutcome::NotLeader(leader), "it no longer leads".to_owned());
            }
            ToNode::Refused(why) => return AttemptEnd::lost(format!("it ended the session: {why}")),
            ToNode::Removed(why) => {
                let _ = incoming.send(ToNode::Removed(why.clone())).await;
                return AttemptEnd::End(SessionEnd::Removed(why));
            }
            ToNode::Piece(piece) => match decoder.take(piece) {
                Ok(None) => {}
                Ok(Some(view)) => {
                    if incoming.send(view).await.is_err() {
                        return AttemptEnd::End(SessionEnd::Shutdown);
                    }
                }
                Err(error) => return AttemptEnd::lost(format!("a view that is not understood: {error}")),
            },
            message @ (ToNode::Welcome { .. } | ToNode::View { .. }) => {
                if incoming.send(message).await.is_err() {
                    return AttemptEnd::End(SessionEnd::Shutdown);
                }
            }
        }
    }
}

/// Sends heartbeats and the node's messages. Messages queued before a shutdown are still sent: a `Leave` is the last.
async fn send(
    writer: &mut ClientWriter,
    outgoing: &mut mpsc::Receiver<ToManager>,
    applied: &mut watch::Receiver<Revision>,
    bounds: &SessionBounds,
    shutdown: &CancellationToken,
    left: &mut bool,
) -> AttemptEnd {
    let mut tick = tokio::time::interval(bounds.heartbeat);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watching = true;
    loop {
        let message = tokio::select! {
            () = shutdown.cancelled() => {
                flush(writer, outgoing, bounds.format).await;
                return AttemptEnd::End(SessionEnd::Shutdown);
            }
            _ = tick.tick() => ToManager::Heartbeat { applied: *applied.borrow_and_update() },
            changed = applied.changed(), if watching => {
                watching = changed.is_ok();
                ToManager::Heartbeat { applied: *applied.borrow_and_update() }
            }
            queued = outgoing.recv() => match queued {
                Some(message) => message,
                None => return AttemptEnd::End(SessionEnd::Shutdown),
            },
        };
        if !message.is_in(bounds.format) {
            continue;
        }
        *left |= matches!(message, ToManager::Leave);
        if let Err(error) = writer.write(&message).await {
            return AttemptEnd::lost(error.to_string());
        }
    }
}

/// Sends what is queued and closes the connection.
async fn flush(writer: &mut ClientWriter, outgoing: &mut mpsc::Receiver<ToManager>, format: u32) {
    while let Ok(message) = outgoing.try_recv() {
        if message.is_in(format) && writer.write(&message).await.is_err() {
            break;
        }
    }
    writer.close().await;
}
