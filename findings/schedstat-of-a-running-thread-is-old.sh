#!/usr/bin/env bash
# Linux 6.18, rustix 1.1.6: /proc/thread-self/schedstat, read by the thread itself, has its time on the processor as of the last tick.
# Expected: the first number, "time spent on the cpu (in nanoseconds)", goes up between two reads by what the thread ran in between.
# Instead: the number is brought up to date at ticks (CONFIG_HZ, here 250) and context switches only. Of intervals of 0.3 ms in which a
# thread does nothing but run, many count as 0 ns and some as a whole tick. clock_gettime(CLOCK_THREAD_CPUTIME_ID) counts each of them,
# and a call of it also brings schedstat up to date.
# Why it matters: a benchmark that adds up short steps by schedstat, on a quiet machine, measures ticks: rates are too high, or infinite.
# Needs cargo. Run time: some 20 seconds.
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
rustix = { version = "=1.1.6", features = ["time"] }
T
cat >src/main.rs <<'T'
use std::time::{Duration, Instant};

fn schedstat() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn clock() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Of intervals in which the thread runs, those that count as nothing.
fn empty(time: fn() -> Duration) -> usize {
    let runs = |_: &usize| {
        let before = time();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(300) {}
        time() == before
    };
    (0..1000).filter(runs).count()
}

fn main() {
    let (by_file, by_clock) = (empty(schedstat), empty(clock));
    println!("of 1000 intervals of 0.3 ms, {by_file} count as 0 by schedstat and {by_clock} by CLOCK_THREAD_CPUTIME_ID");
    if by_file < 50 || by_clock > 0 {
        println!("CHANGED");
        std::process::exit(1);
    }
}
T
cargo run --quiet --release
