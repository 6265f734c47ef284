//! Values that people are not shown: keys, tokens, credentials.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use zeroize::Zeroize;

/// What is shown in place of a secret.
pub const HIDDEN: &str = "[secret]";

thread_local! {
    static HIDES: Cell<bool> = const { Cell::new(false) };
}

/// A value that `Debug` does not show, and whose memory is overwritten when it is dropped. It has no `Serialize`: a field that
/// is stored or sent says so with `#[serde(serialize_with = "secret::expose")]`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }
    /// The value; the name is for those who look for its uses.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl From<&str> for Secret<String> {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}

/// Serializes the value itself, for a field that is stored or sent; inside [`hiding`] it serializes [`HIDDEN`].
///
/// # Errors
/// The serializer's.
pub fn expose<T: Zeroize + Serialize, S: Serializer>(secret: &Secret<T>, serializer: S) -> Result<S::Ok, S::Error> {
    if HIDES.get() { serializer.serialize_str(HIDDEN) } else { secret.0.serialize(serializer) }
}

/// As [`expose`], of one that may be absent.
///
/// # Errors
/// The serializer's.
pub fn expose_some<T: Zeroize + Serialize, S: Serializer>(secret: &Option<Secret<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => expose(secret, serializer),
        None => serializer.serialize_none(),
    }
}

/// Serializes variables, each `NAME=value`; inside [`hiding`] with [`HIDDEN`] in place of each value: passwords are passed in
/// them.
///
/// # Errors
/// The serializer's.
pub fn expose_values<S: Serializer>(variables: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if !HIDES.get() {
        return variables.serialize(serializer);
    }
    serializer.collect_seq(variables.iter().map(|variable| match variable.split_once('=') {
        Some((name, _)) => format!("{name}={HIDDEN}"),
        // To be removed from those of the image.
        None => variable.clone(),
    }))
}

/// Serializes a map whose values may be secret, as the options of a log driver; inside [`hiding`] its keys with [`HIDDEN`] for each.
///
/// # Errors
/// The serializer's.
pub fn expose_map<S: Serializer>(map: &BTreeMap<String, Secret<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(key, value)| (key, if HIDES.get() { HIDDEN } else { value.expose() })))
}

/// Serializes labels; inside [`hiding`] with [`HIDDEN`] for the values of those whose key says that a credential follows: proxies
/// read users with their password hashes there.
///
/// # Errors
/// The serializer's.
pub fn expose_labels<S: Serializer>(labels: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    let hides = HIDES.get();
    serializer.collect_map(labels.iter().map(|(key, value)| (key, if hides { shown_label(key, value) } else { value })))
}

/// The value of a label for people: [`HIDDEN`] if the key says that a credential follows.
#[must_use]
pub fn shown_label<'a>(key: &str, value: &'a str) -> &'a str {
    if names_credential(key) { HIDDEN } else { value }
}

/// Whether one of the words of a label's key is that of a credential: `skep.http.auth`, `traefik.http.middlewares.m.basicauth.users`,
/// `caddy.basic_auth.ann`; likewise headers that containers get, whatever their names.
fn names_credential(key: &str) -> bool {
    const ENDS: [&str; 7] = ["auth", "authorization", "password", "secret", "token", "credentials", "requestheaders"];
    let key = key.to_ascii_lowercase();
    let mut words = key.split(|c: char| !c.is_ascii_alphanumeric());
    key.contains("headers.request.") || words.any(|word| ENDS.iter().any(|end| word.ends_with(end)))
}

/// `Debug` of what has secrets among its variables and labels: its document, with [`HIDDEN`] in place of each.
///
/// # Errors
/// The formatter's.
pub fn debug(value: &impl Serialize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let make = if f.alternate() { serde_json::to_string_pretty } else { serde_json::to_string };
    f.write_str(&hiding(|| make(value)).map_err(|_| fmt::Error)?)
}

