//! The single answer of a request.

use tokio::sync::oneshot;

use super::BatchError;

/// Logits of a request, or the reason why there are none.
pub(super) type Answer = Result<Vec<f32>, BatchError>;

/// Where the waiting side receives it. An error means that the batcher was dropped.
pub(super) type Receiver = oneshot::Receiver<Answer>;

/// The right to answer a request, consumed by answering. When it is dropped, the waiting side gets an
/// error instead of waiting forever.
#[must_use = "a request is answered exactly once"]
pub(super) struct Reply(oneshot::Sender<Answer>);

pub(super) fn channel() -> (Reply, Receiver) {
    let (sender, receiver) = oneshot::channel();
    (Reply(sender), receiver)
}

impl Reply {
    pub(super) fn answer(self, answer: Answer) {
        // The client may have just left.
        let _ = self.0.send(answer);
    }
}
