//! The eBPF datapath in the kernel: programs, hooks, maps. Loads the built object, observes, and carries out steps. The only
//! place that knows aya. What the desired state is, `ingress::ebpf` decides; keys and values are those of `skep_ebpf`.
//!
//! Everything is pinned below `<run-dir>/bpf`, so it outlives the daemon: a new daemon opens the same maps, attaches its
//! programs beside the old ones, and then detaches those.

mod aging;
mod attachment;
mod batch;
mod clock;
mod datapath;
mod demand;
mod device_changes;
mod dump;
mod events;
mod filters;
mod hook;
mod host_devices;
mod ingress_network;
mod load;
mod maps;
mod migration;
mod namespace_marks;
mod netns_cookie;
mod occupancy;
mod programs;
mod resized;
mod return_routes;
mod sandbox;
mod sizes;
mod slots;
mod state;
mod step;
mod tables;
mod takeover;
mod trace;
mod tuples;
mod uplinks;
mod vip_packets;
mod watch;

pub use datapath::{EbpfDatapath, remove_leftovers};
pub use demand::TableNeeds;
pub use device_changes::DeviceChanges;
pub use dump::Dump;
pub use events::{Refusal, hook_side, protocol_text};
pub use hook::{Hook, HookSide, ProgramLink, has_socket_hooks, ports_unavailable};
pub use host_devices::{HOST_END, HostDevices, MESH_END};
pub use ingress_network::{IngressNetwork, ReturnPath};
pub use load::{cgroup_root, is_supported, object_is_current};
pub use occupancy::Occupancy;
pub use sandbox::{cookie, memberships};
pub use skep_ebpf::Counter;
pub use state::{EbpfState, VipReadiness};
pub use step::{EbpfStep, SCTP, StepFailure, port_name};
pub use tables::{Members, Range, Slots, Sources, Subnets6, Tables};
pub use trace::{
    FrameHeaders, MAP_CLASSES, PacketTrace, TraceEntry, TraceMapClass, TraceNext, TraceRequest, TraceStep, TracedFrame,
    VerdictKind, VipTable,
};
pub use uplinks::is_engine_device;
pub use watch::{RefusalWatch, Watched};
