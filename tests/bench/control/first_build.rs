//! What `tests/bench/before/control.rs`, built against the first commit, prints.

use serde::Deserialize;

#[derive(Deserialize)]
pub struct FirstBuild {
    pub memory: Memory,
    /// By number of tasks, as in the rows.
    pub changes: Vec<Change>,
    pub take_over_micros: f64,
    pub entry_nanos: f64,
    pub restart: Restart,
}

#[derive(Deserialize)]
pub struct Memory {
    pub store_bytes: f64,
    pub all_bytes: f64,
}

#[derive(Deserialize)]
pub struct Change {
    pub first_view_bytes: f64,
    pub bytes: f64,
    pub micros: f64,
}

#[derive(Deserialize)]
pub struct Restart {
    pub restored_micros: f64,
    pub entry_nanos: f64,
}

impl FirstBuild {
    /// `None` where it was not built: `SKEP_BENCH_FIRST` is its path.
    pub fn measure() -> Option<Self> {
        let program = std::env::var("SKEP_BENCH_FIRST").ok().filter(|path| !path.is_empty())?;
        let scale = std::env::var("SKEP_BENCH_SCALE").unwrap_or_default();
        let output = std::process::Command::new(program).arg(scale).output().expect("the first build runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).expect("its figures"))
    }
}
