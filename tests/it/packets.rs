//! Packets through the programs of the built object, without a swarm: a row is a packet, what the maps hold, and what must
//! come of it (verdict, bytes, entries). `BPF_PROG_TEST_RUN` runs a program once on a packet; thousands of rows take seconds.
//!
//! The programs run in namespaces of the test's own: an uplink with 192.0.2.1/24, 2001:db8::1/64 and a default route. A
//! frame's MAC address decides, as on a wire, which machine it is for.

mod build;
mod calls;
mod calls6;
mod errors;
mod flows;
mod fragments;
mod fragments6;
mod headers;
mod io_uring;
mod kernel;
mod mesh;
mod port_cases;
mod refusals;
mod refused;
mod takeover;
mod trace;
mod trace_maps;
mod uplink;
mod vip_packets;
mod wire;
