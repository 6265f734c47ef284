//! The agent and the network driver on a real Docker Engine.

mod fields;
mod fixture;
mod life;
mod networks;
