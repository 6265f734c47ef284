//! `skep rebalance`: tasks move to nodes that have fewer.

use super::target::DaemonTarget;
use serde_json::Value;
use std::fmt::Write as _;

/// Moves tasks of replicated services from fuller nodes to emptier ones, for example after a node was added.
///
/// Each service moves as its updates replace: so many tasks at a time, in that order, with that delay; a task that does not do well
/// on its new node ends it. A move is no restart. `skep history SERVICE` tells each move. Ask a manager.
///
/// Examples:
///   skep rebalance --plan       what would be moved, and nothing is
///   skep rebalance              every service
///   skep rebalance web --json   one service, as one JSON document
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct RebalanceArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Name or id of a service; all if absent
    service: Option<String>,
    /// Only say what would be moved
    #[arg(long)]
    plan: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: RebalanceArgs) -> anyhow::Result<()> {
    let query = args.service.map(|service| format!("?service={service}")).unwrap_or_default();
    let method = if args.plan { "GET" } else { "POST" };
    let reply = args.target.docker().request(method, &format!("/rebalance{query}"), None).await?;
    let shown: Value = reply.json()?;
    if args.json {
        println!("{shown:#}");
    } else {
        print!("{}", render(&shown, args.plan));
    }
    Ok(())
}

/// The moves as a table, and what is left as it is.
fn render(shown: &Value, is_plan: bool) -> String {
    let mut out = String::new();
    let moves = shown["Moves"].as_array().map_or(&[][..], Vec::as_slice);
    let mut row = |[name, task, from, to]: [&str; 4]| {
        let line = format!("{name:<24} {task:<13} {from:<16} {to}");
        let _ = writeln!(out, "{}", line.trim_end());
    };
    if !moves.is_empty() {
        row(["NAME", "TASK", "FROM", "TO"]);
    }
    for one in moves {
        let text = |key: &str| one[key].as_str().unwrap_or_default();
        let task = text("Task");
        row([text("Name"), task.get(..12).unwrap_or(task), text("From"), text("To")]);
    }
    for left in shown["Left"].as_array().into_iter().flatten() {
        let text = |key: &str| left[key].as_str().unwrap_or_default();
        let _ = writeln!(out, "service {} is left as it is: {}", text("Service"), text("Why"));
    }
    let more = shown["More"].as_u64().unwrap_or(0);
    let _ = match (moves.len(), is_plan) {
        (0, _) => writeln!(out, "nothing to move: no task has a better node"),
        (count, true) => writeln!(out, "{count} tasks would be moved: skep rebalance moves them"),
        (count, false) => writeln!(out, "{count} tasks are being moved: skep history SERVICE tells how far it is"),
    };
    if more > 0 {
        let _ = writeln!(out, "{more} more after these: run skep rebalance again then");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn moves_are_a_table_and_what_is_left_has_its_reason() {
        let one = json!({"Service": "web", "Name": "web.2", "Task": "8vbyuniv7m5hakejjjqvi8szc", "From": "n1", "To": "n3"});
        let shown = json!({"Moves": [one], "More": 2, "Left": [{"Service": "db", "Why": "it is being updated"}]});
        let text = render(&shown, false);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            (&lines[0][..], &lines[1][..]),
            (&["NAME", "TASK", "FROM", "TO"][..], &["web.2", "8vbyuniv7m5h", "n1", "n3"][..])
        );
        assert_eq!(lines[2].join(" "), "service db is left as it is: it is being updated");
        assert!(text.contains("1 tasks are being moved") && text.contains("2 more after these"), "{text}");
        assert_eq!(render(&json!({"Moves": [], "Left": []}), true), "nothing to move: no task has a better node\n");
    }
}
