//! Memory that the C library keeps for later.
#![allow(unsafe_code, reason = "a function of the C library")]

/// Gives memory that was freed back to the system. The C library keeps much of it where threads of their own have
/// allocated and freed it, as they do with a model. Takes milliseconds, and does nothing where there is no such
/// function.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it may be called at any time, by any thread.
        unsafe {
            malloc_trim(0);
        }
    }
}
