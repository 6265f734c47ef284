//! (room not furnished yet)
pub mod replica;
