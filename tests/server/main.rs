//! The server, its HTTP interface and its commands.
//!
//! One program holds these tests so that they are linked once. They run in parallel within one process:
//! a test that measures memory measures a child process.

#[path = "../support/mod.rs"]
mod support;

mod amplification;
mod causal;
mod compat;
mod configuration;
mod connections;
mod contracts;
mod end_to_end;
mod grpc;
mod http;
mod hub;
mod instructions;
mod models;
mod openapi;
mod operations;
mod page;
mod refusals;
mod reload;
mod score;
mod security;
mod service;
mod traces;
