//! Writes the measurements as tables.

use std::fmt::Write as _;
use std::time::Duration;

pub struct Report {
    text: String,
    load: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median and range.
pub fn spread(values: &[f64], digits: usize) -> String {
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    format!("{:.digits$} [{least:.digits$} … {most:.digits$}]", median(values))
}

pub fn nanos(time: Duration) -> f64 {
    time.as_nanos() as f64
}

impl Report {
    pub fn new() -> Self {
        Self { text: String::new(), load: read("/proc/loadavg") }
    }
    pub fn section(&mut self, title: &str, method: &str, columns: &[&str]) {
        println!("\n## {title}");
        writeln!(self.text, "\n## {title}\n\n{method}\n").unwrap();
        writeln!(self.text, "| {} |", columns.join(" | ")).unwrap();
        writeln!(self.text, "|{}", "---|".repeat(columns.len())).unwrap();
    }
    pub fn row(&mut self, cells: &[String]) {
        println!("{}", cells.join(" | "));
        writeln!(self.text, "| {} |", cells.join(" | ")).unwrap();
    }
    pub fn write(self) {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let head = format!(
            "# What the mesh costs\n\nWritten by `make bench` (tests/bench). Linux {kernel}, {cpus} cores, load average {} at the start and {} at the \
             end (more than 1 at the start is from other processes). skep is optimised as in a release. Ratios \
             are from one run: the two sides of each alternate in time slices, three rounds; median [least … most].\n",
            self.load,
            read("/proc/loadavg")
        );
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/RESULTS.md");
        let path = std::env::var_os("SKEP_BENCH_FILE").map_or(path, Into::into);
        std::fs::write(&path, head + &self.text).unwrap();
        println!("\nwritten to {}", path.display());
    }
}
