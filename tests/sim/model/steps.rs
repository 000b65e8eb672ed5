//! Which steps are possible in a state.

use super::*;

impl Model {
    /// Collects the steps that need no fault. If there are none, the state is final.
    pub(crate) fn steps(&self, steps: &mut Vec<Step>) {
        steps.clear();
        // Steps that only touch the client's own socket don't interact with others. If no fault can
        // touch the socket any more, they go first, which saves states.
        let socket_is_safe = !self.budget.allows(Fault::DropSocket);
        if self.client.can_receive() {
            steps.push(Step::Receive);
            if socket_is_safe {
                return;
            }
        }
        if self.client.has_published_frame() {
            steps.push(Step::HandlePublishedFrame);
            let feed_is_safe = socket_is_safe
                && !self.budget.allows(Fault::LosePublish)
                && !self.budget.allows_data_loss();
            if feed_is_safe {
                return;
            }
        }
        if self.client.is_disconnected() {
            steps.push(Step::Connect);
        }
        if self.client.needs_read() {
            steps.push(Step::Read);
        }
        if self.client.has_undetected_gap(&self.shared) {
            steps.push(Step::CheckForGap);
        }
        if !self.client.is_disconnected()
            && let Some(next) = self.unsent.first()
            && self.gateways[0] == Gateway::Idle
        {
            steps.push(Step::Send(0, *next));
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            if *gateway != Gateway::Idle {
                steps.push(Step::Gateway(index));
            }
        }
        for worker in 0..2 {
            for record in 0..self.messages.len() {
                if self.can_work(worker, record) {
                    steps.push(Step::Worker(worker, record));
                }
                if self.can_renew(worker, record) {
                    steps.push(Step::RenewLease(worker, record));
                }
            }
        }
        if self.finished_up_to(self.assigned_worker) > self.messages_committed {
            steps.push(Step::CommitWorker(self.assigned_worker));
        }
        for (message, state) in self.shared.messages.iter().enumerate() {
            if let Some(in_flight) = &state.in_flight
                && in_flight.lease > 0
                && !self.is_alive(in_flight.owner)
            {
                steps.push(Step::ExpireLease(message as u8));
            }
        }
        let relay = &self.relays[self.assigned_relay];
        if self.relay_has_work(relay) {
            steps.push(Step::Relay(self.assigned_relay));
        }
        if relay.is_started && relay.next > self.responses_committed {
            steps.push(Step::CommitRelay(self.assigned_relay));
        }
        if relay.is_disrupted {
            steps.push(Step::NoticeDisruption(self.assigned_relay));
        }
        if relay.has_set_marker && self.shared.marker != Marker::Complete {
            steps.push(Step::FindMarkerMissing(self.assigned_relay));
        }
        if self.duplicate.is_some() {
            steps.push(Step::ArriveDuplicate);
        }
    }

    /// Adds the faults that are possible and within the budget.
    pub(crate) fn fault_steps(&self, steps: &mut Vec<Step>) {
        if self.budget.is_spent() {
            return;
        }
        if self.budget.allows(Fault::RollBackRedis) && self.snapshot.is_none() && self.shared.n > 0
        {
            steps.push(Step::SaveSnapshot);
        }
        let mut add = |fault, target| {
            if self.budget.allows(fault) {
                steps.push(Step::Fault(fault, target));
            }
        };
        for worker in 0..2 {
            if self.workers[worker].tasks.iter().any(Option::is_some) {
                add(Fault::CrashWorker, worker);
            }
        }
        if self.relays[self.assigned_relay].is_started {
            add(Fault::CrashRelay, self.assigned_relay);
        }
        for gateway in 0..2 {
            if self.gateways[gateway] != Gateway::Idle {
                add(Fault::CrashGateway, gateway);
            }
        }
        if !self.messages.is_empty() {
            add(Fault::ReassignMessages, 1 - self.assigned_worker);
        }
        if !self.responses.is_empty() {
            add(Fault::ReassignResponses, 1 - self.assigned_relay);
        }
        for (message, state) in self.shared.messages.iter().enumerate() {
            let is_being_generated = state
                .in_flight
                .as_ref()
                .is_some_and(|in_flight| in_flight.lease > 0 && self.is_alive(in_flight.owner));
            if is_being_generated {
                add(Fault::PausePastLease, message);
            }
        }
        if self.client.has_published_frame() {
            add(Fault::LosePublish, 0);
        }
        if !self.client.is_disconnected() {
            add(Fault::DropSocket, 0);
        }
        if self.shared.n > 0 {
            add(Fault::EmptyRedis, 0);
        }
        if let Some(snapshot) = &self.snapshot
            && self.is_within_rewind_window(snapshot)
        {
            add(Fault::RollBackRedis, 0);
        }
        for message in 0..self.calls_by_message.len() {
            if !self.unsent.contains(&(message as u8)) {
                add(Fault::Cancel, message);
                if self.gateways[1] == Gateway::Idle {
                    add(Fault::Resend, message);
                }
            }
        }
        if self.duplicate.is_none() && self.budget.allows(Fault::DuplicateCall) {
            self.duplicate_steps(steps);
        }
    }

    fn duplicate_steps(&self, steps: &mut Vec<Step>) {
        for gateway in 0..2 {
            if matches!(
                self.gateways[gateway],
                Gateway::Admit(_) | Gateway::Accept(_)
            ) {
                steps.push(Step::DuplicateGatewayCall(gateway));
            }
        }
        for worker in 0..2 {
            for record in 0..self.messages.len() {
                if self.can_work(worker, record) && self.worker_call(worker, record).is_some() {
                    steps.push(Step::DuplicateWorkerCall(worker, record));
                }
            }
        }
        let relay = &self.relays[self.assigned_relay];
        if self.relay_has_work(relay) && self.relay_call(relay).is_some() {
            steps.push(Step::DuplicateRelayCall(self.assigned_relay));
        }
    }

    /// Whether the rewind of a relay repairs a rollback to this snapshot. A rollback to an older
    /// state is outside of the promises.
    fn is_within_rewind_window(&self, snapshot: &SharedState) -> bool {
        let last = snapshot.mailbox.as_ref().and_then(|mailbox| mailbox.last);
        let end = last.map_or(0, |last| last + 1);
        let delivered = self.relays[self.assigned_relay]
            .next
            .max(self.responses_committed);
        snapshot.marker != Marker::Complete || end >= delivered.saturating_sub(self.rewind_window)
    }
}
