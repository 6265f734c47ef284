//! Whole swarms on hosts of this machine: real daemons, engines, tunnels, packets. What a user notices when all goes
//! well, and above all when it does not.

mod kit;

mod bad_input;
mod life;
mod network;
