//! `skep http acme`: certificates of a public authority, for the whole cluster.

use super::table::table;
use super::target::DaemonTarget;
use anyhow::Context as _;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Show or change how the hosts of HTTP routes get certificates by ACME
///
/// Once it is on, each host name of a route with TLS that no secret is named for, and that can have a public certificate, gets one, and
/// a new one before that ends. Until it is there, a self-signed one is served. The label skep.http.acme=false leaves a service out,
/// true asks for names that are not public. Ask a manager. A change of the mail address or of the directory makes a new account.
///
/// A wildcard needs dns-01: set `dns_hook` in the section [acme] of skep.toml on every manager.
///
/// Examples:
///   skep http acme                                           how it stands: account, certificates, failures
///   skep http acme --email me@example.com --agree-tos        switch it on, with Let's Encrypt
///   skep http acme --retry                                   try at once what has failed
///   skep http acme --off                                     order no more; what there is, is served until it ends
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct AcmeArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Mail address that the authority writes to; empty: none
    #[arg(long)]
    email: Option<String>,
    /// Agree to the authority's terms of service
    #[arg(long)]
    agree_tos: bool,
    /// URL of the authority's directory
    #[arg(long, value_name = "URL")]
    directory: Option<String>,
    /// File with the root certificates that the authority itself is verified with, for a private one
    #[arg(long, value_name = "FILE")]
    root_certificate: Option<PathBuf>,
    /// Kind of certificate, among those that the authority offers
    #[arg(long)]
    profile: Option<String>,
    /// The only kind of challenge to use: http-01, tls-alpn-01 or dns-01; empty for any
    #[arg(long)]
    challenge: Option<String>,
    /// Key id of your account with the authority, if it asks for one
    #[arg(long, value_name = "ID", requires = "eab_key_file")]
    eab_kid: Option<String>,
    /// File with the key of that account, as the authority shows it
    #[arg(long, value_name = "FILE", requires = "eab_kid")]
    eab_key_file: Option<PathBuf>,
    /// Order no more certificates
    #[arg(long, conflicts_with_all = ["email", "agree_tos", "retry"])]
    off: bool,
    /// Try at once what has failed
    #[arg(long)]
    retry: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl AcmeArgs {
    /// The change that the flags ask for; empty: none.
    fn change(&self) -> anyhow::Result<Map<String, Value>> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let mut change = Map::new();
        let texts =
            [("Email", &self.email), ("Directory", &self.directory), ("Profile", &self.profile), ("Challenge", &self.challenge)];
        for (key, text) in texts {
            if let Some(text) = text {
                change.insert(key.to_owned(), json!(text));
            }
        }
        if let Some(path) = &self.root_certificate {
            change.insert("RootCertificate".to_owned(), json!(read(path)?));
        }
        if let (Some(id), Some(path)) = (&self.eab_kid, &self.eab_key_file) {
            change.insert("ExternalAccount".to_owned(), json!({ "KeyID": id, "Key": read(path)?.trim() }));
        }
        if self.agree_tos {
            change.insert("TermsAgreed".to_owned(), json!(true));
        }
        if self.off {
            change.insert("Enabled".to_owned(), json!(false));
        } else if !change.is_empty() {
            change.insert("Enabled".to_owned(), json!(true));
        }
        if self.retry {
            change.insert("Retry".to_owned(), json!(true));
        }
        Ok(change)
    }
}

pub(super) async fn run(args: AcmeArgs) -> anyhow::Result<()> {
    let change = args.change()?;
    let docker = args.target.docker();
    let reply = if change.is_empty() {
        docker.get("/acme").await?
    } else {
        docker.request("POST", "/acme", Some(&Value::Object(change))).await?
    };
    let shown: Value = reply.json()?;
    if args.json {
        println!("{shown:#}");
    } else {
        print!("{}", render(&shown));
    }
    Ok(())
}

/// The switch, the account, and a line for each certificate.
fn render(shown: &Value) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let Some(directory) = shown["Directory"].as_str() else {
        return "ACME is off: skep http acme --email you@example.com --agree-tos switches it on\n".to_owned();
    };
    let state = if shown["Enabled"] == true { "on" } else { "off" };
    let account = match (&shown["Account"], &shown["Failure"]) {
        (Value::String(account), failure @ Value::Object(_)) => {
            format!("account {account}; no orders before {}: {}", text(failure, "Next"), text(failure, "Reason"))
        }
        (Value::String(account), _) => format!("account {account}"),
        (_, failure @ Value::Object(_)) => {
            format!("no account: {}; next try at {}", text(failure, "Reason"), text(failure, "Next"))
        }
        _ => "no account yet".to_owned(),
    };
    let mut out = format!("ACME is {state}, with {directory}, {account}\n");
    let mut rows = vec![["NAMES", "ISSUER", "LEFT", "RENEWED", "STATE"].map(str::to_owned)];
    for one in shown["Certificates"].as_array().into_iter().flatten() {
        let names: Vec<&str> = one["Names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let failure = &one["Failure"];
        let state = match failure {
            Value::Object(_) => format!("{}; next try at {}", text(failure, "Reason"), text(failure, "Next")),
            _ if one["Ordered"] == true => "ordered".to_owned(),
            _ if one["Wanted"] != true => "not wanted any more".to_owned(),
            _ if one["Issuer"].is_null() => "waits".to_owned(),
            _ => "served".to_owned(),
        };
        let left = one["DaysLeft"].as_u64().map_or_else(|| "-".to_owned(), |days| format!("{days} d"));
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let renewed = text(one, "RenewAt").get(..16).unwrap_or_default().replace('T', " ");
        rows.push([names.join(","), or_dash(text(one, "Issuer")), left, or_dash(renewed), state]);
    }
    if rows.len() > 1 {
        out += &table(&rows);
    }
    for one in shown["LeftOut"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "no certificate for {}: {}", text(one, "Host"), text(one, "Why"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_failures_and_what_is_left_out_are_shown() {
        assert!(render(&json!({ "Enabled": false })).contains("--agree-tos"));
        let shown = json!({
            "Enabled": true, "Directory": "https://ca/dir", "Account": "https://ca/1",
            "Certificates": [
                { "Names": ["a.b"], "Wanted": true, "Issuer": "R3", "DaysLeft": 60, "RenewAt": "2026-12-01T10:00:00Z", "Failure": null },
                { "Names": ["*.c.d", "c.d"], "Wanted": true, "Issuer": null, "Failure": { "Reason": "no", "Next": "T" } },
            ],
            "LeftOut": [{ "Host": "localhost", "Why": "it is no public name" }],
        });
        let expected = "ACME is on, with https://ca/dir, account https://ca/1\n\
                        NAMES      ISSUER  LEFT  RENEWED           STATE\n\
                        a.b        R3      60 d  2026-12-01 10:00  served\n\
                        *.c.d,c.d  -       -     -                 no; next try at T\n\
                        no certificate for localhost: it is no public name\n";
        assert_eq!(render(&shown), expected);
    }
}
