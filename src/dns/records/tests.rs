//! (tests come)
