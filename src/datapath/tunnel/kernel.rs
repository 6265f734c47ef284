//! Kernel WireGuard: the device is created in the host's namespace, where its UDP socket stays, and moved into the mesh
//! namespace; peers are changed from inside the latter, by difference.

use super::super::netns;
use super::super::{KERNEL, Tunnel, TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use super::TunnelConfig;
use super::difference::{INITIATE_PERIOD, peer_change, redirects};
use super::handshake_age::HandshakeAges;
use super::key::private_key;
use super::link::{self, IoctlSocket};
use super::namespace::{Namespace, here};
use super::udp::bind_error;
use crate::clock::{Clock as _, SystemClock};
use crate::model::{Secret, WgKey};
use anyhow::{Context as _, bail};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;
use wireguard_control::{AllowedIp, Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo};

/// Whether the kernel can create WireGuard devices: creates one in a namespace of its own, which ends with it. Loads the module
/// if there is one.
///
/// # Errors
/// No namespace can be created, or the kernel's for another reason.
pub fn kernel_has_wireguard() -> anyhow::Result<bool> {
    netns::in_new(|| link::add_wireguard("wg0"))
}

/// The tunnel as a kernel device.
pub(super) struct KernelTunnel {
    mesh: Namespace,
    device: String,
    private_key_file: PathBuf,
    /// `None` if it was adopted.
    created: Option<Instant>,
    ages: Arc<Mutex<HandshakeAges>>,
}

impl KernelTunnel {
    /// Adopts the device of an earlier daemon, or creates it.
    pub(super) async fn open(config: TunnelConfig) -> anyhow::Result<Self> {
        let mesh = Namespace::open(&config.mesh_pin)?;
        let private = private_key(&config.private_key_file)?;
        let device = config.device.clone();
        let name = device.clone();
        let kind = mesh.run_async(move || link::kind(&name)).await?;
        let mut created = None;
        if kind.as_deref() != Some("wireguard") {
            created = Some(Instant::now());
            if kind.is_some() {
                let name = device.clone();
                mesh.run_async(move || link::delete(&name)).await?;
            }
            let (target, config) = (mesh.clone(), config.clone());
            let private = private.clone();
            here(move || create(&target, &config, &private)).await?;
        }
        let (listen, is_new, private_key_file) = (config.listen, created.is_some(), config.private_key_file.clone());
        if let Err(error) = mesh.run_async(move || bring_up(&config, &private, is_new)).await {
            let in_use = error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::AddrInUse);
            // The process is found in the host's namespace only.
            let named = here(move || Ok(bind_error(listen, io::ErrorKind::AddrInUse.into())));
            return Err(if in_use { named.await? } else { error });
        }
        Ok(Self { mesh, device, private_key_file, created, ages: Arc::default() })
    }
}

/// Whether this kernel has WireGuard. Loads its module.
pub(super) async fn supported() -> anyhow::Result<bool> {
    here(|| {
        let name = temporary_name();
        let created = link::add_wireguard(&name)?;
        if created {
            link::delete(&name)?;
        }
        Ok(created)
    })
    .await
}

/// Deletes a kernel device of that name, before the process opens its TUN device. An existing TUN device is kept: the process
/// attaches to it.
pub(super) async fn remove_for_process(config: &TunnelConfig) -> anyhow::Result<()> {
    let device = config.device.clone();
    let mesh = Namespace::open(&config.mesh_pin)?;
    mesh.run_async(move || match link::kind(&device)?.as_deref() {
        Some("wireguard") => link::delete(&device),
        _ => Ok(()),
    })
    .await
}

/// Deletes the device, of either kind. If the namespace is gone, so is the device.
pub(super) async fn delete(config: &TunnelConfig) -> anyhow::Result<()> {
    let device = config.device.clone();
    let Ok(mesh) = Namespace::open(&config.mesh_pin) else { return Ok(()) };
    mesh.run_async(move || link::delete(&device)).await
}

/// Random, so that no device has it.
fn temporary_name() -> String {
    format!("skwg{:x}", rand::random::<u32>())
}

