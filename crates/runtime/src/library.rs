//! Finds and checks the ONNX Runtime library before `ort` touches it.
//!
//! `ort` has been seen to hang, or to panic in a thread, when the library is missing or too old; a
//! start that fails must say in one line what to do.
#![allow(
    unsafe_code,
    reason = "loading a shared library and asking it for its version"
)]

use std::ffi::{CStr, OsStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

/// The library as the system's loader knows it.
const SYSTEM_NAME: &str = "libonnxruntime.so";
/// Folders beside the executable's own: that of packages, and where the build puts the library.
const FOLDERS: [&str; 2] = ["../lib/rerankd", "../onnxruntime"];
const HINT: &str = "hint: run `make onnxruntime`, or set ORT_DYLIB_PATH to the full path of libonnxruntime.so from the PyPI package `onnxruntime`";

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// No place that is searched holds the library.
    #[error("no ONNX Runtime library in {}; {HINT}", searched.join(", "))]
    NotFound {
        /// The places, in the order they were tried.
        searched: Vec<String>,
    },
    /// `ORT_DYLIB_PATH` depends on the directory that the server is started from.
    #[error("ORT_DYLIB_PATH is `{}`, which is not a full path; hint: begin it with `/`", .0.display())]
    Relative(PathBuf),
    /// The file is not a library that this machine can load.
    #[error("`{}` cannot be loaded as ONNX Runtime: {reason}; {HINT}", path.display())]
    NotLoadable {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The library is older than what this program was built for.
    #[error("`{}` is ONNX Runtime {found}; this program needs 1.{minimum} or newer; {HINT}", path.display())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest minor version that works.
        minimum: u32,
    },
}

/// ONNX Runtime, loaded.
#[derive(Debug, Clone)]
pub struct Library {
    /// The file it was loaded from.
    pub path: PathBuf,
    /// Its version, such as `1.32.0`.
    pub version: String,
    pub(super) environment: Environment,
}

impl Library {
    /// Finds, checks and loads the library: once a process, later calls return the same.
    ///
    /// `configured` is the value of `ORT_DYLIB_PATH`. Without it the places searched are beside the
    /// executable, `../lib/rerankd/` and `../onnxruntime/` from there, and the system's own paths; never
    /// the working directory.
    ///
    /// # Errors
    /// [`LibraryError`], in one line with what to do.
    pub fn load(configured: Option<&OsStr>) -> Result<Self, LibraryError> {
        static LOADED: Mutex<Option<Library>> = Mutex::new(None);
        let mut loaded = LOADED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(library) = loaded.as_ref() {
            return Ok(library.clone());
        }
        let executable = std::env::current_exe().ok();
        let folder = executable.as_deref().and_then(Path::parent);
        let (path, version) = locate(configured, folder)?;
        let library = initialize(path, version)?;
        Ok(loaded.insert(library).clone())
    }
}

