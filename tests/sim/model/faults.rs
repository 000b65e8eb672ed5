//! The faults, their budget, and their effects.

use super::{
    CancelResult, CheckResult, Gateway, Message, Model, Relay, SearchBounds, StoredOutcome,
};

/// A fault, or a user's action other than sending a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    CrashWorker,
    CrashRelay,
    CrashGateway,
    /// The partition of `incoming_messages` is assigned to the other worker.
    ReassignMessages,
    /// The partition of `responses` is assigned to the other relay.
    ReassignResponses,
    /// A worker pauses for longer than its lease.
    PausePastLease,
    /// The Redis client sends a call a second time, which arrives at any later moment.
    DuplicateCall,
    LosePublish,
    DropSocket,
    EmptyRedis,
    RollBackRedis,
    Cancel,
    Resend,
}

const FAULT_COUNT: usize = 13;

/// The faults that may still happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FaultBudget {
    total: u8,
    by_fault: [u8; FAULT_COUNT],
}

impl FaultBudget {
    pub(super) fn new(bounds: &SearchBounds) -> Self {
        let mut by_fault = [0; FAULT_COUNT];
        for (fault, count) in bounds.faults {
            by_fault[*fault as usize] = *count;
        }
        Self {
            total: bounds.max_faults,
            by_fault,
        }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.total == 0
    }

    pub(super) fn allows(&self, fault: Fault) -> bool {
        self.total > 0 && self.by_fault[fault as usize] > 0
    }

    pub(super) fn allows_data_loss(&self) -> bool {
        self.allows(Fault::EmptyRedis) || self.allows(Fault::RollBackRedis)
    }

    pub(super) fn spend(&mut self, fault: Fault) {
        self.total -= 1;
        self.by_fault[fault as usize] -= 1;
        if self.total == 0 {
            // Nothing more can be spent. States that differ only in the rest of the budget have to
            // be equal.
            self.by_fault = [0; FAULT_COUNT];
        }
    }
}

impl Model {
    pub(super) fn apply_fault(&mut self, fault: Fault, target: usize) -> CheckResult {
        self.budget.spend(fault);
        let snapshot = self.snapshot.take();
        if self.budget.allows(Fault::RollBackRedis) {
            self.snapshot.clone_from(&snapshot);
        }
        match fault {
            Fault::CrashWorker => self.workers[target].tasks.clear(),
            Fault::CrashRelay => self.relays[target] = Relay::default(),
            Fault::CrashGateway => self.gateways[target] = Gateway::Idle,
            Fault::ReassignMessages => {
                self.assigned_worker = target;
                self.workers[target].tasks.clear();
            }
            Fault::ReassignResponses => {
                self.relays[self.assigned_relay] = Relay::default();
                self.relays[target] = Relay::default();
                self.assigned_relay = target;
            }
            Fault::PausePastLease => self.expire_lease(target as u8),
            Fault::LosePublish => self.client.lose_publish(),
            Fault::DropSocket => self.client.drop_socket(),
            Fault::EmptyRedis => {
                self.shared.lose_data();
                self.break_connections();
            }
            Fault::RollBackRedis => {
                if let Some(snapshot) = snapshot {
                    self.shared.roll_back_to(*snapshot);
                    self.break_connections();
                }
            }
            Fault::Cancel => {
                let message = target as Message;
                let outcome = self.shared.messages[target].outcome;
                let result = self.shared.cancel(message);
                let is_done = matches!(outcome, Some(StoredOutcome::Outcome(..)));
                if is_done != (result == CancelResult::AlreadyDone) {
                    return Err(format!("cancel of message {target} returns {result:?}"));
                }
                self.cancel_confirmed[target] |= result == CancelResult::Cancelling;
            }
            Fault::Resend => self.gateways[1] = Gateway::Admit(target as u8),
            Fault::DuplicateCall => {}
        }
        self.dispatch_published();
        Ok(())
    }

    /// Every connection to Redis breaks, including the subscriptions.
    fn break_connections(&mut self) {
        self.data_losses += 1;
        self.client.break_subscription();
        for relay in &mut self.relays {
            relay.is_disrupted = relay.is_started;
        }
    }
}
