//! The structure of the source as ARCHITECTURE.md describes it, checked on the text of the files: which room may import
//! which, that no imports form a circle, that a type name means one thing, and which words are not used.

mod arrows;
mod circles;
mod names;
mod secret_fields;
mod source;
mod words;
