//! Which device runs the model: what was asked for, against what is there.
//!
//! Looked at before a session is made, so that what is missing is said by its name.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::driver::{self, DRIVER, DeviceFacts, DriverError, RUNTIME};
use crate::Device;

/// The library beside ONNX Runtime's that runs models on CUDA.
const PROVIDER: &str = "libonnxruntime_providers_cuda.so";
/// What the provider is linked to, or loads: CUDA 13 and cuDNN 9.
const NEEDED: [&str; 5] = [
    RUNTIME,
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcudnn.so.9",
];
/// The oldest CUDA that a driver may be of.
const OLDEST_CUDA: (u32, u32) = (13, 0);

/// A GPU that can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as CUDA counts.
    pub index: u32,
    /// What the driver says of it.
    pub facts: DeviceFacts,
}

/// The device that runs the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The processor.
    Cpu,
    /// A GPU.
    Cuda(Gpu),
}

/// A device, and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The device.
    pub device: Taken,
    /// Why, in a few words.
    pub because: String,
}

impl Choice {
    /// Its name as the setting spells it, such as `cuda:0`.
    pub fn name(&self) -> String {
        match &self.device {
            Taken::Cpu => Device::Cpu.to_string(),
            Taken::Cuda(gpu) => Device::Cuda(gpu.index).to_string(),
        }
    }
}

/// A device was asked for that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`--device {asked}` cannot be used: {lack}; hint: {}, or start with `--device cpu`", lack.hint())]
pub struct DeviceError {
    asked: Device,
    #[source]
    lack: Lack,
}

/// What a GPU's use lacks.
#[derive(Debug, thiserror::Error)]
enum Lack {
    #[error("the NVIDIA driver's `{DRIVER}` cannot be loaded ({0})")]
    Driver(#[source] DriverError),
    #[error(transparent)]
    Device(DriverError),
    #[error(
        "the driver is of CUDA {}.{}, and CUDA {} is needed",
        .0.0, .0.1, OLDEST_CUDA.0
    )]
    NewerDriver((u32, u32)),
    #[error(
        "ONNX Runtime {version} in `{}` is built without CUDA: `{PROVIDER}` is not beside it",
        library.display()
    )]
    Provider { version: String, library: PathBuf },
    /// Each library that cannot be loaded, and why.
    #[error("libraries of CUDA 13 and cuDNN 9 cannot be loaded: {0}")]
    Libraries(String),
}

impl Lack {
    /// How it is mended.
    fn hint(&self) -> &'static str {
        match self {
            Self::Driver(_) => {
                "install the driver; in a container, give it the GPU (`docker run --gpus all`)"
            }
            Self::Device(_) => "`nvidia-smi -L` lists the devices that this process may see",
            Self::NewerDriver(_) => "install a newer driver: 580 or later",
            Self::Provider { .. } => {
                "run `make onnxruntime-gpu`, and set ORT_DYLIB_PATH to the full path of \
                 `target/onnxruntime-gpu/libonnxruntime.so`"
            }
            Self::Libraries(_) => "install them, and name their folders in LD_LIBRARY_PATH",
        }
    }
}

/// The machine, as far as a GPU is concerned.
pub trait Machine {
    /// Loads a library by its name, as the system's loader finds it.
    ///
    /// # Errors
    /// [`DriverError::Library`] with what the loader said.
    fn load(&self, name: &str) -> Result<(), DriverError>;

    /// What the driver says of device `index`.
    ///
    /// # Errors
    /// [`DriverError`] when there is no such device, or the driver refuses.
    fn facts(&self, index: u32) -> Result<DeviceFacts, DriverError>;

    /// Libraries of this name in other versions, where the loader looks.
    fn others(&self, name: &str) -> Vec<PathBuf>;
}

/// Takes the device that was `asked` for. `library` is ONNX Runtime's, of this `version`.
///
/// # Errors
/// [`DeviceError`] when a GPU was asked for and cannot be used. `auto` takes the processor then.
pub fn choose(
    asked: Device,
    library: &Path,
    version: &str,
    machine: &dyn Machine,
) -> Result<Choice, DeviceError> {
    let cpu = |because| Choice {
        device: Taken::Cpu,
        because,
    };
    let cuda = |gpu| Choice {
        device: Taken::Cuda(gpu),
        because: match asked {
            Device::Auto => "a GPU is there, and all that it needs".to_owned(),
            _ => "it was asked for".to_owned(),
        },
    };
    match asked {
        Device::Cpu => Ok(cpu("it was asked for, or is the default".to_owned())),
        Device::Cuda(index) => probe(index, library, version, machine)
            .map(cuda)
            .map_err(|lack| DeviceError { asked, lack }),
        Device::Auto => Ok(match probe(0, library, version, machine) {
            Ok(gpu) => cuda(gpu),
            Err(lack) => cpu(format!("no GPU can be used: {lack}")),
        }),
    }
}

