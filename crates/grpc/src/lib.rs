//! The messages of gRPC services, without a transport: messages to commands, and results to messages.
//!
//! The services are those of Text Embeddings Inference ([`tei`]), of the Open Inference Protocol
//! ([`inference`]), and gRPC's own health check ([`health`]). [`METHODS`] lists what they offer. Requests
//! are read field by field instead of into generated types: a repeated field takes many times its bytes in
//! memory, and here no more of it is kept than a request may have.

mod fields;
pub mod frame;
pub mod health;
pub mod inference;
pub mod method;
pub mod tei;

pub use self::method::{About, Call, METHODS, Method, Reflection};

/// The service definitions, as server reflection tells them: a `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Types that are generated from the service definitions.
#[allow(missing_docs, reason = "the definitions have comments")]
pub mod proto {
    /// Text Embeddings Inference.
    pub mod tei {
        include!(concat!(env!("OUT_DIR"), "/tei.v1.rs"));
    }

    /// The Open Inference Protocol.
    pub mod inference {
        include!(concat!(env!("OUT_DIR"), "/inference.rs"));
    }

    /// Health checks.
    pub mod health {
        include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
    }
}
