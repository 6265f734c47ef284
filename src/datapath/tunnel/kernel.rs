//! Kernel WireGuard: the device is made in the host's namespace, where its UDP socket stays, and moved into the mesh
//! namespace; peers are changed from inside that, by difference.

use super::super::{Tunnel, TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use super::TunnelConfig;
use super::difference::{YOUNG, change};
use super::key::private_key;
use super::link::{self, Control};
use super::namespace::{Namespace, here};
use super::udp::bind_error;
use crate::clock::{Clock as _, SystemClock};
use crate::model::WgKey;
use anyhow::{Context as _, bail};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;
use wireguard_control::{AllowedIp, Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo};

/// The tunnel as a device of the kernel.
pub(super) struct KernelTunnel {
    mesh: Namespace,
    device: String,
    /// When it was made; `None`: adopted.
    made: Option<Instant>,
}

impl KernelTunnel {
    /// Adopts the device that an earlier daemon left, or makes it.
    pub(super) async fn open(config: TunnelConfig) -> anyhow::Result<Self> {
        let mesh = Namespace::open(&config.mesh_pin)?;
        let private = private_key(&config.private_key_file)?;
        let device = config.device.clone();
        let name = device.clone();
        let kind = mesh.run_async(move || link::kind(&name)).await?;
        let mut made = None;
        if kind.as_deref() != Some("wireguard") {
            made = Some(Instant::now());
            if kind.is_some() {
                let name = device.clone();
                mesh.run_async(move || link::delete(&name)).await?;
            }
            let (target, config) = (mesh.clone(), config.clone());
            here(move || make(&target, &config, private)).await?;
        }
        let listen = config.listen;
        if let Err(error) = mesh.run_async(move || bring_up(&config, private)).await {
            let taken = error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::AddrInUse);
            // Who holds it is to be seen out here.
            let named = here(move || Ok(bind_error(listen, io::ErrorKind::AddrInUse.into())));
            return Err(if taken { named.await? } else { error });
        }
        Ok(Self { mesh, device, made })
    }
}

/// Whether this kernel has WireGuard. Loads its module.
pub(super) async fn supported() -> anyhow::Result<bool> {
    here(|| {
        let name = temporary_name();
        let there = link::add_wireguard(&name)?;
        if there {
            link::delete(&name)?;
        }
        Ok(there)
    })
    .await
}

/// Makes room for the process: a kernel device of that name goes, a TUN device is what it attaches to.
pub(super) async fn remove_for_process(config: &TunnelConfig) -> anyhow::Result<()> {
    let device = config.device.clone();
    let mesh = Namespace::open(&config.mesh_pin)?;
    mesh.run_async(move || match link::kind(&device)?.as_deref() {
        Some("wireguard") => link::delete(&device),
        _ => Ok(()),
    })
    .await
}

/// Deletes the device, whichever form it has. A namespace that is gone took it along.
pub(super) async fn delete(config: &TunnelConfig) -> anyhow::Result<()> {
    let device = config.device.clone();
    let Ok(mesh) = Namespace::open(&config.mesh_pin) else { return Ok(()) };
    mesh.run_async(move || link::delete(&device)).await
}

/// Unlike any name that is there.
fn temporary_name() -> String {
    format!("skwg{:x}", rand::random::<u32>())
}

/// Makes the device here, with its key, and moves it into `mesh`.
fn make(mesh: &Namespace, config: &TunnelConfig, private: [u8; 32]) -> anyhow::Result<()> {
    let name = temporary_name();
    if !link::add_wireguard(&name)? {
        bail!("this kernel has no WireGuard (module wireguard): load it, or let skep use its own tunnel process");
    }
    let key = Key(private);
    let result = DeviceUpdate::new()
        .set_private_key(key)
        .set_listen_port(config.listen.port())
        .apply(&name.parse()?, Backend::Kernel)
        .context("cannot give the WireGuard device its key")
        .and_then(|()| link::move_to(&name, mesh.raw_fd(), &config.device));
    if result.is_err() {
        let _ = link::delete(&name);
    }
    result
}

/// In the mesh namespace: key, port and MTU as wanted, then up, which opens the socket.
fn bring_up(config: &TunnelConfig, private: [u8; 32]) -> anyhow::Result<()> {
    let name: InterfaceName = config.device.parse()?;
    let there = Device::get(&name, Backend::Kernel).with_context(|| format!("cannot read the device {}", config.device))?;
    let key = Key(private);
    let port = config.listen.port();
    if there.private_key.as_ref() != Some(&key) {
        DeviceUpdate::new().set_private_key(key).apply(&name, Backend::Kernel).context("cannot change the key")?;
    }
    if port != 0 && there.listen_port != Some(port) {
        DeviceUpdate::new()
            .set_listen_port(port)
            .apply(&name, Backend::Kernel)
            .with_context(|| format!("cannot listen on UDP port {port}"))?;
    }
    let control = Control::new()?;
    control.set_mtu(&config.device, config.mtu).with_context(|| format!("cannot set MTU {} on {}", config.mtu, config.device))?;
    control.up(&config.device).with_context(|| format!("cannot set {} up, on UDP port {port}", config.device))
}

