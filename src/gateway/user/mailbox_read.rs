//! When a user's mailbox is read.

/// A mailbox read that was requested and has not begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NextRead {
    #[default]
    NotRequested,
    /// The next periodic pass reads the mailbox.
    Scheduled,
    /// A live frame was deferred to the mailbox, so it is read at once.
    Immediate,
}

/// The progress of a user's mailbox reads. At most one task reads a user's mailbox at a time, in
/// one or more passes; requests that arrive during a pass lead to another one.
#[derive(Debug)]
pub(super) enum MailboxRead {
    Idle(NextRead),
    Reading(NextRead),
}

impl Default for MailboxRead {
    fn default() -> Self {
        Self::Idle(NextRead::NotRequested)
    }
}

impl MailboxRead {
    fn next_mut(&mut self) -> &mut NextRead {
        match self {
            Self::Idle(next) | Self::Reading(next) => next,
        }
    }

    /// Whether a read is requested that has not begun.
    pub(super) fn is_requested(&self) -> bool {
        match self {
            Self::Idle(next) | Self::Reading(next) => *next != NextRead::NotRequested,
        }
    }

    /// Requests a read by the next periodic pass.
    pub(super) fn schedule(&mut self) {
        let next = self.next_mut();
        *next = (*next).max(NextRead::Scheduled);
    }

    /// Requests a read at once. Returns whether this is the first such request since the last pass
    /// began, so that the caller has to start one.
    pub(super) fn request_immediate(&mut self) -> bool {
        let before = std::mem::replace(self.next_mut(), NextRead::Immediate);
        before != NextRead::Immediate
    }

    /// Claims the read for the calling task. Returns false where another task is reading; that one
    /// makes another pass then.
    pub(super) fn begin(&mut self) -> bool {
        match self {
            Self::Idle(next) => {
                *self = Self::Reading(*next);
                true
            }
            Self::Reading(_) => {
                self.schedule();
                false
            }
        }
    }

    /// Begins a pass, which serves all requests so far. Returns whether there were any.
    pub(super) fn begin_pass(&mut self) -> bool {
        std::mem::take(self.next_mut()) != NextRead::NotRequested
    }

    /// Ends a pass. Returns whether the read is finished: it is not where a deferred frame needs
    /// another pass. After a failure the next periodic pass repeats it.
    pub(super) fn end_pass(&mut self, has_failed: bool) -> bool {
        let next = *self.next_mut();
        if has_failed {
            *self = Self::Idle(NextRead::Scheduled);
        } else if next == NextRead::Immediate {
            return false;
        } else {
            *self = Self::Idle(next);
        }
        true
    }
}
