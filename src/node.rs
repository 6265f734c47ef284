//! The composition root: the only room that knows every other. Builds the daemon, opens its sockets, starts what a
//! membership needs, and takes it down again. Decides nothing itself.
//!
//! From the bottom up: [`state_dir`] and [`address`] are data; [`environment`] is what every part uses; [`network`] is mesh
//! namespace, tunnel and overlay; [`loops`] and [`session`] run on it; [`renewal`] keeps the node's
//! certificate valid; [`manager_part`] and [`manager_role`] are a manager's
//! part; [`member`] is all of that for one membership; [`daemon`] has at most one member, that [`init`], [`join`] and
//! [`control`] start and end; [`run`] builds the daemon and serves its sockets.

mod address;
mod admission;
mod advertised;
mod attachments;
mod backup;
mod backup_contents;
mod certificate_authority;
mod control;
mod current_membership;
mod daemon;
mod engine_watch;
mod environment;
mod error_list;
mod greetings;
mod host_addresses;
mod inherited_socket;
mod init;
mod issuer_watch;
mod join;
mod key_authority;
mod key_change;
mod key_files;
mod keyring;
mod learned_managers;
mod leaving;
mod ledger_writer;
mod lifecycle;
mod links;
mod lock;
mod locked_node;
mod logs;
mod loops;
mod manager_health;
mod manager_links;
mod manager_part;
mod manager_role;
mod manager_settings;
mod member;
mod membership_teardown;
mod membership_writer;
mod network;
mod new_cluster;
mod raft_members;
mod recovery;
mod refusals;
mod relay;
mod removal;
mod renewal;
mod report;
mod resume;
mod role;
mod run;
mod session;
mod state_copy;
mod state_dir;
mod supervisor;
mod trace;
mod troubles;
mod unlock;

pub use backup::restore_backup;
pub use run::run;
pub use state_copy::state_copy_in;
