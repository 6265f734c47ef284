use super::*;
use crate::model::{Role, Timestamp};
use crate::raft::{Disk, FILE as LOG_FILE, Log, LogBatch};
use crate::trust::{Identity, NodeKey, NodeName, RootCa, issue};
use std::sync::Mutex;
use std::time::Duration;

mod recorded;

const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);
/// What a thief looks for: in the log.
const PLANTED: &[u8] = b"planted-in-the-log";

/// A manager's data directory, and what is sealed in it. As a daemon does, it forgets its keys when it is started again.
struct Manager {
    dir: StateDir,
    keyring: Arc<Keyring>,
    files: CertificateFiles,
    owner: KeyOwner,
    identity: Identity,
    /// A crash is simulated before the log is sealed again.
    crashes: Mutex<bool>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.dir.path());
    }
}

#[async_trait]
impl SealedLog for Manager {
    async fn seal_again(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!*self.crashes.lock().unwrap(), "crash");
        let (mut disk, _) = Disk::open_sealed(&self.dir.raft(), 7, &self.cipher())?;
        Ok(disk.seal_again(&self.dir.raft())?)
    }
}

impl Manager {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("skep-keyring-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let (dir, rng) = (StateDir::new(path), &mut rand::rng());
        let owner = KeyOwner { cluster: "cluster".into(), node: name.into() };
        let ca = RootCa::generate(rng, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let node = NodeName { node_id: owner.node.clone(), role: Role::Manager, cluster_id: owner.cluster.clone() };
        let certificate = issue(&ca, &key.request().unwrap(), &node, NOW, Duration::ZERO, rng).unwrap();
        let identity = Identity::new(&key.to_pem(), &certificate, ca.certificate()).unwrap();
        let (keyring, files) = Self::parts(&dir);
        let manager = Self { dir, keyring, files, owner, identity, crashes: Mutex::default() };
        manager.files.store(&manager.identity).unwrap();
        Disk::create(&manager.dir.raft(), 7, &Log::bootstrap(7, PLANTED.to_vec()), &manager.cipher()).unwrap();
        manager
    }
    fn parts(dir: &StateDir) -> (Arc<Keyring>, CertificateFiles) {
        let keyring = Arc::new(Keyring::new(dir));
        (keyring.clone(), dir.certificates().sealed_by(keyring))
    }
    fn cipher(&self) -> Arc<dyn LogCipher> {
        self.keyring.clone()
    }
    fn restart(&mut self) {
        (self.keyring, self.files) = Self::parts(&self.dir);
    }
    fn unlock(&self, key: &UnlockKey) -> Result<(), UnlockError> {
        self.keyring.unlock(key, self.owner.clone())
    }
    async fn change(&self, key: Option<&UnlockKey>) -> anyhow::Result<()> {
        self.change_at(key, 0).await
    }
    /// As a store of this index says.
    async fn change_at(&self, key: Option<&UnlockKey>, index: u64) -> anyhow::Result<()> {
        self.keyring.change((key, Revision { incarnation: 0, index }), &self.owner, &self.files, self).await
    }
    /// Everything is readable with the keys in memory.
    fn is_whole(&self) -> bool {
        let log = Disk::open_sealed(&self.dir.raft(), 7, &self.cipher());
        log.is_ok() && self.files.load(None).is_ok_and(|read| read.as_ref() == Some(&self.identity))
    }
    /// Whether a value lies in any file of the directory, as it is or in base64.
    fn shows(&self, value: &[u8]) -> bool {
        let mut folders = vec![self.dir.path().to_owned()];
        let mut found = false;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found |= std::fs::read(path).unwrap().windows(value.len()).any(|bytes| bytes == value);
                }
            }
        }
        found
    }
    /// A part of the private key as it lies in a file.
    fn own_key(&self) -> &[u8] {
        &self.identity.key().as_bytes()[60..90]
    }
}

fn keys() -> [UnlockKey; 2] {
    [(); 2].map(|()| UnlockKey::draw(&mut rand::rng()))
}

