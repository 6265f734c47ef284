//! `skep dashboard`: a page that shows what `skep status`, `skep http`, `skep drops` and `skep history` show. Read only: it answers GET
//! alone, and asks the daemon nothing else.
//!
//! Who may see it ([`access`]): on loopback the window in which the address with the token was opened, which the verb prints; at a route of
//! the HTTP ingress with the label `skep.http.dashboard` who has the password of that route. What it shows is chosen
//! field by field ([`overview`]): no spec leaves the machine, for it may hold passwords.

mod access;
mod drops;
mod overview;
mod server;
mod services;
mod shown;

pub use access::PageToken;
pub use overview::{ClusterAnswers, overview};
pub use server::{DaemonSockets, behind_route, serve};
pub use shown::DashboardOverview;
