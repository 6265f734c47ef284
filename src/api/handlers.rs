//! Answers swarm requests, one file per kind of object. [`router`] reads a request into an [`request::ApiRequest`] (path
//! and query decoded, body read up to a bound, version checked) and calls the handler.

mod acme;
mod attach;
mod containers;
mod events;
mod local_networks;
mod logs;
mod network_reference;
mod networks;
mod nodes;
mod payloads;
mod pinned_image;
mod prune;
mod rebalance;
mod reply;
mod request;
mod root_ca;
mod router;
mod services;
mod swarm;
mod system;
mod task_containers;
mod tasks;

pub use attach::{field, update};
pub use request::{NOT_IN_SWARM, NOT_YET};
pub use router::{read_body, router};
