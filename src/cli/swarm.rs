//! `skep init`, `join` and `leave`: three calls of the Docker API, for scripts on hosts without a docker CLI.

use super::target::DaemonTarget;
use crate::http::UnixClient;
use crate::model::Secret;
use serde_json::{Value, json};

/// Flags of `skep init`.
#[derive(clap::Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Address or interface at which other nodes reach this one [default: this host's only address]
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "")]
    advertise_addr: String,
    /// Address to listen on, for TCP and UDP
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// UDP port of the tunnel, if it is not the listen address's
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    data_path_port: u16,
    /// Pool that subnets of networks are allocated from, as 10.20.0.0/16; may be repeated
    #[arg(long, value_name = "SUBNET")]
    default_addr_pool: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Flags of `skep join`.
#[derive(clap::Args, Debug)]
pub(super) struct JoinArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Join token, from `docker swarm join-token worker`
    #[arg(long)]
    token: Secret<String>,
    /// Address of a manager
    #[arg(value_name = "MANAGER[:PORT]")]
    remote: String,
    /// Address or interface at which other nodes reach this one [default: the one that the manager sees]
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "")]
    advertise_addr: String,
    /// Address to listen on
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Flags of `skep leave`.
#[derive(clap::Args, Debug)]
pub(super) struct LeaveArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Leave even if this is a manager
    #[arg(long)]
    force: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

async fn post(client: &UnixClient, target: &str, body: &Value) -> anyhow::Result<Value> {
    let reply = client.request("POST", target, Some(body)).await?;
    reply.ok()?;
    Ok(serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
}

pub(super) async fn init(args: InitArgs) -> anyhow::Result<()> {
    let client = args.target.docker();
    let body = json!({
        "ListenAddr": args.listen_addr, "AdvertiseAddr": args.advertise_addr, "DataPathPort": args.data_path_port,
        "DefaultAddrPool": args.default_addr_pool, "SubnetSize": 24, "Spec": {},
    });
    let node = post(&client, "/swarm/init", &body).await?;
    let swarm: Value = client.get("/swarm").await?.json()?;
    let info: Value = client.get("/info").await?.json()?;
    let tokens = &swarm["JoinTokens"];
    let manager = info["Swarm"]["RemoteManagers"][0]["Addr"].as_str().unwrap_or("THIS-NODE:2377").to_owned();
    if args.json {
        println!(
            "{}",
            json!({ "node": node, "manager": manager, "tokens": { "worker": tokens["Worker"], "manager": tokens["Manager"] } })
        );
    } else {
        println!(
            "This node ({}) is now a manager. Add a worker by running on another host:\n",
            node.as_str().unwrap_or_default()
        );
        println!("    skep join --token {} {manager}\n", tokens["Worker"].as_str().unwrap_or_default());
        println!("Open 2377/tcp and 2377/udp between the hosts; no other port is needed.");
    }
    Ok(())
}

pub(super) async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let client = args.target.docker();
    let body = json!({
        "ListenAddr": args.listen_addr, "AdvertiseAddr": args.advertise_addr, "RemoteAddrs": [args.remote], "JoinToken": args.token.expose(),
    });
    post(&client, "/swarm/join", &body).await?;
    let info: Value = client.get("/info").await?.json()?;
    let role = if info["Swarm"]["ControlAvailable"] == true { "manager" } else { "worker" };
    if args.json {
        println!("{}", json!({ "node": info["Swarm"]["NodeID"], "role": role }));
    } else {
        println!("This node joined a swarm as a {role}.");
    }
    Ok(())
}

pub(super) async fn leave(args: LeaveArgs) -> anyhow::Result<()> {
    let target = format!("/swarm/leave?wait=1&force={}", u8::from(args.force));
    post(&args.target.docker(), &target, &json!({})).await?;
    if args.json {
        println!("{}", json!({ "left": true }));
    } else {
        println!("Node left the swarm.");
    }
    Ok(())
}
