//! The fields of a message in Protocol Buffers, one at a time.

use rerankd_core::RerankError;

/// A varint has seven bits a byte.
const MAX_VARINT_BYTES: usize = 10;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A flag, an integer or an enum.
    Number(u64),
    /// A string, bytes, a message or packed numbers.
    Bytes(&'a [u8]),
    /// A number of four or eight bytes. No request has one that counts.
    Fixed,
}

/// The fields of a message in their order: their numbers and values. Fields that are not known are the
/// caller's to pass over, as clients of later versions send them.
#[derive(Debug, Clone)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of `message`.
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Result<u64, RerankError> {
        let mut number = 0;
        for at in 0..MAX_VARINT_BYTES {
            let byte = *self.0.get(at).ok_or_else(broken)?;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * at;
            if bits << shift >> shift != bits {
                return Err(broken());
            }
            number |= bits << shift;
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Ok(number);
            }
        }
        Err(broken())
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], RerankError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or_else(broken)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), RerankError> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| broken())?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            // Groups, which no message has since version 3 of the language.
            _ => return Err(broken()),
        };
        match key >> 3 {
            0 => Err(broken()),
            number => Ok((number, value)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), RerankError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn broken() -> RerankError {
    RerankError::malformed(
        "the message is not valid Protocol Buffers; send the method's whole request message",
    )
}

fn other_type(name: &str, expected: &str) -> RerankError {
    RerankError::malformed(format!("`{name}` is of another type; send {expected}"))
}

impl<'a> Value<'a> {
    /// The text of the field that its service calls `name`.
    ///
    /// # Errors
    /// When it is of another type or not UTF-8.
    pub fn text(self, name: &str) -> Result<&'a str, RerankError> {
        let bytes = self.bytes(name, "a string")?;
        std::str::from_utf8(bytes)
            .map_err(|_| RerankError::invalid(format!("`{name}` is not UTF-8; encode it so")))
    }

    /// The text at this place of the list `name`.
    ///
    /// # Errors
    /// As [`Value::text`].
    pub fn item(self, name: &str, place: usize) -> Result<&'a str, RerankError> {
        if let Self::Bytes(bytes) = self
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return Ok(text);
        }
        self.text(&format!("{name}[{place}]"))
    }

    /// The flag of the field `name`.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn flag(self, name: &str) -> Result<bool, RerankError> {
        Ok(self.number(name, "a boolean")? != 0)
    }

    /// The number of the field `name`, which should be what `expected` says.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn number(self, name: &str, expected: &str) -> Result<u64, RerankError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) | Self::Fixed => Err(other_type(name, expected)),
        }
    }

    /// The fields of the message `name`.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn message(self, name: &str) -> Result<Fields<'a>, RerankError> {
        self.bytes(name, "a message").map(Fields)
    }

    /// The bytes of the field `name`, which should be what `expected` says.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn bytes(self, name: &str, expected: &str) -> Result<&'a [u8], RerankError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed => Err(other_type(name, expected)),
        }
    }

    /// Calls `add` with each number of the repeated field `name`, packed or not.
    ///
    /// # Errors
    /// When it is of another type, or breaks off.
    pub fn numbers(self, name: &str, mut add: impl FnMut(u64)) -> Result<(), RerankError> {
        match self {
            Self::Number(number) => add(number),
            Self::Bytes(packed) => {
                let mut packed = Fields(packed);
                while !packed.0.is_empty() {
                    add(packed.varint()?);
                }
            }
            Self::Fixed => return Err(other_type(name, "integers")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>, RerankError> {
        Fields::of(bytes).collect()
    }

    #[test]
    fn every_wire_type_is_read() {
        let bytes = [
            &[0x08, 0x96, 0x01][..],
            b"\x12\x02hi",
            &[0x1d, 1, 2, 3, 4],
            &[0x21, 1, 2, 3, 4, 5, 6, 7, 8],
        ]
        .concat();
        let expected = [
            (1, Value::Number(150)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Fixed),
            (4, Value::Fixed),
        ];
        assert_eq!(fields(&bytes).unwrap(), expected);
        assert_eq!(fields(&[]).unwrap(), []);
    }

    #[test]
    fn what_breaks_off_or_overflows_is_malformed() {
        for bytes in [
            &[0x08][..],
            &[0x08, 0x80],
            &[0x12, 0x05, b'a'],
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
            &[0x1d, 1, 2, 3],
            &[0x21, 1],
            // A group, a field without a number, eleven bytes, and more than 64 bits.
            &[0x0b, 0x0c],
            &[0x00, 0x00],
            &[
                0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00,
            ],
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
        ] {
            let error = fields(bytes).unwrap_err();
            assert_eq!(
                error.code(),
                rerankd_core::ErrorCode::Malformed,
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_negative_number_takes_ten_bytes() {
        let bytes = [
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ];
        assert_eq!(fields(&bytes).unwrap(), [(1, Value::Number(u64::MAX))]);
    }

    #[test]
    fn a_value_of_another_type_is_named_and_not_quoted() {
        let error = Value::Number(7).item("texts", 3).unwrap_err();
        assert_eq!(
            error.message(),
            "`texts[3]` is of another type; send a string"
        );
        let error = Value::Bytes(b"\xffsecret").text("query").unwrap_err();
        assert_eq!(error.message(), "`query` is not UTF-8; encode it so");
        assert!(Value::Bytes(b"").flag("truncate").is_err());
        assert!(Value::Fixed.numbers("ids", |_| ()).is_err());
    }
}