/// What of a GPU's use is not there, if anything.
fn probe(index: u32, library: &Path, version: &str, machine: &dyn Machine) -> Result<Gpu, Lack> {
    machine.load(DRIVER).map_err(Lack::Driver)?;
    let facts = machine.facts(index).map_err(Lack::Device)?;
    if facts.cuda < OLDEST_CUDA {
        return Err(Lack::NewerDriver(facts.cuda));
    }
    let beside = |name: &str| {
        library
            .parent()
            .is_some_and(|folder| folder.join(name).is_file())
    };
    if !beside(PROVIDER) {
        return Err(Lack::Provider {
            version: version.to_owned(),
            library: library.to_owned(),
        });
    }
    let mut missing = String::new();
    for name in NEEDED {
        if let Err(reason) = machine.load(name) {
            let comma = if missing.is_empty() { "" } else { ", " };
            let _ = write!(missing, "{comma}`{name}` ({reason}");
            for other in machine.others(name) {
                let _ = write!(missing, "; there is `{}`", other.display());
            }
            missing.push(')');
        }
    }
    if !missing.is_empty() {
        return Err(Lack::Libraries(missing));
    }
    Ok(Gpu { index, facts })
}

/// This machine.
#[derive(Debug)]
pub struct ThisMachine {
    folders: Vec<PathBuf>,
}

impl ThisMachine {
    /// `library_path` is the value of `LD_LIBRARY_PATH`.
    pub fn new(library_path: Option<&std::ffi::OsStr>) -> Self {
        Self {
            folders: loader_folders(Path::new("/"), library_path),
        }
    }
}

impl Machine for ThisMachine {
    fn load(&self, name: &str) -> Result<(), DriverError> {
        driver::load(name)
    }

    fn facts(&self, index: u32) -> Result<DeviceFacts, DriverError> {
        driver::facts(index)
    }

    fn others(&self, name: &str) -> Vec<PathBuf> {
        others(&self.folders, name)
    }
}

/// Where the system's loader looks, below `root`: `LD_LIBRARY_PATH`, what `ld.so.conf` names, and the
/// folders that it knows by itself.
fn loader_folders(root: &Path, library_path: Option<&std::ffi::OsStr>) -> Vec<PathBuf> {
    const OWN: [&str; 4] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];
    let below = |folder: &Path| root.join(folder.strip_prefix("/").unwrap_or(folder));
    let mut folders: Vec<PathBuf> = library_path
        .map(|path| std::env::split_paths(path).map(|f| below(&f)).collect())
        .unwrap_or_default();
    let mut files = vec![root.join("etc/ld.so.conf")];
    if let Ok(entries) = fs::read_dir(root.join("etc/ld.so.conf.d")) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(str::trim);
        folders.extend(
            lines
                .filter(|l| l.starts_with('/'))
                .map(|l| below(Path::new(l))),
        );
    }
    // Debian's folders for one architecture.
    folders
        .extend(["/lib", "/usr/lib"].map(|folder| below(&Path::new(folder).join(own_triplet()))));
    folders.extend(OWN.iter().map(|folder| below(Path::new(folder))));
    folders
}

/// What Debian calls this architecture, such as `x86_64-linux-gnu`.
fn own_triplet() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

