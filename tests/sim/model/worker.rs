//! The steps of a worker.

use super::*;

impl Model {
    fn task(&self, worker: usize, record: usize) -> Option<RecordTask> {
        *self.workers[worker].tasks.get(record)?
    }

    /// Whether the worker can take a step for this record.
    pub(super) fn can_work(&self, worker: usize, record: usize) -> bool {
        if let Some(task) = self.task(worker, record) {
            return match task.stage {
                Stage::Done => false,
                // Repeating `begin` while it returns `Busy` changes nothing.
                Stage::Begin => !self.is_busy(self.messages[record], task.owner),
                _ => true,
            };
        }
        let conversation = self.shared.conversation(self.messages[record]);
        let waits_for_log = self.shared.enforces(Rule::LaneWaitsForLog);
        let frees_lane = |task: RecordTask| {
            task.stage == Stage::Done || !waits_for_log && matches!(task.stage, Stage::Produce(_))
        };
        let first = usize::from(self.messages_committed);
        worker == self.assigned_worker
            && record >= first
            && (first..record).all(|earlier| {
                self.shared.conversation(self.messages[earlier]) != conversation
                    || self.task(worker, earlier).is_some_and(frees_lane)
            })
    }

    fn is_busy(&self, message: Message, owner: Owner) -> bool {
        let state = &self.shared.messages[usize::from(message)];
        self.shared.enforces(Rule::LeaseExcludesOthers)
            && state.outcome.is_none()
            && !state.cancel_requested
            && state
                .in_flight
                .as_ref()
                .is_some_and(|in_flight| in_flight.owner != owner && in_flight.lease > 0)
    }

    /// The offset that the worker may commit.
    pub(super) fn finished_up_to(&self, worker: usize) -> u8 {
        let is_done = |record: &usize| {
            self.task(worker, *record)
                .is_some_and(|task| task.stage == Stage::Done)
        };
        let first = usize::from(self.messages_committed);
        if !self.shared.enforces(Rule::ContiguousCommit) {
            let last = (first..self.messages.len()).rev().find(is_done);
            return last.map_or(self.messages_committed, |last| last as u8 + 1);
        }
        let finished = (first..self.messages.len()).take_while(is_done).count();
        (first + finished) as u8
    }

    pub(super) fn worker_call(&self, worker: usize, record: usize) -> Option<RedisCall> {
        let message = self.messages[record];
        let task = self.task(worker, record)?;
        let RecordTask { owner, attempt, .. } = task;
        match task.stage {
            Stage::Begin => {
                let cancelled = Self::outcome_so_far(task, OutcomeKind::Cancelled);
                Some(RedisCall::Begin(message, owner, attempt, cancelled))
            }
            Stage::Generate => {
                let piece = (task.sent, task.call);
                Some(RedisCall::Live(message, owner, attempt, piece))
            }
            Stage::Keep(outcome) => {
                let cancelled = Outcome {
                    kind: OutcomeKind::Cancelled,
                    ..outcome
                };
                Some(RedisCall::Keep(message, owner, attempt, outcome, cancelled))
            }
            Stage::Produce(_) | Stage::Done => None,
        }
    }

