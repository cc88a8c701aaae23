//! What systemd passes to a service, and what it is told: sockets in, states out.

use std::io;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::http::socket::Socket;

/// What a passed socket is named that is for probes and metrics (`FileDescriptorName=` of its unit).
const ADMIN: &str = "admin";

/// Sockets that were opened for this program.
#[derive(Default)]
pub struct Passed {
    /// For requests.
    pub requests: Option<Socket>,
    /// For probes and metrics.
    pub admin: Option<Socket>,
}

impl Passed {
    /// Takes them over. Has to be called inside of the runtime.
    ///
    /// # Errors
    /// When there are others than those two, or they are no stream sockets.
    pub fn take() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut fds = ListenFd::from_env();
        let mut passed = Self::default();
        for index in 0..fds.len() {
            let socket = match fds.take_tcp_listener(index) {
                Ok(Some(listener)) => Socket::from_tcp(listener)?,
                Ok(None) => continue,
                Err(_) => match fds.take_unix_listener(index)? {
                    Some(listener) => Socket::from_unix(listener)?,
                    None => continue,
                },
            };
            let place = match names.get(index) {
                Some(&ADMIN) => &mut passed.admin,
                _ => &mut passed.requests,
            };
            if place.replace(socket).is_some() {
                return Err(io::Error::other(format!(
                    "more than one socket was passed; name that of probes `{ADMIN}`"
                )));
            }
        }
        Ok(passed)
    }
}

/// Tells systemd, if it started this program and wants to know.
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// Tells systemd for as long as the runtime turns that it does, where the unit asks for it.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
