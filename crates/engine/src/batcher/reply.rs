//! The one answer a request gets.

use tokio::sync::oneshot;

use super::BatchError;

/// Logits of a request, or the reason why there are none.
pub(super) type Answer = Result<Vec<f32>, BatchError>;

/// Where the waiting side hears of it. An error means that the worker was lost.
pub(super) type Receiver = oneshot::Receiver<Answer>;

/// The right to answer a request, used up by doing so. Dropped unanswered, the waiting side sees a
/// lost worker rather than waiting for ever.
#[must_use = "a request is answered exactly once"]
pub(super) struct Reply(oneshot::Sender<Answer>);

pub(super) fn channel() -> (Reply, Receiver) {
    let (sender, receiver) = oneshot::channel();
    (Reply(sender), receiver)
}

impl Reply {
    pub(super) fn answer(self, answer: Answer) {
        // The client may have left in this very moment; then nobody is left to tell.
        let _ = self.0.send(answer);
    }
}