/// Files in `folders` that are the library `name` in any version but this.
fn others(folders: &[PathBuf], name: &str) -> Vec<PathBuf> {
    let Some((stem, _)) = name.split_once(".so.") else {
        return Vec::new();
    };
    let stem = format!("{stem}.so.");
    let mut found = Vec::new();
    for entry in folders.iter().flat_map(fs::read_dir).flatten().flatten() {
        let file = entry.file_name();
        let version = file.to_str().and_then(|file| file.strip_prefix(&stem));
        // Of the names that one version has, the shortest.
        if version.is_some_and(|version| !version.contains('.')) && file != name {
            found.push(entry.path());
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of files: a library can be loaded where it lies in a folder of the loader.
    struct Tree {
        root: tempfile::TempDir,
        cuda: (u32, u32),
    }

    /// Where Debian puts libraries.
    fn folder() -> String {
        format!("usr/lib/{}", own_triplet())
    }

    impl Tree {
        fn new() -> Self {
            let tree = Self {
                root: tempfile::tempdir().unwrap(),
                cuda: (13, 0),
            };
            tree.add(&folder(), DRIVER);
            tree.add("opt/rerankd", PROVIDER);
            for name in NEEDED {
                tree.add(&folder(), name);
            }
            tree
        }

        fn add(&self, folder: &str, name: &str) {
            let folder = self.root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), "").unwrap();
        }

        fn remove(&self, folder: &str, name: &str) {
            fs::remove_file(self.root.path().join(folder).join(name)).unwrap();
        }

        fn choose(&self, asked: Device) -> Result<Choice, String> {
            let library = self.root.path().join("opt/rerankd/libonnxruntime.so");
            choose(asked, &library, "1.31.1", self).map_err(|error| error.to_string())
        }

        fn folders(&self) -> Vec<PathBuf> {
            loader_folders(self.root.path(), None)
        }
    }

    impl Machine for Tree {
        fn load(&self, name: &str) -> Result<(), DriverError> {
            let found = self
                .folders()
                .iter()
                .any(|folder| folder.join(name).exists());
            found
                .then_some(())
                .ok_or(libloading::Error::DlOpenUnknown.into())
        }

        fn facts(&self, index: u32) -> Result<DeviceFacts, DriverError> {
            match index {
                0 | 1 => Ok(DeviceFacts {
                    cuda: self.cuda,
                    name: "a GPU".into(),
                    capability: (9, 0),
                    memory_bytes: 1 << 34,
                }),
                _ => Err(DriverError::UnknownDevice { devices: 2, index }),
            }
        }

        fn others(&self, name: &str) -> Vec<PathBuf> {
            others(&self.folders(), name)
        }
    }

    #[track_caller]
    fn refused(tree: &Tree, words: &[&str]) {
        let error = tree.choose(Device::Cuda(0)).unwrap_err();
        for word in [words, &["`--device cuda:0`", "hint:"]].concat() {
            assert!(error.contains(word), "{word} in {error}");
        }
        assert!(!error.contains('\n'), "{error}");
        // What is an error for who asked for it is a reason for who did not.
        let choice = tree.choose(Device::Auto).unwrap();
        assert_eq!(choice.device, Taken::Cpu);
        assert!(choice.because.contains(words[0]), "{}", choice.because);
        assert_eq!(tree.choose(Device::Cpu).unwrap().device, Taken::Cpu);
    }

    #[test]
    fn a_whole_machine_is_used() {
        let tree = Tree::new();
        let choice = tree.choose(Device::Cuda(1)).unwrap();
        assert_eq!(choice.name(), "cuda:1");
        assert_eq!(tree.choose(Device::Auto).unwrap().name(), "cuda:0");
        assert_eq!(tree.choose(Device::Cpu).unwrap().name(), "cpu");
    }

    #[test]
    fn no_driver() {
        let tree = Tree::new();
        tree.remove(&folder(), DRIVER);
        refused(&tree, &["libcuda.so.1", "install the driver"]);
    }

    #[test]
    fn an_old_driver() {
        let mut tree = Tree::new();
        tree.cuda = (12, 8);
        refused(&tree, &["CUDA 12.8", "newer driver"]);
    }

    #[test]
    fn no_such_device() {
        let error = Tree::new().choose(Device::Cuda(7)).unwrap_err();
        assert!(error.contains("knows 2 devices"), "{error}");
    }

    #[test]
    fn a_library_without_the_provider() {
        let tree = Tree::new();
        tree.remove("opt/rerankd", PROVIDER);
        refused(
            &tree,
            &["built without CUDA", "1.31.1", "make onnxruntime-gpu"],
        );
    }

    #[test]
    fn libraries_of_another_version_are_named() {
        let tree = Tree::new();
        tree.remove(&folder(), "libcublas.so.13");
        tree.remove(&folder(), "libcudnn.so.9");
        tree.add("usr/local/cuda-12/lib64", "libcublas.so.12");
        tree.add("usr/local/cuda-12/lib64", "libcublas.so.12.8.4");
        tree.add("etc/ld.so.conf.d", "cuda.conf");
        let conf = tree.root.path().join("etc/ld.so.conf.d/cuda.conf");
        fs::write(conf, "# CUDA\n/usr/local/cuda-12/lib64\n").unwrap();
        refused(
            &tree,
            &[
                "libcublas.so.13",
                "cuda-12/lib64/libcublas.so.12`)",
                "libcudnn.so.9",
            ],
        );
    }

    #[test]
    fn library_path_comes_first() {
        let tree = Tree::new();
        let path = std::ffi::OsStr::new("/first:/second");
        let folders = loader_folders(tree.root.path(), Some(path));
        assert_eq!(folders[0], tree.root.path().join("first"));
        assert_eq!(folders[1], tree.root.path().join("second"));
    }
}
