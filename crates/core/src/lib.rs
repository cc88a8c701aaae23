//! Domain types shared by all crates: commands, rankings, batches, errors and scheduling hints, independent of
//! any wire format.

pub mod batch;
pub mod command;
pub mod error;
pub mod fusion;
pub mod instruction;
pub mod scheduling;
pub mod score;
pub mod secret;
pub mod truncation;

pub use batch::{Batch, Encoding, PairKey};
pub use command::*;
pub use error::{ErrorCode, RerankError};
pub use fusion::{FirstStage, Fusion, FusionMethod, FusionWeight};
pub use instruction::{Instruction, InstructionPolicy};
pub use scheduling::{Deadline, DeadlineBy, Priority, SchedulingHints, Tenant};
pub use score::{Activation, Scale};
pub use secret::Secret;
pub use truncation::{TruncationOptions, TruncationSide, TruncationStrategy};