#[test]
fn what_is_done_follows_from_the_keys_held_and_the_key_wanted() {
    let [one, two] = keys();
    let owner = KeyOwner { cluster: "c".into(), node: "n".into() };
    let held = |unlock: Option<&UnlockKey>| {
        let lock = unlock.map(|unlock| Lock { unlock: unlock.clone(), owner: owner.clone() });
        let current = StateKey::draw(&mut rand::rng());
        Keys::Held(HeldKeys { lock, current, previous: Vec::new(), revision: Revision::default() })
    };
    assert_eq!(Keys::None.change_to(None), Change::Seal, "a log of an earlier build");
    assert_eq!(Keys::None.change_to(Some(&one)), Change::Seal);
    assert_eq!(held(Some(&one)).change_to(Some(&one)), Change::Finish);
    assert_eq!(held(Some(&one)).change_to(Some(&two)), Change::Seal);
    assert_eq!(held(Some(&one)).change_to(None), Change::Seal);
    assert_eq!(held(None).change_to(None), Change::Finish);
    assert_eq!(held(None).change_to(Some(&one)), Change::Seal);
    for wanted in [None, Some(&one)] {
        assert_eq!(Keys::Wrapped.change_to(wanted), Change::Nothing, "nothing is known while it is locked");
    }
}

#[tokio::test]
async fn a_locked_managers_files_show_nothing_and_open_with_the_unlock_key_only() {
    let (mut manager, [one, two]) = (Manager::new("life"), keys());
    assert!(manager.shows(PLANTED) && manager.shows(manager.own_key()), "before it is locked");
    manager.change(Some(&one)).await.unwrap();
    assert!(manager.is_whole());
    let texts = [&one, &two].map(UnlockKey::to_text);
    let hidden = |manager: &Manager| {
        let values = [PLANTED, manager.own_key(), &texts[0].expose().as_bytes()[9..], &texts[1].expose().as_bytes()[9..]];
        values.iter().all(|value| !manager.shows(value))
    };
    assert!(hidden(&manager));
    manager.restart();
    assert!(manager.keyring.is_locked() && !manager.is_whole());
    assert!(manager.files.store(&manager.identity).is_err(), "nothing is written in the clear while it is locked");
    manager.change(None).await.unwrap();
    assert!(manager.keyring.is_locked());
    assert!(matches!(manager.unlock(&two), Err(UnlockError::WrongKey)));
    assert!(manager.keyring.is_locked());
    manager.unlock(&one).unwrap();
    assert!(manager.is_whole());
    // Another unlock key: from then on only that one opens it, with another key for the files.
    let (before, log) = (manager.keyring.current(), std::fs::read(manager.dir.raft().join(LOG_FILE)).unwrap());
    manager.change(Some(&two)).await.unwrap();
    assert_ne!(manager.keyring.current(), before);
    assert!(manager.is_whole() && hidden(&manager));
    manager.restart();
    assert!(matches!(manager.unlock(&one), Err(UnlockError::WrongKey)));
    manager.unlock(&two).unwrap();
    assert!(manager.is_whole());
    // An old log beside the new keys.
    let new = std::fs::read(manager.dir.raft().join(LOG_FILE)).unwrap();
    std::fs::write(manager.dir.raft().join(LOG_FILE), log).unwrap();
    let error = Disk::open_sealed(&manager.dir.raft(), 7, &manager.cipher()).expect_err("refused").to_string();
    assert!(error.contains("the two are not of one moment"), "{error}");
    std::fs::write(manager.dir.raft().join(LOG_FILE), new).unwrap();
    // The lock is taken off: the log is encrypted all the same, with a key that root can read.
    let before = manager.keyring.current();
    manager.change(None).await.unwrap();
    assert_ne!(manager.keyring.current(), before);
    manager.restart();
    assert!(!manager.keyring.is_locked() && manager.is_whole());
    assert!(!manager.shows(PLANTED) && manager.shows(manager.own_key()));
    let mode = std::fs::metadata(manager.dir.manager_key()).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    // It becomes a worker.
    manager.keyring.end(&manager.files).await.unwrap();
    assert!(!manager.dir.manager_key().exists() && !manager.files.is_sealed().unwrap());
}

#[tokio::test]
async fn a_log_that_is_not_encrypted_is_once_the_store_says_so_and_after_a_crash_meanwhile() {
    let mut manager = Manager::new("plain");
    assert!(manager.shows(PLANTED) && !manager.keyring.has_keys());
    *manager.crashes.lock().unwrap() = true;
    manager.change(None).await.expect_err("crash");
    assert!(manager.is_whole() && manager.shows(PLANTED));
    manager.restart();
    assert!(!manager.keyring.is_locked() && manager.is_whole());
    *manager.crashes.lock().unwrap() = false;
    manager.change(None).await.unwrap();
    assert!(manager.is_whole() && !manager.shows(PLANTED));
    manager.restart();
    assert!(!manager.keyring.is_locked() && manager.is_whole());
    // A log beside keys of another time is not read.
    std::fs::remove_file(manager.dir.manager_key()).unwrap();
    manager.restart();
    assert!(!manager.is_whole());
}

