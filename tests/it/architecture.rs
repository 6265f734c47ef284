//! The structure of the source as ARCHITECTURE.md describes it, checked on the text of the files: which room may import
//! which, that no imports form a circle, that a type name means one thing, which words are not used, how connections
//! are accepted and what loops run under.

mod accept_loops;
mod advice;
mod arrows;
mod circles;
mod loops;
mod names;
mod secret_fields;
mod source;
mod words;
