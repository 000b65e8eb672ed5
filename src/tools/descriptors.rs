//! Open files: each connection is one, and shells allow few.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as the system lets a process do by itself, for root that is as many as
/// are `wanted`, and returns it; `None` is no limit.
pub(crate) fn raise(wanted: u64) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum;
    for most in [allowed.map(|allowed| allowed.max(wanted)), allowed] {
        let raised = Rlimit {
            current: most,
            maximum: most,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return most;
        }
    }
    limit.current
}