#[tokio::test]
async fn a_store_that_is_older_than_the_keys_changes_no_lock() {
    let (mut manager, [one, two]) = (Manager::new("older"), keys());
    manager.change_at(Some(&one), 5).await.unwrap();
    manager.change_at(Some(&two), 9).await.unwrap();
    manager.restart();
    manager.unlock(&two).unwrap();
    // After a power cut: the store does not have the rotation yet, or not even the lock.
    for (index, wanted) in [(8, Some(&one)), (4, None)] {
        assert!(!manager.keyring.obeys(Revision { incarnation: 0, index }));
        manager.change_at(wanted, index).await.unwrap();
        assert!(manager.files.is_sealed().unwrap());
        manager.restart();
        assert!(matches!(manager.unlock(&one), Err(UnlockError::WrongKey)), "the key before opens nothing again");
        manager.unlock(&two).unwrap();
    }
    // It has caught up: the lock was taken off meanwhile.
    manager.change_at(None, 12).await.unwrap();
    manager.restart();
    assert!(!manager.keyring.is_locked() && !manager.keyring.obeys(Revision { incarnation: 0, index: 11 }));
    assert!(manager.keyring.obeys(Revision { incarnation: 1, index: 1 }), "a cluster that was created again");
}

#[tokio::test]
async fn a_crash_in_any_change_leaves_files_that_the_newest_key_opens() {
    let (mut manager, [one, two]) = (Manager::new("crash"), keys());
    for wanted in [Some(&one), Some(&two), None] {
        *manager.crashes.lock().unwrap() = true;
        manager.change(wanted).await.expect_err("crash");
        assert!(manager.is_whole(), "as long as it runs");
        manager.restart();
        assert_eq!(manager.keyring.is_locked(), wanted.is_some());
        if let Some(opens) = wanted {
            manager.unlock(opens).unwrap();
        }
        assert!(manager.is_whole());
        *manager.crashes.lock().unwrap() = false;
        manager.change(wanted).await.unwrap();
        assert!(manager.is_whole() && !manager.keyring.has_previous());
        assert!(!manager.shows(PLANTED));
        assert_eq!(manager.shows(manager.own_key()), wanted.is_none());
    }
}

#[tokio::test]
async fn a_crash_after_the_first_keys_were_written_seals_nothing_and_loses_nothing() {
    let (mut manager, [one, _]) = (Manager::new("begun"), keys());
    manager.keyring.begin(Some(one.clone()), manager.owner.clone()).unwrap();
    manager.restart();
    assert!(manager.keyring.is_locked() && !manager.files.is_sealed().unwrap());
    manager.unlock(&one).unwrap();
    assert!(manager.is_whole(), "what is not sealed yet is read");
    manager.change(Some(&one)).await.unwrap();
    assert!(manager.is_whole() && manager.files.is_sealed().unwrap() && !manager.shows(PLANTED));
    // A worker that was about to become a manager: the keys are of no use.
    let (worker, [one, _]) = (Manager::new("worker"), keys());
    worker.keyring.begin(Some(one.clone()), worker.owner.clone()).unwrap();
    worker.keyring.remove().unwrap();
    assert!(worker.is_whole() && !worker.dir.manager_key().exists());
    worker.keyring.begin(Some(one.clone()), worker.owner.clone()).unwrap();
    assert!(worker.dir.manager_key().exists(), "another promotion draws keys again");
}

#[tokio::test]
async fn files_of_another_node_or_of_an_earlier_time_and_what_is_cut_short_are_refused() {
    let ([mut manager, other], [one, two]) = (["own", "other"].map(Manager::new), keys());
    manager.change(Some(&one)).await.unwrap();
    other.change(Some(&one)).await.unwrap();
    let (own, path) = (std::fs::read(manager.dir.manager_key()).unwrap(), manager.dir.manager_key());
    let refused = |manager: &mut Manager, bytes: &[u8], key: &UnlockKey| {
        std::fs::write(&path, bytes).unwrap();
        manager.restart();
        manager.unlock(key).expect_err("refused").to_string()
    };
    // The same unlock key, another node.
    let theirs = std::fs::read(other.dir.manager_key()).unwrap();
    let error = refused(&mut manager, &theirs, &one);
    assert!(error.contains("is another node's") && error.contains("docker swarm leave --force"), "{error}");
    for cut in [0, 1, 20, own.len() / 2, own.len() - 1] {
        let error = refused(&mut manager, &own[..cut], &one);
        assert!(error.contains("damaged") && error.contains("restore"), "{cut}: {error}");
    }
    // Their certificate and its sealed key in place of this node's.
    std::fs::write(&path, &own).unwrap();
    manager.restart();
    manager.unlock(&one).unwrap();
    for name in ["node.key", "node.crt", "ca.crt"] {
        std::fs::copy(other.files.dir().join(name), manager.files.dir().join(name)).unwrap();
    }
    assert!(manager.files.load(None).is_err());
    manager.files.store(&manager.identity).unwrap();
    // The keys of before a rotation, put back: what the old unlock key opens then does not open the files of now.
    manager.change(Some(&two)).await.unwrap();
    std::fs::write(&path, &own).unwrap();
    manager.restart();
    manager.unlock(&one).unwrap();
    assert!(Disk::open_sealed(&manager.dir.raft(), 7, &manager.cipher()).is_err() && manager.files.load(None).is_err());
}

