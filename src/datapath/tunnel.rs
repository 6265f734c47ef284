//! The tunnel device in the mesh namespace, in one of two implementations of [`Tunnel`](super::Tunnel): kernel WireGuard, or
//! the process `skep tunnel` (the same protocol on a TUN device). Its UDP socket is in the host's namespace. This module
//! knows peers and their addresses; it knows nothing of nodes, networks or routes.
//!
//! Both implementations outlive the daemon: [`open`] adopts the device of an earlier run or replaces it if it does not fit,
//! and only [`close`] removes it.

use std::net::SocketAddr;
use std::path::PathBuf;

mod checksum;
mod client;
mod datagrams;
mod device;
mod difference;
mod handshake_age;
mod holder;
mod inner;
mod kernel;
mod key;
mod link;
mod namespace;
mod offload;
mod open;
mod paths;
mod peers;
mod prefixes;
mod process;
mod protocol;
mod pump;
mod stop;
mod tun;
mod uapi;
mod udp;

pub use kernel::kernel_has_wireguard;
pub use key::{generate_key, private_key, public_key};
pub use open::{close, open};
pub use process::{TunnelArgs, process_main};

/// Whether kernel WireGuard is used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// If the kernel has it, unless a running `skep tunnel` can be adopted.
    #[default]
    Auto,
    /// Always `skep tunnel`.
    Never,
    /// An error if the kernel has none.
    Always,
}

/// The configuration of the tunnel.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Path of the mesh namespace's pin.
    pub mesh_pin: PathBuf,
    /// Directory of `tunnel.sock`, `tunnel.pid` and `tunnel.log`.
    pub run_dir: PathBuf,
    /// Contains the private key, base 64; see [`generate_key`].
    pub private_key_file: PathBuf,
    /// UDP address and port. An unspecified address of either family means both families. Kernel WireGuard always
    /// listens on every address and honours the port only.
    pub listen: SocketAddr,
    /// Of a new device, bytes.
    pub mtu: u32,
    /// An existing device keeps its MTU, which its user changes.
    pub keep_mtu: bool,
    /// Name of the device, as `skep0`.
    pub device: String,
    pub kernel: KernelChoice,
    /// The skep binary, which is started as `skep tunnel`.
    pub program: PathBuf,
}

impl TunnelConfig {
    /// Path of the process's control socket.
    fn socket(&self) -> PathBuf {
        self.run_dir.join("tunnel.sock")
    }
}
