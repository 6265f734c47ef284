#!/usr/bin/env bash
# rcgen 0.14.10: what an imported CA signs does not chain to it if the CA's name has an attribute twice (two OU or DC, as enterprise
# CAs have).
# Expected: `Issuer::from_ca_cert_pem` signs with the CA's own name, byte for byte, or refuses a name that it cannot hold.
# Instead: its `DistinguishedName` holds one value per attribute, the last one. The import answers Ok, signing answers Ok, and the
# certificate names an issuer that does not exist: `OU=first, OU=second` became `OU=second`. Verification fails with "unable to get
# local issuer certificate".
# Why it matters: a program that takes a user's CA (docker swarm ca --ca-cert) finds out when the first peer refuses the first certificate.
# Compare the issuer of a test certificate with the CA's subject before anything is issued.
# Needs cargo, a C compiler and openssl. Run time: about a minute, nearly all of it compiling.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
ca() { # subject, name
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2.key" 2>/dev/null
    openssl req -x509 -new -key "$2.key" -subj "$1" -days 3 -out "$2.pem" 2>/dev/null
}
ca "/O=example/OU=second/CN=ca" once
ca "/O=example/OU=first/OU=second/CN=ca" twice
mkdir src
cat >Cargo.toml <<'E'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
rcgen = { version = "=0.14.10", default-features = false, features = ["crypto", "pem", "ring", "x509-parser"] }
[profile.dev]
debug = 0
E
cat >src/main.rs <<'E'
use rcgen::{CertificateParams, Issuer, KeyPair};

fn main() {
    for name in ["once", "twice"] {
        let read = |end: &str| std::fs::read_to_string(format!("{name}.{end}")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("pem"), KeyPair::from_pem(&read("key")).unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["node.example".to_owned()]).unwrap();
        std::fs::write(format!("{name}.leaf"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    }
}
E
cargo run --quiet
changed() { echo "CHANGED: $1" >&2; exit 1; }
openssl verify -CAfile once.pem once.leaf >/dev/null 2>&1 || changed "a CA whose name has each attribute once does not work either"
subject=$(openssl x509 -in twice.pem -noout -subject)
issuer=$(openssl x509 -in twice.leaf -noout -issuer)
verdict=$(openssl verify -CAfile twice.pem twice.leaf 2>&1 || true)
[ "${subject#subject=}" != "${issuer#issuer=}" ] || changed "the issuer is the CA's name"
grep -q 'unable to get local issuer certificate' <<<"$verdict" || changed "it verifies: $verdict"
echo "rcgen 0.14.10: CA ${subject}; what it signed: ${issuer}; openssl verify: unable to get local issuer certificate"
