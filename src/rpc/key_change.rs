//! A node that changes its WireGuard key tells a manager: [`ask_key_change`] is its side, `serve` the manager's. Through the tunnel, so by
//! the node's own mesh address, which the tunnel authenticates by the key that the node has.

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::limits::ServerLimits;
use super::renewal::RenewalConfig;
use super::session::explain;
use super::tls;
use crate::model::{NodeId, WgKey};
use crate::protocol::{FromKeyChanger, KeyAnswer, KeyChangeRequest, MAX_MEMBERSHIP_FRAME, ToKeyChanger};
use crate::trust::{AwaitedProof, Identity, TunnelKey};
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::TlsStream;

/// Why a manager has not written a step, for people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyChangeRefusal {
    /// It is not written, and will not be.
    #[error("{0}")]
    Refused(String),
    /// It may be written later: the node is to ask again.
    #[error("it is not known whether the step is written: {0}")]
    Unknown(String),
}

/// Writes what nodes ask for.
#[async_trait]
pub trait KeyChangeAuthority: Send + Sync {
    /// The node, which has proved that it has this key, is to use it.
    ///
    /// # Errors
    /// It is not, or not known to be written.
    async fn begin(&self, node: &NodeId, key: WgKey) -> Result<(), KeyChangeRefusal>;
    /// The node uses it.
    ///
    /// # Errors
    /// That is not, or not known to be written.
    async fn in_use(&self, node: &NodeId, key: WgKey) -> Result<(), KeyChangeRefusal>;
}

/// Why no manager has written a step.
#[derive(Debug, thiserror::Error)]
pub enum KeyChangeError {
    #[error("no manager is known")]
    NoManager,
    /// A manager that was asked refused.
    #[error("{0}")]
    Refused(String),
    /// The last manager that was asked did not answer.
    #[error("the manager at {address} did not answer: {why:#}")]
    Failed { address: SocketAddr, why: anyhow::Error },
}

/// Asks the managers that are known, this node among them, until one answers.
///
/// # Errors
/// The first refusal; or of the last one asked.
pub async fn ask_key_change(
    config: &RenewalConfig,
    identity: &Identity,
    request: KeyChangeRequest,
    key: &TunnelKey,
) -> Result<(), KeyChangeError> {
    let candidates = config.candidates.borrow().clone();
    let mut result = KeyChangeError::NoManager;
    for address in candidates {
        let attempt = tokio::time::timeout(config.timeout, ask(config, identity, request, key, address)).await;
        match attempt.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} ms", config.timeout.as_millis()))) {
            Ok(ToKeyChanger::Done) => return Ok(()),
            Ok(ToKeyChanger::Refused(why)) => return Err(KeyChangeError::Refused(why)),
            Ok(ToKeyChanger::Challenge(_)) => {
                result = KeyChangeError::Failed { address, why: anyhow::anyhow!("it asks for a proof again") };
            }
            Err(why) => result = KeyChangeError::Failed { address, why },
        }
    }
    Err(result)
}

async fn ask(
    config: &RenewalConfig,
    identity: &Identity,
    request: KeyChangeRequest,
    key: &TunnelKey,
    address: SocketAddr,
) -> anyhow::Result<ToKeyChanger> {
    let socket = config.sockets.stream(SocketAddr::new(config.source, 0)).context("no socket in the mesh")?;
    let stream = socket.connect(address).await.context("cannot connect")?;
    let now = config.clock.now();
    let tls = tls::key_change_config(identity, config.clock.clone(), (config.node_at)(address.ip()))?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(tls::server_name()?, stream).await;
    let stream =
        stream.map_err(|e| explain(e, identity, now)).context("is it of an earlier build, which knows no change of keys?")?;
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_MEMBERSHIP_FRAME, config.timeout);
    let mut writer = FrameWriter::new(write, MAX_MEMBERSHIP_FRAME, config.timeout);
    let request = FromKeyChanger::Request(request);
    writer.write(&request).await?;
    let mut answer = reader.message::<ToKeyChanger>().await;
    if let Ok(Some(ToKeyChanger::Challenge(challenge))) = &answer {
        let proof = key.answer(challenge, &serde_json::to_vec(&request)?)?;
        writer.write(&FromKeyChanger::Proof(KeyAnswer(proof))).await?;
        answer = reader.message::<ToKeyChanger>().await;
    }
    match answer {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => bail!("it closed the connection"),
        Err(FrameError::Io(error)) => Err(explain(error, identity, now)),
        Err(error) => Err(error.into()),
    }
}

/// Serves one connection of the node, which is at its own address.
pub(super) async fn serve(
    stream: TlsStream<TcpStream>,
    node: &NodeId,
    authority: &dyn KeyChangeAuthority,
    limits: &ServerLimits,
) -> anyhow::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_MEMBERSHIP_FRAME, limits.first_message);
    let mut writer = FrameWriter::new(write, MAX_MEMBERSHIP_FRAME, limits.first_message);
    let read = tokio::time::timeout(limits.first_message, async {
        match reader.message::<FromKeyChanger>().await? {
            Some(FromKeyChanger::Request(KeyChangeRequest::InUse(key))) => Ok((KeyChangeRequest::InUse(key), None)),
            Some(request @ FromKeyChanger::Request(KeyChangeRequest::Begin(key))) => {
                let awaited = AwaitedProof::draw(&mut rand::rng());
                writer.write(&ToKeyChanger::Challenge(*awaited.challenge())).await?;
                let Some(FromKeyChanger::Proof(KeyAnswer(answer))) = reader.message::<FromKeyChanger>().await? else {
                    bail!("a challenge is answered with the proof of the key");
                };
                let not_proved = awaited.check(key, &serde_json::to_vec(&request)?, &answer).err();
                Ok((KeyChangeRequest::Begin(key), not_proved))
            }
            _ => bail!("it begins with a request"),
        }
    });
    let (request, not_proved) = read.await.context("no request was received in time, or no proof")??;
    let done = match (request, not_proved) {
        (_, Some(why)) => {
            Err(KeyChangeRefusal::Refused(format!("the node has not proved that the WireGuard key is its own: {why}")))
        }
        (KeyChangeRequest::Begin(key), None) => authority.begin(node, key).await,
        (KeyChangeRequest::InUse(key), None) => authority.in_use(node, key).await,
    };
    let answer = match &done {
        Ok(()) => ToKeyChanger::Done,
        Err(KeyChangeRefusal::Refused(why)) => ToKeyChanger::Refused(why.clone()),
        // A connection without an answer has failed: the node tries again, here or elsewhere.
        Err(error @ KeyChangeRefusal::Unknown(_)) => {
            writer.close().await;
            return Err(error.clone().into());
        }
    };
    let written = writer.write(&answer).await;
    writer.close().await;
    done?;
    Ok(written?)
}
