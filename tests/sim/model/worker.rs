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

    fn stream(&self, task: RecordTask) -> Stream {
        self.shared.stream_of(task.owner, task.attempt)
    }

    /// The piece that the worker sends next. Each part has two pieces; the first one opens it.
    fn piece(task: RecordTask) -> Piece {
        let offset = task.sent % PIECES_PER_PART;
        let part = task.sent / PIECES_PER_PART;
        Piece {
            part,
            offset,
            end: offset + 1,
            call: task.call,
            opening: (offset == 0).then_some(if part == 0 { 0 } else { PIECES_PER_PART }),
        }
    }

    /// Number of parts that the fan-out has confirmed, and the length of the last one.
    fn confirmed_parts(task: RecordTask) -> (u8, u8) {
        let parts = task.sent.div_ceil(PIECES_PER_PART);
        let length_before = parts.saturating_sub(1) * PIECES_PER_PART;
        (parts, task.sent - length_before)
    }

    /// Whether a renewal of the lease, which a worker makes every second, would change anything.
    pub(super) fn can_renew(&self, worker: usize, record: usize) -> bool {
        let Some(task) = self.task(worker, record) else {
            return false;
        };
        if !matches!(task.stage, Stage::Generate) {
            return false;
        }
        let message = self.messages[record];
        let in_flight = self.shared.messages[usize::from(message)]
            .in_flight
            .as_ref();
        let has_lease = in_flight.is_some_and(|in_flight| {
            in_flight.owner == task.owner
                && in_flight.attempt == task.attempt
                && in_flight.lease > 0
        });
        let (parts, last_length) = Self::confirmed_parts(task);
        let mut shared = self.shared.clone();
        let response = shared.renew(message, task.owner, task.attempt, parts, last_length);
        !has_lease || !matches!(response, StreamResponse::Confirmed(_))
    }

    /// The worker renews its lease by its timer.
    pub(super) fn renew_lease(&mut self, worker: usize, record: usize) {
        if let Some(Some(task)) = self.workers[worker].tasks.get_mut(record) {
            task.stage = Stage::Renew;
        }
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
                let piece = Self::piece(task);
                Some(match piece.opening {
                    Some(_) => RedisCall::OpenPart(message, owner, attempt, piece),
                    None => RedisCall::PushPiece(message, self.stream(task), piece),
                })
            }
            Stage::PublishPiece { .. } => {
                let piece = Self::piece(task);
                Some(RedisCall::PublishPiece(message, self.stream(task), piece))
            }
            Stage::Renew => {
                let (parts, last_length) = Self::confirmed_parts(task);
                Some(RedisCall::Renew(
                    message,
                    owner,
                    attempt,
                    parts,
                    last_length,
                ))
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
                stored: 0,
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
            (Stage::Generate, Some(RedisCall::OpenPart(_, owner, attempt, piece))) => {
                match self.shared.open_part(message, owner, attempt, piece) {
                    StreamResponse::Confirmed(stored) => self.count_piece(&mut task, stored),
                    other => Self::stop_generating(&mut task, other),
                }
            }
            (Stage::Generate, Some(RedisCall::PushPiece(_, stream, piece))) => {
                let stored = self.shared.push_piece(message, stream, piece);
                task.stage = Stage::PublishPiece { stored };
            }
            (Stage::PublishPiece { stored }, Some(RedisCall::PublishPiece(_, stream, piece))) => {
                self.shared.publish_piece(message, stream, piece);
                self.count_piece(&mut task, stored);
            }
            (Stage::Renew, Some(RedisCall::Renew(_, owner, attempt, parts, last_length))) => {
                match self
                    .shared
                    .renew(message, owner, attempt, parts, last_length)
                {
                    StreamResponse::Confirmed(stored) => {
                        task.stored = stored;
                        self.continue_generating(&mut task);
                    }
                    other => Self::stop_generating(&mut task, other),
                }
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
                task.stored = 0;
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

    /// The fan-out has confirmed a piece, and then had `stored` pieces of the stream. If these are
    /// fewer than the worker expects, the fan-out has lost data, which the next renewal detects.
    fn count_piece(&self, task: &mut RecordTask, stored: u8) {
        let is_complete = stored > task.stored;
        if !is_complete {
            task.stage = Stage::Renew;
            if stored == 0 {
                return;
            }
        }
        task.stored = stored;
        task.sent += 1;
        if is_complete {
            self.continue_generating(task);
        }
    }

    /// Sends the next piece, or stores the outcome where all pieces are sent.
    fn continue_generating(&self, task: &mut RecordTask) {
        task.stage = Stage::Generate;
        if task.sent == self.pieces {
            let answered = Self::outcome_so_far(*task, OutcomeKind::Answered);
            task.stage = if self.shared.enforces(Rule::OnlyStoredOutcomeProduced) {
                Stage::Keep(answered)
            } else {
                Stage::Produce(answered)
            };
        }
    }

    fn stop_generating(task: &mut RecordTask, response: StreamResponse) {
        match response {
            StreamResponse::Confirmed(_) => {}
            StreamResponse::DataLost => task.stage = Stage::Begin,
            StreamResponse::Fenced => {
                task.call = 0;
                task.stage = Stage::Begin;
            }
            StreamResponse::Cancelled => {
                let cancelled = Self::outcome_so_far(*task, OutcomeKind::Cancelled);
                task.stage = Stage::Keep(cancelled);
            }
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
