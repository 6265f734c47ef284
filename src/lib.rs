//! # skep: a swarm of Docker hosts
//!
//! One binary beside an unmodified Docker Engine: a WireGuard overlay joins the hosts, a published port answers on every
//! node, names resolve from the same state as everything else, a Raft manager and a container agent orchestrate. The
//! stock `docker` CLI talks to skep's socket.
//!
//! ## The flow
//!
//! ```text
//! docker / skep CLI
//!       │ request
//!       ▼
//!  api ── Transaction ── propose ──▶ raft ── committed ──▶ store.apply          (every manager, same order)
//!                          ▲                                   │ snapshot, on a watch
//!                          │                                   ▼
//!          orchestrator · allocator · scheduler · reaper ◀─────┤   leader only: plan(&Store) -> Vec<Action>
//!                          ▲                                   ▼
//!            task status, applied revision            dispatcher: one NodeView per node, part by part
//!                          │                                   │ session through the tunnel (rpc)
//!                        agent ◀── NodeView {tasks, networks, cluster} ── ledger on disk
//!         ┌──────────────┬───────┴──────┬───────────────┐
//!      runtime        overlay        balance           dns      each: observe → plan (pure) → apply → publish revision
//!                        └── datapath ──┘
//! ```
//!
//! Down goes desired state, up goes observed state, nothing else crosses. Loops meet only in the store (managers) or in
//! the [`model::NodeView`] (nodes). What decides is pure; what acts is thin. `tests/it/layers.rs` checks the arrows.
//!
//! ## The rooms, from the bottom up
//!
//! | room | what it holds |
//! |---|---|
//! | [`model`] | the words as types: ids, specs (spelled as Docker spells them), statuses, the view that a node gets, the address plan |
//! | [`store`] | tables by id, transactions, deterministic `apply`, snapshots |
//! | [`trust`] | root CA, node certificates, join tokens, the files that keep them |
//! | [`raft`] | the `raft` crate behind a core without IO, its log on disk, a handle; transport is a trait |
//! | [`manager`] | what the leader runs: planners, dispatcher, the place of a new node; `replica` puts the store behind raft |
//! | [`rpc`] | the node protocol over mutual TLS: join with its proof of the UDP way, sessions |
//! | [`runtime`] | containers: the `Engine` trait, Docker Engine through bollard, a fake |
//! | [`agent`] | this node's tasks: core, plan, shell, ledger |
//! | [`datapath`] | **the only room that touches the kernel**: mesh namespace, netlink, tunnel (kernel WireGuard or `skep tunnel`), sockets; `ebpf` loads the programs of `ebpf/` and reads and writes their maps |
//! | [`overlay`] | peers, addresses, rules, routes: plan, difference, loop; `driver` is Docker's network and IPAM plugin |
//! | [`balance`] | published ports: in user space, and (`ebpf`, `table`, `maglev`) what the kernel programs shall have |
//! | [`dns`] | names: records per client, server, forwarder |
//! | [`api`] | the Docker API: front door with raw pass-through, handlers, conversion |
//! | [`cli`] | the verbs that Docker has no word for; `demo` |
//! | [`lab`] | hosts on one machine, for the demo and the tests |
//! | `node` | the composition root: the only room that knows every other |
//! | [`http`], [`admin`], [`status`], [`settings`], [`telemetry`], [`clock`], [`durable`] | small house services, one file each |

pub mod admin;
pub mod agent;
pub mod api;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod datapath;
pub mod dns;
pub mod durable;
pub mod http;
pub mod ingress;
pub mod lab;
pub mod manager;
pub mod model;
mod node;
pub mod overlay;
pub mod protocol;
pub mod raft;
pub mod rpc;
pub mod runtime;
pub mod settings;
pub mod status;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod trust;
