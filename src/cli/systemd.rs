//! Socket activation and state notifications of systemd.

use std::io;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::http::socket::Socket;

/// The name of the socket for probes and metrics (`FileDescriptorName=` of its unit).
const ADMIN: &str = "admin";

/// Sockets that systemd opened for this process.
#[derive(Default)]
pub struct Passed {
    /// For requests.
    pub requests: Option<Socket>,
    /// For probes and metrics.
    pub admin: Option<Socket>,
}

impl Passed {
    /// Takes the sockets over. Must be called within the async runtime.
    ///
    /// # Errors
    /// When there are other sockets than these two, or they are not stream sockets.
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
                    "systemd passed several sockets for requests; hint: name the one for probes `{ADMIN}`"
                )));
            }
        }
        Ok(passed)
    }
}

/// Notifies systemd, if it started this process and asks for it.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Asks systemd to wait that much longer for the server to start.
pub fn extend_start(time: Duration) {
    let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    notify(&[
        NotifyState::ExtendTimeoutUsec(time),
        NotifyState::Status("downloading the model"),
    ]);
}

/// Sends keep-alives to systemd while the async runtime makes progress, if the unit asks for them.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}
