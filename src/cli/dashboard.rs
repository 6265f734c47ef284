//! `skep dashboard`: a page that shows the cluster, on loopback.

use super::print::print_line;
use super::target::DaemonTarget;
use crate::dashboard::{DaemonSockets, PageToken, serve};
use anyhow::Context as _;
use std::net::SocketAddr;

/// Show the cluster on a page in a browser: nodes and tunnels, services, HTTP routes, certificates, drops, histories
///
/// The page is on loopback, until Ctrl-C, and read only. Its address has a token: the window that has opened it may see the page.
/// It shows what this node sees: services and tasks on a manager; rates, connections and drops are this node's own.
///
/// From another machine, let ssh carry it, and open the printed address there:
///
///   ssh -L 2380:127.0.0.1:2380 NODE
///
/// For others, on every node, without this command: a route of its own with TLS and a password, by labels of a service (it needs no task):
/// skep.http=skep.example.com, skep.http.dashboard=true, skep.http.auth=ann:HASH (of `htpasswd -nB ann`).
///
/// Examples:
///   skep dashboard                           on 127.0.0.1:2380
///   skep dashboard --listen 127.0.0.1:9000   on another port
///   skep dashboard --json                    prints the address as JSON
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct DashboardArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Loopback address and port of the page; port 0: a free one
    #[arg(long, default_value = "127.0.0.1:2380", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Print the address of the page as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DashboardArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.listen.ip().is_loopback(),
        "{} is not on loopback: the page has no TLS. Listen on 127.0.0.1, and from another machine use `ssh -L 2380:127.0.0.1:2380 NODE`",
        args.listen
    );
    let sockets = DaemonSockets { admin: args.target.admin(), docker: args.target.docker() };
    sockets.admin.get("/healthz").await.context("the page shows what the daemon knows: start it (`skep daemon`)")?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: `--listen 127.0.0.1:PORT` has it on another port", args.listen))?;
    let at = listener.local_addr()?;
    let host = if at.is_ipv6() { format!("[{}]", at.ip()) } else { at.ip().to_string() };
    let token = PageToken::new(rand::random(), at.port());
    let address = token.address(&host);
    if args.json {
        print_line(&serde_json::json!({ "address": address }).to_string())?;
    } else {
        print_line(&format!("{address}\n\nOpen it in a browser. Who has this address sees the page; Ctrl-C ends it."))?;
    }
    tokio::select! {
        () = serve(listener, sockets, token) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
