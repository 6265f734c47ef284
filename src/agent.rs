//! The agent: runs the node's tasks as containers according to the view, and reports their statuses. Knows only the view,
//! an [`Engine`](crate::runtime::Engine) and a clock; the transport of views and reports is not its concern.
//!
//! [`plan`] decides (pure), [`local_restarts`] what follows an end while there is no manager, [`core`] keeps the state (sans-IO), [`shell`] calls the engine and waits, [`ledger`] stores the
//! view on disk, [`teardown`] removes everything when the node leaves.

mod config;
pub mod core;
mod image_fetch;
pub mod ledger;
mod local_restarts;
pub mod plan;
pub mod shell;
pub mod task_record;
pub mod teardown;

#[cfg(test)]
mod core_tests;
#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod testing;

pub use config::AgentConfig;
pub use shell::{AgentChannels, run};
pub use teardown::remove_all;
