//! `docker info` of all engines: sums, and a table of the nodes in `SystemStatus`, which the CLI prints.

use super::engine_node::EngineNode;
use super::planner::{PlacementRules, Reservation};
use crate::model::Timestamp;
use serde_json::{Value, json};

/// What is shown of a node.
#[derive(Clone, Debug)]
pub struct NodeRow {
    pub node: EngineNode,
    pub reserved: Reservation,
    /// When the watch has last read it.
    pub seen_at: Option<Timestamp>,
    /// Its `/info`, or why there is none.
    pub info: Result<Value, String>,
}

/// Counts that are added up.
const SUMS: [&str; 6] = ["Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "NCPU", "MemTotal"];
const GIB: f64 = 1_073_741_824.0;

/// `base` is what this node's API says of itself.
pub fn info(mut base: Value, rows: &[NodeRow], images: usize, rules: PlacementRules) -> Value {
    for key in SUMS {
        base[key] = json!(rows.iter().filter_map(|row| row.info.as_ref().ok()?[key].as_i64()).sum::<i64>());
    }
    base["Images"] = json!(images);
    base["SystemStatus"] = json!(table(rows, rules));
    let silent = rows.iter().filter_map(|row| Some(format!("WARNING: {}", row.info.as_ref().err()?)));
    let mut warnings: Vec<Value> = base["Warnings"].as_array().cloned().unwrap_or_default();
    warnings.extend(silent.map(Value::from));
    base["Warnings"] = json!(warnings);
    base
}

fn table(rows: &[NodeRow], rules: PlacementRules) -> Vec<[String; 2]> {
    let line = |key: &str, value: String| [key.to_owned(), value];
    let mut table = vec![
        line("Role", "primary".to_owned()),
        line("Strategy", rules.strategy.as_str().to_owned()),
        line("Filters", "health, port, containerslots, dependency, affinity, constraint, whitelist".to_owned()),
        line("Nodes", rows.len().to_string()),
    ];
    for NodeRow { node, reserved, seen_at, info } in rows {
        table.push(line(&format!(" {}", node.name), node.ip()));
        table.push(line("  └ ID", node.id.to_string()));
        table.push(line("  └ Status", if info.is_ok() { "Healthy" } else { "Unhealthy" }.to_owned()));
        match info {
            Ok(info) => {
                let count = |key: &str| info[key].as_i64().unwrap_or(0);
                let (running, paused, stopped) =
                    (count("ContainersRunning"), count("ContainersPaused"), count("ContainersStopped"));
                let all = count("Containers");
                table.push(line("  └ Containers", format!("{all} ({running} Running, {paused} Paused, {stopped} Stopped)")));
            }
            Err(reason) => table.push(line("  └ Error", reason.clone())),
        }
        let cpus = |nano: i64| nano / 1_000_000_000;
        table.push(line("  └ Reserved CPUs", format!("{} / {}", cpus(reserved.nano_cpus), cpus(node.nano_cpus))));
        table.push(line("  └ Reserved Memory", format!("{} / {}", size(reserved.memory), size(node.memory))));
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.push(line("  └ Labels", labels.join(", ")));
        table.push(line("  └ UpdatedAt", seen_at.map(Timestamp::to_rfc3339).unwrap_or_default()));
        table.push(line("  └ ServerVersion", node.engine_version.clone()));
    }
    table
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn size(bytes: i64) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        1..1_073_741_824 => format!("{:.4} MiB", bytes as f64 / 1_048_576.0).replace(".0000", ""),
        _ => format!("{:.3} GiB", bytes as f64 / GIB).replace(".000", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::engine_node;
    use super::*;
    use crate::settings::PlacementStrategy;

    #[test]
    fn counts_are_added_and_a_silent_node_is_named() {
        let row = |name: &str, info| NodeRow {
            node: engine_node(name),
            reserved: Reservation { nano_cpus: 1_000_000_000, memory: 1 << 29 },
            seen_at: None,
            info,
        };
        let rows = [
            row("n1", Ok(json!({ "Containers": 3, "ContainersRunning": 2, "ContainersStopped": 1, "NCPU": 4 }))),
            row("n2", Ok(json!({ "Containers": 1, "ContainersRunning": 1, "NCPU": 2 }))),
            row("n3", Err("node n3 cannot be asked: it is down".to_owned())),
        ];
        let rules = PlacementRules { strategy: PlacementStrategy::Binpack, overcommit: 0.0 };
        let merged = info(json!({ "Name": "n1", "Containers": 3, "Warnings": null }), &rows, 7, rules);
        assert_eq!((&merged["Containers"], &merged["NCPU"], &merged["Images"]), (&json!(4), &json!(6), &json!(7)));
        assert_eq!(merged["Warnings"], json!(["WARNING: node n3 cannot be asked: it is down"]));
        let text = merged["SystemStatus"].to_string();
        for part in
            ["[\"Strategy\",\"binpack\"]", "3 (2 Running, 0 Paused, 1 Stopped)", "1 / 4", "512 MiB / 7.451 GiB", "Unhealthy"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
