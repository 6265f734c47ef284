//! Where a packet goes after a hook: what a verdict means on this node's devices. Pure.

use crate::datapath::ebpf::hook::{Hook, HookSide};
use crate::datapath::ebpf::host_devices::HostDevices;
use skep_ebpf::VerdictKind;
use std::net::Ipv4Addr;

/// Where a packet goes after a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceNext {
    /// To the next hook, at the device with this index.
    Hook(Hook, u32),
    /// Into the container of this node with this address.
    Container(Ipv4Addr),
    /// Into the tunnel: the outer address names the node.
    Tunnel,
    /// To the host's network stack.
    HostStack,
    /// The routes of the mesh namespace decide.
    MeshRoutes,
    /// Out of the uplink with this index.
    Uplink(u32),
    /// No program handles it after this one.
    Dropped,
    /// To a device that does not exist: the packet is lost.
    Lost(u32),
}

/// Where a packet goes after the program of `hook` has decided; `to` is the index of the device in the verdict.
pub(super) fn after(hook: Hook, verdict: VerdictKind, to: u32, devices: &HostDevices) -> TraceNext {
    let is = |device: Option<u32>| device == Some(to);
    let container = || devices.veths.iter().find(|(_, (_, index))| *index == to).map(|(address, _)| *address);
    let host = hook.side() == HookSide::Host;
    match verdict {
        VerdictKind::Drop => TraceNext::Dropped,
        VerdictKind::Pass if hook.egress() => TraceNext::Uplink(to),
        VerdictKind::Pass if host => TraceNext::HostStack,
        VerdictKind::Pass => TraceNext::MeshRoutes,
        VerdictKind::RedirectPeer if host && is(devices.host_end) => {
            devices.mesh_end.map_or(TraceNext::Lost(to), |device| TraceNext::Hook(Hook::FromHost, device))
        }
        VerdictKind::RedirectPeer if !host && is(devices.mesh_end) => {
            devices.host_end.map_or(TraceNext::Lost(to), |device| TraceNext::Hook(Hook::ToUplink, device))
        }
        VerdictKind::Redirect if !host && is(devices.tunnel) => TraceNext::Tunnel,
        VerdictKind::RedirectPeer | VerdictKind::Redirect if !host => {
            container().map_or(TraceNext::Lost(to), TraceNext::Container)
        }
        VerdictKind::RedirectNeighbour if host && devices.uplinks.values().any(|index| *index == to) => TraceNext::Uplink(to),
        VerdictKind::RedirectPeer | VerdictKind::Redirect | VerdictKind::RedirectNeighbour => TraceNext::Lost(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use VerdictKind as V;

    #[test]
    fn a_verdict_leads_to_the_device_of_its_namespace() {
        let task: Ipv4Addr = "10.0.1.5".parse().unwrap();
        // Indexes of the two namespaces overlap.
        let devices = HostDevices {
            host_end: Some(3),
            mesh_end: Some(2),
            tunnel: Some(4),
            uplinks: [("eth0".to_owned(), 2)].into(),
            veths: [(task, ("v0a000105".to_owned(), 7))].into(),
            ..HostDevices::default()
        };
        for (hook, verdict, to, expected) in [
            (Hook::FromUplink, V::RedirectPeer, 3, TraceNext::Hook(Hook::FromHost, 2)),
            (Hook::FromUplink, V::Pass, 0, TraceNext::HostStack),
            (Hook::FromHost, V::RedirectPeer, 7, TraceNext::Container(task)),
            (Hook::FromHost, V::Redirect, 4, TraceNext::Tunnel),
            (Hook::FromContainer, V::RedirectPeer, 2, TraceNext::Hook(Hook::ToUplink, 3)),
            (Hook::FromContainer, V::Redirect, 7, TraceNext::Container(task)),
            (Hook::FromMesh, V::RedirectPeer, 2, TraceNext::Hook(Hook::ToUplink, 3)),
            (Hook::FromMesh, V::Pass, 0, TraceNext::MeshRoutes),
            (Hook::ToUplink, V::RedirectNeighbour, 2, TraceNext::Uplink(2)),
            (Hook::ToUplink, V::RedirectNeighbour, 9, TraceNext::Lost(9)),
            (Hook::FromUplink, V::RedirectPeer, 9, TraceNext::Lost(9)),
            (Hook::FromHost, V::RedirectPeer, 3, TraceNext::Lost(3)),
            (Hook::FromMesh, V::Drop, 0, TraceNext::Dropped),
        ] {
            assert_eq!(after(hook, verdict, to, &devices), expected, "{hook:?} {verdict:?} {to}");
        }
    }
}
