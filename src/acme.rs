//! Certificates of a public authority for the hosts of HTTP routes, by ACME.
//!
//! [`plan`] decides from the store, the time and what nodes have applied; [`settle`] what an answer means for the record; the
//! executor asks the authority and decides nothing; [`worker`] is the loop between them, on the leader alone. Each step can be
//! begun again by another leader: what it needs was stored before it.
//!
//! ```text
//! host wanted ─▶ record ─▶ order: URL, key, request, tokens ─▶ every node has the tokens ─▶ challenge answered, order followed ─▶ certificate
//!                           (stored, in every node's view)       (revision applied)            (or by the next leader)
//! ```

mod client;
mod dns_hook;
mod error;
mod executor;
pub mod names;
mod new_account;
pub mod plan;
pub mod settle;
mod worker;

pub use dns_hook::DnsHook;
pub use error::{AcmeError, AcmeErrorKind};
pub use executor::{AcmeExecutor, Advance, external_account_payload};
pub use worker::{AcmeWorker, AcmeWorkerConfig};
