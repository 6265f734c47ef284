//! The joiner's end of a join: connect, trust what the token pins, ask, bring the tunnel up, prove the UDP way in both
//! directions. Knows no tunnel: that is behind [`JoinerSide`].

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::proof::{Direction, Way};
use super::tls;
use crate::clock::Clock;
use crate::model::Availability;
use crate::model::WgKey;
use crate::model::node::NodeDescription;
use crate::protocol::MAX_FRAME;
use crate::protocol::{FORMAT, FromJoiner, JoinRefused, JoinReply, JoinRequest, ToJoiner};
use crate::trust::{Identity, JoinToken, NodeKey, NodeName};
use async_trait::async_trait;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Time for last words after the deadline.
const GRACE: Duration = Duration::from_millis(500);

/// The joiner's tunnel.
#[async_trait]
pub trait JoinerSide: Send + Sync {
    /// Brings the tunnel up with its place and peers.
    async fn bring_up(&self, reply: &JoinReply) -> anyhow::Result<()>;
    /// Bytes that the tunnel got from the manager since it was brought up.
    async fn received_from_manager(&self) -> anyhow::Result<u64>;
    /// Makes the tunnel send the manager something.
    async fn send_probe(&self);
    /// The join failed after `bring_up` was begun: takes down what it made.
    async fn tear_down(&self);
}

/// What a joiner says of itself.
#[derive(Debug)]
pub struct JoinParts<'a> {
    /// The token as the user gave it.
    pub token: &'a str,
    /// The node's own key.
    pub node_key: &'a NodeKey,
    /// Public key of its tunnel.
    pub tunnel_key: WgKey,
    /// Where its tunnel may be reached; an unspecified address means: where the manager sees it come from.
    pub endpoints: Vec<SocketAddr>,
    /// What it says of itself.
    pub description: NodeDescription,
    /// Availability asked for.
    pub availability: Availability,
}

/// Bounds on a join.
#[derive(Clone)]
pub struct JoinOptions {
    /// Time for all of it.
    pub timeout: Duration,
    /// Time between looks at the tunnel's counters.
    pub proof_interval: Duration,
    /// Whose time certificates are judged by.
    pub clock: Arc<dyn Clock>,
}

impl JoinOptions {
    /// The defaults: 15 s, looks every 100 ms.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { timeout: Duration::from_secs(15), proof_interval: Duration::from_millis(100), clock }
    }
}

/// A successful join.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The node's place.
    pub reply: JoinReply,
    /// Key, certificate and CA, checked to belong together; not on disk yet.
    pub identity: Identity,
}

/// Why a join failed. Nothing of it is left, here or at the manager.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Not a token at all.
    #[error("invalid join token")]
    MalformedToken,
    /// Nobody there.
    #[error("cannot reach a manager at {address}: {why}")]
    Unreachable {
        /// Where it was tried.
        address: SocketAddr,
        /// Why, and what to look at.
        why: String,
    },
    /// The server there is of a cluster that the token is not for.
    #[error("remote CA does not match fingerprint. Expected: {expected}")]
    ForeignCa {
        /// Where.
        address: SocketAddr,
        /// Digest in the token, hex.
        expected: String,
    },
    /// The server's certificate cannot be trusted for another reason.
    #[error("the server at {address} cannot be trusted: {why}")]
    Untrusted {
        /// Where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// The manager said no.
    #[error(transparent)]
    Refused(#[from] JoinRefused),
    /// UDP is lost on the way.
    #[error("UDP {port} from {from} to {to} is blocked: {why}; open UDP {port} on both hosts and between them, then join again")]
    Blocked {
        /// Port of the tunnel.
        port: u16,
        /// Sender.
        from: IpAddr,
        /// Receiver.
        to: IpAddr,
        /// What was seen.
        why: &'static str,
    },
    /// The manager gave up.
    #[error("the manager at {address} gave up: {why}")]
    GaveUp {
        /// Where.
        address: SocketAddr,
        /// Its words.
        why: String,
    },
    /// The other end does not keep to the protocol, or went away.
    #[error("the join with {address} broke off: {why}")]
    Broken {
        /// Where.
        address: SocketAddr,
        /// What was seen.
        why: String,
    },
    /// Time was up.
    #[error("the manager at {address} did not {what} within {} s", .after.as_secs_f32())]
    TimedOut {
        /// Where.
        address: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// How long the join took by then.
        after: Duration,
    },
    /// This node's own part failed.
    #[error("this node cannot bring up its tunnel: {0:#}")]
    Here(anyhow::Error),
}

/// Joins the cluster of the manager at `remote`. When it returns an error the tunnel is torn down and the manager has
/// forgotten the node, or does so as it sees the connection close. Whoever drops it midway tears down himself.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    remote: SocketAddr,
    parts: JoinParts<'_>,
    side: &dyn JoinerSide,
    options: &JoinOptions,
) -> Result<Joined, JoinError> {
    if parts.token.is_empty() {
        return Err(JoinRefused::Token.into());
    }
    let token: JoinToken = parts.token.parse().map_err(|_| JoinError::MalformedToken)?;
    let node_key = parts.node_key;
    let mut ask = Ask::connect(remote, &token, options).await?;
    let reply = ask.request(parts).await?;
    let identity = check(&reply, node_key, &token).map_err(|why| ask.broken(why));
    let hung = |what: &str| JoinError::Here(anyhow::anyhow!("{what} within {} s", options.timeout.as_secs_f32()));
    let proved = match &identity {
        Ok(_) => match timeout_at(ask.deadline, side.bring_up(&reply)).await {
            // The proof keeps to the deadline by itself; this is for a tunnel that hangs in a call.
            Ok(Ok(())) => {
                timeout_at(ask.deadline + GRACE, ask.prove(&reply, side)).await.unwrap_or_else(|_| Err(hung("it did not answer")))
            }
            Ok(Err(error)) => Err(JoinError::Here(error)),
            Err(_) => Err(hung("it did not come up")),
        },
        Err(_) => Ok(()),
    };
    match (identity, proved) {
        (Ok(identity), Ok(())) => Ok(Joined { reply, identity }),
        (Ok(_), Err(error)) => {
            ask.give_up(&error).await;
            side.tear_down().await;
            Err(error)
        }
        (Err(error), _) => {
            ask.give_up(&error).await;
            Err(error)
        }
    }
}

