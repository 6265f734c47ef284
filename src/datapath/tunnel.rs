//! The tunnel device in the mesh namespace, in one of two forms behind [`Tunnel`]: kernel WireGuard, or the process
//! `skep tunnel` (the same protocol on a TUN device). Its UDP socket lives in the host's namespace. What lies here knows
//! peers and their addresses; it knows nothing of nodes, networks or routes.
//!
//! Both forms outlive the daemon: [`open`] adopts what an earlier run left, replaces what does not fit, and only
//! [`close`] takes it down.

use super::Tunnel;
use anyhow::Context as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod client;
mod device;
mod difference;
mod holder;
mod kernel;
mod key;
mod link;
mod namespace;
mod offload;
mod process;
mod protocol;
mod tun;
mod uapi;
mod udp;

pub use key::{generate_key, public_key};
pub use process::{TunnelArgs, process_main};

/// Whether kernel WireGuard is used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// Where the kernel has it, unless a running `skep tunnel` can be adopted.
    #[default]
    Auto,
    /// Never: always `skep tunnel`.
    Never,
    /// Always: its absence is an error.
    Always,
}

/// What the tunnel shall be.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Where the mesh namespace is pinned.
    pub mesh_pin: PathBuf,
    /// Folder of `tunnel.sock`, `tunnel.pid` and `tunnel.log`.
    pub run_dir: PathBuf,
    /// The private key, base 64; see [`generate_key`].
    pub private_key_file: PathBuf,
    /// UDP address and port. An unspecified address of either family means both families. Kernel WireGuard always
    /// listens on every address and honours the port only.
    pub listen: SocketAddr,
    /// MTU of the device, bytes.
    pub mtu: u32,
    /// Name of the device, as `skep0`.
    pub device: String,
    /// Whether kernel WireGuard is used.
    pub kernel: KernelChoice,
    /// The skep binary, for `skep tunnel`.
    pub program: PathBuf,
}

impl TunnelConfig {
    /// Where the process answers.
    fn socket(&self) -> PathBuf {
        self.run_dir.join("tunnel.sock")
    }
}

/// Brings the tunnel up: adopts a running one that fits, else makes one. Peers of an adopted tunnel are kept.
///
/// # Errors
/// A key file that cannot be read, a pin that is no namespace, a UDP port that is taken (named with its holder), a kernel
/// that lacks what [`KernelChoice::Always`] asks for.
pub async fn open(config: TunnelConfig) -> anyhow::Result<Arc<dyn Tunnel>> {
    let key = public_key(&config.private_key_file)?;
    let running = client::hello(&config.socket()).await.ok();
    let adoptable = match &running {
        Some(hello) => client::misfit(hello, &config, key)?.is_none(),
        None => false,
    };
    let kernel = match config.kernel {
        KernelChoice::Never => false,
        KernelChoice::Always => true,
        KernelChoice::Auto => !adoptable && kernel::supported().await?,
    };
    if kernel {
        if running.is_some() {
            client::stop(&config.socket(), false)
                .await
                .context("stopping the tunnel process, to use kernel WireGuard instead")?;
        }
        return Ok(Arc::new(kernel::KernelTunnel::open(config).await?));
    }
    kernel::remove_for_process(&config).await?;
    Ok(client::ProcessTunnel::open(config, key).await?)
}

/// Takes the tunnel down: ends the process, deletes the device. What is gone already is fine.
///
/// # Errors
/// A process that does not end, a device that cannot be deleted.
pub async fn close(config: &TunnelConfig) -> anyhow::Result<()> {
    client::close(&config.socket()).await?;
    kernel::delete(config).await
}

/// The pid file and the log beside a control socket.
fn beside(socket: &Path, extension: &str) -> PathBuf {
    socket.with_extension(extension)
}