/// Creates the device in the calling thread's namespace, sets its key, and moves it into `mesh`.
fn create(mesh: &Namespace, config: &TunnelConfig, private: &Secret<[u8; 32]>) -> anyhow::Result<()> {
    let name = temporary_name();
    if !link::add_wireguard(&name)? {
        bail!("this kernel has no WireGuard (module wireguard): load it, or let skep use its own tunnel process");
    }
    let key = Key(*private.expose());
    let result = DeviceUpdate::new()
        .set_private_key(key)
        .set_listen_port(config.listen.port())
        .apply(&name.parse()?, Backend::Kernel)
        .context("cannot set the key of the WireGuard device")
        .and_then(|()| link::move_to(&name, mesh.raw_fd(), &config.device));
    if result.is_err() {
        let _ = link::delete(&name);
    }
    result
}

/// Configures the device in the mesh namespace: key, port and MTU, then up, which opens the socket.
fn bring_up(config: &TunnelConfig, private: &Secret<[u8; 32]>, created: bool) -> anyhow::Result<()> {
    let name: InterfaceName = config.device.parse()?;
    let current = Device::get(&name, Backend::Kernel).with_context(|| format!("cannot read the device {}", config.device))?;
    let key = Key(*private.expose());
    let port = config.listen.port();
    if current.private_key.as_ref() != Some(&key) {
        change_key(&name, &key, &current)?;
    }
    if port != 0 && current.listen_port != Some(port) {
        DeviceUpdate::new()
            .set_listen_port(port)
            .apply(&name, Backend::Kernel)
            .with_context(|| format!("cannot listen on UDP port {port}"))?;
    }
    let control = IoctlSocket::new()?;
    if created || !config.keep_mtu {
        control
            .set_mtu(&config.device, config.mtu)
            .with_context(|| format!("cannot set MTU {} on {}", config.mtu, config.device))?;
    }
    control.up(&config.device).with_context(|| format!("cannot set {} up, on UDP port {port}", config.device))
}

#[async_trait::async_trait]
impl Tunnel for KernelTunnel {
    async fn observe(&self) -> anyhow::Result<TunnelState> {
        let (device, ages) = (self.device.clone(), Arc::clone(&self.ages));
        self.mesh
            .run_async(move || {
                let (port, peers) = dump(&device, &ages)?;
                let mtu = IoctlSocket::new()?.mtu(&device).context("cannot read its MTU")?;
                Ok(TunnelState { implementation: KERNEL.into(), port, mtu, peers })
            })
            .await
            .with_context(|| format!("cannot read the WireGuard device {}", self.device))
    }

    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let (device, ages, steps) = (self.device.clone(), Arc::clone(&self.ages), steps.to_vec());
        let initiate = self.created.is_some_and(|created| created.elapsed() < INITIATE_PERIOD);
        self.mesh
            .run_async(move || {
                let name: InterfaceName = device.parse()?;
                let (_, mut actual) = dump(&device, &ages)?;
                for step in steps {
                    let update = match step {
                        TunnelStep::Remove(key) => {
                            actual.remove(&key);
                            DeviceUpdate::new().remove_peer_by_key(&Key(key.0))
                        }
                        TunnelStep::Succeed { .. } => continue,
                        TunnelStep::Set(key, peer) => set(key, &peer, actual.get(&key), initiate),
                        TunnelStep::Redirect(key, redirect) => {
                            let Some(state) = actual.get(&key).filter(|state| redirects(&redirect, Some(state))) else {
                                continue;
                            };
                            let peer = TunnelPeer { endpoint: Some(redirect.to), ..state.peer.clone() };
                            set(key, &peer, Some(state), initiate)
                        }
                    };
                    update.apply(&name, Backend::Kernel)?;
                }
                Ok(())
            })
            .await
            .with_context(|| format!("cannot change peers of the WireGuard device {}", self.device))
    }

    async fn rekey(&self) -> anyhow::Result<()> {
        let key = Key(*private_key(&self.private_key_file)?.expose());
        let device = self.device.clone();
        self.mesh
            .run_async(move || {
                let name: InterfaceName = device.parse()?;
                let current = Device::get(&name, Backend::Kernel)?;
                if current.private_key.as_ref() == Some(&key) { Ok(()) } else { change_key(&name, &key, &current) }
            })
            .await
            .with_context(|| format!("cannot change the key of the WireGuard device {}", self.device))
    }
}

