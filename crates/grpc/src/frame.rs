//! Messages on the wire: a byte that says whether it is compressed, four bytes of length, high ones first,
//! then the message.

use rerankd_core::RerankError;

/// Bytes before each message.
pub const HEAD_BYTES: usize = 5;

/// What stands before a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Whether the message is compressed.
    pub compressed: bool,
    /// Its length.
    pub bytes: usize,
}

impl FrameHead {
    /// The head at the start of `bytes`; `None` where it is not whole.
    ///
    /// # Errors
    /// When its first byte is none that a frame begins with.
    pub fn of(bytes: &[u8]) -> Result<Option<Self>, RerankError> {
        let Some(&[flag, a, b, c, d]) = bytes.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        if flag > 1 {
            return Err(RerankError::malformed(
                "a message begins with a byte that is neither 0 nor 1; send messages in the frames of gRPC",
            ));
        }
        Ok(Some(Self {
            compressed: flag == 1,
            bytes: u32::from_be_bytes([a, b, c, d]) as usize,
        }))
    }
}

/// The messages of a request, one after the other.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Those in `bytes`.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The only message.
    ///
    /// # Errors
    /// When there is none or another one.
    pub fn only(mut self) -> Result<&'a [u8], RerankError> {
        let (_, message) = self.next().ok_or_else(|| {
            RerankError::malformed("the request has no message; send one in the frame of gRPC")
        })??;
        match self.next() {
            None => Ok(message),
            Some(_) => Err(RerankError::malformed(
                "the request has more than one message; send one, or call the method for streams",
            )),
        }
    }

    fn split(&mut self) -> Result<(bool, &'a [u8]), RerankError> {
        let head = FrameHead::of(self.0)?.ok_or_else(cut_off)?;
        let (message, rest) = self.0[HEAD_BYTES..]
            .split_at_checked(head.bytes)
            .ok_or_else(cut_off)?;
        self.0 = rest;
        Ok((head.compressed, message))
    }
}

impl<'a> Iterator for Messages<'a> {
    /// Whether the message is compressed, and the message.
    type Item = Result<(bool, &'a [u8]), RerankError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = self.split();
        if message.is_err() {
            self.0 = &[];
        }
        Some(message)
    }
}

/// The refusal of a request whose last message is not whole.
pub fn cut_off() -> RerankError {
    RerankError::malformed("the request ends inside a message; send as much as its frame says")
}

/// `message` in its frame, uncompressed.
///
/// # Panics
/// From 4 GiB on, which no message of this server has.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + message.len());
    put(&mut frame, message);
    frame
}

/// Adds `message` in its frame, uncompressed, to `bytes`.
///
/// # Panics
/// As [`framed`].
pub fn put(bytes: &mut Vec<u8>, message: &[u8]) {
    let length = u32::try_from(message.len()).expect("messages are smaller than 4 GiB");
    bytes.push(0);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let bytes = [framed(b"one"), framed(b""), framed(b"three")].concat();
        let messages: Result<Vec<_>, _> = Messages::of(&bytes).collect();
        let expected: [(bool, &[u8]); 3] = [(false, b"one"), (false, b""), (false, b"three")];
        assert_eq!(messages.unwrap(), expected);
        assert_eq!(Messages::of(&framed(b"one")).only().unwrap(), b"one");
    }

    #[test]
    fn a_request_of_one_message_has_exactly_one() {
        let message = |bytes: &[u8]| Messages::of(bytes).only().unwrap_err().message().to_owned();
        assert!(message(b"").contains("no message"));
        assert!(message(&framed(b"a").repeat(2)).contains("more than one"));
        for broken in [&b"\0\0\0"[..], b"\0\0\0\0\x02a", b"\0\xff\xff\xff\xff"] {
            assert!(message(broken).contains("ends inside a message"));
        }
        assert!(message(b"\x02\0\0\0\0").contains("neither 0 nor 1"));
    }
}
