//! Graceful shutdown: the phases of the server, and what moves it from one to the next.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::ShutdownConfig;

/// The phases of the server, in order. It never goes back to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The model is loading; only probes and `/metrics` are answered.
    Starting,
    /// Requests are served.
    Ready,
    /// A stop was requested: `/ready` fails, requests are still accepted.
    Grace,
    /// The listener is closed: accepted requests are finished, and no others are accepted.
    Draining,
}

/// The current phase of the server, which other tasks can read and await.
#[derive(Debug)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting),
        }
    }
}

impl Lifecycle {
    /// The current phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Advances to `phase` unless it has passed already, and returns whether it did. A server that is
    /// stopping never becomes ready again.
    pub fn advance(&self, phase: Phase) -> bool {
        self.phase.send_if_modified(|now| {
            let later = *now < phase;
            *now = (*now).max(phase);
            later
        })
    }

    /// Resolves once the server is no longer in `phase`.
    pub async fn left(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // Fails only if the lifecycle was dropped, and the server with it.
        let _ = phases.wait_for(|now| *now > phase).await;
    }

    /// Resolves once the server is in `phase` or beyond it.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        let mut phases = self.phase.subscribe();
        async move {
            // Fails only if the lifecycle was dropped, and the server with it.
            let _ = phases.wait_for(|now| *now >= phase).await;
        }
    }
}

/// How the server stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Every accepted request was answered.
    Clean,
    /// The drain timeout passed first.
    TimedOut,
    /// A second signal came.
    Killed,
}

/// Advances `lifecycle` to its end, driven by `signals`.
///
/// The first signal starts the grace period, which the drain follows; the second one stops the server at
/// once. `finished` resolves when every accepted request is answered.
pub async fn supervise(
    lifecycle: &Lifecycle,
    timing: &ShutdownConfig,
    signals: &mut mpsc::Receiver<()>,
    finished: impl Future<Output = ()>,
) -> Stopped {
    if signals.recv().await.is_none() {
        // Nothing is left that could stop the server.
        std::future::pending::<()>().await;
    }
    tracing::info!(
        grace_seconds = timing.grace.as_secs_f64(),
        drain_timeout_seconds = timing.drain_timeout.as_secs_f64(),
        hint = "a second signal stops at once",
        "stopping"
    );
    lifecycle.advance(Phase::Grace);
    let drained = async {
        sleep(timing.grace).await;
        lifecycle.advance(Phase::Draining);
        match tokio::time::timeout(timing.drain_timeout, finished).await {
            Ok(()) => Stopped::Clean,
            Err(_) => Stopped::TimedOut,
        }
    };
    tokio::select! {
        // If a second signal and the deadline coincide, the signal counts.
        biased;
        Some(()) = signals.recv() => Stopped::Killed,
        stopped = drained => stopped,
    }
}

async fn sleep(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Receives SIGTERM and SIGINT, each as an item.
///
/// # Errors
/// When the system refuses.
pub fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let caught = tokio::select! {
                caught = terminate.recv() => caught,
                caught = interrupt.recv() => caught,
            };
            if caught.is_none() || sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const TIMING: ShutdownConfig = ShutdownConfig {
        grace: Duration::from_secs(5),
        drain_timeout: Duration::from_secs(30),
    };

    #[test]
    fn phases_only_move_forward() {
        let lifecycle = Lifecycle::default();
        assert!(lifecycle.advance(Phase::Grace));
        assert!(!lifecycle.advance(Phase::Ready));
        assert_eq!(lifecycle.phase(), Phase::Grace);
    }

    #[tokio::test(start_paused = true)]
    async fn grace_comes_before_draining() {
        let lifecycle = Lifecycle::default();
        lifecycle.advance(Phase::Ready);
        let (send, mut signals) = mpsc::channel(2);
        let start = Instant::now();
        let draining_at = async {
            lifecycle.reached(Phase::Draining).await;
            start.elapsed()
        };
        let finished = async {
            lifecycle.reached(Phase::Draining).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        };
        send.send(()).await.unwrap();
        let (stopped, draining_at) = tokio::join!(
            supervise(&lifecycle, &TIMING, &mut signals, finished),
            draining_at
        );
        assert_eq!(stopped, Stopped::Clean);
        assert_eq!(draining_at, TIMING.grace);
        assert_eq!(start.elapsed(), TIMING.grace + Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_does_not_end_times_out() {
        let (send, mut signals) = mpsc::channel(2);
        send.send(()).await.unwrap();
        let start = Instant::now();
        let stopped = supervise(
            &Lifecycle::default(),
            &TIMING,
            &mut signals,
            std::future::pending(),
        )
        .await;
        assert_eq!(stopped, Stopped::TimedOut);
        assert_eq!(start.elapsed(), TIMING.grace + TIMING.drain_timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_stops_at_once() {
        let (send, mut signals) = mpsc::channel(2);
        send.send(()).await.unwrap();
        send.send(()).await.unwrap();
        let start = Instant::now();
        let stopped = supervise(
            &Lifecycle::default(),
            &TIMING,
            &mut signals,
            std::future::pending(),
        )
        .await;
        assert_eq!(stopped, Stopped::Killed);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
