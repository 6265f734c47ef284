//! Other programs: in a network namespace, and the processor time that they take.

use std::process::Command;

/// Unit of the times in `/proc`, on every architecture that Linux has.
const TICKS: f64 = 100.0;

/// Runs a script; what it prints.
pub fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A command in a namespace, as the process that is started.
pub fn inside(space: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{space}"));
    command
}

/// User and system time of a process, seconds.
pub fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (words[11].parse::<f64>().unwrap() + words[12].parse::<f64>().unwrap()) / TICKS
}
