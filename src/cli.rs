//! The command line: the verbs that Docker's CLI does not have. For all others run `docker -H unix://<run-dir>/docker.sock …`.

mod acme;
mod backup;
mod daemon;
mod dashboard;
mod demo;
mod doctor;
mod drops;
mod history;
mod http;
mod netns;
mod print;
mod rebalance;
mod recover;
mod recover_certificates;
mod rotate_key;
mod status;
mod swarm;
mod table;
mod target;
mod time_left;
mod trace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A swarm of Docker hosts: WireGuard overlay, routing mesh, DNS and Raft beside an unmodified Docker Engine.
///
/// Manage the swarm with the stock docker CLI, through skep's socket:
///   docker -H unix:///run/skep/docker.sock swarm init
///   docker -H unix:///run/skep/docker.sock service create --name web --publish 8080:80 nginx
#[derive(Parser)]
#[command(name = "skep", version, verbatim_doc_comment)]
struct SkepCommand {
    #[command(subcommand)]
    verb: CliVerb,
}

#[derive(Subcommand)]
enum CliVerb {
    /// Run the node daemon (started by systemd)
    Daemon(daemon::DaemonArgs),
    /// Run the WireGuard tunnel process (started by the daemon if the kernel has no WireGuard)
    Tunnel(crate::datapath::tunnel::TunnelArgs),
    /// Run a swarm of three hosts on this machine: a service, its port on every node, its names, a node's failure
    Demo(demo::DemoArgs),
    /// Show the nodes, the paths to them, datapaths and published ports, as this node sees them
    Status(status::StatusArgs),
    /// Let nodes whose certificate has expired renew it at this manager, for a limited time
    RecoverCertificates(recover_certificates::RecoverCertificatesArgs),
    Recover(recover::RecoverArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    // Without a comment of their own, which would replace the longer help of their flags.
    Drops(drops::DropsArgs),
    Trace(trace::TraceArgs),
    History(history::HistoryArgs),
    Doctor(doctor::DoctorArgs),
    Dashboard(dashboard::DashboardArgs),
    Http(http::HttpArgs),
    Rebalance(rebalance::RebalanceArgs),
    RotateKey(rotate_key::RotateKeyArgs),
    /// Run a command in the mesh namespace, for example `skep netns wg show`
    Netns(netns::NetnsArgs),
    /// Start a swarm on this node (short for `docker swarm init`)
    Init(swarm::InitArgs),
    /// Join a swarm (short for `docker swarm join`)
    Join(swarm::JoinArgs),
    /// Leave the swarm and remove what skep has set up on this node (short for `docker swarm leave`)
    Leave(swarm::LeaveArgs),
}

/// Parses the command line and runs its verb. Exit codes: 0 success, 1 failure, 2 usage.
pub fn main() -> ExitCode {
    let outcome = match SkepCommand::parse().verb {
        CliVerb::Daemon(args) => daemon::run(args),
        CliVerb::Tunnel(args) => crate::datapath::tunnel::process_main(args),
        CliVerb::Demo(args) => blocking(demo::run(args)),
        CliVerb::Status(args) => blocking(status::run(args)),
        CliVerb::RecoverCertificates(args) => blocking(recover_certificates::run(args)),
        CliVerb::Recover(args) => blocking(recover::run(args)),
        CliVerb::Backup(args) => blocking(backup::backup(args)),
        CliVerb::Restore(args) => backup::restore(&args),
        CliVerb::Drops(args) => blocking(drops::run(args)),
        CliVerb::Trace(args) => blocking(trace::run(args)),
        CliVerb::History(args) => blocking(history::run(args)),
        CliVerb::Dashboard(args) => blocking(dashboard::run(args)),
        CliVerb::Doctor(args) => blocking(doctor::run(args)),
        CliVerb::Http(args) => match args.verb {
            Some(http::HttpVerb::Serve(args)) => crate::ingress::http::process_main(args),
            Some(http::HttpVerb::Routes(routes)) => blocking(http::routes(routes)),
            Some(http::HttpVerb::Acme(args)) => blocking(acme::run(args)),
            None => blocking(http::routes(args.routes)),
        },
        CliVerb::Rebalance(args) => blocking(rebalance::run(args)),
        CliVerb::RotateKey(args) => blocking(rotate_key::run(args)),
        CliVerb::Netns(args) => netns::run(&args),
        CliVerb::Init(args) => blocking(swarm::init(args)),
        CliVerb::Join(args) => blocking(swarm::join(args)),
        CliVerb::Leave(args) => blocking(swarm::leave(args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs on this thread alone: enough for a client, and a process that the demo starts is killed when the thread that started
/// it ends.
fn blocking(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::SkepCommand;
    use clap::CommandFactory as _;

    #[test]
    fn the_help_of_verbs_that_need_it_has_examples() {
        for verb in ["drops", "trace", "history", "doctor", "dashboard", "http", "rebalance", "rotate-key", "recover", "backup"] {
            let mut command = SkepCommand::command();
            let verb = command.find_subcommand_mut(verb).expect("a verb");
            let help = verb.render_long_help().to_string();
            assert!(help.matches(&format!("\n  skep {}", verb.get_name())).count() >= 2, "{help}");
            assert!(
                verb.get_about().is_some_and(|about| about.to_string().lines().count() == 1),
                "one line in the list of verbs"
            );
        }
    }

    #[test]
    fn the_flags_of_every_verb_are_consistent() {
        SkepCommand::command().debug_assert();
    }
}
