//! What the programs would do with a packet: runs them on it by `BPF_PROG_TEST_RUN`, hook by hook along its path on this node.
//!
//! A trace loads the object a second time. Maps that programs only read are the live ones; those that they write are its own
//! (`classes`), with the live entries of the packet's connection copied in (`tables`). So a trace changes nothing that is
//! live, and frees everything at its end. The programs are those of the object with one constant set (`IS_TEST_RUN`): they
//! write their verdict where it can be read, and expect an Ethernet header where devices of the mesh have none.

mod classes;
mod follow;
mod frame;
mod instance;
mod path;
mod start;
mod tables;

pub use classes::{MAP_CLASSES, TraceMapClass};
pub use follow::{PacketTrace, TraceStep, VipTable};
pub use frame::{FrameHeaders, TracedFrame};
pub use path::TraceNext;
pub use skep_ebpf::VerdictKind;
pub use start::TraceRequest;
pub use tables::TraceEntry;
