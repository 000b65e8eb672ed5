//! Checks the keys that verify signed tokens.

use super::report::{Findings, Status};
use crate::app::{self, UnusableSetting};
use crate::config::Config;

/// Loads the keys from their source as a gateway does, and reports whether tokens can be verified
/// with them.
///
/// # Errors
/// A gateway would not start with the configured keys.
pub(super) async fn check(config: &Config, findings: &mut Findings) -> Result<(), UnusableSetting> {
    let role = config.role();
    let verifier = match app::token_verifier(config) {
        Ok(Some(verifier)) => verifier,
        Ok(None) => return Ok(()),
        Err(error) => {
            findings.add_sentence(Status::Problem, &format!("{role}: {error}"));
            return Err(error);
        }
    };
    match verifier.check_keys().await {
        Ok(1) => findings.add_ok(format!("{role}: tokens can be verified (one key)")),
        Ok(count) => findings.add_ok(format!("{role}: tokens can be verified ({count} keys)")),
        Err(fault) => findings.add_problem(
            format!("{role}: no token can be verified: the key set of JWT_JWKS: {fault}"),
            "check the response of that URL from this machine, or correct JWT_JWKS",
        ),
    }
    Ok(())
}
