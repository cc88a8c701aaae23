//! TLS, with certificates that can be renewed while the server runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fmt, io};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The name of HTTP/2 in a handshake.
pub(super) const H2: &[u8] = b"h2";

/// Why certificates cannot be served, in words for the person who made the files.
#[derive(Debug, thiserror::Error)]
#[error("{what}; hint: {hint}")]
pub struct TlsError {
    what: String,
    hint: &'static str,
}

impl TlsError {
    fn new(what: impl Into<String>, hint: &'static str) -> Self {
        Self {
            what: what.into(),
            hint,
        }
    }
}

/// The server's side of TLS.
pub struct Tls {
    acceptor: TlsAcceptor,
    /// The same for connections that are only told that there is no room.
    refusing: TlsAcceptor,
    current: Arc<Current>,
    files: Files,
}

/// A certificate and its key.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What is shown to clients that connect now.
#[derive(Debug)]
struct Current(RwLock<Shown>);

struct Shown {
    key: Arc<CertifiedKey>,
    /// What the files held, to notice a change.
    pems: [Vec<u8>; 2],
}

/// rustls wants to be able to print what holds a certificate; the key is not for printing.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificates = self.key.cert.len();
        f.debug_struct("Shown")
            .field("certificates", &certificates)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.key.clone())
    }
}

impl Tls {
    /// Reads the files and checks that they belong together.
    ///
    /// # Errors
    /// When they cannot be read or do not.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let provider = Arc::new(ring::default_provider());
        let current = Arc::new(Current(RwLock::new(files.read(&provider)?)));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(error.to_string(), "report this"))?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        // HTTP/1.1 has a status for it, which people can read; HTTP/2 where it is all the client speaks.
        let mut refusing = config.clone();
        refusing.alpn_protocols.reverse();
        Ok(Self {
            acceptor: Arc::new(config).into(),
            refusing: Arc::new(refusing).into(),
            current,
            files,
        })
    }

    /// Reads the files again; says whether they have changed. Open connections keep what they have.
    ///
    /// # Errors
    /// As [`Tls::load`]; the certificate stays as it was.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let provider = self.acceptor.config().crypto_provider().clone();
        let new = self.files.read(&provider)?;
        let mut current = self
            .current
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = current.pems != new.pems;
        *current = new;
        Ok(changed)
    }

    pub(super) async fn accept<IO>(&self, io: IO) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(io).await
    }

    /// As [`Tls::accept`], where what follows is a refusal.
    pub(super) async fn accept_to_refuse<IO>(&self, io: IO) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.refusing.accept(io).await
    }
}

impl Files {
    fn read(&self, provider: &CryptoProvider) -> Result<Shown, TlsError> {
        let read = |path: &Path, hint| {
            std::fs::read(path)
                .map_err(|error| TlsError::new(format!("`{}`: {error}", path.display()), hint))
        };
        let hint =
            "`tls_cert` is a PEM file of the server's certificate and those that vouch for it";
        let certificate = read(&self.certificate, hint)?;
        let place = self.certificate.display();
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| TlsError::new(format!("`{place}`: {error}"), hint))?;
        if chain.is_empty() {
            return Err(TlsError::new(
                format!("`{place}` holds no certificate"),
                hint,
            ));
        }

        let hint = "`tls_key` is a PEM file of the private key, without a password";
        let key = read(&self.key, hint)?;
        let place = self.key.display();
        let private = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| TlsError::new(format!("`{place}`: {error}"), hint))?;

        let certified = CertifiedKey::from_der(chain, private, provider).map_err(|error| {
            TlsError::new(
                format!("`{}` with `{place}`: {error}", self.certificate.display()),
                "the key has to be that of the first certificate",
            )
        })?;
        Ok(Shown {
            key: Arc::new(certified),
            pems: [certificate, key],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let pem = made.signing_key.serialize_pem();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, &pem).unwrap();
        let printed = format!("{:?}", Tls::load(&certificate, &key).unwrap().current);
        assert!(printed.contains("certificates: 1"), "{printed}");
        let bytes = format!("{:?}", &pem.as_bytes()[..40]);
        for secret in [&pem[..40], bytes.trim_matches(['[', ']'])] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
