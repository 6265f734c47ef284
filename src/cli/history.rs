//! `skep history`: the story of a service.

use super::target::DaemonTarget;
use serde_json::Value;

/// Shows in order what happened to a service: why each task was made, what became of it and why it ended, and its updates.
///
/// As far back as tasks are kept (`docker swarm update --task-history-limit`). Ask a manager.
///
/// Examples:
///   skep history web          one line per event, oldest first
///   skep history web --json   one JSON document
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Name or id of the service
    service: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: HistoryArgs) -> anyhow::Result<()> {
    let reply = args.target.docker().get(&format!("/services/{}/history", args.service)).await?;
    let entries: Value = reply.json()?;
    if args.json {
        println!("{entries:#}");
    } else {
        print!("{}", render(&entries));
    }
    Ok(())
}

/// The events as a table.
fn render(entries: &Value) -> String {
    let row = |[time, event, name, task, node, why]: [&str; 6]| {
        let row = format!("{time:<24} {event:<18} {name:<24} {task:<13} {node:<16} {why}");
        format!("{}\n", row.trim_end())
    };
    let mut out = row(["TIME", "EVENT", "NAME", "TASK", "NODE", "WHY"]);
    for entry in entries.as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        // To the millisecond.
        let time = text("At").get(..23).map_or_else(|| text("At").to_owned(), |time| format!("{time}Z"));
        let task = text("Task");
        let short = task.get(..12).unwrap_or(task);
        out.push_str(&row([&time, text("Event"), text("Name"), short, text("Node"), text("Why")]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_tells_what_happened_where_and_why() {
        let entries = json!([
            {"At": "2026-11-23T20:33:18.221420123Z", "Event": "created", "Name": "", "Task": "", "Node": "", "Why": ""},
            {"At": "2026-11-23T20:33:19.5Z", "Event": "task failed", "Name": "web.1", "Task": "8vbyuniv7m5hakejjjqvi8szc", "Node": "n1",
             "Why": "task: non-zero exit (7); ended by itself"}]);
        let lines: Vec<Vec<String>> =
            render(&entries).lines().map(|l| l.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(lines[1], ["2026-11-23T20:33:18.221Z", "created"]);
        assert_eq!(
            lines[2].join(" "),
            "2026-11-23T20:33:19.5Z task failed web.1 8vbyuniv7m5h n1 task: non-zero exit (7); ended by itself"
        );
    }
}
