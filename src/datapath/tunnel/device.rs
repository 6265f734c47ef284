//! WireGuard in this process: gotatun on our TUN device and our UDP socket. Peers are changed in place, never through its
//! UAPI, which would drop their sessions.

use super::super::{TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use super::difference::{YOUNG, endpoint_to_set};
use super::tun::{Tun, TunReceive, TunSend, split};
use super::uapi;
use super::udp::Socket;
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

/// How long to wait for answers to first handshakes. They are sent in any case, and repeated by themselves.
const GREETING: Duration = Duration::from_millis(50);

/// A running device.
pub(super) struct WireGuard {
    device: Device<(Socket, TunSend, TunReceive)>,
    tun: Arc<AsyncFd<Tun>>,
    port: u16,
    started: Instant,
    uapi: Option<uapi::Socket>,
}

impl WireGuard {
    /// Starts it, without peers, its UDP socket listening.
    pub(super) async fn start(private: [u8; 32], tun: Tun, socket: Socket, name: &str) -> anyhow::Result<Self> {
        let port = socket.local()?.port();
        let (send, receive, tun) = split(tun).context("cannot wait for the TUN device")?;
        let mut builder =
            DeviceBuilder::new().with_udp(socket).with_ip_pair(send, receive).with_private_key(StaticSecret::from(private));
        let mut uapi = None;
        if let Some((server, socket)) = uapi::serve(name) {
            builder = builder.with_uapi(server);
            uapi = Some(socket);
        }
        let device = builder.build().await.map_err(|error| anyhow!("cannot start WireGuard: {error}"))?;
        // A device without peers opens no socket by itself; a change of the port makes it. `swarm init` is that case.
        device.set_listen_port(port).await.map_err(|error| anyhow!("cannot start WireGuard's socket: {error}"))?;
        Ok(Self { device, tun, port, started: Instant::now(), uapi })
    }

    /// What is there.
    pub(super) async fn observe(&self) -> anyhow::Result<TunnelState> {
        let mtu = self.tun.get_ref().mtu().context("cannot read the MTU of the TUN device")?;
        let peers = self.device.peers().await.iter().map(state_of).collect();
        Ok(TunnelState { plane: "skep tunnel".into(), port: self.port, mtu, peers })
    }

    /// Changes peers.
    pub(super) async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        let mut actual: BTreeMap<WgKey, TunnelPeerState> = self.device.peers().await.iter().map(state_of).collect();
        let mut met = Vec::new();
        for step in steps {
            match step {
                TunnelStep::Set(key, peer) => {
                    let endpoint = endpoint_to_set(peer, actual.get(key));
                    self.set(*key, peer, endpoint).await?;
                    met.extend(endpoint.map(|_| PublicKey::from(key.0)));
                }
                TunnelStep::Remove(key) => {
                    self.device.remove_peer(&PublicKey::from(key.0)).await.map_err(|error| anyhow!("{error}"))?;
                    actual.remove(key);
                }
            }
        }
        if self.started.elapsed() > YOUNG {
            return Ok(());
        }
        let greet = met.iter().map(|key| self.device.force_handshake(key));
        let _ = timeout(GREETING, futures_util::future::join_all(greet)).await;
        Ok(())
    }

    async fn set(&self, key: WgKey, wanted: &TunnelPeer, endpoint: Option<SocketAddr>) -> anyhow::Result<()> {
        let public = PublicKey::from(key.0);
        self.device
            .write(async |device| {
                let mut nets = Vec::with_capacity(wanted.allowed_ips.len());
                for net in &wanted.allowed_ips {
                    // gotatun names the type of its networks nowhere: their text is the way in.
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

    /// Returns when the device cannot go on, for instance because it was deleted.
    pub(super) async fn wait(&mut self) {
        self.device.wait().await;
    }

    /// Ends; lets the device vanish unless it is kept.
    pub(super) async fn stop(self, keep_device: bool) {
        if !keep_device && let Err(error) = self.tun.get_ref().forget() {
            tracing::warn!(%error, "the TUN device stays behind");
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
