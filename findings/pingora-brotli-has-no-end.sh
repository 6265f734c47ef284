#!/usr/bin/env bash
# pingora 0.9.1: an answer that it compresses with Brotli is never ended, so that a client loses its last bytes.
# Expected: `Encode::encode(.., end = true)` of `Algorithm::Brotli.compressor(4)` ends the stream, as those of gzip and zstd do.
# Instead: the compressor is flushed and not finished. A decoder gives 20,000 bytes back and then InvalidData for the end that is missing; curl
# shows 16,384 of them and no error.
# Why it matters: `ResponseCompression` offers Brotli whenever a client asks for it first, as browsers do.
# Needs cargo, cmake and a C compiler. Run time: some minutes, nearly all of it compiling.
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
pingora-core = "=0.9.1"
brotli = "=3.5.0"
flate2 = "=1.1.11"
[profile.dev]
debug = 0
T
cat >src/main.rs <<'T'
use pingora_core::protocols::http::compression::Algorithm;
use std::io::Read;

fn main() {
    let text = "skep ".repeat(4000);
    let compressed = |algorithm: Algorithm| {
        let mut compressor = algorithm.compressor(4).expect("an algorithm");
        compressor.encode(text.as_bytes(), true).expect("compressed")
    };
    let (gzip, brotli) = (compressed(Algorithm::Gzip), compressed(Algorithm::Brotli));
    let mut out = Vec::new();
    let read = flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut out);
    println!("gzip: {} bytes, {:?}", out.len(), read.map_err(|error| error.kind()));
    let mut out = Vec::new();
    let read = brotli::Decompressor::new(&brotli[..], 4096).read_to_end(&mut out);
    println!("brotli: {} bytes, {:?}", out.len(), read.as_ref().map_err(|error| error.kind()));
    if read.is_ok() {
        println!("CHANGED: the stream of Brotli has an end");
        std::process::exit(1);
    }
}
T
cargo run --quiet
