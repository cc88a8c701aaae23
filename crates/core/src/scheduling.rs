//! Scheduling hints of a request: tenant, priority and deadline.

use std::time::Instant;

/// Scheduling hints of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulingHints {
    /// Tenants share capacity equally, regardless of their number of requests.
    pub tenant: Tenant,
    /// Weight among the requests of the tenant.
    pub priority: Priority,
    /// When the result is no longer useful.
    pub deadline: Option<Deadline>,
}

/// The unit of fair sharing. By default all clients are one tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(pub u64);

/// From 0 (most urgent) to 999. A weight, not a strict order: a request with priority `p` gets `1 / (1 + p)` of
/// the share of priority 0, so that it is never starved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Priority(u16);

impl Priority {
    /// The lowest priority.
    pub const MAX: u16 = 999;

    /// `None` above [`Priority::MAX`].
    pub fn new(priority: u16) -> Option<Self> {
        (priority <= Self::MAX).then_some(Self(priority))
    }

    /// The inverse weight: how many requests of this priority get the share of one with priority 0.
    pub fn parts(self) -> u64 {
        u64::from(self.0) + 1
    }
}

/// When a result is no longer useful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// Who set it.
    pub by: DeadlineBy,
}

/// Who set a deadline, which determines the error when it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineBy {
    /// The request.
    Client,
    /// The server's configuration.
    Server,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_at_most_999() {
        assert_eq!(Priority::new(0).map(Priority::parts), Some(1));
        assert_eq!(Priority::new(999).map(Priority::parts), Some(1000));
        assert_eq!(Priority::new(1000), None);
        assert_eq!(SchedulingHints::default().priority.parts(), 1);
    }
}