#[tokio::test]
async fn changes_that_follow_one_that_did_not_end_lose_no_key() {
    let (mut manager, [one, two]) = (Manager::new("again"), keys());
    let [three, four] = keys();
    manager.change(Some(&one)).await.unwrap();
    *manager.crashes.lock().unwrap() = true;
    for key in [&two, &three] {
        manager.change(Some(key)).await.unwrap_err();
        assert!(manager.is_whole(), "the log is still sealed with the first key");
    }
    manager.restart();
    manager.unlock(&three).unwrap();
    assert!(manager.is_whole());
    manager.change(Some(&four)).await.unwrap_err();
    assert!(manager.is_whole());
    *manager.crashes.lock().unwrap() = false;
    manager.change(Some(&four)).await.unwrap();
    assert!(manager.is_whole() && !manager.keyring.has_previous());
    manager.restart();
    manager.unlock(&four).unwrap();
    assert!(manager.is_whole());
}

#[tokio::test]
async fn what_a_crash_left_of_an_earlier_file_is_removed_by_the_change_that_follows_and_by_a_start() {
    let (mut manager, [one, _]) = (Manager::new("leftover"), keys());
    manager.change(Some(&one)).await.unwrap();
    // As a crash between the exchange of the certificates and the removal of the old ones leaves them, and one in a change of the log.
    let leave = |manager: &Manager| {
        let certificates = manager.files.dir().with_extension("new");
        std::fs::create_dir(&certificates).unwrap();
        std::fs::write(certificates.join("node.key"), manager.identity.key()).unwrap();
        std::fs::write(manager.dir.raft().join(format!("{LOG_FILE}.new")), PLANTED).unwrap();
        assert!(manager.shows(PLANTED) && manager.shows(manager.own_key()));
    };
    leave(&manager);
    manager.change(Some(&one)).await.unwrap();
    assert!(!manager.shows(PLANTED) && !manager.shows(manager.own_key()) && manager.is_whole());
    leave(&manager);
    manager.restart();
    manager.dir.remove_leftovers().unwrap();
    assert!(manager.keyring.is_locked(), "before it is unlocked");
    assert!(!manager.shows(PLANTED) && !manager.shows(manager.own_key()));
    manager.unlock(&one).unwrap();
    assert!(manager.is_whole());
}

/// What encryption costs a write: prints the time of one with it and without it.
#[test]
#[ignore = "measures: cargo test --lib what_a_write_costs -- --ignored --nocapture"]
fn what_a_write_costs() {
    let time = |name: &str, seals: bool, bytes: usize| {
        let manager = Manager::new(name);
        if seals {
            manager.keyring.begin(None, manager.owner.clone()).unwrap();
            Disk::create(&manager.dir.raft(), 7, &Log::bootstrap(7, PLANTED.to_vec()), &manager.cipher()).unwrap();
        }
        let (disk, log) = Disk::open_sealed(&manager.dir.raft(), 7, &manager.cipher()).unwrap();
        let begin = std::time::Instant::now();
        for index in 1..=200 {
            let entry =
                raft::eraftpb::Entry { index: log.last() + index, term: 1, data: vec![7; bytes].into(), ..Default::default() };
            disk.write(&LogBatch { entries: vec![entry], ..LogBatch::default() }).unwrap();
        }
        begin.elapsed() / 200
    };
    for bytes in [200, 4 << 10, 256 << 10] {
        // Alternating, so that a busy disk is busy for both.
        let rounds: Vec<[Duration; 2]> = (0..4).map(|_| [time("bare", false, bytes), time("sealed", true, bytes)]).collect();
        let [bare, sealed] = [0, 1].map(|which| rounds.iter().map(|round| round[which]).min().unwrap_or_default());
        println!("{bytes} bytes: {bare:?} bare, {sealed:?} sealed, ratio {:.2}", sealed.as_secs_f64() / bare.as_secs_f64());
    }
}
