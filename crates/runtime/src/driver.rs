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

/// Loads the library `name` by the system's loader, for as long as the process lives.
///
/// # Errors
/// What the loader said.
pub fn load(name: &str) -> Result<(), String> {
    // SAFETY: the initialisers of the libraries of driver, CUDA and cuDNN have no precondition.
    let library = unsafe { Library::new(name) }.map_err(|error| error.to_string())?;
    // Threads of the driver may run in it from now on.
    std::mem::forget(library);
    Ok(())
}

type Status = c_int;

/// What the driver says of device `index`.
///
/// # Errors
/// In words, when there is no driver, no such device, or the driver refuses.
pub fn facts(index: u32) -> Result<DeviceFacts, String> {
    // SAFETY: as in `load`; each symbol has this signature in every version of the driver, and every
    // buffer is as long as is said.
    unsafe {
        let driver = Library::new(DRIVER).map_err(|error| error.to_string())?;
        let symbol = |error: libloading::Error| error.to_string();
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

        ok("cuInit", init.map_err(symbol)?(0))?;
        let (mut cuda, mut devices, mut device) = (0, 0, 0);
        ok("cuDriverGetVersion", version.map_err(symbol)?(&mut cuda))?;
        ok("cuDeviceGetCount", count.map_err(symbol)?(&mut devices))?;
        if i64::from(index) >= i64::from(devices) {
            return Err(format!(
                "the driver knows {devices} devices, and none is number {index}"
            ));
        }
        ok(
            "cuDeviceGet",
            get.map_err(symbol)?(&mut device, index as c_int),
        )?;
        let mut text = [0; 256];
        let length = text.len() as c_int - 1;
        ok(
            "cuDeviceGetName",
            name.map_err(symbol)?(text.as_mut_ptr(), length, device),
        )?;
        let attribute = attribute.map_err(symbol)?;
        let (mut major, mut minor, mut bytes) = (0, 0, 0);
        ok(
            "cuDeviceGetAttribute",
            attribute(&mut major, CAPABILITY_MAJOR, device),
        )?;
        ok(
            "cuDeviceGetAttribute",
            attribute(&mut minor, CAPABILITY_MINOR, device),
        )?;
        ok(
            "cuDeviceTotalMem_v2",
            memory.map_err(symbol)?(&mut bytes, device),
        )?;
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
/// In words, when there is no runtime or it refuses.
pub fn free_memory(index: u32) -> Result<u64, String> {
    // SAFETY: as in `facts`.
    unsafe {
        let runtime = Library::new(RUNTIME).map_err(|error| error.to_string())?;
        let symbol = |error: libloading::Error| error.to_string();
        let set = runtime
            .get::<unsafe extern "C" fn(c_int) -> Status>(b"cudaSetDevice\0")
            .map_err(symbol)?;
        let info = runtime
            .get::<unsafe extern "C" fn(*mut usize, *mut usize) -> Status>(b"cudaMemGetInfo\0")
            .map_err(symbol)?;
        let (mut free, mut total) = (0, 0);
        ok("cudaSetDevice", set(index as c_int))?;
        ok("cudaMemGetInfo", info(&mut free, &mut total))?;
        std::mem::forget(runtime);
        Ok(free as u64)
    }
}

fn ok(function: &str, status: Status) -> Result<(), String> {
    match status {
        0 => Ok(()),
        100 => Err(format!("`{function}` says that there is no device")),
        code => Err(format!("`{function}` failed with {code}")),
    }
}
