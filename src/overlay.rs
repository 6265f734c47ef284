//! (room not furnished yet)

pub mod driver;
