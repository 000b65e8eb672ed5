//! The limit on open files (RLIMIT_NOFILE): each connection uses one descriptor, and the soft limit
//! that shells set is low.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit; for root, raises the hard limit to `wanted` first.
/// Returns the limit in effect; `None` means unlimited.
pub(crate) fn raise_limit(wanted: u64) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let hard_limit = limit.maximum;
    for target in [hard_limit.map(|hard| hard.max(wanted)), hard_limit] {
        let raised = Rlimit {
            current: target,
            maximum: target,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return target;
        }
    }
    limit.current
}
