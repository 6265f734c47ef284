//! Files that are encrypted with a passphrase: Argon2id makes the key, ChaCha20-Poly1305 encrypts and authenticates header and content.
//! What was cut short or changed is refused, and distinguished from a wrong passphrase. Pure: randomness is the caller's.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `skepfile` |
//! | 4 | format |
//! | 12 | Argon2id: memory in KiB, passes, lanes |
//! | 16 | salt |
//! | 12 | nonce |
//! | 8 | length of the ciphertext |
//! | 16 | of the passphrase, to tell a wrong one |
//! | 32 | SHA-256 of all before |
//! | | ciphertext |

use crate::model::Secret;
use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use rand::Rng;
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"skepfile";
const FORMAT: u32 = 1;
/// Bytes before the digest, and with it.
const BODY: usize = 8 + 4 + 12 + 16 + 12 + 8 + 16;
const HEADER: usize = BODY + 32;
/// Bounds of what a file may demand of this machine.
const MOST_MEMORY: u32 = 1 << 20;
const MOST_PASSES: u32 = 32;
const MOST_LANES: u32 = 16;

/// What the derivation of the key costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyCost {
    /// In KiB.
    pub memory: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl KeyCost {
    /// 64 MiB, three passes: some tenths of a second.
    pub const DEFAULT: Self = Self { memory: 64 << 10, passes: 3, lanes: 1 };
}

/// Why a sealed file is not opened, or not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SealedFileError {
    #[error("it is no file that skep has encrypted")]
    Foreign,
    #[error("it has format {0}, this skep reads format {FORMAT}: use the skep that wrote it")]
    Newer(u32),
    #[error("it is cut short: {found} of {expected} bytes")]
    Truncated {
        found: usize,
        /// 0: not even its header is complete.
        expected: u64,
    },
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    #[error("the key cannot be derived: {0}")]
    Derivation(String),
}

/// Encrypts a content. `rng` must be cryptographically secure.
///
/// # Errors
/// The cost is out of bounds, or the content longer than the cipher takes.
pub fn seal_file(
    passphrase: &Secret<String>,
    content: &[u8],
    cost: KeyCost,
    rng: &mut impl Rng,
) -> Result<Vec<u8>, SealedFileError> {
    let (salt, nonce): ([u8; 16], [u8; 12]) = (rng.random(), rng.random());
    let derived = derive(passphrase, cost, &salt)?;
    let mut out = Vec::with_capacity(HEADER + content.len() + 16);
    out.extend_from_slice(MAGIC);
    for number in [FORMAT, cost.memory, cost.passes, cost.lanes] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&salt);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&(content.len() as u64 + 16).to_be_bytes());
    out.extend_from_slice(&derived.expose()[32..48]);
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);
    let cipher = ChaCha20Poly1305::new(Key::from_slice(&derived.expose()[..32]));
    let sealed = cipher
        .encrypt(Nonce::from_slice(&nonce), Payload { msg: content, aad: &out })
        .map_err(|_| SealedFileError::Damaged("it is too long to be encrypted"))?;
    out.extend_from_slice(&sealed);
    Ok(out)
}