    pub(super) fn step_worker(&mut self, worker: usize, record: usize) -> CheckResult {
        let message = self.messages[record];
        let tasks = &mut self.workers[worker].tasks;
        if tasks.len() <= record {
            tasks.resize(record + 1, None);
        }
        let Some(mut task) = tasks[record] else {
            // An owner id is unique to a delivery of this record to this worker.
            self.deliveries[worker][record] += 1;
            let delivery = self.deliveries[worker][record];
            tasks[record] = Some(RecordTask {
                owner: (worker as u8) << 6 | (record as u8) << 4 | delivery,
                attempt: 0,
                call: 0,
                sent: 0,
                generated: None,
                stage: Stage::Begin,
            });
            return Ok(());
        };
        match (task.stage, self.worker_call(worker, record)) {
            (Stage::Begin, Some(RedisCall::Begin(_, owner, last_attempt, cancelled))) => {
                let response = self.shared.begin(message, owner, last_attempt, cancelled);
                self.handle_begin(&mut task, message, response)?;
            }
            (Stage::Generate, Some(RedisCall::Live(_, owner, attempt, piece))) => {
                let response = self.shared.live(message, owner, attempt, Some(piece));
                self.handle_live(&mut task, response);
            }
            (Stage::Keep(_), Some(RedisCall::Keep(_, owner, attempt, outcome, cancelled))) => {
                let response = self
                    .shared
                    .keep(message, owner, attempt, outcome, cancelled);
                match response {
                    KeepResponse::Outcome(stored, delivered_at) => {
                        task.stage = Self::stage_of_outcome(stored, delivered_at);
                    }
                    KeepResponse::Fenced => {
                        task.generated = Some(outcome);
                        task.stage = Stage::Begin;
                    }
                }
            }
            (Stage::Produce(outcome), _) => {
                self.responses.push((message, outcome));
                task.stage = Stage::Done;
            }
            _ => {}
        }
        self.workers[worker].tasks[record] = Some(task);
        self.dispatch_published();
        Ok(())
    }

    fn handle_begin(
        &mut self,
        task: &mut RecordTask,
        message: Message,
        response: BeginResponse,
    ) -> CheckResult {
        match response {
            BeginResponse::Ended(outcome, delivered_at) => {
                task.stage = Self::stage_of_outcome(outcome, delivered_at);
            }
            BeginResponse::Busy(_) => task.call = 0,
            BeginResponse::Attempt { number, .. } => {
                task.attempt = number;
                task.sent = 0;
                if let Some(generated) = task.generated {
                    task.stage = Stage::Keep(generated);
                    return Ok(());
                }
                if task.call == 0 {
                    self.model_calls += 1;
                    task.call = self.model_calls;
                    self.count_model_call(message)?;
                }
                task.stage = Stage::Generate;
            }
        }
        Ok(())
    }

    fn handle_live(&self, task: &mut RecordTask, response: LiveResponse) {
        match response {
            LiveResponse::Written => task.sent += 1,
            LiveResponse::OutOfOrder(next) if next == task.sent + 1 => task.sent = next,
            LiveResponse::OutOfOrder(_) | LiveResponse::DataLost => task.stage = Stage::Begin,
            LiveResponse::Fenced => {
                task.call = 0;
                task.stage = Stage::Begin;
            }
            LiveResponse::Cancelled => {
                let cancelled = Self::outcome_so_far(*task, OutcomeKind::Cancelled);
                task.stage = Stage::Keep(cancelled);
            }
        }
        if task.stage == Stage::Generate && task.sent == self.pieces {
            let answered = Self::outcome_so_far(*task, OutcomeKind::Answered);
            task.stage = if self.shared.enforces(Rule::OnlyStoredOutcomeProduced) {
                Stage::Keep(answered)
            } else {
                Stage::Produce(answered)
            };
        }
    }

    /// A stored outcome is produced unless its record was already delivered.
    fn stage_of_outcome(outcome: Outcome, delivered_at: Option<Offset>) -> Stage {
        delivered_at.map_or(Stage::Produce(outcome), |_| Stage::Done)
    }

    fn outcome_so_far(task: RecordTask, kind: OutcomeKind) -> Outcome {
        Outcome {
            call: task.call,
            pieces: task.sent,
            kind,
        }
    }

    /// Checks that the model is not called again without a reason: an expired lease or lost data.
    fn count_model_call(&mut self, message: Message) -> CheckResult {
        let index = usize::from(message);
        self.calls_by_message[index] += 1;
        let allowed = 1 + self.expired_leases[index] + self.data_losses;
        if self.calls_by_message[index] > allowed {
            return Err(format!("the model is called again for message {message}"));
        }
        Ok(())
    }
}
