//! `skep rotate-key`: a new WireGuard key for this node.

use super::target::DaemonTarget;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Gives this node a new WireGuard key; connections go on.
///
/// The other nodes get the new key as a second one; once all that are up have it, this node uses it, and the old one is removed
/// everywhere. Nodes that are down are not waited for. It goes on if this command or the daemon is ended; the command again shows how far it is.
/// One node at a time.
///
/// Examples:
///   skep rotate-key             on the node itself, until it is done
///   skep rotate-key --json      the same, with the old and the new public key as one JSON document
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct RotateKeyArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Seconds to wait for the end
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Between looks at how far it is.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn run(args: RotateKeyArgs) -> anyhow::Result<()> {
    let admin = args.target.admin();
    let field = |document: &Value, name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let before: Value = admin.request("GET", "/key-change", None).await?.json()?;
    let began: Value = admin.request("POST", "/key-change", None).await?.json()?;
    let (old, new) = (field(&before, "key"), field(&began, "key"));
    let (begin, limit, mut shown) = (Instant::now(), Duration::from_secs(args.wait), String::new());
    loop {
        // A daemon that is started again meanwhile goes on.
        let state = match admin.request("GET", "/key-change", None).await {
            Ok(reply) => reply.json::<Value>().ok(),
            Err(_) => None,
        };
        let step = state
            .as_ref()
            .map_or_else(|| "the daemon does not answer".to_owned(), |state| text(&field(state, "step"), &field(state, "error")));
        let is_new = state.as_ref().is_some_and(|state| field(state, "key") == new);
        if is_new && step.is_empty() {
            break;
        }
        if !args.json && !step.is_empty() && step != shown {
            println!("{step}");
        }
        shown.clone_from(&step);
        if begin.elapsed() >= limit {
            let why = if step.is_empty() { "it was given up" } else { step.as_str() };
            anyhow::bail!("not done after {} s: {why}", args.wait);
        }
        tokio::time::sleep(POLL).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    if args.json {
        println!("{:#}", serde_json::json!({ "old": old, "new": new, "seconds": seconds }));
    } else {
        println!("This node's WireGuard key is {new} (after {seconds:.1} s); the old one, {old}, is accepted nowhere.");
    }
    Ok(())
}

/// What is being done, and why it fails.
fn text(step: &str, error: &str) -> String {
    if error.is_empty() { step.to_owned() } else { format!("{step}: {error}") }
}
