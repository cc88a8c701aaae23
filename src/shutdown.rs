//! How the server stops: what phase it is in, and who moves it on.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::ShutdownConfig;

/// Where in its life the server is. Phases only move forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The model is loading; only `/live` and `/metrics` have something to say.
    Starting,
    /// Requests are served.
    Ready,
    /// A stop was asked for: `/ready` says no, requests are still served.
    Grace,
    /// The listener is closed; what was accepted is finished and nothing new is taken.
    Draining,
}

/// The phase of the server, to be read and awaited from anywhere.
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
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on to `phase`; says whether it did. A server told to stop does not become ready again.
    pub fn advance(&self, phase: Phase) -> bool {
        self.phase.send_if_modified(|now| {
            let later = *now < phase;
            *now = (*now).max(phase);
            later
        })
    }

    /// Resolves once the server is in `phase` or beyond it.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        let mut phases = self.phase.subscribe();
        async move {
            // An error means that the lifecycle is gone, and the server with it.
            let _ = phases.wait_for(|now| *now >= phase).await;
        }
    }
}

/// How stopping went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Everything accepted was answered.
    Clean,
    /// The drain timeout passed first.
    TimedOut,
    /// A second signal asked not to wait.
    Killed,
}

/// Walks `lifecycle` to its end, driven by `signals`.
///
/// The first signal starts the grace period and then the drain, the second one ends it. `finished`
/// resolves when everything accepted is answered.
pub async fn supervise(
    lifecycle: &Lifecycle,
    timing: &ShutdownConfig,
    signals: &mut mpsc::Receiver<()>,
    finished: impl Future<Output = ()>,
) -> Stopped {
    if signals.recv().await.is_none() {
        // Nobody is left who could ask for a stop.
        std::future::pending::<()>().await;
    }
    tracing::info!(
        grace_seconds = timing.grace.as_secs_f64(),
        drain_timeout_seconds = timing.drain_timeout.as_secs_f64(),
        "stopping; a second signal stops at once"
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
        // Asked first: of a second signal and a passed deadline, the signal counts.
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

/// Starts to listen for SIGTERM and SIGINT; each one arrives as an item.
///
/// # Errors
/// When the system does not let signals be caught.
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
