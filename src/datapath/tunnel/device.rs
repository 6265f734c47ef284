//! WireGuard in this process: gotatun on the TUN device and the UDP socket of this module. Peers are changed in place, never
//! through the UAPI, which would drop their sessions.

use super::super::{TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use super::difference::{INITIATE_PERIOD, endpoint_change};
use super::tun::{Tun, TunReceive, TunSend, split};
use super::uapi;
use super::udp::TunnelSocket;
use crate::model::WgKey;
use anyhow::{Context as _, anyhow};
use gotatun::device::configure::PeerStats;
use gotatun::device::{Device, DeviceBuilder, Peer};
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout};

/// How long to wait for replies to the first handshakes. gotatun repeats handshakes without a reply.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(50);

/// A running device.
pub(super) struct WireGuard {
    device: Device<(TunnelSocket, TunSend, TunReceive)>,
    tun: Arc<AsyncFd<Tun>>,
    port: u16,
    started: Instant,
    uapi: Option<uapi::UapiSocketFile>,
}

impl WireGuard {
    /// Starts the device without peers; the UDP socket receives at once.
    pub(super) async fn start(private: [u8; 32], tun: Tun, socket: TunnelSocket, name: &str) -> anyhow::Result<Self> {
        let port = socket.local_address()?.port();
        let (send, receive, tun) = split(tun).context("cannot wait for the TUN device")?;
        let mut builder =
            DeviceBuilder::new().with_udp(socket).with_ip_pair(send, receive).with_private_key(StaticSecret::from(private));
        let mut uapi = None;
        if let Some((server, socket)) = uapi::serve(name) {
            builder = builder.with_uapi(server);
            uapi = Some(socket);
        }
        let device = builder.build().await.map_err(|error| anyhow!("cannot start WireGuard: {error}"))?;
        // gotatun binds its socket for the first peer only, or when the port changes. After `swarm init` there is no peer.
        device.set_listen_port(port).await.map_err(|error| anyhow!("cannot start WireGuard's socket: {error}"))?;
        Ok(Self { device, tun, port, started: Instant::now(), uapi })
    }

    /// The current state.
    pub(super) async fn observe(&self) -> anyhow::Result<TunnelState> {
        let mtu = self.tun.get_ref().mtu().context("cannot read the MTU of the TUN device")?;
        let peers = self.device.peers().await.iter().map(state_of).collect();
        Ok(TunnelState { implementation: "skep tunnel".into(), port: self.port, mtu, peers })
    }

    /// Applies the steps in order.
    pub(super) async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        let mut actual: BTreeMap<WgKey, TunnelPeerState> = self.device.peers().await.iter().map(state_of).collect();
        let mut with_new_endpoint = Vec::new();
        for step in steps {
            match step {
                TunnelStep::Set(key, peer) => {
                    let endpoint = endpoint_change(peer, actual.get(key));
                    self.set(*key, peer, endpoint).await?;
                    with_new_endpoint.extend(endpoint.map(|_| PublicKey::from(key.0)));
                }
                TunnelStep::Remove(key) => {
                    self.device.remove_peer(&PublicKey::from(key.0)).await.map_err(|error| anyhow!("{error}"))?;
                    actual.remove(key);
                }
            }
        }
        if self.started.elapsed() <= INITIATE_PERIOD {
            let handshakes = with_new_endpoint.iter().map(|key| self.device.force_handshake(key));
            let _ = timeout(HANDSHAKE_WAIT, futures_util::future::join_all(handshakes)).await;
        }
        Ok(())
    }

    /// Adds or changes a peer; sets `endpoint` if there is one.
    async fn set(&self, key: WgKey, wanted: &TunnelPeer, endpoint: Option<SocketAddr>) -> anyhow::Result<()> {
        let public = PublicKey::from(key.0);
        self.device
            .write(async |device| {
                let mut nets = Vec::with_capacity(wanted.allowed_ips.len());
                for net in &wanted.allowed_ips {
                    // gotatun does not export the type of its networks: converted as text.
                    nets.push(net.trunc().to_string().parse().map_err(|_| anyhow!("{net} is no network"))?);
                }
                let mut peer = Peer::new(public).with_allowed_ips(nets.iter().copied());
                peer.endpoint = wanted.endpoint;
                peer.keepalive = wanted.keepalive;
                if device.add_peer(peer) {
                    return Ok(());
                }
                device
                    .modify_peer(&public, |peer| {
                        peer.clear_allowed_ips();
                        peer.add_allowed_ips(nets);
                        peer.set_keepalive(wanted.keepalive);
                        if endpoint.is_some() {
                            peer.set_endpoint(endpoint);
                        }
                    })
                    .await;
                Ok(())
            })
            .await
            .map_err(|error| anyhow!("{error}"))?
    }

    /// Returns when the device cannot continue, for instance because it was deleted.
    pub(super) async fn wait(&mut self) {
        self.device.wait().await;
    }

    /// Stops; the TUN device is deleted unless `keep_device`.
    pub(super) async fn stop(self, keep_device: bool) {
        if !keep_device && let Err(error) = self.tun.get_ref().clear_persistent() {
            tracing::warn!(%error, "the TUN device is not deleted");
        }
        drop(self.uapi);
        self.device.stop().await;
    }
}

fn state_of(stats: &PeerStats) -> (WgKey, TunnelPeerState) {
    let mut allowed_ips: Vec<IpNet> =
        stats.peer.allowed_ips.iter().filter_map(|net| IpNet::new(net.ip(), net.prefix()).ok()).map(|net| net.trunc()).collect();
    allowed_ips.sort();
    let peer =
        TunnelPeer { endpoint: stats.peer.endpoint, allowed_ips, keepalive: stats.peer.keepalive.filter(|seconds| *seconds > 0) };
    let state = TunnelPeerState {
        peer,
        handshake_age: stats.stats.last_handshake,
        rx_bytes: stats.stats.rx_bytes as u64,
        tx_bytes: stats.stats.tx_bytes as u64,
    };
    (WgKey(stats.peer.public_key.to_bytes()), state)
}
