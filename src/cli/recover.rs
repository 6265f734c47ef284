//! `skep recover`: re-creates the cluster from one manager when most managers are lost for good, and says beforehand what that means.

use super::target::DaemonTarget;
use crate::manager::state_copy::{StateCopy, lost, newest};
use crate::node::state_copy_in;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Re-creates the cluster from this manager's copy of its state, when most of the managers are lost for good.
///
/// This node becomes the only manager; tasks and networks stay. The other managers are workers if they come back, and are promoted
/// again with `docker node promote`. The same as `docker swarm init --force-new-cluster`.
///
/// With --plan nothing is changed: it compares this manager's copy of the state with those in other data directories (of stopped
/// daemons, mounted or copied here), names the newest, and what each other one lacks.
///
/// Examples:
///   skep recover --plan                        what this manager has
///   skep recover --plan /mnt/n1/var/lib/skep   and what a disk of a lost manager has
///   skep recover --advertise-addr 192.168.1.7  re-create the cluster here, at another address
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Only show the copies of the state and what would be lost
    #[arg(long)]
    plan: bool,
    /// Address or interface at which other nodes reach this one [default: the one that it has]
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "", conflicts_with = "plan")]
    advertise_addr: String,
    /// Data directories of other managers
    #[arg(value_name = "DIR", requires = "plan")]
    directories: Vec<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: RecoverArgs) -> anyhow::Result<()> {
    if args.plan { plan(args).await } else { recreate(args).await }
}

async fn recreate(args: RecoverArgs) -> anyhow::Result<()> {
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": args.advertise_addr, "ForceNewCluster": true, "Spec": {} });
    let reply = args.target.docker().request("POST", "/swarm/init", Some(&body)).await?;
    reply.ok()?;
    let node: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if args.json {
        println!("{}", json!({ "node": node }));
    } else {
        println!("The cluster was re-created: this node ({}) is its only manager.", node.as_str().unwrap_or_default());
        println!("Managers that come back are workers; add managers with `docker node promote NODE`.");
    }
    Ok(())
}

async fn plan(args: RecoverArgs) -> anyhow::Result<()> {
    let mut copies = Vec::new();
    let own = async { args.target.admin().get("/state-copy").await?.json::<StateCopy>() }.await;
    match own {
        Ok(copy) => copies.push(copy),
        Err(error) if args.directories.is_empty() => return Err(error.context("the daemon's copy of the state cannot be read")),
        Err(error) => eprintln!("skep: without the daemon's copy of the state: {error:#}"),
    }
    for directory in &args.directories {
        copies.push(state_copy_in(directory)?);
    }
    let best = newest(&copies).map(|position| copies[position].clone());
    let Some(best) = best else { anyhow::bail!("there is no copy to compare") };
    anyhow::ensure!(copies.iter().all(|copy| copy.cluster == best.cluster), "these are copies of different clusters");
    if args.json {
        let all: Vec<Value> = copies.iter().map(|copy| json!({ "copy": copy, "lacks": lost(copy, &best) })).collect();
        println!("{:#}", json!({ "newest": best.source, "copies": all }));
    } else {
        print!("{}", render(&copies, &best));
    }
    Ok(())
}

/// For people.
fn render(copies: &[StateCopy], newest: &StateCopy) -> String {
    let row = |[source, node, incarnation, term, entry, managers]: [&str; 6]| {
        let row = format!("{source:<32} {node:<16} {incarnation:<12} {term:<6} {entry:<9} {managers}");
        row.trim_end().to_owned()
    };
    let mut lines = vec![row(["COPY", "NODE", "INCARNATION", "TERM", "ENTRIES", "MANAGERS"])];
    for copy in copies {
        let mark = if copy.source == newest.source { " *" } else { "" };
        lines.push(row([
            &copy.source,
            &copy.hostname,
            &copy.revision.incarnation.to_string(),
            &copy.term.to_string(),
            &format!("{}{mark}", copy.last),
            &copy.managers.join(" "),
        ]));
    }
    lines.push(format!("\nThe newest copy is that of {} in {}.", newest.hostname, newest.source));
    for copy in copies.iter().filter(|copy| copy.source != newest.source) {
        let lacks = lost(copy, newest);
        if lacks.is_empty() {
            lines.push(format!("{} has everything that the newest one has.", copy.source));
        } else {
            lines.push(format!("A cluster re-created from {} would be without:", copy.source));
            lines.extend(lacks.iter().map(|line| format!("  {line}")));
        }
    }
    lines.push(format!("Run `skep recover` on {} to re-create the cluster from its copy.\n", newest.hostname));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Revision;

    #[test]
    fn the_plan_names_the_newest_copy_and_what_the_others_lack() {
        let copy = |source: &str, last: u64, objects: &[(&str, u64)]| StateCopy {
            source: source.to_owned(),
            node: source.into(),
            hostname: format!("host-{source}"),
            cluster: None,
            revision: Revision { incarnation: 1, index: last },
            term: 3,
            last,
            committed: last,
            managers: vec!["n1".to_owned(), "n2".to_owned()],
            objects: objects.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect(),
        };
        let (new, old) = (copy("b", 90, &[("service web", 5), ("service api", 80)]), copy("a", 60, &[("service web", 5)]));
        let text = render(&[old, new.clone()], &new);
        for line in ["A cluster re-created from a would be without:", "  service api: made later", "Run `skep recover` on host-b"]
        {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.lines().nth(2).is_some_and(|line| line.contains("90 *") && line.ends_with("n1 n2")), "{text}");
    }
}
