//! Asks the NVIDIA driver and the CUDA runtime, by the functions of their C libraries.
#![allow(
    unsafe_code,
    reason = "functions of shared libraries that a machine may not have"
)]

use std::ffi::{CStr, c_char, c_int};

use libloading::Library;

/// The library that the driver brings.
pub const DRIVER: &str = "libcuda.so.1";
/// The runtime of CUDA, in the major version that ONNX Runtime's provider is linked to.
pub const RUNTIME: &str = "libcudart.so.13";

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// What the driver says of itself and of one of its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// CUDA that the driver supports, such as `(13, 0)`.
    pub cuda: (u32, u32),
    /// Name of the device.
    pub name: String,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Memory in all.
    pub memory_bytes: u64,
}

/// Why driver or runtime gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A library or one of its functions cannot be loaded.
    #[error(transparent)]
    Library(#[from] libloading::Error),
    /// The driver has no device of this number.
    #[error("the driver knows {devices} devices, and none is number {index}")]
    UnknownDevice {
        /// Devices that the driver has.
        devices: u32,
        /// The number that was asked for.
        index: u32,
    },
    /// A function found no device at all.
    #[error("`{0}` says that there is no device")]
    NoDevice(&'static str),
    /// A function failed.
    #[error("`{function}` failed with {code}")]
    Failed {
        /// Its name.
        function: &'static str,
        /// What it returned.
        code: c_int,
    },
}

/// Loads the library `name` by the system's loader, for as long as the process lives.
///
/// # Errors
/// [`DriverError::Library`] with what the loader said.
pub fn load(name: &str) -> Result<(), DriverError> {
    // SAFETY: the initializers of the libraries of driver, CUDA and cuDNN have no precondition.
    let library = unsafe { Library::new(name) }?;
    // Threads of the driver may run in it from now on.
    std::mem::forget(library);
    Ok(())
}

type Status = c_int;

/// What the driver says of device `index`.
///
/// # Errors
/// [`DriverError`] when there is no driver, no such device, or the driver refuses.
pub fn facts(index: u32) -> Result<DeviceFacts, DriverError> {
    // SAFETY: as in `load`; each symbol has this signature in every version of the driver, and every
    // buffer is as long as is said.
    unsafe {
        let driver = Library::new(DRIVER)?;
        let init = driver.get::<unsafe extern "C" fn(u32) -> Status>(b"cuInit\0");
        let version =
            driver.get::<unsafe extern "C" fn(*mut c_int) -> Status>(b"cuDriverGetVersion\0");
        let count = driver.get::<unsafe extern "C" fn(*mut c_int) -> Status>(b"cuDeviceGetCount\0");
        let get = driver.get::<unsafe extern "C" fn(*mut c_int, c_int) -> Status>(b"cuDeviceGet\0");
        let name = driver
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status>(b"cuDeviceGetName\0");
        let attribute = driver.get::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status>(
            b"cuDeviceGetAttribute\0",
        );
        let memory = driver
            .get::<unsafe extern "C" fn(*mut usize, c_int) -> Status>(b"cuDeviceTotalMem_v2\0");

        ok("cuInit", init?(0))?;
        let (mut cuda, mut devices, mut device) = (0, 0, 0);
        ok("cuDriverGetVersion", version?(&mut cuda))?;
        ok("cuDeviceGetCount", count?(&mut devices))?;
        let devices = u32::try_from(devices).unwrap_or_default();
        if index >= devices {
            return Err(DriverError::UnknownDevice { devices, index });
        }
        ok("cuDeviceGet", get?(&mut device, index as c_int))?;
        let mut text = [0; 256];
        let length = text.len() as c_int - 1;
        ok("cuDeviceGetName", name?(text.as_mut_ptr(), length, device))?;
        let attribute = attribute?;
        let (mut major, mut minor, mut bytes) = (0, 0, 0);
        ok(
            "cuDeviceGetAttribute",
            attribute(&mut major, CAPABILITY_MAJOR, device),
        )?;
        ok(
            "cuDeviceGetAttribute",
            attribute(&mut minor, CAPABILITY_MINOR, device),
        )?;
        ok("cuDeviceTotalMem_v2", memory?(&mut bytes, device))?;
        // The driver stays loaded: see `load`.
        let name = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
        std::mem::forget(driver);
        Ok(DeviceFacts {
            cuda: (cuda as u32 / 1000, cuda as u32 % 1000 / 10),
            name,
            capability: (major as u32, minor as u32),
            memory_bytes: bytes as u64,
        })
    }
}

/// Free bytes of device `index`, as the CUDA runtime has them.
///
/// # Errors
/// [`DriverError`] when there is no runtime or it refuses.
pub fn free_memory(index: u32) -> Result<u64, DriverError> {
    // SAFETY: as in `facts`.
    unsafe {
        let runtime = Library::new(RUNTIME)?;
        let set = runtime.get::<unsafe extern "C" fn(c_int) -> Status>(b"cudaSetDevice\0")?;
        let info = runtime
            .get::<unsafe extern "C" fn(*mut usize, *mut usize) -> Status>(b"cudaMemGetInfo\0")?;
        let (mut free, mut total) = (0, 0);
        ok("cudaSetDevice", set(index as c_int))?;
        ok("cudaMemGetInfo", info(&mut free, &mut total))?;
        std::mem::forget(runtime);
        Ok(free as u64)
    }
}

fn ok(function: &'static str, status: Status) -> Result<(), DriverError> {
    match status {
        0 => Ok(()),
        100 => Err(DriverError::NoDevice(function)),
        code => Err(DriverError::Failed { function, code }),
    }
}
