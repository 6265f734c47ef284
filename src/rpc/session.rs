//! The node's end of a session: finds the leader, keeps a session to it, notices when it is gone, goes on searching.
//! Knows nothing of tasks: messages come from and go to channels.

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::search::{Search, Tried};
use super::tls;
use crate::clock::Clock;
use crate::datapath::Sockets;
use crate::model::{Revision, Timestamp};
use crate::protocol::MAX_FRAME;
use crate::protocol::{FORMAT, ToManager, ToNode};
use crate::trust::Identity;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// How to keep a session.
pub struct SessionConfig {
    /// What the node shows.
    pub identity: Arc<Identity>,
    /// Whose time certificates are judged by.
    pub clock: Arc<dyn Clock>,
    /// Managers' mesh addresses with port.
    pub candidates: watch::Receiver<Vec<SocketAddr>>,
    /// Makes sockets in the mesh namespace.
    pub sockets: Arc<dyn Sockets>,
    /// The node's own mesh address.
    pub source: IpAddr,
    /// Time between heartbeats while the leader does not say another.
    pub heartbeat: Duration,
    /// The leader is dead when nothing was heard of it for so long.
    pub dead_after: Duration,
    /// Time to connect, shake hands and be welcomed.
    pub connect: Duration,
    /// Shortest and longest pause between tries.
    pub pauses: (Duration, Duration),
    /// Seed of jitter and of the first choice.
    pub seed: u64,
}

impl SessionConfig {
    /// The defaults: heartbeat 500 ms, dead after 2 s, 2 s to connect, pauses of 100 ms to 2 s.
    pub fn new(
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        candidates: watch::Receiver<Vec<SocketAddr>>,
        sockets: Arc<dyn Sockets>,
        source: IpAddr,
    ) -> Self {
        Self {
            identity,
            clock,
            candidates,
            sockets,
            source,
            heartbeat: Duration::from_millis(500),
            dead_after: Duration::from_secs(2),
            connect: Duration::from_secs(2),
            pauses: (Duration::from_millis(100), Duration::from_secs(2)),
            seed: rand::random(),
        }
    }
}

/// The channels of a session.
pub struct SessionEnds {
    /// What the leader says, `Alive` and `NotLeader` excepted. `Welcome` begins a new session: tell everything anew then.
    pub incoming: mpsc::Sender<ToNode>,
    /// What goes to the leader. What is put in while there is no session is dropped: it would be old by then.
    pub outgoing: mpsc::Receiver<ToManager>,
    /// Revision that every loop of the node has applied; sent with heartbeats, and at once when it changes.
    pub applied: watch::Receiver<Revision>,
    /// Where the session stands.
    pub state: watch::Sender<SessionState>,
}

/// Where the session stands, for people.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SessionState {
    /// The leader that there is a session with.
    pub leader: Option<SocketAddr>,
    /// Since when there is one, or since when there is none.
    pub since: Timestamp,
    /// Why the last try or session ended.
    pub last_error: Option<String>,
}

/// Why [`keep_session`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEnd {
    /// It was shut down, nobody takes what comes, or the node has said `Leave`: then no new session is tried.
    Shutdown,
    /// The node is no longer a member; the reason. It was passed on as well.
    Removed(String),
}

type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

/// How a session or the try for one ended.
enum Over {
    Search(Tried, String),
    End(SessionEnd),
}

/// Keeps a session to the leader until shut down, removed or left. `hello` is asked for each try.
pub async fn keep_session(
    config: SessionConfig,
    hello: impl Fn() -> ToManager + Send + Sync,
    mut ends: SessionEnds,
    shutdown: CancellationToken,
) -> SessionEnd {
    let clock = config.clock.clone();
    let end = search(config, hello, &mut ends, shutdown).await;
    ends.state.send_modify(|s| {
        if s.leader.take().is_some() {
            s.since = clock.now();
        }
    });
    end
}

