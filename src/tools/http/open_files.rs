//! Raises the limit on open files (RLIMIT_NOFILE), because each connection uses one file descriptor
//! and the soft limit that shells set is low.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit. If the hard limit is below `needed`, first tries to
/// raise it to `needed`, which only root may do. Returns the soft limit then in effect; `None`
/// means unlimited.
pub(crate) fn raise_limit(needed: u64) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let hard_limit = limit.maximum;
    for target in [hard_limit.map(|hard| hard.max(needed)), hard_limit] {
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
