//! Wire formats. Each is a file of one shape: request types, `into_command`, the response's `fill`,
//! and the body of an error. They translate and decide nothing.

pub mod field;
pub mod native;