async fn search(
    mut config: SessionConfig,
    hello: impl Fn() -> ToManager + Send + Sync,
    ends: &mut SessionEnds,
    shutdown: CancellationToken,
) -> SessionEnd {
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut search = Search::new(config.pauses.0, config.pauses.1);
    ends.state.send_modify(|s| s.since = config.clock.now());
    loop {
        let candidates = config.candidates.borrow_and_update().clone();
        let next = search.next(&candidates, &mut rng);
        let pause = next.map_or(config.pauses.1, |(pause, _)| pause);
        let end = idle(&mut config, ends, &shutdown, pause, next.is_none()).await;
        if let Some(end) = end {
            return end;
        }
        let Some((_, address)) = next else { continue };
        match attempt(&config, &hello, ends, &mut search, &shutdown, address).await {
            Over::End(end) => return end,
            Over::Search(tried, error) => {
                let had = ends.state.borrow().leader.is_some();
                if had {
                    tracing::info!(%address, error, "session lost");
                } else {
                    tracing::debug!(%address, error, "no session");
                }
                ends.state.send_modify(|s| {
                    if had {
                        s.since = config.clock.now();
                    }
                    s.leader = None;
                    s.last_error = Some(format!("{address}: {error}"));
                });
                search.over(tried);
            }
        }
    }
}

/// Waits out a pause. What the node wants to say meanwhile is dropped; other managers end the wait if `hoping` for some.
async fn idle(
    config: &mut SessionConfig,
    ends: &mut SessionEnds,
    shutdown: &CancellationToken,
    pause: Duration,
    hoping: bool,
) -> Option<SessionEnd> {
    let until = tokio::time::sleep(pause);
    tokio::pin!(until);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Some(SessionEnd::Shutdown),
            () = &mut until => return None,
            Ok(()) = config.candidates.changed(), if hoping => return None,
            said = ends.outgoing.recv() => if said.is_none() { return Some(SessionEnd::Shutdown) },
        }
    }
}

/// One try, and the session if it succeeds.
async fn attempt(
    config: &SessionConfig,
    hello: &(impl Fn() -> ToManager + Send + Sync),
    ends: &mut SessionEnds,
    search: &mut Search,
    shutdown: &CancellationToken,
    address: SocketAddr,
) -> Over {
    let opening = tokio::time::timeout(config.connect, open(config, hello(), address));
    tokio::pin!(opening);
    let opened = loop {
        tokio::select! {
            () = shutdown.cancelled() => return Over::End(SessionEnd::Shutdown),
            opened = &mut opening => break opened,
            said = ends.outgoing.recv() => if said.is_none() { return Over::End(SessionEnd::Shutdown) },
        }
    };
    let (mut reader, mut writer, first) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return Over::Search(Tried::Failed, format!("{error:#}")),
        Err(_) => return Over::Search(Tried::Failed, format!("no answer within {} ms", config.connect.as_millis())),
    };
    let heartbeat = match first {
        ToNode::Welcome { format, .. } if format != FORMAT => {
            let why = format!("it speaks protocol {format}, this node {FORMAT}: install the same version of skep on both");
            return Over::Search(Tried::Failed, why);
        }
        ToNode::Welcome { heartbeat_ms: 0, .. } => config.heartbeat,
        ToNode::Welcome { heartbeat_ms, .. } => Duration::from_millis(heartbeat_ms),
        ToNode::NotLeader { leader } => return Over::Search(Tried::NotLeader(leader), "it does not lead".to_owned()),
        ToNode::Refused(why) => return Over::Search(Tried::Failed, format!("it refuses: {why}")),
        ToNode::Removed(why) => {
            let _ = ends.incoming.send(ToNode::Removed(why.clone())).await;
            return Over::End(SessionEnd::Removed(why));
        }
        ToNode::View { .. } | ToNode::Alive => {
            return Over::Search(Tried::Failed, "it does not begin with a welcome".to_owned());
        }
    };
    let now = config.clock.now();
    ends.state.send_modify(|s| *s = SessionState { leader: Some(address), since: now, last_error: None });
    tracing::info!(%address, "session open");
    let SessionEnds { incoming, outgoing, applied, .. } = ends;
    let passed = tokio::select! {
        () = shutdown.cancelled() => false,
        passed = incoming.send(first) => passed.is_ok(),
    };
    if !passed {
        return Over::End(SessionEnd::Shutdown);
    }
    // Alive answers come with every heartbeat, so silence means death; twice a heartbeat at least.
    reader.set_patience(config.dead_after.max(heartbeat * 2));
    let mut left = false;
    // Side by side: waiting for one does not keep the others from going on.
    let over = tokio::select! {
        over = listen(&mut reader, incoming, search) => over,
        over = speak(&mut writer, outgoing, applied, heartbeat, shutdown, &mut left) => over,
    };
    match over {
        // The leader closes the session of a node that leaves; a new one would bring the node back.
        Over::Search(..) if left => Over::End(SessionEnd::Shutdown),
        over => over,
    }
}

