//! What an earlier build sealed is opened: a backup with its passphrase, and the content of a secret with a manager's tunnel key.
//! The files of a locked manager have their test beside the keyring. `SKEP_RECORD=1` writes a further recording.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use skep::model::{PayloadId, PayloadKeys, Secret};
use skep::trust::{KeyCost, PayloadVault, TunnelKey, open_file, seal_file};
use std::path::{Path, PathBuf};

const PASSPHRASE: &str = "a passphrase of seven words or of more";
const CONTENT: &[u8] = b"what a backup contains";

#[derive(Serialize, Deserialize)]
struct Recorded {
    /// Base64 of a file that was sealed with [`PASSPHRASE`].
    file: String,
    /// Of the manager `node1`, whose private key is 32 bytes of 1.
    keys: PayloadKeys,
    /// The content of the secret `s1`.
    content: serde_json::Value,
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/sealed/contents.json")
}

fn vault() -> PayloadVault {
    PayloadVault::new("node1".into(), TunnelKey::new(Secret::new([1; 32])))
}

fn record() {
    let rng = &mut rand::rng();
    let (key, keys) = vault().first_key("cluster".into(), rng).expect("a key");
    let sealed = key.seal(&PayloadId::Secret("s1".into()), CONTENT, rng).expect("sealed");
    let file = seal_file(&PASSPHRASE.to_owned().into(), CONTENT, KeyCost::DEFAULT, rng).expect("sealed");
    let recorded = Recorded { file: STANDARD.encode(file), keys, content: serde_json::to_value(sealed).expect("JSON") };
    std::fs::write(path(), serde_json::to_string_pretty(&recorded).expect("JSON") + "\n").expect("written");
}

#[test]
fn what_was_sealed_is_opened() {
    if std::env::var_os("SKEP_RECORD").is_some() {
        record();
    }
    let recorded: Recorded = serde_json::from_slice(&std::fs::read(path()).expect("recorded")).expect("JSON");
    let file = STANDARD.decode(&recorded.file).expect("base64");
    assert_eq!(open_file(&PASSPHRASE.to_owned().into(), &file).expect("opens"), CONTENT);
    let sealed = serde_json::from_value(recorded.content).expect("sealed");
    let key = vault().data_key(&recorded.keys).expect("a key");
    assert_eq!(key.open(&PayloadId::Secret("s1".into()), &sealed).expect("opens").expose(), CONTENT);
}
