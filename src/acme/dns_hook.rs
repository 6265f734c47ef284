//! The program that sets TXT records, for challenges of the kind dns-01.
//!
//! `PROGRAM set NAME VALUE...` makes the TXT records of NAME exactly these, and ends when the name's servers answer so;
//! `PROGRAM remove NAME` removes them. Both may be asked again.

use crate::model::acme::{AcmeChallenge, AcmeChallengeKind};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Time for one call.
const LIMIT: Duration = Duration::from_mins(5);
/// Bytes of what it wrote that are shown.
const SHOWN: usize = 300;

/// The program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsHook {
    pub program: PathBuf,
}

/// The records of these challenges: all values of a name, since a wildcard and its parent share one.
fn records(challenges: &[AcmeChallenge]) -> BTreeMap<String, Vec<String>> {
    let mut records: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for challenge in challenges.iter().filter(|challenge| challenge.kind == AcmeChallengeKind::Dns) {
        let value = URL_SAFE_NO_PAD.encode(Sha256::digest(&challenge.key_authorization));
        records.entry(format!("_acme-challenge.{}", challenge.name)).or_default().push(value);
    }
    records
}

impl DnsHook {
    /// Sets the records of these challenges.
    ///
    /// # Errors
    /// The program does not run, fails or takes too long: what it wrote.
    pub async fn set(&self, challenges: &[AcmeChallenge]) -> Result<(), String> {
        for (name, values) in records(challenges) {
            let arguments = ["set".to_owned(), name].into_iter().chain(values).collect();
            self.run(arguments).await?;
        }
        Ok(())
    }

    /// Removes them again. What fails is logged: the records are replaced by the next ones.
    pub async fn remove(&self, challenges: &[AcmeChallenge]) {
        for name in records(challenges).into_keys() {
            if let Err(error) = self.run(vec!["remove".to_owned(), name.clone()]).await {
                tracing::warn!(name, error, "the TXT records of a challenge stay");
            }
        }
    }

    async fn run(&self, arguments: Vec<String>) -> Result<(), String> {
        let shown = format!("{} {} {}", self.program.display(), arguments[0], arguments[1]);
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).current_dir("/").kill_on_drop(true);
        let output = match tokio::time::timeout(LIMIT, command.output()).await {
            Ok(output) => output.map_err(|error| format!("{shown}: cannot be run: {error}"))?,
            Err(_) => return Err(format!("{shown}: did not end within {LIMIT:?}")),
        };
        if output.status.success() {
            return Ok(());
        }
        let wrote = [output.stderr, output.stdout].concat();
        let wrote = String::from_utf8_lossy(&wrote[..wrote.len().min(SHOWN)]).trim().to_owned();
        Err(format!("{shown}: {}: {wrote}", output.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_and_its_parent_are_one_name_with_two_values() {
        let challenge = |kind, token: &str| AcmeChallenge {
            name: "a.test".to_owned(),
            kind,
            segment: token.to_owned(),
            key_authorization: format!("{token}.key"),
        };
        let challenges = [AcmeChallengeKind::Dns, AcmeChallengeKind::Dns, AcmeChallengeKind::Http];
        let challenges: Vec<_> =
            challenges.into_iter().zip(["a", "b", "c"]).map(|(kind, token)| challenge(kind, token)).collect();
        let records = records(&challenges);
        assert_eq!(records.keys().collect::<Vec<_>>(), ["_acme-challenge.a.test"]);
        assert_eq!(records.values().map(Vec::len).collect::<Vec<_>>(), [2]);
    }
}
