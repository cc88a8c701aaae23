//! One file from a hub into the cache: gone on with where it broke off, and checked before it counts.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::cache::{Shelf, broken};
use super::client::{Client, Failure, Trouble};
use super::digest::Checksum;
use super::{Event, Watch};
use rerankd_model::ModelError;
use rerankd_model::names::ModelId;

/// Bytes that are read and written at a time.
const CHUNK: usize = 1 << 16;
/// What a try has to add so that it does not count as one more that failed.
const PROGRESS_BYTES: u64 = 1 << 20;
/// Most bytes of a file whose length the hub does not tell; large ones always have one.
const MAX_UNTOLD_BYTES: u64 = 256 << 20;

/// A file that is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    pub name: String,
    pub checksum: Checksum,
    /// Bytes of it, if the hub tells.
    pub size: Option<u64>,
}

/// Where a file goes, and for which commit.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub client: &'a Client<'a>,
    pub id: &'a ModelId,
    pub shelf: &'a Shelf,
    pub commit: &'a str,
    pub watch: Watch<'a>,
}

impl Place<'_> {
    /// Asks the hub what a file is.
    pub(super) fn ask(self, name: String) -> Result<Wanted, Failure> {
        let facts = self.client.facts(self.id, self.commit, &name)?;
        let refuse = |what: &str| {
            let error = self.client.nonsense(&format!("about `{name}` {what}"));
            Failure::Refused(error)
        };
        if facts.commit.as_deref().is_some_and(|of| of != self.commit) {
            return Err(refuse("is about another commit"));
        }
        let etag = facts.etag().unwrap_or("");
        let checksum = Checksum::of_etag(etag).ok_or_else(|| {
            refuse(&format!(
                "has the ETag `{}`, which is no checksum",
                etag.escape_debug()
            ))
        })?;
        Ok(Wanted {
            name,
            checksum,
            size: facts.size,
        })
    }

    /// Bytes of a file that are still to come.
    pub(super) fn missing(self, wanted: &Wanted) -> u64 {
        let digits = wanted.checksum.digits();
        if self.shelf.blob(digits).exists() {
            return 0;
        }
        let there = fs::metadata(self.shelf.incomplete(digits)).map_or(0, |there| there.len());
        wanted.size.unwrap_or(0).saturating_sub(there)
    }

    /// Gets a file, unless it is there, and makes it a file of the commit.
    pub(super) fn get(self, wanted: &Wanted) -> Result<(), Failure> {
        let digits = wanted.checksum.digits();
        let blob = self.shelf.blob(digits);
        let ours = |error: std::io::Error| Failure::Refused(broken(&blob, &error));
        let _lock = self.shelf.lock(digits).map_err(ours)?;
        if !blob.exists() {
            let part = self.shelf.incomplete(digits);
            let length = || fs::metadata(&part).map_or(0, |there| there.len());
            let (mut again, mut furthest) = (true, length());
            self.client.patiently(|| {
                self.receive(wanted, &part).map_err(|trouble| {
                    let progress = length() >= furthest + PROGRESS_BYTES;
                    furthest = furthest.max(length());
                    trouble.after_progress(progress)
                })?;
                match wanted.checksum.fits(&part) {
                    Ok(true) => Ok(()),
                    Ok(false) => {
                        fs::remove_file(&part).map_err(|error| local(&part, &error))?;
                        // What an earlier try left may have been wrong; what came twice is not.
                        if std::mem::take(&mut again) {
                            return Err(Trouble::passing(format!(
                                "`{}` came with another content than its checksum says",
                                wanted.name
                            )));
                        }
                        Err(Trouble::Final(self.wrong(wanted)))
                    }
                    Err(error) => Err(local(&part, &error)),
                }
            })?;
            File::open(&part)
                .and_then(|file| file.sync_all())
                .map_err(ours)?;
            fs::rename(&part, &blob).map_err(ours)?;
        }
        self.shelf
            .link(self.commit, &wanted.name, digits)
            .map_err(ours)
    }

    fn wrong(self, wanted: &Wanted) -> ModelError {
        ModelError::new(
            format!(
                "`{}` of `{}` has another content than its checksum `{}` says",
                wanted.name,
                self.id,
                wanted.checksum.digits()
            ),
            "something between the hub and this machine changes or cuts files: check proxy and mirror",
        )
    }

    /// Brings what is missing of a file into `part`.
    fn receive(self, wanted: &Wanted, part: &Path) -> Result<(), Trouble> {
        let ours = |error: std::io::Error| local(part, &error);
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(part)
            .map_err(ours)?;
        let mut there = file.metadata().map_err(ours)?.len();
        if wanted.size.is_some_and(|size| there > size) {
            file.set_len(0).map_err(ours)?;
            there = 0;
        }
        if there > 0 && wanted.size == Some(there) {
            return Ok(());
        }
        let mut response = self
            .client
            .content(self.id, self.commit, &wanted.name, there)?;
        if there > 0 && !goes_on(&response, there) {
            file.set_len(0).map_err(ours)?;
            (self.watch)(Event::Restarted(there));
            there = 0;
        }
        if there == 0 && response.status() != StatusCode::OK {
            return Err(Trouble::passing(format!(
                "`{}` does not come from its start: the answer is {}",
                wanted.name,
                response.status()
            )));
        }
        let most = wanted.size.unwrap_or(MAX_UNTOLD_BYTES);
        let came = self.copy(&mut response, &mut file, part, there, most);
        let now = file.metadata().map_err(ours)?.len();
        let why = match came {
            Ok(()) if wanted.size.is_none_or(|size| size == now) => return Ok(()),
            Ok(()) => "the answer ended".to_owned(),
            Err(Trouble::Passing { what, .. }) => what,
            Err(trouble) => return Err(trouble),
        };
        Err(Trouble::passing(format!(
            "`{}` broke off after {now} bytes: {why}",
            wanted.name
        )))
    }

    fn copy(
        self,
        response: &mut Response<Body>,
        file: &mut File,
        part: &Path,
        mut there: u64,
        most: u64,
    ) -> Result<(), Trouble> {
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Trouble::passing(error.to_string())),
            };
            there += read as u64;
            if there > most {
                drop(fs::remove_file(part));
                return Err(Trouble::Final(self.client.nonsense(&format!(
                    "is longer than the {most} bytes that it should have"
                ))));
            }
            file.write_all(&chunk[..read])
                .map_err(|error| local(part, &error))?;
            (self.watch)(Event::Received(read as u64));
        }
    }
}

/// Whether an answer holds what follows the first `there` bytes.
fn goes_on(response: &Response<Body>, there: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && first_byte(response.headers()) == Some(there)
}

/// The place of the first byte that `content-range: bytes FIRST-LAST/TOTAL` names.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}

fn local(path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::Final(broken(path, error))
}
