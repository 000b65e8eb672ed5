//! What can happen next.

use super::*;

impl World {
    /// The steps that nothing has to go wrong for. Where there are none, all is done.
    pub(crate) fn steps(&self, steps: &mut Vec<Step>) {
        steps.clear();
        // What only concerns the client's own wire does not matter to anybody else: it goes first
        // where nothing can happen to it any more.
        let calm = !self.can(Fault::DropSocket);
        if self.client.can_receive() {
            steps.push(Step::Receive);
            if calm {
                return;
            }
        }
        if self.client.can_feed() {
            steps.push(Step::Feed);
            if calm && !self.can(Fault::LosePublish) && !self.can_lose() {
                return;
            }
        }
        if self.client.is_off() {
            steps.push(Step::Connect);
        }
        if self.client.is_stale() {
            steps.push(Step::Read);
        }
        if self.client.misses(&self.shared) {
            steps.push(Step::Check);
        }
        if !self.client.is_off()
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
            for record in 0..self.incoming.len() {
                if self.can_work(worker, record) {
                    steps.push(Step::Work(worker, record));
                }
            }
        }
        if self.finished(self.reader) > self.committed_in {
            steps.push(Step::CommitWorker(self.reader));
        }
        for (message, kept) in self.shared.messages.iter().enumerate() {
            if let Some(flight) = &kept.flight
                && flight.lease > 0
                && !self.is_alive(flight.owner)
            {
                steps.push(Step::LeaseEnds(message as u8));
            }
        }
        let relay = &self.relays[self.deliverer];
        if self.relay_has_work(relay) {
            steps.push(Step::Relay(self.deliverer));
        }
        if relay.started && relay.next > self.committed_out {
            steps.push(Step::CommitRelay(self.deliverer));
        }
        if relay.disrupted {
            steps.push(Step::Notice(self.deliverer));
        }
        if relay.settled && self.shared.marker != Marker::Complete {
            steps.push(Step::Look(self.deliverer));
        }
        if self.repeated.is_some() {
            steps.push(Step::Again);
        }
    }

    fn can_lose(&self) -> bool {
        self.can(Fault::Empty) || self.can(Fault::RollBack)
    }

    /// What can go wrong now.
    pub(crate) fn faults(&self, steps: &mut Vec<Step>) {
        if self.faults_left == 0 {
            return;
        }
        if self.can(Fault::RollBack) && self.saved.is_none() && self.shared.n > 0 {
            steps.push(Step::Snapshot);
        }
        let mut fault = |kind, about| {
            if self.can(kind) {
                steps.push(Step::Fault(kind, about));
            }
        };
        for worker in 0..2 {
            if self.workers[worker].tasks.iter().any(Option::is_some) {
                fault(Fault::CrashWorker, worker);
            }
        }
        if self.relays[self.deliverer].started {
            fault(Fault::CrashRelay, self.deliverer);
        }
        for gateway in 0..2 {
            if self.gateways[gateway] != Gateway::Idle {
                fault(Fault::CrashGateway, gateway);
            }
        }
        if !self.incoming.is_empty() {
            fault(Fault::MoveWorker, 1 - self.reader);
        }
        if !self.responses.is_empty() {
            fault(Fault::MoveRelay, 1 - self.deliverer);
        }
        for (message, kept) in self.shared.messages.iter().enumerate() {
            if kept
                .flight
                .as_ref()
                .is_some_and(|one| one.lease > 0 && self.is_alive(one.owner))
            {
                fault(Fault::Pause, message);
            }
        }
        if self.client.can_feed() {
            fault(Fault::LosePublish, 0);
        }
        if !self.client.is_off() {
            fault(Fault::DropSocket, 0);
        }
        if self.shared.n > 0 {
            fault(Fault::Empty, 0);
        }
        if self
            .saved
            .as_ref()
            .is_some_and(|saved| self.in_window(saved))
        {
            fault(Fault::RollBack, 0);
        }
        for message in 0..self.paid.len() {
            if !self.unsent.contains(&(message as u8)) {
                fault(Fault::Cancel, message);
                if self.gateways[1] == Gateway::Idle {
                    fault(Fault::Resend, message);
                }
            }
        }
        if self.repeated.is_none() && self.can(Fault::Repeat) {
            for gateway in 0..2 {
                if matches!(
                    self.gateways[gateway],
                    Gateway::Admits(_) | Gateway::Accepts(_)
                ) {
                    steps.push(Step::CopyGateway(gateway));
                }
            }
            for worker in 0..2 {
                for record in 0..self.incoming.len() {
                    if self.can_work(worker, record) && self.worker_call(worker, record).is_some() {
                        steps.push(Step::CopyWorker(worker, record));
                    }
                }
            }
            let relay = &self.relays[self.deliverer];
            if self.relay_has_work(relay) && self.relay_call(relay).is_some() {
                steps.push(Step::CopyRelay(self.deliverer));
            }
        }
    }

    /// A rollback further than a relay reads back is not promised.
    fn in_window(&self, saved: &Shared) -> bool {
        let end = saved.mailbox.as_ref().and_then(|mailbox| mailbox.end);
        let end = end.map_or(0, |end| end + 1);
        let delivered = self.relays[self.deliverer].next.max(self.committed_out);
        saved.marker != Marker::Complete || end >= delivered.saturating_sub(self.window)
    }
}
