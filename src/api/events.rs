//! Events of the swarm's objects, as `docker events` shows them beside the engine's: [`change`] finds them between two
//! states of the store, [`EventFeed`] keeps the last ones and passes new ones on, [`EventFilter`] selects. Each manager has
//! its own, from its own store.

mod change;
mod feed;
mod filter;

pub use change::SwarmEvent;
pub use feed::EventFeed;
pub use filter::EventFilter;
