//! The agent and the network driver on a real Docker Engine.

mod life;
mod networks;
mod rig;