/// The reply must be for this key, this token's CA, and agree with the certificate in it.
fn check(reply: &JoinReply, key: &NodeKey, token: &JoinToken) -> Result<Identity, String> {
    let identity = Identity::new(&key.to_pem(), &reply.certificate, &reply.ca_certificate).map_err(|e| e.to_string())?;
    if identity.ca_digest().map_err(|e| e.to_string())? != token.digest() {
        return Err("the CA in the reply is not the one of the token".to_owned());
    }
    let said = NodeName { node_id: reply.node_id.clone(), role: reply.role, cluster_id: reply.cluster_id.clone() };
    if *identity.name() != said {
        return Err("the certificate in the reply names somebody else".to_owned());
    }
    Ok(identity)
}

struct Ask {
    remote: SocketAddr,
    local: SocketAddr,
    reader: FrameReader<ReadHalf<TlsStream<TcpStream>>>,
    writer: FrameWriter<WriteHalf<TlsStream<TcpStream>>>,
    begin: Instant,
    deadline: Instant,
    proof_interval: Duration,
}

impl Ask {
    async fn connect(remote: SocketAddr, token: &JoinToken, options: &JoinOptions) -> Result<Self, JoinError> {
        let begin = Instant::now();
        let deadline = begin + options.timeout;
        let broken = |why: String| JoinError::Broken { address: remote, why };
        let unreachable = |why: String| JoinError::Unreachable { address: remote, why };
        let stream = match timeout_at(deadline, TcpStream::connect(remote)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(unreachable(format!(
                    "connection refused: nothing listens on TCP {} there, or a firewall rejects it; is it a manager, and does its skep run?",
                    remote.port()
                )));
            }
            Ok(Err(e)) => return Err(unreachable(e.to_string())),
            Err(_) => {
                return Err(unreachable(format!(
                    "no answer within {} s: the host is down, the address is wrong, or TCP {} is blocked on the way",
                    options.timeout.as_secs_f32(),
                    remote.port()
                )));
            }
        };
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().map_err(|e| broken(e.to_string()))?;
        let config = tls::join_config(token.digest(), options.clock.clone()).map_err(|e| broken(format!("{e:#}")))?;
        let name = tls::server_name().map_err(|e| broken(e.to_string()))?;
        let stream = match timeout_at(deadline, TlsConnector::from(Arc::new(config)).connect(name, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(handshake_error(remote, &error)),
            Err(_) => {
                let what = "speak TLS";
                return Err(JoinError::TimedOut { address: remote, what, after: options.timeout });
            }
        };
        let (read, write) = tokio::io::split(stream);
        Ok(Self {
            remote,
            local,
            reader: FrameReader::new(read, MAX_FRAME, options.timeout),
            writer: FrameWriter::new(write, MAX_FRAME, options.timeout),
            begin,
            deadline,
            proof_interval: options.proof_interval,
        })
    }

    fn broken(&self, why: impl std::fmt::Display) -> JoinError {
        JoinError::Broken { address: self.remote, why: why.to_string() }
    }

