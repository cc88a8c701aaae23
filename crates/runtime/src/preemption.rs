//! Calls a hook between two layers of a batch, on the thread that computes it. Whoever runs batches may use it to
//! run a short batch of a second session before the long one goes on.

use std::cell::RefCell;
use std::sync::Arc;

/// Runs between two layers.
pub type LayerHook = Arc<dyn Fn() + Send + Sync>;

thread_local! {
    /// The hook of the batch that this thread computes.
    static HOOK: RefCell<Option<LayerHook>> = const { RefCell::new(None) };
}

/// Computes a batch on this thread with `hook` between its layers.
pub(super) fn with<T>(hook: Option<&LayerHook>, batch: impl FnOnce() -> T) -> T {
    let _reset = Reset(HOOK.replace(hook.cloned()));
    batch()
}

/// Puts the hook of the interrupted batch back, also when the batch panics.
struct Reset(Option<LayerHook>);

impl Drop for Reset {
    fn drop(&mut self) {
        HOOK.set(self.0.take());
    }
}

/// Calls the hook. A batch that the hook runs is not interrupted itself.
pub(super) fn between_layers() {
    let hook = HOOK.take();
    if let Some(hook) = hook {
        let _reset = Reset(Some(hook.clone()));
        hook();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_hook_is_that_of_the_batch_and_not_called_within_itself() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let hook: LayerHook = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            between_layers();
            with(None, between_layers);
        });
        between_layers();
        with(Some(&hook), || {
            between_layers();
            with(None, between_layers);
            between_layers();
        });
        between_layers();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_hook_that_panics_is_not_lost() {
        let hook: LayerHook = Arc::new(|| panic!("planted"));
        with(Some(&hook), || {
            for _ in 0..2 {
                assert!(std::panic::catch_unwind(between_layers).is_err());
            }
        });
        between_layers();
    }
}
