//! Join and sessions over real TCP and TLS on loopback, with a fake tunnel and a fake dispatcher.
#![allow(clippy::unwrap_used, reason = "tests")]

mod attack;
mod fixture;
mod formats;
mod join;
mod key_change;
mod key_proof;
mod logs;
mod managers;
mod membership;
mod renewal;
mod roles;
mod root_ca;
mod secrets;
mod session;
