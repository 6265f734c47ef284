//! # skep: a swarm of Docker hosts
//!
//! One binary beside an unmodified Docker Engine: a WireGuard overlay joins the hosts, a published port answers on every
//! node, names resolve from the same state as everything else, a Raft manager and a container agent orchestrate. The
//! stock `docker` CLI talks to skep's socket.
//!
//! `ARCHITECTURE.md` has the pictures: processes, namespaces, sockets, files, the flow of control, both datapaths, and
//! which file to open for which change. Here is one line per room.
//!
//! ## Rooms, from the bottom up
//!
//! | room | what it holds | what it does not know |
//! |---|---|---|
//! | [`model`] | the domain's types: ids, specs (spelled as Docker spells them), statuses, the node view, addresses | storage, time, IO |
//! | [`store`] | tables by id, transactions, deterministic `apply`, snapshots | raft |
//! | [`trust`] | root CA, node certificates and their renewal, join tokens, files that keep them | connections |
//! | [`raft`] | the `raft` crate behind a core without IO, its log on disk, a handle; transport is a trait | what entries mean |
//! | [`protocol`] | messages between nodes, their limits, how a view travels as a difference | connections |
//! | [`datapath`] | **the only room that touches the kernel**: mesh namespace, netlink, tunnel, sockets; `ebpf` loads programs and reads and writes maps | nodes, services |
//! | [`runtime`] | containers: the `Engine` trait, Docker Engine through bollard, a fake | tasks' desired states |
//! | [`manager`] | what the leader runs: `orchestrator`, `allocator`, `scheduler`, `reaper`, `dispatcher`; `replica` puts the store behind raft | connections |
//! | [`agent`] | this node's tasks: core, plan, shell, ledger | the network |
//! | [`overlay`] | peers, addresses, rules, routes: plan, difference, loop; `driver` is Docker's network and IPAM plugin | services |
//! | [`ingress`] | published ports and virtual addresses: `userspace`, `ebpf`, `readiness` | tasks beyond their endpoints |
//! | [`acme`] | certificates of a public authority: which names, plan, executor, loop on the leader | what nodes serve |
//! | [`dns`] | names: records per client, server, forwarder | |
//! | [`rpc`] | joins, sessions, renewals, logs and relays of the Docker API over mutual TLS | what messages cause: that is behind traits |
//! | [`api`] | Docker's API: pass-through to the engine, handlers, conversion; `access`: one such API for all engines | how the node is put together |
//! | [`doctor`] | `skep doctor`: facts of the host, and checks from them to findings | how the node is put together |
//! | [`dashboard`] | the page of `skep dashboard`: who may see it, what it shows, its files | what the daemon does |
//! | [`cli`] | the verbs that Docker has no word for; `demo` | |
//! | [`lab`] | hosts on one machine, for the demo and the tests | |
//! | `node` | the composition root: the only room that knows every other | |
//! | [`admin`], [`status`] | the admin socket: metrics, health, dump; what a node reports of itself | |
//! | [`http`], [`settings`], [`telemetry`], [`memory`], [`accept`], [`clock`], [`durable`], [`backoff`], [`splice`], [`sync`] | small services, one file each | every room |
//!
//! Desired state goes down, observed state goes up, nothing else crosses. Loops meet only in the store (managers) or in
//! the [`model::NodeView`] (nodes). What decides is pure; what acts decides nothing. `tests/it/architecture` checks the
//! imports.

pub mod accept;
pub mod acme;
pub mod admin;
pub mod agent;
pub mod api;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod dashboard;
pub mod datapath;
pub mod dns;
pub mod doctor;
pub mod durable;
pub mod http;
pub mod ingress;
pub mod lab;
pub mod manager;
mod memory;
pub mod model;
mod node;
pub mod overlay;
pub mod protocol;
pub mod raft;
pub mod rpc;
pub mod runtime;
pub mod settings;
pub mod splice;
pub mod status;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod trust;