/// Connects, says hello, reads the first answer.
async fn open(config: &SessionConfig, hello: ToManager, address: SocketAddr) -> anyhow::Result<(Reader, Writer, ToNode)> {
    use anyhow::Context as _;
    let socket = config.sockets.stream(SocketAddr::new(config.source, 0)).context("no socket in the mesh")?;
    let stream = socket.connect(address).await.context("cannot connect")?;
    let _ = stream.set_nodelay(true);
    let tls = TlsConnector::from(Arc::new(tls::session_config(&config.identity, config.clock.clone())?));
    let stream = tls.connect(tls::server_name()?, stream).await.map_err(explain)?;
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_FRAME, config.connect);
    let mut writer = FrameWriter::new(write, MAX_FRAME, config.dead_after);
    let written = writer.write(&hello).await;
    match reader.message().await {
        Ok(Some(first)) => Ok((reader, writer, first)),
        Ok(None) => anyhow::bail!("it closed the connection"),
        Err(FrameError::Io(error)) => Err(explain(error)),
        Err(error) => Err(written.err().unwrap_or(error).into()),
    }
}

/// A TLS error in words; an alert is the other end's judgement of this node's certificate.
fn explain(error: std::io::Error) -> anyhow::Error {
    match tls::tls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) => {
            anyhow::anyhow!(
                "it does not accept this node's certificate ({alert:?}): another cluster's, expired, or the clocks differ"
            )
        }
        Some(rustls::Error::InvalidCertificate(why)) => match tls::distrust(&error) {
            Some(distrust) => anyhow::anyhow!("it cannot be trusted: {distrust}"),
            None => anyhow::anyhow!("it cannot be trusted: {why}"),
        },
        _ => anyhow::Error::from(error).context("TLS failed"),
    }
}

/// Passes on what the leader says.
async fn listen(reader: &mut Reader, incoming: &mpsc::Sender<ToNode>, search: &mut Search) -> Over {
    loop {
        let message = match reader.message::<ToNode>().await {
            Ok(Some(message)) => message,
            Ok(None) => return Over::Search(Tried::Lost, "the leader closed the session".to_owned()),
            Err(error @ FrameError::Silent(_)) => return Over::Search(Tried::Silent, error.to_string()),
            Err(error) => return Over::Search(Tried::Lost, error.to_string()),
        };
        match message {
            ToNode::Alive => search.found(),
            ToNode::NotLeader { leader } => return Over::Search(Tried::NotLeader(leader), "it leads no more".to_owned()),
            ToNode::Refused(why) => return Over::Search(Tried::Lost, format!("it ended the session: {why}")),
            ToNode::Removed(why) => {
                let _ = incoming.send(ToNode::Removed(why.clone())).await;
                return Over::End(SessionEnd::Removed(why));
            }
            message @ (ToNode::Welcome { .. } | ToNode::View { .. }) => {
                if incoming.send(message).await.is_err() {
                    return Over::End(SessionEnd::Shutdown);
                }
            }
        }
    }
}

/// Heartbeats, and what the node says. What it said before a shutdown still goes out: a `Leave` is the last word.
async fn speak(
    writer: &mut Writer,
    outgoing: &mut mpsc::Receiver<ToManager>,
    applied: &mut watch::Receiver<Revision>,
    heartbeat: Duration,
    shutdown: &CancellationToken,
    left: &mut bool,
) -> Over {
    let mut tick = tokio::time::interval(heartbeat);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watching = true;
    loop {
        let message = tokio::select! {
            () = shutdown.cancelled() => {
                while let Ok(message) = outgoing.try_recv() {
                    if writer.write(&message).await.is_err() {
                        break;
                    }
                }
                writer.close().await;
                return Over::End(SessionEnd::Shutdown);
            }
            _ = tick.tick() => ToManager::Heartbeat { applied: *applied.borrow_and_update() },
            changed = applied.changed(), if watching => {
                watching = changed.is_ok();
                ToManager::Heartbeat { applied: *applied.borrow_and_update() }
            }
            said = outgoing.recv() => match said {
                Some(message) => message,
                None => return Over::End(SessionEnd::Shutdown),
            },
        };
        *left |= matches!(message, ToManager::Leave);
        if let Err(error) = writer.write(&message).await {
            return Over::Search(Tried::Lost, error.to_string());
        }
    }
}
