//! The joiner's side of a join: connect, check the server against the token's CA digest, send the request, bring the
//! tunnel up, prove that UDP passes in both directions. Knows no tunnel: that is behind [`JoinerSide`].

use super::super::connect_error::{self, HandshakeFailure};
use super::super::frame::{FrameError, FrameReader, FrameWriter};
use super::super::proof::{Direction, JoinSide, UdpReachability};
use super::super::tls::{self, ClientReader, ClientWriter};
use crate::clock::Clock;
use crate::model::Availability;
use crate::model::Secret;
use crate::model::node::NodeDescription;
use crate::protocol::MAX_FRAME;
use crate::protocol::{FORMATS, FromJoiner, JoinRefused, JoinReply, JoinRequest, KeyAnswer, ToJoiner};
use crate::trust::{Identity, JoinToken, NodeKey, NodeName, TunnelKey};
use async_trait::async_trait;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

/// Time after the deadline to tell the manager why the join failed.
const GRACE: Duration = Duration::from_millis(500);

/// The joiner's tunnel.
#[async_trait]
pub trait JoinerSide: Send + Sync {
    /// Brings the tunnel up with the assigned subnet and the peers of the reply.
    async fn bring_up(&self, reply: &JoinReply) -> anyhow::Result<()>;
    /// Bytes that the tunnel has received from the manager since it was brought up.
    async fn received_from_manager(&self) -> anyhow::Result<u64>;
    /// Sends the manager a packet through the tunnel.
    async fn send_probe(&self);
    /// The join failed after `bring_up` was called: takes down what it created.
    async fn tear_down(&self);
}

/// What a joiner's request is made of.
#[derive(Debug)]
pub struct JoinParts<'a> {
    /// The join token as the user entered it.
    pub token: &'a Secret<String>,
    pub node_key: &'a NodeKey,
    pub tunnel_key: &'a TunnelKey,
    /// Endpoints of its tunnel; an unspecified address stands for the source address that the manager sees.
    pub endpoints: Vec<SocketAddr>,
    pub description: NodeDescription,
    pub availability: Availability,
}

/// Bounds on a join.
#[derive(Clone)]
pub struct JoinOptions {
    /// Time for the whole join.
    pub timeout: Duration,
    /// Time for the manager to accept the connection.
    pub connect: Duration,
    /// Time between reads of the tunnel's counters.
    pub proof_interval: Duration,
    /// The time that certificates are checked against.
    pub clock: Arc<dyn Clock>,
}

impl JoinOptions {
    /// The defaults: 15 s in all, counters read every 100 ms.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let timeout = Duration::from_secs(15);
        Self { timeout, connect: timeout, proof_interval: Duration::from_millis(100), clock }
    }
}

/// A successful join.
#[derive(Clone, Debug)]
pub struct Joined {
    pub reply: JoinReply,
    /// Key, certificate and CA, checked to belong together; not on disk yet.
    pub identity: Identity,
}

/// Why a join failed. Nothing of it is left, neither on this node nor at the manager. `address` is the manager's.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is not a join token.
    #[error("invalid join token")]
    MalformedToken,
    /// No TCP connection to the manager.
    #[error("cannot reach a manager at {address}: {why}")]
    Unreachable {
        address: SocketAddr,
        /// Why, and what to check.
        why: String,
    },
    /// The server belongs to another cluster than the token.
    #[error("remote CA does not match fingerprint. Expected: {expected}")]
    ForeignCa {
        address: SocketAddr,
        /// CA digest in the token, hex.
        expected: String,
    },
    /// The server's certificate cannot be trusted for another reason.
    #[error("the server at {address} cannot be trusted: {why}")]
    Untrusted { address: SocketAddr, why: String },
    /// The manager refused.
    #[error(transparent)]
    Refused(#[from] JoinRefused),
    /// UDP packets do not arrive.
    #[error("UDP {port} from {from} to {to} is blocked: {why}; open UDP {port} on both hosts and between them, then join again")]
    Blocked {
        /// Port of the tunnel.
        port: u16,
        from: IpAddr,
        to: IpAddr,
        why: &'static str,
    },
    /// The manager gave up; its reason.
    #[error("the manager at {address} gave up: {why}")]
    GaveUp { address: SocketAddr, why: String },
    /// The server does not follow the protocol, or disconnected.
    #[error("the join with {address} broke off: {why}")]
    Broken { address: SocketAddr, why: String },
    /// The deadline passed.
    #[error("the manager at {address} did not {what} within {} s", .after.as_secs_f32())]
    TimedOut {
        address: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// How long the join took by then.
        after: Duration,
    },
    /// A step on this node failed.
    #[error("this node cannot bring up its tunnel: {0:#}")]
    Local(anyhow::Error),
}

