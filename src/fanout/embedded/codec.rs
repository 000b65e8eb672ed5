//! Encoding of the store's values: fields one after the other, texts prefixed with their length.

use crate::fanout::FanoutError;
use crate::protocol::ids::ConversationId;

/// Encodes the fields of one value.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Starts a value of about `bytes` bytes.
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

    /// Writes `None` as an empty text. Only for fields that are never empty otherwise.
    pub(super) fn optional_text(self, value: Option<&str>) -> Self {
        self.text(value.unwrap_or_default())
    }

    /// Writes the last field, which needs no length, and returns the value.
    pub(super) fn finish_with(mut self, value: &str) -> Vec<u8> {
        self.0.extend_from_slice(value.as_bytes());
        self.0
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Decodes the fields of one value, in the order in which [`Writer`] wrote them.
pub(super) struct Reader<'a>(&'a [u8]);

/// The error for an entry of the store that this program can't have written.
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

    fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(damaged_entry_error)?;
        self.0 = rest;
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

    pub(super) fn optional_text(&mut self) -> Result<Option<&'a str>> {
        Ok(Some(self.text()?).filter(|text| !text.is_empty()))
    }

    /// Reads an optional conversation.
    pub(super) fn conversation(&mut self) -> Result<Option<ConversationId>> {
        match self.optional_text()? {
            Some(text) => ConversationId::parse(text)
                .map(Some)
                .map_err(|_| damaged_entry_error()),
            None => Ok(None),
        }
    }

    /// Reads the last field.
    pub(super) fn remainder(self) -> Result<&'a str> {
        std::str::from_utf8(self.0).map_err(|_| damaged_entry_error())
    }
}
