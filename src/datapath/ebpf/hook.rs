//! Hooks of the kernel, and the links that attach programs to them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An attachment point in the kernel, named after the program that runs at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Recvmsg4,
    Recvmsg6,
    Getpeername4,
    Getpeername6,
    FromUplink,
    FromHost,
    FromMesh,
    FromContainer,
    ToUplink,
    OutUplink,
}

/// Where a hook attaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookSide {
    /// The root of the cgroup tree.
    Cgroup,
    /// A device in the host's network namespace.
    Host,
    /// A device in the mesh namespace.
    Mesh,
}

impl Hook {
    /// In the order of attaching. Hooks that redirect packets are last, so that the hooks that handle them next are
    /// attached by then.
    pub const ALL: [Self; 14] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::OutUplink,
        Self::ToUplink,
        Self::FromContainer,
        Self::FromMesh,
        Self::FromHost,
        Self::FromUplink,
    ];

    /// Name of its program in the object.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::FromUplink => "from_uplink",
            Self::FromHost => "from_host",
            Self::FromMesh => "from_mesh",
            Self::FromContainer => "from_container",
            Self::ToUplink => "to_uplink",
            Self::OutUplink => "out_uplink",
        }
    }

    /// Where it attaches.
    #[must_use]
    pub fn side(self) -> HookSide {
        match self {
            Self::FromUplink | Self::ToUplink | Self::OutUplink => HookSide::Host,
            Self::FromHost | Self::FromMesh | Self::FromContainer => HookSide::Mesh,
            _ => HookSide::Cgroup,
        }
    }

    /// Whether it handles the packets that leave by its device, not those that arrive.
    #[must_use]
    pub fn egress(self) -> bool {
        self == Self::OutUplink
    }
}

/// The first unavailable hook on the path of published ports, and why. Without one of these hooks the others are of no use.
#[must_use]
pub fn ports_unavailable(unavailable: &BTreeMap<Hook, String>) -> Option<(Hook, &str)> {
    let mut path = Hook::ALL.into_iter().filter(|hook| hook.side() != HookSide::Cgroup);
    path.find_map(|hook| Some((hook, unavailable.get(&hook)?.as_str())))
}

/// Whether every hook at socket calls is available.
#[must_use]
pub fn has_socket_hooks(unavailable: &BTreeMap<Hook, String>) -> bool {
    !unavailable.keys().any(|hook| hook.side() == HookSide::Cgroup)
}

/// A program attached to a hook.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct ProgramLink {
    pub hook: Hook,
    /// Name of the device; empty for the cgroup tree.
    pub device: String,
    /// Interface index of the device: a device that is created again has another one.
    pub index: u32,
}

impl ProgramLink {
    /// File name of its pin. A bpf file system allows no dots, device names contain no colons.
    #[must_use]
    pub fn pin(&self) -> String {
        match self.hook.side() {
            HookSide::Cgroup => self.hook.program().to_owned(),
            HookSide::Host | HookSide::Mesh => {
                format!("{}@{}@{}", self.hook.program(), self.device.replace('.', ":"), self.index)
            }
        }
    }
}
