//! Which provider of ONNX Runtime runs which nodes: asked of the session, not of the settings.
#![allow(
    unsafe_code,
    reason = "`ort` does not wrap these functions of the C API"
)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;

use ort::AsPointer;
use ort::session::Session;

use super::ScoreError;

/// The session option that makes a session keep what [`nodes_by_provider`] reads, when it is `1`.
pub const RECORD: &str = "session.record_ep_graph_assignment_info";

/// Number of nodes that each provider runs.
///
/// # Errors
/// [`ScoreError`] when the session was not opened with [`RECORD`], or ONNX Runtime refuses.
pub fn nodes_by_provider(session: &Session) -> Result<BTreeMap<String, usize>, ScoreError> {
    let api = ort::api();
    let mut counts = BTreeMap::new();
    let (mut groups, mut groups_len) = (ptr::null(), 0);
    // SAFETY: the session is open, and what the pointers are set to belongs to it and stays until it
    // is closed. Every list is as long as its count says, and names are NUL-terminated.
    unsafe {
        ok((api.Session_GetEpGraphAssignmentInfo)(
            session.ptr(),
            &mut groups,
            &mut groups_len,
        ))?;
        for index in 0..groups_len {
            let group = *groups.add(index);
            let mut name = ptr::null();
            ok((api.EpAssignedSubgraph_GetEpName)(group, &mut name))?;
            let (mut nodes, mut nodes_len) = (ptr::null(), 0);
            ok((api.EpAssignedSubgraph_GetNodes)(
                group,
                &mut nodes,
                &mut nodes_len,
            ))?;
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            *counts.entry(name).or_default() += nodes_len;
        }
    }
    Ok(counts)
}

/// # Safety
/// `status` is what a function of the C API returned, and nobody else frees it.
unsafe fn ok(status: ort::sys::OrtStatusPtr) -> Result<(), ScoreError> {
    let status = status.0;
    if status.is_null() {
        return Ok(());
    }
    let api = ort::api();
    // SAFETY: the status is not null and ours; its message lives as long as it does.
    let text = unsafe {
        let text = CStr::from_ptr((api.GetErrorMessage)(status))
            .to_string_lossy()
            .into_owned();
        (api.ReleaseStatus)(status);
        text
    };
    Err(ScoreError(text))
}
