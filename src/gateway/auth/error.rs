//! Why a token is not accepted.

/// Why a signed token does not admit its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// The token is malformed, expired, or signed by an unknown key. The text is sent to the client.
    Invalid(&'static str),
    /// The token is valid and belongs to another user.
    WrongUser,
    /// The key set was never fetched successfully, so nothing can be verified.
    KeysUnavailable,
}