/// Joins the cluster of the manager at `remote`. When it returns an error the tunnel is torn down and the manager has
/// removed the node, or does so when it sees the connection close. A caller that drops the future before it is done must
/// call [`JoinerSide::tear_down`] itself.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    remote: SocketAddr,
    parts: JoinParts<'_>,
    side: &dyn JoinerSide,
    options: &JoinOptions,
) -> Result<Joined, JoinError> {
    if parts.token.expose().is_empty() {
        return Err(JoinRefused::Token.into());
    }
    let token: JoinToken = parts.token.expose().parse().map_err(|_| JoinError::MalformedToken)?;
    let node_key = parts.node_key;
    let (mut connection, reply) = request(remote, &parts, &token, options).await?;
    let identity = match check(&reply, node_key, &token) {
        Ok(identity) => identity,
        Err(why) => {
            let error = connection.broken(why);
            connection.give_up(&error).await;
            return Err(error);
        }
    };
    match establish(&mut connection, &reply, side, options.timeout).await {
        Ok(()) => Ok(Joined { reply, identity }),
        Err(error) => {
            connection.give_up(&error).await;
            side.tear_down().await;
            Err(error)
        }
    }
}

/// Connects and sends the request. A manager that knows no ranges and refuses the number in it gets another request, with
/// its own number, if this build has that.
async fn request(
    remote: SocketAddr,
    parts: &JoinParts<'_>,
    token: &JoinToken,
    options: &JoinOptions,
) -> Result<(JoinConnection, JoinReply), JoinError> {
    let mut named = FORMATS.oldest;
    loop {
        let mut connection = JoinConnection::connect(remote, token, options).await?;
        match connection.request(parts, named).await {
            Ok(reply) => return Ok((connection, reply)),
            Err(JoinError::Refused(JoinRefused::Format { manager, formats: None, .. }))
                if manager > named && FORMATS.contains(manager) =>
            {
                named = manager;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Brings the tunnel up and proves that UDP passes in both directions.
async fn establish(
    connection: &mut JoinConnection,
    reply: &JoinReply,
    side: &dyn JoinerSide,
    timeout: Duration,
) -> Result<(), JoinError> {
    let hung = |what: &str| JoinError::Local(anyhow::anyhow!("{what} within {} s", timeout.as_secs_f32()));
    let deadline = connection.deadline;
    match timeout_at(deadline, side.bring_up(reply)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(JoinError::Local(error)),
        Err(_) => return Err(hung("it did not come up")),
    }
    // The proof has its own deadline; this one is for a tunnel that hangs in a call.
    timeout_at(deadline + GRACE, connection.prove(reply, side)).await.unwrap_or_else(|_| Err(hung("it did not answer")))
}

/// The reply must be for this key and this token's CA, and agree with its certificate.
fn check(reply: &JoinReply, key: &NodeKey, token: &JoinToken) -> Result<Identity, String> {
    let identity = Identity::new(&key.to_pem(), &reply.certificate, &reply.ca_certificate).map_err(|e| e.to_string())?;
    if identity.ca_digest().map_err(|e| e.to_string())? != token.digest() {
        return Err("the CA in the reply is not the one of the token".to_owned());
    }
    let expected = NodeName { node_id: reply.node_id.clone(), role: reply.role, cluster_id: reply.cluster_id.clone() };
    if *identity.name() != expected {
        return Err("the certificate in the reply names another node".to_owned());
    }
    Ok(identity)
}

struct JoinConnection {
    remote: SocketAddr,
    local: SocketAddr,
    reader: ClientReader,
    writer: ClientWriter,
    begin: Instant,
    deadline: Instant,
    proof_interval: Duration,
}

impl JoinConnection {
    async fn connect(remote: SocketAddr, token: &JoinToken, options: &JoinOptions) -> Result<Self, JoinError> {
        let begin = Instant::now();
        let deadline = begin + options.timeout;
        let broken = |why: String| JoinError::Broken { address: remote, why };
        let stream = connect_tcp(remote, options.connect.min(options.timeout)).await?;
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
            Err(error) => Err(self.lost(error)),
        }
    }

    fn lost(&self, error: FrameError) -> JoinError {
        match error {
            FrameError::Io(error) => self.broken(connect_error::lost(&error)),
            other => self.broken(other),
        }
    }

    async fn write(&mut self, message: &FromJoiner) -> Result<(), JoinError> {
        let written = self.writer.write(message).await;
        written.map_err(|error| self.lost(error))
    }

    /// `named`: the format that a manager without ranges compares with its own.
    async fn request(&mut self, parts: &JoinParts<'_>, named: u32) -> Result<JoinReply, JoinError> {
        let csr = parts.node_key.request().map_err(|e| JoinError::Local(e.into()))?;
        let request = JoinRequest {
            format: named,
            formats: Some(FORMATS),
            token: parts.token.clone(),
            csr,
            key: parts.tunnel_key.public(),
            endpoints: parts.endpoints.clone(),
            description: parts.description.clone(),
            availability: parts.availability,
        };
        let (deadline, address, after) = (self.deadline, self.remote, self.deadline - self.begin);
        let document = serde_json::to_vec(&FromJoiner::Request(Box::new(request))).map_err(|e| JoinError::Local(e.into()))?;
        let exchange = async {
            let written = self.writer.write_document(&document).await.map_err(|error| self.broken(error));
            // A server that has already closed the connection may have sent the reason first, which tells more than the
            // failed write.
            let first = self.read().await;
            let Ok(ToJoiner::Key(challenge)) = first else { return (written, first) };
            // The manager's certificate is of the token's CA: no other server gets an answer.
            let answer = match parts.tunnel_key.answer(&challenge, &document) {
                Ok(answer) => FromJoiner::Key(KeyAnswer(answer)),
                Err(error) => return (Err(self.broken(error)), Err(self.broken("its challenge cannot be answered"))),
            };
            (self.write(&answer).await, self.read().await)
        };
        let Ok((written, read)) = timeout_at(deadline, exchange).await else {
            return Err(JoinError::TimedOut { address, what: "answer the request", after });
        };
        match read {
            Ok(ToJoiner::Reply(reply)) => Ok(*reply),
            Ok(ToJoiner::Refused(refused)) => Err(refused.into()),
            Ok(ToJoiner::GaveUp(why)) => Err(JoinError::GaveUp { address, why }),
            Ok(ToJoiner::Key(_) | ToJoiner::Proof(_) | ToJoiner::Done | ToJoiner::Late) => {
                Err(self.broken("an unexpected answer"))
            }
            Err(error) => Err(written.err().unwrap_or(error)),
        }
    }

    /// Exchanges counters until both directions are proved, then ends the join.
    async fn prove(&mut self, reply: &JoinReply, side: &dyn JoinerSide) -> Result<(), JoinError> {
        let mut udp = UdpReachability::new(JoinSide::Joiner);
        let mut tick = tokio::time::interval(self.proof_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut done = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.deadline) => return Err(self.timed_out(udp, reply.data_path_port)),
                _ = tick.tick() => {
                    if !udp.proved() {
                        side.send_probe().await;
                    }
                    udp.set_received(side.received_from_manager().await.map_err(JoinError::Local)?);
                    self.write(&FromJoiner::Proof(udp.proof())).await?;
                }
                message = self.reader.message::<ToJoiner>() => match message {
                    Ok(Some(ToJoiner::Proof(proof))) => udp.set_reported(proof),
                    Ok(Some(ToJoiner::Done)) => return Ok(()),
                    Ok(Some(ToJoiner::Late)) => return Err(self.timed_out(udp, reply.data_path_port)),
                    Ok(Some(ToJoiner::GaveUp(why))) => return Err(JoinError::GaveUp { address: self.remote, why }),
                    Ok(Some(ToJoiner::Refused(refused))) => return Err(refused.into()),
                    Ok(Some(ToJoiner::Reply(_) | ToJoiner::Key(_))) => return Err(self.broken("a second reply")),
                    Ok(None) => return Err(self.broken("the manager closed the connection")),
                    Err(error) => return Err(self.lost(error)),
                },
            }
            if udp.proved() && !done {
                done = true;
                self.write(&FromJoiner::Proof(udp.proof())).await?;
                self.write(&FromJoiner::Done).await?;
            }
        }
    }

    fn timed_out(&self, udp: UdpReachability, port: u16) -> JoinError {
        let (here, manager) = (self.local.ip().to_canonical(), self.remote.ip().to_canonical());
        match udp.blocked() {
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

/// Opens the TCP connection; the error tells what to check.
async fn connect_tcp(remote: SocketAddr, limit: Duration) -> Result<TcpStream, JoinError> {
    let why = match timeout(limit, TcpStream::connect(remote)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => connect_error::tcp(&error, remote),
        Err(_) => connect_error::no_answer(limit, remote),
    };
    Err(JoinError::Unreachable { address: remote, why })
}

fn handshake_error(address: SocketAddr, error: &io::Error) -> JoinError {
    match connect_error::tls(error, address) {
        HandshakeFailure::ForeignCa(expected) => JoinError::ForeignCa { address, expected },
        HandshakeFailure::Untrusted(why) => JoinError::Untrusted { address, why },
        HandshakeFailure::Broken(why) => JoinError::Broken { address, why },
    }
}
