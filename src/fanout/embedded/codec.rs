//! How entries of the store are written: fields one after the other, texts with their length.

use crate::fanout::FanoutError;
use crate::protocol::ids::ConversationId;

/// Writes the fields of one value.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// For a value of about so many bytes.
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

    /// No field may hold an empty text and mean something else than nothing.
    pub(super) fn optional(self, value: Option<&str>) -> Self {
        self.text(value.unwrap_or_default())
    }

    /// The last field: without a length.
    pub(super) fn rest(mut self, value: &str) -> Vec<u8> {
        self.0.extend_from_slice(value.as_bytes());
        self.0
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads them in the same order.
pub(super) struct Reader<'a>(&'a [u8]);

/// The store holds what this program never wrote.
pub(super) fn damaged() -> FanoutError {
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

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn number(&mut self) -> Result<i64> {
        let bytes = self.take(8)?.try_into().map_err(|_| damaged())?;
        Ok(i64::from_be_bytes(bytes))
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        let bytes = self.take(4)?.try_into().map_err(|_| damaged())?;
        let text = self.take(u32::from_be_bytes(bytes) as usize)?;
        std::str::from_utf8(text).map_err(|_| damaged())
    }

    pub(super) fn optional(&mut self) -> Result<Option<&'a str>> {
        Ok(Some(self.text()?).filter(|text| !text.is_empty()))
    }

    /// A conversation, where there is one.
    pub(super) fn conversation(&mut self) -> Result<Option<ConversationId>> {
        match self.optional()? {
            Some(text) => ConversationId::parse(text).map(Some).map_err(|_| damaged()),
            None => Ok(None),
        }
    }

    pub(super) fn rest(self) -> Result<&'a str> {
        std::str::from_utf8(self.0).map_err(|_| damaged())
    }
}
