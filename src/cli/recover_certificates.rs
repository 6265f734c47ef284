//! `skep recover-certificates`: lets this manager renew certificates that have expired, for a limited time.

use super::target::DaemonTarget;

/// Flags of `skep recover-certificates`.
#[derive(clap::Args, Debug)]
pub(super) struct RecoverCertificatesArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Minutes in which nodes may renew, 60 at most
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    minutes: u64,
}

pub(super) async fn run(args: RecoverCertificatesArgs) -> anyhow::Result<()> {
    let target = format!("/recover-certificates?seconds={}", args.minutes * 60);
    args.target.admin().request("POST", &target, None).await?.ok()?;
    println!("For {} minutes this manager renews certificates of members that have expired.", args.minutes);
    println!("Nodes that are up ask for theirs within seconds; `docker node ls` shows them as ready then.");
    println!("A node that must not come back is removed with `docker node rm --force`.");
    Ok(())
}
