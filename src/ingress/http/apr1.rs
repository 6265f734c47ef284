//! The hash of `htpasswd -n` and `openssl passwd -apr1`, which stacks written for Traefik have: a thousand rounds of MD5.

use md5::{Digest as _, Md5};

const BEGIN: &str = "$apr1$";
const ROUNDS: usize = 1000;
const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Bytes of the digest in the order in which they are written.
const ORDER: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];

/// Whether a password has this hash; `None` if it is one of another kind.
pub(super) fn is_right(password: &[u8], hash: &str) -> Option<bool> {
    let (salt, expected) = hash.strip_prefix(BEGIN)?.split_once('$')?;
    let made = written(&digest(password, salt.as_bytes()));
    // As long for each wrong one.
    let differs = made.iter().zip(expected.as_bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
    Some(differs == 0 && made.len() == expected.len())
}

fn md5(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

fn digest(password: &[u8], salt: &[u8]) -> [u8; 16] {
    let first = md5(&[password, salt, password]);
    let mut hash = Md5::new();
    hash.update(password);
    hash.update(BEGIN);
    hash.update(salt);
    for part in password.chunks(first.len()) {
        hash.update(&first[..part.len()]);
    }
    let mut left = password.len();
    while left > 0 {
        hash.update(if left % 2 == 1 { &[0][..] } else { &password[..1] });
        left /= 2;
    }
    let mut digest: [u8; 16] = hash.finalize().into();
    for round in 0..ROUNDS {
        let (first, last) = if round % 2 == 1 { (password, &digest[..]) } else { (&digest[..], password) };
        let salt = if round % 3 == 0 { &[][..] } else { salt };
        let again = if round % 7 == 0 { &[][..] } else { password };
        digest = md5(&[first, salt, again, last]);
    }
    digest
}

/// Six bits a digit, the lowest ones first.
fn written(digest: &[u8; 16]) -> Vec<u8> {
    let digits = |value: usize, count: usize| (0..count).map(move |at| DIGITS[value >> (6 * at) & 63]);
    let of_three = |[a, b, c]: [usize; 3]| usize::from(digest[a]) << 16 | usize::from(digest[b]) << 8 | usize::from(digest[c]);
    let all = ORDER.into_iter().flat_map(|three| digits(of_three(three), 4));
    all.chain(digits(usize::from(digest[11]), 2)).collect()
}

#[test]
fn hashes_of_openssl_are_those_of_their_passwords() {
    // `openssl passwd -apr1 -salt SALT PASSWORD`
    for (password, hash) in [
        ("password", "$apr1$salt$Xxd1irWT9ycqoYxGFn4cb."),
        ("", "$apr1$x$tMwYqBfQwi3FYAr0aJc8M/"),
        ("a long password of more than sixteen bytes", "$apr1$8charslt$Au9YfK3FmeVzLV.NbkqIT0"),
    ] {
        assert_eq!(is_right(password.as_bytes(), hash), Some(true), "{password}");
        assert_eq!(is_right(b"other", hash), Some(false));
    }
    assert_eq!(is_right(b"x", "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC"), None);
    assert_eq!(is_right(b"password", "$apr1$salt$"), Some(false));
}
