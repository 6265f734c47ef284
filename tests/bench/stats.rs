//! What the kernel reports about a process's programs and maps.

use std::collections::BTreeMap;

/// Run time in nanoseconds and number of runs, by program.
pub type Runs = BTreeMap<String, (u64, u64)>;

fn fields(pid: u32) -> Vec<BTreeMap<String, String>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        all.push(pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect());
    }
    all
}

fn number(fields: &BTreeMap<String, String>, key: &str) -> Option<u64> {
    fields.get(key)?.parse().ok()
}

/// The programs that a process has open. Counted only while `kernel.bpf_stats_enabled` is on.
pub fn runs(pid: u32) -> Runs {
    let names: BTreeMap<u64, String> = aya::programs::loaded_programs()
        .flatten()
        .map(|p| (p.id().into(), p.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut all = Runs::new();
    for one in fields(pid) {
        if let (Some(id), Some(time), Some(count)) =
            (number(&one, "prog_id"), number(&one, "run_time_ns"), number(&one, "run_cnt"))
        {
            all.insert(names.get(&id).cloned().unwrap_or_else(|| id.to_string()), (time, count));
        }
    }
    all
}

/// The maps that a process has open, by name: kernel memory in bytes, and `max_entries`.
pub fn maps(pid: u32) -> BTreeMap<String, (u64, u64)> {
    let names: BTreeMap<u64, String> =
        aya::maps::loaded_maps().flatten().map(|m| (m.id().into(), m.name_as_str().unwrap_or_default().to_owned())).collect();
    let mut all = BTreeMap::new();
    for one in fields(pid) {
        if let (Some(id), Some(bytes), Some(most)) =
            (number(&one, "map_id"), number(&one, "memlock"), number(&one, "max_entries"))
        {
            all.insert(names.get(&id).cloned().unwrap_or_else(|| id.to_string()), (bytes, most));
        }
    }
    all
}

/// What ran between two readings: runs and nanoseconds per run, by program.
pub fn between(before: &Runs, after: &Runs) -> BTreeMap<String, (u64, f64)> {
    let mut all = BTreeMap::new();
    for (name, (time, count)) in after {
        let (time0, count0) = before.get(name).copied().unwrap_or_default();
        if *count > count0 {
            all.insert(name.clone(), (count - count0, (time - time0) as f64 / (count - count0) as f64));
        }
    }
    all
}