/// Sets another private key. The kernel sends nothing with the sessions of the one before, and goes on to receive with them; packets wait
/// for the handshakes, which begin at once: a keepalive that is switched on is sent.
fn change_key(name: &InterfaceName, key: &Key, current: &Device) -> anyhow::Result<()> {
    DeviceUpdate::new().set_private_key(key.clone()).apply(name, Backend::Kernel).context("cannot change the key")?;
    // The kernel splits a peer with many allowed-ips: only its first part has the other fields.
    let keepalives: BTreeMap<_, _> = current
        .peers
        .iter()
        .filter_map(|part| Some((part.config.public_key.0, part.config.persistent_keepalive_interval.filter(|s| *s > 0)?)))
        .collect();
    for (peer, seconds) in keepalives {
        let keepalive = |seconds| PeerConfigBuilder::new(&Key(peer)).set_persistent_keepalive_interval(seconds);
        let update = DeviceUpdate::new().add_peer(keepalive(0)).add_peer(keepalive(seconds));
        update.apply(name, Backend::Kernel).context("cannot begin a handshake with the new key")?;
    }
    Ok(())
}

/// The update for one peer; with `initiate` it starts a handshake if it sets the endpoint.
///
/// The kernel (before 6.16) cannot remove single allowed-ips, and "replace all" leaves the peer without any for a moment. So
/// those to remove are moved to a temporary peer, which is then removed.
fn set(key: WgKey, wanted: &TunnelPeer, actual: Option<&TunnelPeerState>, initiate: bool) -> DeviceUpdate {
    let change = peer_change(wanted, actual);
    let peer = || PeerConfigBuilder::new(&Key(key.0));
    let mut first = peer();
    if let Some(endpoint) = change.endpoint {
        first = first.set_endpoint(endpoint);
    }
    let mut update = DeviceUpdate::new();
    if initiate && change.endpoint.is_some() {
        // Enabling the persistent keepalive sends a packet at once, and so starts a handshake.
        update = update.add_peer(first.set_persistent_keepalive_interval(1));
        first = peer().set_persistent_keepalive_interval(wanted.keepalive.unwrap_or(0));
    } else if let Some(keepalive) = change.keepalive {
        first = first.set_persistent_keepalive_interval(keepalive);
    }
    update = update.add_peer(first);
    for chunk in change.add {
        update = update.add_peer(peer().add_allowed_ips(&entries(&chunk)));
    }
    if !change.remove.is_empty() {
        let temporary = Key(rand::random());
        for chunk in change.remove {
            update = update.add_peer(PeerConfigBuilder::new(&temporary).add_allowed_ips(&entries(&chunk)));
        }
        update = update.remove_peer_by_key(&temporary);
    }
    update
}

fn entries(nets: &[IpNet]) -> Vec<AllowedIp> {
    nets.iter().map(|net| AllowedIp { address: net.addr(), cidr: net.prefix_len() }).collect()
}

/// Port and peers of a device in the calling thread's namespace.
fn dump(device: &str, ages: &Mutex<HandshakeAges>) -> anyhow::Result<(u16, BTreeMap<WgKey, TunnelPeerState>)> {
    let now = Duration::from_nanos(u64::try_from(SystemClock.now().0).unwrap_or(0));
    let state = Device::get(&device.parse()?, Backend::Kernel)?;
    let mut ages = ages.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((state.listen_port.unwrap_or(0), merge(state.peers, |key, at| ages.age(key, at, now, Instant::now().into_std()))))
}

/// Merges the parts of each peer: the kernel splits one with many allowed-ips, and only its first part has the other fields.
fn merge(parts: Vec<PeerInfo>, mut age: impl FnMut(WgKey, Duration) -> Duration) -> BTreeMap<WgKey, TunnelPeerState> {
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
            Some(age(WgKey(part.config.public_key.0), at))
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