fn initialize(path: PathBuf, version: String) -> Result<Library, LibraryError> {
    let not_loadable = |reason: String| LibraryError::NotLoadable {
        path: path.clone(),
        reason,
    };
    let environment = ort::init_from(&path)
        .map_err(|e| not_loadable(e.to_string()))?
        .with_telemetry(false)
        .build()
        .map_err(|e| not_loadable(e.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    Ok(Library {
        path,
        version,
        environment,
    })
}

/// The library to load and its version.
fn locate(
    configured: Option<&OsStr>,
    executable_folder: Option<&Path>,
) -> Result<(PathBuf, String), LibraryError> {
    if let Some(path) = configured.filter(|p| !p.is_empty()).map(PathBuf::from) {
        // A bare name is looked up by the system's loader, which is not the working directory.
        let bare =
            path.components().count() == 1 && !path.as_os_str().as_encoded_bytes().contains(&b'/');
        if !path.is_absolute() && !bare {
            return Err(LibraryError::Relative(path));
        }
        return probe(&path).map(|version| (path, version));
    }
    let mut searched = Vec::new();
    let folders = executable_folder.into_iter().flat_map(|folder| {
        std::iter::once(folder.to_path_buf()).chain(FOLDERS.map(|name| folder.join(name)))
    });
    for folder in folders {
        if let Some(path) = newest_in(&folder) {
            return probe(&path).map(|version| (path, version));
        }
        searched.push(format!("`{}`", folder.display()));
    }
    let path = PathBuf::from(SYSTEM_NAME);
    match probe(&path) {
        Err(LibraryError::NotLoadable { .. }) => {
            searched.push("the system's library paths".into());
            Err(LibraryError::NotFound { searched })
        }
        result => result.map(|version| (path, version)),
    }
}

/// The last of `libonnxruntime.so`, `libonnxruntime.so.1.32.0`, … in `folder`.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let version = |name: &str| -> Option<Vec<u32>> {
        let rest = name.strip_prefix(SYSTEM_NAME)?;
        if rest.is_empty() {
            return Some(Vec::new());
        }
        rest.strip_prefix('.')?
            .split('.')
            .map(|part| part.parse().ok())
            .collect()
    };
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = version(entry.file_name().to_str()?)?;
            Some((version, entry.path()))
        })
        .max()
        .map(|(_, path)| path)
}

#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "C" fn(u32) -> *const std::ffi::c_void,
    get_version: unsafe extern "C" fn() -> *const c_char,
}

/// The version of the library at `path`, when it is one and new enough.
fn probe(path: &Path) -> Result<String, LibraryError> {
    let not_loadable = |reason: String| LibraryError::NotLoadable {
        path: path.to_path_buf(),
        reason,
    };
    // SAFETY: the initializers of ONNX Runtime's library have no precondition.
    let library =
        unsafe { libloading::Library::new(path) }.map_err(|e| not_loadable(e.to_string()))?;
    // SAFETY: the symbol, where it exists, has this signature in every version of the C API.
    let get_base =
        unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase\0") }
            .map_err(|_| not_loadable("it does not export `OrtGetApiBase`".into()))?;
    // SAFETY: the base and the string are static data of the library, which is still loaded; the
    // string is NUL-terminated.
    let version = unsafe {
        let base = get_base();
        if base.is_null() {
            return Err(not_loadable("`OrtGetApiBase` returned nothing".into()));
        }
        CStr::from_ptr(((*base).get_version)())
    }
    .to_string_lossy()
    .into_owned();
    let minor = version
        .strip_prefix("1.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|minor| minor.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < ort::MINOR_VERSION) {
        return Err(LibraryError::TooOld {
            path: path.to_path_buf(),
            found: version,
            minimum: ort::MINOR_VERSION,
        });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_path_is_refused_whatever_the_working_directory_holds() {
        let error = locate(Some(OsStr::new("lib/libonnxruntime.so")), None).unwrap_err();
        assert!(matches!(error, LibraryError::Relative(_)), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, "not a library").unwrap();
        let error = locate(None, Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("hint:") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn the_newest_version_in_a_folder_wins() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime.so.x",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let newest = newest_in(folder.path()).unwrap();
        assert!(newest.ends_with("libonnxruntime.so.1.32.0"));
    }

    #[test]
    fn beside_the_executable_comes_before_a_package_and_that_before_the_build() {
        let root = tempfile::tempdir().unwrap();
        let executable_folder = root.path().join("bin");
        let folders = ["bin", "lib/rerankd", "onnxruntime"].map(|name| root.path().join(name));
        for folder in &folders {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join("libonnxruntime.so"), "").unwrap();
        }
        for expected in ["bin/", "lib/rerankd/", "onnxruntime/"] {
            let error = locate(None, Some(&executable_folder)).unwrap_err();
            let LibraryError::NotLoadable { path, .. } = error else {
                panic!("{error}");
            };
            let path = path.canonicalize().unwrap();
            assert!(
                path.ends_with(format!("{expected}libonnxruntime.so")),
                "{path:?}"
            );
            std::fs::remove_file(path).unwrap();
        }
    }
}
