//! Encoding of the values in the store, used by the calls: the fields follow each other, and each
//! text but the last is preceded by its length.

use crate::fanout::FanoutError;
use crate::protocol::ids::ConversationId;

/// Encodes one value, field after field.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// An empty value with allocated space for `bytes` bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn number(mut self, value: i64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn text(mut self, value: &str) -> Self {
        self.0
            .extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self
    }

    /// Writes an optional text. `None` is written as an empty text, so a text must not be empty.
    pub(super) fn optional_text(self, value: Option<&str>) -> Self {
        self.text(value.unwrap_or_default())
    }

    /// Writes the last field, a text without its length, and returns the encoded value.
    pub(super) fn finish_with(mut self, value: &str) -> Vec<u8> {
        self.0.extend_from_slice(value.as_bytes());
        self.0
    }

    /// Returns the encoded value.
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Decodes one value. The fields must be read in the order in which [`Writer`] wrote them.
pub(super) struct Reader<'a>(&'a [u8]);

/// The error for an entry of the store that can't be decoded.
pub(super) fn damaged_entry_error() -> FanoutError {
    FanoutError::Unexpected(
        "an entry of the local store can't be read; restore the data directory or begin with an \
         empty one"
            .into(),
    )
}

type Result<T> = std::result::Result<T, FanoutError>;

impl<'a> Reader<'a> {
    pub(super) fn new(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// Reads `length` bytes.
    fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, remaining) = self
            .0
            .split_at_checked(length)
            .ok_or_else(damaged_entry_error)?;
        self.0 = remaining;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn number(&mut self) -> Result<i64> {
        let bytes = self
            .bytes(8)?
            .try_into()
            .map_err(|_| damaged_entry_error())?;
        Ok(i64::from_be_bytes(bytes))
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        let bytes = self
            .bytes(4)?
            .try_into()
            .map_err(|_| damaged_entry_error())?;
        let text = self.bytes(u32::from_be_bytes(bytes) as usize)?;
        std::str::from_utf8(text).map_err(|_| damaged_entry_error())
    }

    /// Reads an optional text; `None` if the text is empty.
    pub(super) fn optional_text(&mut self) -> Result<Option<&'a str>> {
        Ok(Some(self.text()?).filter(|text| !text.is_empty()))
    }

    /// Reads an optional text and parses it as a conversation.
    pub(super) fn conversation(&mut self) -> Result<Option<ConversationId>> {
        match self.optional_text()? {
            Some(text) => ConversationId::parse(text)
                .map(Some)
                .map_err(|_| damaged_entry_error()),
            None => Ok(None),
        }
    }

    /// Reads the last field, which [`Writer::finish_with`] wrote.
    pub(super) fn remainder(self) -> Result<&'a str> {
        std::str::from_utf8(self.0).map_err(|_| damaged_entry_error())
    }
}
