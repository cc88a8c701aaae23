//! How a request is scheduled.

use std::time::Instant;

/// Whose a request is, how urgent, and until when its answer is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulingHints {
    /// Who asks. Tenants share the machine evenly, however many requests each has.
    pub tenant: Tenant,
    /// Its weight among the requests of its tenant.
    pub priority: Priority,
    /// When the answer is of no use any more.
    pub deadline: Option<Deadline>,
}

/// Somebody who has a share of the machine. Everybody is the same one unless told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(pub u64);

/// From 0, the most urgent, to 999. A weight, not a strict order: a request of priority `p` has
/// `1 / (1 + p)` of the share of one of priority 0, so that it waits longer but never for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Priority(u16);

impl Priority {
    /// The least urgent.
    pub const MAX: u16 = 999;

    /// `None` beyond [`Priority::MAX`].
    pub fn new(priority: u16) -> Option<Self> {
        (priority <= Self::MAX).then_some(Self(priority))
    }

    /// How many requests of this priority have the share of one of priority 0.
    pub fn parts(self) -> u64 {
        u64::from(self.0) + 1
    }
}

/// When an answer is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// Who set it.
    pub by: DeadlineBy,
}

/// Who set a deadline: a client that did so itself is told apart when it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineBy {
    /// The request.
    Client,
    /// The server's settings.
    Server,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_end_at_999() {
        assert_eq!(Priority::new(0).map(Priority::parts), Some(1));
        assert_eq!(Priority::new(999).map(Priority::parts), Some(1000));
        assert_eq!(Priority::new(1000), None);
        assert_eq!(SchedulingHints::default().priority.parts(), 1);
    }
}
