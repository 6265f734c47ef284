//! Values that people are not shown: keys, tokens, credentials.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::Cell;
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
