//! Tracks whether a user's mailbox has to be read, and whether a task is reading it.

/// When the next pass over a mailbox is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NextPass {
    /// No pass was requested.
    #[default]
    NotRequested,
    /// The next periodic mailbox sync makes the pass.
    Scheduled,
    /// The pass is made at once, because a published frame was deferred to it.
    Immediate,
}

/// The state of a user's mailbox read. At most one task reads a user's mailbox at a time, in one or
/// more passes. A request that arrives during a pass leads to another pass.
#[derive(Debug)]
pub(super) enum MailboxRead {
    /// No task is reading the mailbox.
    Idle(NextPass),
    /// A task is reading the mailbox.
    Reading(NextPass),
}

impl Default for MailboxRead {
    fn default() -> Self {
        Self::Idle(NextPass::NotRequested)
    }
}

impl MailboxRead {
    fn next_pass_mut(&mut self) -> &mut NextPass {
        match self {
            Self::Idle(next_pass) | Self::Reading(next_pass) => next_pass,
        }
    }

    /// Whether a pass was requested that has not begun.
    pub(super) fn is_requested(&self) -> bool {
        match self {
            Self::Idle(next_pass) | Self::Reading(next_pass) => {
                *next_pass != NextPass::NotRequested
            }
        }
    }

    /// Requests a pass by the next periodic mailbox sync, unless an earlier pass is requested.
    pub(super) fn schedule(&mut self) {
        let next_pass = self.next_pass_mut();
        *next_pass = (*next_pass).max(NextPass::Scheduled);
    }

    /// Requests a pass at once. Returns whether this is the first such request since the last pass
    /// began, so that the caller has to add the user to the registry's immediate reads.
    pub(super) fn request_immediate(&mut self) -> bool {
        let before = std::mem::replace(self.next_pass_mut(), NextPass::Immediate);
        before != NextPass::Immediate
    }

    /// Claims the mailbox read for the calling task. Returns false where another task is reading.
    /// A further pass is then scheduled.
    pub(super) fn begin(&mut self) -> bool {
        match self {
            Self::Idle(next_pass) => {
                *self = Self::Reading(*next_pass);
                true
            }
            Self::Reading(_) => {
                self.schedule();
                false
            }
        }
    }

    /// Begins a pass, which serves all requests so far. Returns whether a pass was requested.
    pub(super) fn begin_pass(&mut self) -> bool {
        std::mem::take(self.next_pass_mut()) != NextPass::NotRequested
    }

    /// Ends a pass. Returns whether the task stops reading: true, unless a frame that was deferred
    /// during the pass needs another pass at once. A pass that has failed is repeated by the next
    /// periodic mailbox sync.
    pub(super) fn end_pass(&mut self, has_failed: bool) -> bool {
        let next_pass = *self.next_pass_mut();
        if has_failed {
            *self = Self::Idle(NextPass::Scheduled);
        } else if next_pass == NextPass::Immediate {
            return false;
        } else {
            *self = Self::Idle(next_pass);
        }
        true
    }
}
