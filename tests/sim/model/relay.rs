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
            relay.known,
            outcome,
        ))
    }

    pub(super) fn step_relay(&mut self, index: usize) {
        let mut relay = self.relays[index].clone();
        if !relay.is_started {
            self.relays[index] = self.started_relay(relay.rewind_until);
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
            Some(RedisCall::Deliver(message, offset, known, outcome)) => {
                match self.shared.deliver(message, offset, known, outcome, false) {
                    DeliverResponse::Published | DeliverResponse::AlreadyDelivered => {
                        relay.known = Some(offset);
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

    /// A relay that begins with its partition: at the committed offset less the rewind window, or at
    /// the beginning if the marker is missing.
    fn started_relay(&mut self, rewind_until: Offset) -> Relay {
        let token = self.shared.begin_rebuild();
        let committed = self.responses_committed;
        let rewound = if token == 0 {
            committed.saturating_sub(self.rewind_window)
        } else {
            0
        };
        let rewinds = self.shared.enforces(Rule::RewindOnAssignment);
        Relay {
            is_started: true,
            next: if rewinds { rewound } else { committed },
            rewind_until: committed.max(rewind_until),
            token,
            ..Relay::default()
        }
    }

    /// The relay starts again, and rewinds at least up to where it was.
    pub(super) fn rewind_relay(&mut self, index: usize) {
        self.relays[index] = Relay {
            rewind_until: self.relays[index].next,
            ..Relay::default()
        };
    }
}
