//! A field that is named as a secret has the type `Secret`, which neither `Debug` nor a dump shows.

use super::source::{code, files, root};
use std::fs;

const NAMES: &[&str] =
    &["token", "secret", "private", "ca_key", "password", "unlock", "auth", "credential", "hash", "request_headers", "options"];
/// Types that hold their text openly.
const OPEN: &[&str] = &["String", "str", "Vec<u8>", "[u8", "Bytes", "BTreeMap<String, String>", "HashMap<String, String>"];
/// Fields that may be open: options of networks and of templating, of which the API takes a few known ones that are no secrets, and
/// what the API answers.
const PLAIN: &[&str] =
    &["model/network.rs: options", "model/view.rs: options", "model/payload.rs: options", "api/wire.rs: options"];

#[test]
fn fields_that_are_named_as_secrets_are_secrets() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    for file in files(&src, &["rs"]) {
        for (number, line) in code(&fs::read_to_string(&file).unwrap()).lines().enumerate() {
            let name = file.strip_prefix(&src).unwrap().display();
            let may_be_open =
                PLAIN.iter().any(|plain| format!("{name}: {}", line.trim().trim_start_matches("pub ")).starts_with(plain));
            if is_open_secret(line) && !may_be_open {
                wrong.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "use model::Secret:\n{}\n", wrong.join("\n"));
}

/// A line of a struct that declares an open field with the name of a secret.
fn is_open_secret(line: &str) -> bool {
    let Some((name, kind)) = line.trim().strip_suffix(',').and_then(|field| field.split_once(": ")) else { return false };
    let name = name.rsplit(' ').next().unwrap_or_default();
    let kind = kind.trim_start_matches("Option<").trim_start_matches("&'a ").trim_start_matches("&'static ");
    name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        && NAMES.iter().any(|secret| name.split('_').any(|part| part == *secret) || name.ends_with(secret))
        && OPEN.iter().any(|open| kind.starts_with(open) && !kind.contains('('))
}

#[test]
fn the_check_sees_fields() {
    for line in [
        "    pub token: String,",
        "ca_key: Option<String>,",
        "    pub(super) join_token: &'a str,",
        "private: [u8; 32],",
        "pub hash: String,",
        "pub options: BTreeMap<String, String>,",
    ] {
        assert!(is_open_secret(line), "{line}");
    }
    for line in [
        "token: Secret<String>,",
        "tokens: String,",
        "token: text(&posted),",
        "let token: String = x;",
        "pull_auth: None,",
        "pub options: BTreeMap<String, Secret<String>>,",
        "pub options: Vec<String>,",
    ] {
        assert!(!is_open_secret(line), "{line}");
    }
}