    async fn read(&mut self) -> Result<ToJoiner, JoinError> {
        match self.reader.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.broken("the manager closed the connection")),
            Err(error) => Err(self.broken(error)),
        }
    }

    async fn write(&mut self, message: &FromJoiner) -> Result<(), JoinError> {
        let written = self.writer.write(message).await;
        written.map_err(|error: FrameError| self.broken(error))
    }

    async fn request(&mut self, parts: JoinParts<'_>) -> Result<JoinReply, JoinError> {
        let csr = parts.node_key.request().map_err(|e| JoinError::Here(e.into()))?;
        let request = JoinRequest {
            format: FORMAT,
            token: parts.token.to_owned(),
            csr,
            key: parts.tunnel_key,
            endpoints: parts.endpoints,
            description: parts.description,
            availability: parts.availability,
        };
        let (deadline, address, after) = (self.deadline, self.remote, self.deadline - self.begin);
        let exchange = async {
            let written = self.write(&FromJoiner::Request(Box::new(request))).await;
            // A server that has closed already may have said why before: that counts more than the failed write.
            (written, self.read().await)
        };
        let Ok((written, read)) = timeout_at(deadline, exchange).await else {
            return Err(JoinError::TimedOut { address, what: "answer the request", after });
        };
        match read {
            Ok(ToJoiner::Reply(reply)) => Ok(*reply),
            Ok(ToJoiner::Refused(refused)) => Err(refused.into()),
            Ok(ToJoiner::GaveUp(why)) => Err(JoinError::GaveUp { address, why }),
            Ok(ToJoiner::Proof(_) | ToJoiner::Done | ToJoiner::Late) => Err(self.broken("it answers what was not asked")),
            Err(error) => Err(written.err().unwrap_or(error)),
        }
    }

    /// Compares counters until both ways are proved, then ends the join.
    async fn prove(&mut self, reply: &JoinReply, side: &dyn JoinerSide) -> Result<(), JoinError> {
        let mut way = Way::default();
        let mut tick = tokio::time::interval(self.proof_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut done = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.deadline) => return Err(self.late(way, reply.data_path_port)),
                _ = tick.tick() => {
                    if !way.proved() {
                        side.send_probe().await;
                    }
                    way.received(side.received_from_manager().await.map_err(JoinError::Here)?);
                    self.write(&FromJoiner::Proof(way.proof())).await?;
                }
                message = self.reader.message::<ToJoiner>() => match message {
                    Ok(Some(ToJoiner::Proof(proof))) => way.told(proof),
                    Ok(Some(ToJoiner::Done)) => return Ok(()),
                    Ok(Some(ToJoiner::Late)) => return Err(self.late(way, reply.data_path_port)),
                    Ok(Some(ToJoiner::GaveUp(why))) => return Err(JoinError::GaveUp { address: self.remote, why }),
                    Ok(Some(ToJoiner::Refused(refused))) => return Err(refused.into()),
                    Ok(Some(ToJoiner::Reply(_))) => return Err(self.broken("a second reply")),
                    Ok(None) => return Err(self.broken("the manager closed the connection")),
                    Err(error) => return Err(self.broken(error)),
                },
            }
            if way.proved() && !done {
                done = true;
                self.write(&FromJoiner::Proof(way.proof())).await?;
                self.write(&FromJoiner::Done).await?;
            }
        }
    }

    fn late(&self, way: Way, port: u16) -> JoinError {
        let (here, manager) = (self.local.ip().to_canonical(), self.remote.ip().to_canonical());
        match way.blocked(true) {
            Some(Direction::Out) => JoinError::Blocked { port, from: here, to: manager, why: "the manager received nothing" },
            Some(Direction::In) => JoinError::Blocked { port, from: manager, to: here, why: "this node received nothing" },
            None => JoinError::TimedOut { address: self.remote, what: "end the join", after: self.deadline - self.begin },
        }
    }

    async fn give_up(&mut self, error: &JoinError) {
        let _ = tokio::time::timeout(GRACE, async {
            let _ = self.writer.write(&FromJoiner::GaveUp(error.to_string())).await;
            self.writer.close().await;
        })
        .await;
    }
}

fn handshake_error(address: SocketAddr, error: &io::Error) -> JoinError {
    match (tls::distrust(error), tls::tls_error(error)) {
        (Some(tls::Distrust::ForeignCa(digest)), _) => JoinError::ForeignCa { address, expected: digest.to_string() },
        (Some(distrust), _) => JoinError::Untrusted { address, why: distrust.to_string() },
        (None, Some(rustls::Error::InvalidCertificate(why))) => {
            JoinError::Untrusted { address, why: format!("{why}; compare the clocks of both machines") }
        }
        (None, Some(error)) => JoinError::Broken { address, why: format!("it does not speak skep's protocol: {error}") },
        (None, None) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            let why = "it closed the connection at once: it is no skep manager, is shutting down, or has too many joins at a time; try again";
            JoinError::Broken { address, why: why.to_owned() }
        }
        (None, None) => JoinError::Broken { address, why: format!("it does not speak skep's protocol: {error}") },
    }
}
