//! Work that yields to the threads that serve.

use std::time::Duration;

use rustix::process::nice;
use rustix::time::{ClockId, clock_gettime};

/// What is added to the nice value: beside a busy thread, a tenth of its core is left.
const NICER: i32 = 10;

/// Does `work` on a thread of its own at low priority, and returns what it returns. Threads that `work` starts have
/// that priority too, so none of them may outlive it.
///
/// # Panics
/// When the system refuses a thread, or `work` panics.
pub fn in_background<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("load".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            lower_priority();
            work()
        });
        let done = thread.expect("the system gives a thread").join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lowers the priority of this thread. It cannot be raised again without privileges.
fn lower_priority() {
    // Elsewhere this would lower the priority of the whole process.
    if cfg!(target_os = "linux")
        && let Err(error) = nice(NICER)
    {
        tracing::debug!(%error, "loading at the priority of the process");
    }
}

/// Time for which this thread has run on a processor.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::process::getpriority_process;

    use super::*;

    /// The largest nice value.
    const MAX_NICE: i32 = 19;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_background_yields_and_the_caller_does_not() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let (inside, started) = in_background(|| {
            let started = std::thread::spawn(nice).join().unwrap();
            (nice(), started)
        });
        let lowered = (before + NICER).min(MAX_NICE);
        assert_eq!((inside, started, nice()), (lowered, lowered, before));
    }

    #[test]
    fn waiting_is_no_processor_time() {
        let started = processor_time();
        let busy = std::thread::spawn(|| {
            let (started, own) = (Instant::now(), processor_time());
            while started.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            processor_time() - own
        });
        let theirs = busy.join().unwrap();
        assert!(theirs > Duration::ZERO);
        assert!(processor_time() - started < Duration::from_millis(20));
    }
}