/// Decrypts a file.
///
/// # Errors
/// See [`SealedFileError`].
pub fn open_file(passphrase: &Secret<String>, file: &[u8]) -> Result<Vec<u8>, SealedFileError> {
    let known = file.len().min(MAGIC.len());
    if file[..known] != MAGIC[..known] || file.is_empty() {
        return Err(SealedFileError::Foreign);
    }
    let cut = SealedFileError::Truncated { found: file.len(), expected: 0 };
    let format = number(file, 8).ok_or_else(|| cut.clone())?;
    if format > FORMAT {
        return Err(SealedFileError::Newer(format));
    }
    let (header, sealed) = file.split_at_checked(HEADER).ok_or(cut)?;
    if Sha256::digest(&header[..BODY]).as_slice() != &header[BODY..] {
        return Err(SealedFileError::Damaged("its header was changed"));
    }
    let field = |at: usize| number(header, at).unwrap_or_default();
    let length = u64::from(field(52)) << 32 | u64::from(field(56));
    match u64::try_from(sealed.len()).unwrap_or(u64::MAX).cmp(&length) {
        std::cmp::Ordering::Less => {
            return Err(SealedFileError::Truncated { found: file.len(), expected: length.saturating_add(HEADER as u64) });
        }
        std::cmp::Ordering::Greater => return Err(SealedFileError::Damaged("there is more behind its end")),
        std::cmp::Ordering::Equal => {}
    }
    let cost = KeyCost { memory: field(12), passes: field(16), lanes: field(20) };
    let derived = derive(passphrase, cost, &header[24..40])?;
    if derived.expose()[32..48] != header[60..76] {
        return Err(SealedFileError::WrongPassphrase);
    }
    let cipher = ChaCha20Poly1305::new(Key::from_slice(&derived.expose()[..32]));
    let content = cipher.decrypt(Nonce::from_slice(&header[40..52]), Payload { msg: sealed, aad: header });
    content.map_err(|_| SealedFileError::Damaged("its content was changed"))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// 32 bytes of the key, 16 that tell a wrong passphrase.
fn derive(passphrase: &Secret<String>, cost: KeyCost, salt: &[u8]) -> Result<Secret<[u8; 48]>, SealedFileError> {
    if cost.memory > MOST_MEMORY || cost.passes > MOST_PASSES || cost.lanes > MOST_LANES {
        return Err(SealedFileError::Damaged("its key would cost too much to derive"));
    }
    let failed = |error: argon2::Error| SealedFileError::Derivation(error.to_string());
    let params = Params::new(cost.memory, cost.passes, cost.lanes, Some(48)).map_err(failed)?;
    let mut out = [0; 48];
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.expose().as_bytes(), salt, &mut out).map_err(failed)?;
    Ok(Secret::new(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    const CHEAP: KeyCost = KeyCost { memory: 8, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn sealed(content: &[u8]) -> Vec<u8> {
        seal_file(&passphrase("correct horse"), content, CHEAP, &mut StdRng::seed_from_u64(3)).expect("sealed")
    }

    fn open(file: &[u8]) -> Result<Vec<u8>, SealedFileError> {
        open_file(&passphrase("correct horse"), file)
    }

    #[test]
    fn what_was_sealed_is_opened_with_its_passphrase_only() {
        for content in [Vec::new(), b"x".to_vec(), vec![7; 100_000]] {
            assert_eq!(open(&sealed(&content)), Ok(content));
        }
        let file = sealed(b"planted-value");
        assert_eq!(open_file(&passphrase("wrong"), &file), Err(SealedFileError::WrongPassphrase));
        assert!(!file.windows(7).any(|window| window == b"planted"));
        let again = seal_file(&passphrase("correct horse"), b"planted-value", CHEAP, &mut StdRng::seed_from_u64(4)).unwrap();
        assert_ne!(file[HEADER..], again[HEADER..], "another salt, another key");
    }

    #[test]
    fn every_cut_and_every_changed_bit_is_refused_and_not_taken_for_a_wrong_passphrase() {
        let file = sealed(b"some content");
        for cut in 0..file.len() {
            let error = open(&file[..cut]).expect_err("cut short");
            let says = matches!(error, SealedFileError::Truncated { .. } | SealedFileError::Foreign);
            assert!(says, "{cut} bytes: {error}");
        }
        for bit in 0..file.len() * 8 {
            let mut changed = file.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = open(&changed).expect_err("changed");
            let says = matches!(error, SealedFileError::Damaged(_) | SealedFileError::Foreign | SealedFileError::Newer(_));
            assert!(says, "bit {bit}: {error}");
        }
        let mut longer = file.clone();
        longer.push(0);
        assert_eq!(open(&longer), Err(SealedFileError::Damaged("there is more behind its end")));
    }

    #[test]
    fn a_file_that_demands_much_of_this_machine_is_refused_at_once() {
        let mut file = sealed(b"x");
        file[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        let digest = Sha256::digest(&file[..BODY]);
        file[BODY..HEADER].copy_from_slice(&digest);
        assert_eq!(open(&file), Err(SealedFileError::Damaged("its key would cost too much to derive")));
    }

    #[test]
    fn the_default_cost_is_one_that_can_be_opened_again() {
        let cost = KeyCost::DEFAULT;
        assert!(cost.memory <= MOST_MEMORY && cost.passes <= MOST_PASSES && cost.lanes <= MOST_LANES);
        assert!(Params::new(cost.memory, cost.passes, cost.lanes, Some(48)).is_ok());
    }
}
