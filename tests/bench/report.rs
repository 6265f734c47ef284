//! Writes the measurements as tables.

use std::fmt::Write as _;
use std::time::Duration;

/// The tables of a run.
#[derive(Default)]
pub struct Report {
    sections: Vec<Section>,
}

struct Section {
    title: String,
    text: String,
    /// Of the machine, when it began.
    load: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Of one, five and fifteen minutes.
fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
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

/// Of the file that is written.
pub fn path() -> std::path::PathBuf {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/RESULTS.md");
    std::env::var_os("SKEP_BENCH_FILE").map_or(path, Into::into)
}

impl Report {
    pub fn section(&mut self, title: &str, method: &str, columns: &[&str]) {
        println!("\n## {title}");
        self.end_section();
        let mut text = format!("\n## {title}\n\n{method}\n\n| {} |\n", columns.join(" | "));
        writeln!(text, "|{}", "---|".repeat(columns.len())).unwrap();
        self.sections.push(Section { title: title.to_owned(), text, load: load() });
    }

    pub fn row(&mut self, cells: &[String]) {
        println!("{}", cells.join(" | "));
        let section = self.sections.last_mut().expect("a section");
        writeln!(section.text, "| {} |", cells.join(" | ")).unwrap();
    }

    fn end_section(&mut self) {
        if let Some(section) = self.sections.last_mut() {
            let before = std::mem::take(&mut section.load);
            writeln!(section.text, "\nLoad average {before} before, {} after.", load()).unwrap();
        }
    }

    /// Writes the file. Unless all parts were run, sections of other parts stay as they are.
    pub fn write(mut self, all_parts: bool) {
        self.end_section();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let head = format!(
            "# What the mesh costs\n\nWritten by `make bench` (tests/bench), section by section. Last run: Linux {kernel}, {cpus} cores. A load average of \
             more than 1 before a section is from other processes. skep is optimised as in a release. Ratios \
             are from one run: the two sides of each alternate in time slices, three rounds if not said otherwise; median [least … most].\n"
        );
        let path = path();
        let before = if all_parts { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
        std::fs::write(&path, head + &self.merged(&before)).unwrap();
        println!("\nwritten to {}", path.display());
    }

    /// The sections of a file with those of this run in their places, and its new ones at the end.
    fn merged(self, before: &str) -> String {
        let mut texts: Vec<(String, String)> = Vec::new();
        for text in before.split("\n## ").skip(1) {
            let title = text.lines().next().unwrap_or_default().to_owned();
            texts.push((title, format!("\n## {}\n", text.trim_end())));
        }
        for section in self.sections {
            match texts.iter_mut().find(|(title, _)| *title == section.title) {
                Some((_, text)) => *text = section.text,
                None => texts.push((section.title, section.text)),
            }
        }
        texts.into_iter().map(|(_, text)| text).collect()
    }
}
