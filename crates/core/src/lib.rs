//! What a client may ask of a reranker and what it gets back, in no wire format's words.
//!
//! A command is validated once, when it is made: holding one proves that every limit was checked.

pub mod batch;
pub mod command;
pub mod error;
pub mod scheduling;
pub mod score;
pub mod secret;
pub mod truncation;

pub use batch::{Batch, Encoding, PairKey};
pub use command::*;
pub use error::{ErrorCode, RerankError};
pub use scheduling::{Deadline, DeadlineBy, Priority, SchedulingHints, Tenant};
pub use score::{Activation, Scale};
pub use secret::Secret;
pub use truncation::{Fit, Side, Strategy};
