//! The proof of the planners: random walks over planners, store and simulated nodes, with loss, slow nodes, lost and repeated
//! reports, changes of the leader and writes of others in between. Every plan is held against [`rules`] that are written down
//! without the planners' code, and at the end what is wanted must be reached. [`mutants`] are faults that are put between planner
//! and store: each must be found by the rule that it breaks.

mod mutants;
pub mod rules;
mod walk;
