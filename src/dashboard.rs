//! `skep dashboard`: a page on loopback that shows what `skep status`, `skep http`, `skep drops` and `skep history` show. Read only: it
//! answers GET alone, and asks the daemon nothing else.
//!
//! Who may see it: the window in which the address with the token was opened, which the verb prints ([`access`]). What it shows is chosen
//! field by field ([`overview`]): no spec leaves the machine, for it may hold passwords.

mod access;
mod drops;
mod overview;
mod server;
mod services;
mod shown;

pub use access::PageToken;
pub use overview::{ClusterAnswers, overview};
pub use server::{DaemonSockets, serve};
pub use shown::DashboardOverview;
