//! The agent and the network driver on a real Docker Engine.

mod fixture;
mod life;
mod networks;
