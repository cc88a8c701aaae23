//! Shared by the test programs.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod alone;
pub mod fake;
pub mod hub;
pub mod packed;
pub mod program;
pub mod real;
pub mod reference;
pub mod saved;
pub mod server;
