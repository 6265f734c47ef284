//! `skep doctor`: the findings as lines, or as JSON.

use super::daemon::DaemonArgs;
use crate::doctor::{Finding, Level, examine, observe};
use crate::settings::Settings;
use std::fmt::Write as _;

/// Looks for what on this host keeps skep from working, or will, and says what to do. Changes nothing.
///
/// Looks at the kernel, the disk, the engine, ports, firewall and routes; in a swarm also at the paths to the other nodes, the
/// certificate and the managers. Takes the flags of `skep daemon`. Ends with 1 if a line is an error.
///
/// Examples:
///   skep doctor          before `docker swarm init` or `join`, and whenever something does not work
///   skep doctor --json   one JSON document
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let (settings, refused) = match args.daemon.settings() {
        Ok(settings) => (settings, None),
        Err(error) => (Settings::default(), Some(format!("{error:#}"))),
    };
    let findings = examine(&observe::facts(settings, refused).await);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{}", render(&findings));
    }
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
    anyhow::ensure!(errors == 0, "{errors} of {} checks found an error", findings.len());
    Ok(())
}

/// A line per finding, a second one with what to do.
fn render(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "ERROR",
        };
        let _ = writeln!(out, "{level:<8} {:<14} {}", finding.check, finding.found);
        if !finding.help.is_empty() {
            let _ = writeln!(out, "{:<23} → {}", "", finding.help);
        }
    }
    out
}
