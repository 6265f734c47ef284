//! Passwords of HTTP basic authentication, checked against their hashes.

use super::apr1;
use super::held::HeldByClient;
use crate::model::Secret;
use crate::model::http::BasicUser;
use crate::sync::lock;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Passwords that were right, and are not hashed again: a hash takes milliseconds by design.
const MOST_KNOWN: usize = 4096;
/// Hashes at a time; further clients wait.
const AT_A_TIME: usize = 2;
/// Clients that wait, and requests of one of them: no client keeps the others from their pages by guessing.
const MOST_WAITING: usize = 32;
const MOST_OF_CLIENT: u32 = 4;

/// What was found out about a password.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CredentialCheck {
    Right,
    Wrong,
    /// It was not checked: too many others wait.
    Busy,
}

/// A client that waits.
struct WaitingClient(Arc<AtomicUsize>);

impl Drop for WaitingClient {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Checks credentials.
pub(super) struct Credentials {
    /// Digests of user, password and hash.
    right: Mutex<HashSet<[u8; 32]>>,
    room: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    by_client: Arc<HeldByClient>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            right: Mutex::default(),
            room: Arc::new(Semaphore::new(AT_A_TIME)),
            waiting: Arc::default(),
            by_client: Arc::default(),
        }
    }
}

impl Credentials {
    /// Whether the value of an `Authorization` header is that of one of the users.
    pub async fn check(&self, authorization: Option<&[u8]>, users: &[BasicUser], client: Option<IpAddr>) -> CredentialCheck {
        let Some((name, password)) = authorization.and_then(parse) else { return CredentialCheck::Wrong };
        let known = users.iter().find(|user| user.name == name);
        // An unknown name takes as long as a known one: a password is checked, for nothing.
        let Some(user) = known.or_else(|| users.iter().max_by_key(|user| cost(&user.hash))) else {
            return CredentialCheck::Wrong;
        };
        let is_known = known.is_some();
        let digest: [u8; 32] = Sha256::new()
            .chain_update(name.len().to_be_bytes())
            .chain_update(&name)
            .chain_update(password.len().to_be_bytes())
            .chain_update(&password)
            .chain_update(user.hash.expose())
            .finalize()
            .into();
        if is_known && lock(&self.right).contains(&digest) {
            return CredentialCheck::Right;
        }
        let held = client.map(|client| self.by_client.hold(client, MOST_OF_CLIENT));
        if matches!(held, Some(None)) {
            return CredentialCheck::Busy;
        }
        let waiting = WaitingClient(self.waiting.clone());
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            return CredentialCheck::Busy;
        }
        let Ok(room) = self.room.clone().acquire_owned().await else { return CredentialCheck::Busy };
        drop(waiting);
        let hash = user.hash.clone();
        // The work goes on when its client is gone, and takes its room and the client's for as long.
        let checked = tokio::task::spawn_blocking(move || {
            let _held = (room, held);
            apr1::is_right(&password, hash.expose()).unwrap_or_else(|| bcrypt::verify(password, hash.expose()).unwrap_or(false))
        });
        let is_right = checked.await.unwrap_or(false) && is_known;
        if is_right {
            let mut right = lock(&self.right);
            if right.len() >= MOST_KNOWN {
                right.clear();
            }
            right.insert(digest);
        }
        if is_right { CredentialCheck::Right } else { CredentialCheck::Wrong }
    }
}

/// What orders hashes by the time that they take: bcrypt takes longer, with the cost that is in it.
fn cost(hash: &Secret<String>) -> (bool, Option<&str>) {
    (hash.expose().starts_with("$2"), hash.expose().get(4..6))
}

/// The name in the value of an `Authorization` header.
pub(super) fn name(authorization: Option<&[u8]>) -> Option<String> {
    authorization.and_then(parse).map(|(name, _)| name)
}

