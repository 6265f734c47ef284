//! The root certificate as the API shows it: the PEM, and its subject and public key as DER. Parses only as much DER as
//! that needs; where the certificate is trusted, the room `trust` parses it with a full parser.

use crate::api::wire::TlsInfo;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The root that is trusted, and the parts of the one that issues; subject and key are empty if that cannot be parsed.
pub fn info(pem: &str, issuer: &str) -> TlsInfo {
    let (subject, key) = der(issuer).as_deref().and_then(subject_and_key).unwrap_or_default();
    TlsInfo {
        trust_root: pem.to_owned(),
        cert_issuer_subject: STANDARD.encode(subject),
        cert_issuer_public_key: STANDARD.encode(key),
    }
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END").next()?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

/// Splits off the first DER element: the whole element, its contents, and the bytes after it.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let first = usize::from(*bytes.get(1)?);
    let (header, len) = if first < 0x80 {
        (2, first)
    } else {
        let n = first & 0x7f;
        let digits = bytes.get(2..2 + n).filter(|d| d.len() <= 4)?;
        (2 + n, digits.iter().fold(0, |len, d| len << 8 | usize::from(*d)))
    };
    let end = header.checked_add(len)?;
    Some((bytes.get(..end)?, bytes.get(header..end)?, bytes.get(end..)?))
}

/// Subject and public key of a certificate, which follow version (optional), serial, algorithm, issuer and validity.
fn subject_and_key(certificate: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, body, _) = element(certificate)?;
    let (_, mut rest, _) = element(body)?;
    let skipped = if rest.first() == Some(&0xa0) { 5 } else { 4 };
    for _ in 0..skipped {
        rest = element(rest)?.2;
    }
    let (subject, _, rest) = element(rest)?;
    Some((subject.to_vec(), element(rest)?.0.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the recording `node/ls`.
    const ROOT: &str = "-----BEGIN CERTIFICATE-----\nMIIBazCCARCgAwIBAgIUK3u2KrKVOBAcuWJXVwZb8F5OK88wCgYIKoZIzj0EAwIw\nEzERMA8GA1UEAxMIc3dhcm0tY2EwHhcNMjYxMTIzMjAzMDAwWhcNNDYxMTE4MjAz\nMDAwWjATMREwDwYDVQQDEwhzd2FybS1jYTBZMBMGByqGSM49AgEGCCqGSM49AwEH\nA0IABDVD2ttD1ZYdKkpo58wphxAIA/Jebk92QOH7tLWR8/nX+jjLq4azkTdFzvI5\nwQp6ObwhaB6D1/LHFn1eSsaLcJ6jQjBAMA4GA1UdDwEB/wQEAwIBBjAPBgNVHRMB\nAf8EBTADAQH/MB0GA1UdDgQWBBTRxJxi4/NSt1MqhBoM5Mkeve5e3jAKBggqhkjO\nPQQDAgNJADBGAiEAt/WAIZIcGk5/DsZXywH3a7P0dvhPuxClVvrEn4VH12gCIQCC\nSdG+kz7HO8Qilge2btiK/FPtTfQkTKIVAL/GClr9tQ==\n-----END CERTIFICATE-----\n";

    #[test]
    fn subject_and_key_are_those_that_swarm_shows() {
        let info = info(ROOT, ROOT);
        assert_eq!(info.cert_issuer_subject, "MBMxETAPBgNVBAMTCHN3YXJtLWNh");
        assert_eq!(
            info.cert_issuer_public_key,
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAENUPa20PVlh0qSmjnzCmHEAgD8l5uT3ZA4fu0tZHz+df6OMurhrORN0XO8jnBCno5vCFoHoPX8scWfV5Kxotwng=="
        );
    }

    #[test]
    fn an_invalid_certificate_has_no_subject() {
        assert_eq!(info("", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----").cert_issuer_subject, "");
        assert_eq!(info("", "").trust_root, "");
    }
}
