#!/usr/bin/env bash
# rcgen 0.14.10: a renewed certificate has the serial number of the old one, if the key is the same.
# Expected: a serial is chosen anew (most tools take a random one), as RFC 5280 wants it unique for each certificate of a CA.
# Instead: without `serial_number` set, the serial is a hash of the subject's public key. Names and dates do not matter.
# Why it matters: a node that renews with its old key, or one key with two sets of names, gives two certificates of one
# issuer with one serial. A revocation list cannot tell them apart, and some browsers refuse the second one they see.
# A CA of a cluster must set `serial_number` itself or ask for a new key.
# Needs cargo and a C compiler. Run time: about a minute, nearly all of it compiling.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
mkdir src
cat >Cargo.toml <<'E'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
rcgen = { version = "=0.14.10", default-features = false, features = ["crypto", "ring"] }
x509-parser = "=0.18.1"
[profile.dev]
debug = 0
E
cat >src/main.rs <<'E'
use rcgen::{date_time_ymd, BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

fn issue(name: &str, year: i32, key: &KeyPair, ca: &Issuer<'_, &KeyPair>) -> Vec<u8> {
    let mut params = CertificateParams::new([name.to_string()]).unwrap();
    params.not_before = date_time_ymd(year, 1, 1);
    params.not_after = date_time_ymd(year + 1, 1, 1);
    params.signed_by(key, ca).unwrap().der().to_vec()
}

fn serial(der: &[u8]) -> String {
    x509_parser::parse_x509_certificate(der).unwrap().1.raw_serial_as_string()
}

fn main() {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = Issuer::new(ca, &ca_key);

    let key = KeyPair::generate().unwrap();
    let first = issue("node-1.test", 2030, &key, &ca);
    let renewed = issue("node-1.test", 2031, &key, &ca);
    let other = issue("node-2.test", 2030, &key, &ca);
    let fresh = issue("node-1.test", 2030, &KeyPair::generate().unwrap(), &ca);

    assert!(first != renewed && first != other, "three different certificates");
    assert_eq!(serial(&first), serial(&renewed), "CHANGED: a renewal with the same key has a serial of its own");
    assert_eq!(serial(&first), serial(&other), "CHANGED: another name with the same key has a serial of its own");
    assert_ne!(serial(&first), serial(&fresh), "CHANGED: another key has the same serial");
    println!("rcgen 0.14.10: one key, three certificates (node-1 2030, node-1 2031, node-2 2030), one serial: {}; \
        with a new key: {}", serial(&first), serial(&fresh));
}
E
cargo run --quiet