/// Name and password of `Basic …`.
fn parse(value: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some((String::from_utf8(decoded[..colon].to_vec()).ok()?, decoded[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_user_is_right() {
        let users = [BasicUser { name: "ann".to_owned(), hash: bcrypt::hash("pass:word", 4).unwrap().into() }];
        let credentials = Credentials::default();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text)).into_bytes();
        for (value, right) in [
            (Some(basic("ann:pass:word")), true),
            (Some(basic("ann:pass:word").to_ascii_lowercase()), false),
            (Some([b"bAsIc ".as_slice(), &basic("ann:pass:word")[6..]].concat()), true),
            (Some(basic("ann:other")), false),
            (Some(basic("bob:pass:word")), false),
            (Some(basic("ann")), false),
            (Some(b"Basic !".to_vec()), false),
            (Some(b"Bearer x".to_vec()), false),
            (Some(b"B".to_vec()), false),
            (None, false),
        ] {
            for _ in 0..2 {
                let expected = if right { CredentialCheck::Right } else { CredentialCheck::Wrong };
                assert_eq!(credentials.check(value.as_deref(), &users, None).await, expected, "{value:?}");
            }
        }
        let other = [BasicUser { name: "ann".to_owned(), hash: bcrypt::hash("changed", 4).unwrap().into() }];
        let check = credentials.check(Some(&basic("ann:pass:word")), &other, None).await;
        assert_eq!(check, CredentialCheck::Wrong, "the hash has changed");
    }

    #[tokio::test]
    async fn users_may_have_hashes_of_either_kind() {
        let apr1 = "$apr1$salt$Xxd1irWT9ycqoYxGFn4cb.".to_owned();
        let users = [
            BasicUser { name: "ann".to_owned(), hash: bcrypt::hash("password", 4).unwrap().into() },
            BasicUser { name: "bob".to_owned(), hash: apr1.into() },
        ];
        let credentials = Credentials::default();
        for (text, expected) in [
            ("ann:password", CredentialCheck::Right),
            ("bob:password", CredentialCheck::Right),
            ("bob:other", CredentialCheck::Wrong),
        ] {
            let value = format!("Basic {}", STANDARD.encode(text)).into_bytes();
            assert_eq!(credentials.check(Some(&value), &users, None).await, expected, "{text}");
        }
    }

    #[tokio::test]
    async fn an_unknown_name_takes_as_long_as_a_known_one() {
        let users = [BasicUser { name: "ann".to_owned(), hash: bcrypt::hash("right", 8).unwrap().into() }];
        let credentials = Credentials::default();
        let mut shortest = [std::time::Duration::MAX; 2];
        let alike = |[known, unknown]: [std::time::Duration; 2]| unknown * 3 > known && known * 3 > unknown;
        // On a busy machine a few rounds say nothing.
        for round in 0..100 {
            if round > 5 && alike(shortest) {
                break;
            }
            for (name, shortest) in ["ann", "bob"].iter().zip(&mut shortest) {
                let value = format!("Basic {}", STANDARD.encode(format!("{name}:wrong{round}"))).into_bytes();
                let began = std::time::Instant::now();
                assert_eq!(credentials.check(Some(&value), &users, None).await, CredentialCheck::Wrong);
                *shortest = (*shortest).min(began.elapsed());
            }
        }
        assert!(alike(shortest), "{shortest:?}");
    }

    #[tokio::test]
    async fn clients_that_leave_at_once_have_no_more_passwords_checked_at_a_time() {
        let users = [BasicUser { name: "ann".to_owned(), hash: bcrypt::hash("right", 10).unwrap().into() }];
        let credentials = Credentials::default();
        let client = |number: u32| Some(IpAddr::from(std::net::Ipv4Addr::from(0xc000_0200 + number)));
        for number in 0..10 {
            let value = format!("Basic {}", STANDARD.encode(format!("ann:wrong{number}"))).into_bytes();
            let check = credentials.check(Some(&value), &users, client(number % 2));
            // It has begun, and no client waits for its end.
            assert!(futures_util::FutureExt::now_or_never(check).is_none(), "it takes a while");
        }
        assert_eq!(credentials.room.available_permits(), 0, "two of them are worked on");
        assert!(credentials.by_client.holds(client(0).unwrap()) > 0, "and are its client's");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while credentials.room.available_permits() < AT_A_TIME || credentials.by_client.holds(client(0).unwrap()) > 0 {
            assert!(std::time::Instant::now() < deadline, "the room is given back");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn passwords_that_wait_to_be_checked_are_bounded() {
        let users = [BasicUser { name: "ann".to_owned(), hash: bcrypt::hash("right", 10).unwrap().into() }];
        let credentials = Credentials::default();
        let basic = |text: String| format!("Basic {}", STANDARD.encode(text)).into_bytes();
        let values: Vec<_> = (0..MOST_WAITING + 20).map(|n| basic(format!("ann:wrong{n}"))).collect();
        let client = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        let of_one = values.iter().map(|value| credentials.check(Some(value), &users, client(1)));
        let value = basic("ann:right".to_owned());
        let of_another = credentials.check(Some(&value), &users, client(2));
        let (of_one, of_another) = tokio::join!(futures_util::future::join_all(of_one), of_another);
        assert!(of_one.contains(&CredentialCheck::Busy));
        assert_eq!(of_another, CredentialCheck::Right, "others have their turn");
        let checks = values.iter().map(|value| credentials.check(Some(value), &users, None));
        let found = futures_util::future::join_all(checks).await;
        assert!(found.contains(&CredentialCheck::Busy) && found.contains(&CredentialCheck::Wrong));
        assert_eq!(
            credentials.check(Some(&basic("ann:right".to_owned())), &users, None).await,
            CredentialCheck::Right,
            "afterwards"
        );
    }
}
