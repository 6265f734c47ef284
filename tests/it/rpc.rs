//! Join and sessions over real TCP and TLS on loopback, with a tunnel and a dispatcher that are played.
#![allow(clippy::unwrap_used, reason = "tests")]

mod attack;
mod join;
mod session;
mod stage;
