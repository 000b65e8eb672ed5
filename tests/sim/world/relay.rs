//! What a relay does.

use super::*;

impl World {
    /// Nothing new is delivered before the relay has gone back; what is under way may arrive.
    pub(super) fn relay_has_work(&self, relay: &Relay) -> bool {
        if relay.disrupted {
            return false;
        }
        !relay.started
            || usize::from(relay.next) < self.responses.len()
            || !relay.settled && relay.next >= relay.until
    }

    pub(super) fn relay_call(&self, relay: &Relay) -> Option<Call> {
        if !relay.started {
            return None;
        }
        if !relay.settled && relay.next >= relay.until {
            return Some(Call::SetMarker(relay.token));
        }
        let (message, end) = *self.responses.get(usize::from(relay.next))?;
        Some(Call::Deliver(message, relay.next, relay.known, end))
    }

    pub(super) fn relay(&mut self, index: usize) {
        let mut relay = self.relays[index].clone();
        if !relay.started {
            let token = self.shared.look_at_marker();
            let base = self.committed_out;
            let from = if token == 0 {
                base.saturating_sub(self.window)
            } else {
                0
            };
            self.relays[index] = Relay {
                started: true,
                next: if self.shared.keeps(Rule::Rewind) {
                    from
                } else {
                    base
                },
                until: base.max(relay.until),
                token,
                ..Relay::default()
            };
            return;
        }
        match self.relay_call(&relay) {
            Some(Call::SetMarker(token)) => {
                if self.shared.set_marker(token) {
                    relay.settled = true;
                } else {
                    relay.started = false;
                }
            }
            Some(Call::Deliver(message, at, known, end)) => {
                match self.shared.deliver(message, at, known, end, false) {
                    Delivered::Published | Delivered::Already => {
                        relay.known = Some(at);
                        relay.next = at + 1;
                    }
                    Delivered::Lost => {
                        self.go_back(index);
                        return;
                    }
                }
            }
            _ => {}
        }
        self.relays[index] = relay;
        self.spread();
    }

    pub(super) fn go_back(&mut self, index: usize) {
        self.relays[index] = Relay {
            until: self.relays[index].next,
            ..Relay::default()
        };
    }
}
