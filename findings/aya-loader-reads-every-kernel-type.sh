#!/usr/bin/env bash
# aya 0.14.0: `EbpfLoader::new` reads all types of the kernel, before it is known whether the object has a use for them.
# Expected: the kernel's BTF is read when an object with relocations against it is loaded, or when `.btf(..)` asks for it.
# Instead: the constructor itself reads and parses /sys/kernel/btf/vmlinux, and `.btf(None)` comes too late: it drops what was parsed.
# With types of 5.5 MB each loader that is made costs 18 MB at its peak and a quarter of a second, also for an object without any relocation.
# Why it matters: a daemon that loads a few programs at its start gets its largest memory from types that it never looks at.
# Needs cargo and a kernel with BTF. Run time: half a minute, nearly all of it compiling.
set -euo pipefail
[ -r /sys/kernel/btf/vmlinux ] || { echo "needs a kernel with BTF" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
mkdir src
cat >Cargo.toml <<'T'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
aya = { version = "=0.14.0", default-features = false }
[profile.release]
opt-level = 1
T
cat >src/main.rs <<'T'
/// The most that the process has had resident, in kB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    let types = std::fs::metadata("/sys/kernel/btf/vmlinux").unwrap().len() / 1000;
    let before = peak();
    let begin = std::time::Instant::now();
    let mut loader = aya::EbpfLoader::new();
    loader.btf(None);
    let taken = begin.elapsed();
    let grown = peak() - before;
    println!("a loader, nothing loaded: {grown} kB more at the peak, {taken:.0?}; the kernel's types are {types} kB");
    if (grown as u64) < types {
        println!("CHANGED: the constructor does not read the kernel's types");
        std::process::exit(1);
    }
}
T
cargo run --quiet --release