/// Runs `make`; whatever it serializes has [`HIDDEN`] in place of each secret. For documents that people read.
pub fn hiding<R>(make: impl FnOnce() -> R) -> R {
    /// Restores the state of before, also after a panic.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            HIDES.set(self.0);
        }
    }
    let _restore = Restore(HIDES.replace(true));
    make()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Stored {
        #[serde(serialize_with = "expose")]
        key: Secret<String>,
    }

    #[test]
    fn a_secret_is_stored_and_read_back_but_not_shown() {
        let stored: Stored = serde_json::from_str(r#"{"key":"planted"}"#).unwrap();
        assert_eq!(format!("{stored:?} {:#?}", Some(&stored.key)), "Stored { key: [secret] } Some(\n    [secret],\n)");
        assert_eq!(hiding(|| serde_json::to_string(&stored).unwrap()), r#"{"key":"[secret]"}"#);
        let panicked = std::panic::catch_unwind(|| hiding(|| panic!("within")));
        assert!(panicked.is_err());
        assert_eq!(serde_json::to_string(&stored).unwrap(), r#"{"key":"planted"}"#, "after a panic as before");
        hiding(|| {
            assert_eq!(hiding(|| serde_json::to_string(&stored).unwrap()), r#"{"key":"[secret]"}"#);
            assert_eq!(serde_json::to_string(&stored).unwrap(), r#"{"key":"[secret]"}"#, "the outer one still hides");
        });
    }

    #[test]
    fn variables_are_stored_with_their_values_and_shown_with_their_names() {
        #[derive(Serialize)]
        struct Stored {
            #[serde(serialize_with = "expose_values")]
            env: Vec<String>,
        }
        let stored = Stored { env: ["DB_PASSWORD=planted=twice", "EMPTY=", "PLAIN"].map(str::to_owned).into() };
        let text = r#"{"env":["DB_PASSWORD=planted=twice","EMPTY=","PLAIN"]}"#;
        assert_eq!(serde_json::to_string(&stored).unwrap(), text);
        let shown = r#"{"env":["DB_PASSWORD=[secret]","EMPTY=[secret]","PLAIN"]}"#;
        assert_eq!(hiding(|| serde_json::to_string(&stored).unwrap()), shown);
    }

    #[test]
    fn maps_are_stored_with_their_values_and_shown_with_their_keys() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Stored {
            #[serde(serialize_with = "expose_map")]
            options: BTreeMap<String, Secret<String>>,
        }
        let text = r#"{"options":{"o":"password=planted","type":"cifs"}}"#;
        let stored: Stored = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&stored).unwrap(), text);
        let shown = r#"{"options":{"o":"[secret]","type":"[secret]"}}"#;
        assert_eq!(hiding(|| serde_json::to_string(&stored).unwrap()), shown);
        assert_eq!(format!("{stored:?}"), r#"Stored { options: {"o": [secret], "type": [secret]} }"#);
    }

    #[test]
    fn labels_are_shown_but_for_those_that_name_a_credential() {
        #[derive(Serialize)]
        struct Stored(#[serde(serialize_with = "expose_labels")] BTreeMap<String, String>);
        let hidden = [
            "skep.http.auth",
            "traefik.http.middlewares.m.basicauth.users",
            "traefik.http.middlewares.m.BasicAuth.Users",
            "traefik.http.middlewares.m.digestauth.users",
            "traefik.http.middlewares.m.headers.customrequestheaders.X-Key",
            "skep.http.headers.request.X-Key",
            "caddy.basic_auth.ann",
            "caddy.basicauth",
            "com.example.api-token",
        ];
        let shown = ["com.docker.stack.namespace", "author", "skep.http", "traefik.http.routers.r.rule"];
        let value = |key: &&str| ((*key).to_owned(), "planted".to_owned());
        let stored = Stored(hidden.iter().chain(&shown).map(value).collect());
        let dump = hiding(|| serde_json::to_value(&stored).unwrap());
        for key in hidden {
            assert_eq!(dump[key], HIDDEN, "{key}");
        }
        for key in shown {
            assert_eq!(dump[key], "planted", "{key}");
        }
        let kept = serde_json::to_value(&stored).unwrap();
        assert!(hidden.iter().chain(&shown).all(|key| kept[key] == "planted"), "{kept}");
    }

    #[test]
    fn memory_is_overwritten_at_the_end() {
        #[derive(Clone)]
        struct Noted(std::rc::Rc<Cell<u32>>);
        impl Zeroize for Noted {
            fn zeroize(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let count = std::rc::Rc::new(Cell::new(0));
        let secret = Secret::new(Noted(count.clone()));
        drop(secret.clone());
        assert_eq!(count.get(), 1);
        drop(secret);
        assert_eq!(count.get(), 2);
    }
}
