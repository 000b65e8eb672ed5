//! The error that the verification of a signed token returns.

/// Why a signed token does not admit its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// The token is malformed, expired or not valid yet, is meant for another service, or is not
    /// signed with an accepted key. The text is sent to the client.
    Invalid(&'static str),
    /// The token is valid and belongs to another user.
    WrongUser,
    /// The key set was never fetched successfully, so no token can be verified.
    KeysUnavailable,
}
