//! What signed tokens are checked with.

use super::report::{Findings, Status};
use crate::app::{self, UnusableSetting};
use crate::config::Config;

/// Reads them as a gateway would, behind a URL too.
///
/// # Errors
/// A file that no gateway would start with.
pub(super) async fn look(config: &Config, findings: &mut Findings) -> Result<(), UnusableSetting> {
    let role = config.role();
    let verifier = match app::token_verifier(config) {
        Ok(Some(verifier)) => verifier,
        Ok(None) => return Ok(()),
        Err(error) => {
            findings.sentence(Status::Problem, &format!("{role}: {error}"));
            return Err(error);
        }
    };
    match verifier.check_keys().await {
        Ok(1) => findings.ok(format!("{role}: tokens can be checked (one key)")),
        Ok(keys) => findings.ok(format!("{role}: tokens can be checked ({keys} keys)")),
        Err(fault) => findings.problem(
            format!("{role}: no token can be checked: the key set behind JWT_JWKS: {fault}"),
            "look at what that URL answers from this machine, or correct JWT_JWKS",
        ),
    }
    Ok(())
}
