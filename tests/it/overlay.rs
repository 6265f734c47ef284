//! The mesh namespace and the userspace datapath, with real packets between namespaces (root needed).

mod attack;
mod devices;
pub mod fixture;
mod mesh;
mod packet;
mod path_mtu;
mod reach;