#[async_trait::async_trait]
impl Tunnel for KernelTunnel {
    async fn observe(&self) -> anyhow::Result<TunnelState> {
        let device = self.device.clone();
        self.mesh
            .run_async(move || {
                let (port, peers) = dump(&device)?;
                let mtu = Control::new()?.mtu(&device).context("cannot read its MTU")?;
                Ok(TunnelState { plane: "kernel".into(), port, mtu, peers })
            })
            .await
            .with_context(|| format!("cannot read the WireGuard device {}", self.device))
    }

    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let (device, steps) = (self.device.clone(), steps.to_vec());
        let greet = self.made.is_some_and(|made| made.elapsed() < YOUNG);
        self.mesh
            .run_async(move || {
                let name: InterfaceName = device.parse()?;
                let (_, mut actual) = dump(&device)?;
                for step in steps {
                    let update = match step {
                        TunnelStep::Remove(key) => {
                            actual.remove(&key);
                            DeviceUpdate::new().remove_peer_by_key(&Key(key.0))
                        }
                        TunnelStep::Set(key, peer) => set(key, &peer, actual.get(&key), greet),
                    };
                    update.apply(&name, Backend::Kernel)?;
                }
                Ok(())
            })
            .await
            .with_context(|| format!("cannot change peers of the WireGuard device {}", self.device))
    }
}

/// The change of one peer. The kernel (before 6.16) has no "take this address away" but for a peer as a whole, and
/// "replace all" leaves a moment without any: so what goes is moved to a peer made for it, and that peer removed.
fn set(key: WgKey, wanted: &TunnelPeer, actual: Option<&TunnelPeerState>, greet: bool) -> DeviceUpdate {
    let change = change(wanted, actual);
    let peer = || PeerConfigBuilder::new(&Key(key.0));
    let mut first = peer();
    if let Some(endpoint) = change.endpoint {
        first = first.set_endpoint(endpoint);
    }
    let mut update = DeviceUpdate::new();
    if greet && change.endpoint.is_some() {
        // Turning keep-alive on greets the peer at once.
        update = update.add_peer(first.set_persistent_keepalive_interval(1));
        first = peer().set_persistent_keepalive_interval(wanted.keepalive.unwrap_or(0));
    } else if let Some(keepalive) = change.keepalive {
        first = first.set_persistent_keepalive_interval(keepalive);
    }
    update = update.add_peer(first);
    for piece in change.add {
        update = update.add_peer(peer().add_allowed_ips(&entries(&piece)));
    }
    if !change.remove.is_empty() {
        let grave = Key(rand::random());
        for piece in change.remove {
            update = update.add_peer(PeerConfigBuilder::new(&grave).add_allowed_ips(&entries(&piece)));
        }
        update = update.remove_peer_by_key(&grave);
    }
    update
}

fn entries(nets: &[IpNet]) -> Vec<AllowedIp> {
    nets.iter().map(|net| AllowedIp { address: net.addr(), cidr: net.prefix_len() }).collect()
}

/// Port and peers of the device, in the calling thread's namespace.
fn dump(device: &str) -> anyhow::Result<(u16, BTreeMap<WgKey, TunnelPeerState>)> {
    let now = Duration::from_nanos(u64::try_from(SystemClock.now().0).unwrap_or(0));
    let there = Device::get(&device.parse()?, Backend::Kernel)?;
    Ok((there.listen_port.unwrap_or(0), merge(there.peers, now)))
}

/// A peer with many addresses comes in several parts; all but the first have nothing but addresses.
fn merge(parts: Vec<PeerInfo>, now: Duration) -> BTreeMap<WgKey, TunnelPeerState> {
    let mut peers: BTreeMap<WgKey, TunnelPeerState> = BTreeMap::new();
    for part in parts {
        let state = peers.entry(WgKey(part.config.public_key.0)).or_insert_with(|| TunnelPeerState {
            peer: TunnelPeer { endpoint: None, allowed_ips: Vec::new(), keepalive: None },
            handshake_age: None,
            rx_bytes: 0,
            tx_bytes: 0,
        });
        state.peer.endpoint = state.peer.endpoint.or(part.config.endpoint);
        state.peer.keepalive = state.peer.keepalive.or(part.config.persistent_keepalive_interval.filter(|seconds| *seconds > 0));
        state.handshake_age = state.handshake_age.or_else(|| {
            let at = part.stats.last_handshake_time?.duration_since(UNIX_EPOCH).ok()?;
            Some(now.saturating_sub(at))
        });
        state.rx_bytes = state.rx_bytes.max(part.stats.rx_bytes);
        state.tx_bytes = state.tx_bytes.max(part.stats.tx_bytes);
        let nets = part.config.allowed_ips.iter().filter_map(|entry| IpNet::new(entry.address, entry.cidr).ok());
        state.peer.allowed_ips.extend(nets);
    }
    for state in peers.values_mut() {
        state.peer.allowed_ips.sort();
        state.peer.allowed_ips.dedup();
    }
    peers
}
