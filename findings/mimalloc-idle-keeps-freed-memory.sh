#!/usr/bin/env bash
# mimalloc 0.1.52 (mimalloc v3.3): what was freed stays resident for as long as the process allocates little, whatever the purge delay says.
# Expected: `mi_option_purge_delay`, 1,000 ms by default, is the time after which freed memory is returned.
# Instead: no clock runs. What has expired is returned while the same process makes many more allocations (`generic_collect`, 10,000 of them).
# 64 MB in blocks of 2 kB are freed at once; seconds later, with a few allocations each 10 ms in between, nearly all of it is still resident.
# With a delay of 0 it is returned by the free itself.
# Why it matters: a daemon that needs much at its start and is idle afterwards looks as large as its start was, for days.
# Needs cargo and a C compiler. Run time: some 20 seconds.
set -euo pipefail
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
mimalloc = { version = "=0.1.52", default-features = false, features = ["no_thp"] }
libmimalloc-sys = "=0.1.49"
T
cat >src/main.rs <<'T'
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn resident_mb() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096 / 1_000_000
}

fn main() {
    let blocks: Vec<Vec<u8>> = (0..32_768).map(|_| vec![1; 2048]).collect();
    let full = resident_mb();
    drop(blocks);
    let freed = resident_mb();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        std::hint::black_box((0..4).map(|n| vec![n; 100]).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(10));
    }
    let later = resident_mb();
    println!("{full} MB with the blocks, {freed} MB when they are freed, {later} MB six seconds later");
    let at_once = std::env::var("MIMALLOC_PURGE_DELAY").is_ok();
    let kept = later * 2 > full;
    if kept == at_once {
        println!("CHANGED: what was freed is {}", if kept { "kept" } else { "returned" });
        std::process::exit(1);
    }
}
T
cargo run --quiet --release
MIMALLOC_PURGE_DELAY=0 cargo run --quiet --release
