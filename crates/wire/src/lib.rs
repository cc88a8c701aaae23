//! Wire formats, without a transport: bytes to commands, and results to bytes.
//!
//! Each dialect is one file: the types of its requests and answers, how a request becomes a command,
//! and the body of its errors. A dialect translates and decides nothing. [`registry`] lists them; a
//! new one is a file here, its line there, its cases in `tests/compat` and a section of
//! `docs/clients.md`. `make fmt` formats what `cargo fmt` does not see, as their modules come from that
//! list.

#[macro_use]
pub mod registry;

pub mod answer;
pub mod detect;
pub mod dialect;
mod document;
mod error;
mod fusion;
mod pairs;
mod read;
pub mod schema;
mod usage;

dialects!(modules);

pub use self::answer::{Context, DocumentForm, Token};
pub use self::dialect::{
    Asked, Body, Dialect, Endpoint, Kind, Operation, Served, ServedModel, Work,
};
pub use self::error::{Problem, Reply, to_json};
pub use self::infinity::INFINITY;
pub use self::native::{NATIVE, NativeError};
pub use self::open_inference::OPEN_INFERENCE;
pub use self::read::list::List;
pub use self::vllm::VLLM;
