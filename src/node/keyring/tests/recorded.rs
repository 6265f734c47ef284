//! What an earlier build sealed is opened: a changed header, derivation or binding would cost users what they have on the disk.
//! `SKEP_RECORD=1` writes the files of a further one, which then goes into git beside those of before.

use super::*;
use std::path::{Path, PathBuf};

/// The certificate's files and `manager.key`, the log, and the unlock key that a user has noted.
fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/sealed/manager")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

async fn record() {
    let manager = Manager::new("recorded");
    let unlock = UnlockKey::draw(&mut rand::rng());
    manager.change(Some(&unlock)).await.unwrap();
    copy(manager.dir.path(), &recorded());
    std::fs::write(recorded().join("unlock.key"), unlock.to_text().expose()).unwrap();
}

#[tokio::test]
async fn what_a_locked_manager_wrote_is_opened_with_its_unlock_key() {
    if std::env::var_os("SKEP_RECORD").is_some() {
        record().await;
    }
    let unlock: UnlockKey = std::fs::read_to_string(recorded().join("unlock.key")).unwrap().parse().unwrap();
    let dir = StateDir::new(std::env::temp_dir().join(format!("skep-keyring-of-before-{}", std::process::id())));
    copy(&recorded(), dir.path());
    let (keyring, files) = Manager::parts(&dir);
    let cipher: Arc<dyn LogCipher> = keyring.clone();
    assert!(keyring.is_locked() && Disk::open_sealed(&dir.raft(), 7, &cipher).is_err() && files.load(None).is_err());

    keyring.unlock(&unlock, KeyOwner { cluster: "cluster".into(), node: "recorded".into() }).unwrap();
    let (_, log) = Disk::open_sealed(&dir.raft(), 7, &cipher).unwrap();
    assert_eq!(log.as_batch().snapshot.unwrap().data, PLANTED);
    let identity = files.load(None).unwrap().unwrap();
    assert_eq!((identity.name().node_id.as_str(), identity.name().role), ("recorded", Role::Manager));
    std::fs::remove_dir_all(dir.path()).unwrap();
}
