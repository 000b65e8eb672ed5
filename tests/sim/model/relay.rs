//! The steps of a relay.

use super::*;

impl Model {
    /// Whether the relay can take a step. A relay whose connection broke delivers nothing before it
    /// has rewound; duplicates of earlier calls may still arrive.
    pub(super) fn relay_has_work(&self, relay: &Relay) -> bool {
        if relay.is_disrupted {
            return false;
        }
        !relay.is_started
            || usize::from(relay.next) < self.responses.len()
            || !relay.has_set_marker && relay.next >= relay.rewind_until
    }

    pub(super) fn relay_call(&self, relay: &Relay) -> Option<RedisCall> {
        if !relay.is_started {
            return None;
        }
        if !relay.has_set_marker && relay.next >= relay.rewind_until {
            return Some(RedisCall::CompleteMarker(relay.token));
        }
        let (message, outcome) = *self.responses.get(usize::from(relay.next))?;
        Some(RedisCall::Deliver(
            message,
            relay.next,
            relay.known_end,
            outcome,
        ))
    }

    pub(super) fn step_relay(&mut self, index: usize) {
        let mut relay = self.relays[index].clone();
        if !relay.is_started {
            self.relays[index] = self.start_relay(relay.rewind_until);
            return;
        }
        match self.relay_call(&relay) {
            Some(RedisCall::CompleteMarker(token)) => {
                if self.shared.complete_rebuild(token) {
                    relay.has_set_marker = true;
                } else {
                    relay.is_started = false;
                }
            }
            Some(RedisCall::Deliver(message, offset, known_end, outcome)) => {
                let response = self
                    .shared
                    .deliver(message, offset, known_end, outcome, false);
                match response {
                    DeliverResponse::Published | DeliverResponse::AlreadyDelivered => {
                        relay.known_end = Some(offset);
                        relay.next = offset + 1;
                    }
                    DeliverResponse::DataLost => {
                        self.rewind_relay(index);
                        return;
                    }
                }
            }
            _ => {}
        }
        self.relays[index] = relay;
        self.dispatch_published();
    }

    /// Returns a relay that starts to read its partition: at the committed offset less the rewind
    /// window, or at the beginning if the marker is missing.
    fn start_relay(&mut self, rewind_until: Offset) -> Relay {
        let token = self.shared.begin_rebuild();
        let committed = self.responses_committed;
        let rewind_start = if token == 0 {
            committed.saturating_sub(self.rewind_window)
        } else {
            0
        };
        let rewinds = self.shared.enforces(Rule::RewindOnAssignment);
        Relay {
            is_started: true,
            next: if rewinds { rewind_start } else { committed },
            rewind_until: committed.max(rewind_until),
            token,
            ..Relay::default()
        }
    }

    /// Restarts the relay, which then rewinds at least up to its current offset.
    pub(super) fn rewind_relay(&mut self, index: usize) {
        self.relays[index] = Relay {
            rewind_until: self.relays[index].next,
            ..Relay::default()
        };
    }
}
