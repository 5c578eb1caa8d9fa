//! A pod's agent under test and a client of it, generated from the same protocol files by a library we did not write.

pub mod machine;
pub mod pod;
pub mod scenarios;
pub mod spec;
