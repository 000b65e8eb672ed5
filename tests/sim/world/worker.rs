//! What a worker does with a record.

use super::*;

impl World {
    fn task(&self, worker: usize, record: usize) -> Option<Taking> {
        *self.workers[worker].tasks.get(record)?
    }

    pub(super) fn can_work(&self, worker: usize, record: usize) -> bool {
        if let Some(taking) = self.task(worker, record) {
            return match taking.stage {
                Stage::Done => false,
                // Asking again while it is busy changes nothing.
                Stage::Begins => !self.is_busy(self.incoming[record], taking.owner),
                _ => true,
            };
        }
        let lane = self.shared.conversation(self.incoming[record]);
        let early = !self.shared.keeps(Rule::Lane);
        let over = |one: Taking| {
            one.stage == Stage::Done || early && matches!(one.stage, Stage::Produces(_))
        };
        let from = usize::from(self.committed_in);
        worker == self.reader
            && record >= from
            && (from..record).all(|before| {
                self.shared.conversation(self.incoming[before]) != lane
                    || self.task(worker, before).is_some_and(over)
            })
    }

    fn is_busy(&self, message: Message, owner: Owner) -> bool {
        let kept = &self.shared.messages[usize::from(message)];
        self.shared.keeps(Rule::Busy)
            && kept.ended.is_none()
            && !kept.marked
            && kept
                .flight
                .as_ref()
                .is_some_and(|one| one.owner != owner && one.lease > 0)
    }

    /// Everything below is finished.
    pub(super) fn finished(&self, worker: usize) -> u8 {
        let done = |record: &usize| {
            self.task(worker, *record)
                .is_some_and(|one| one.stage == Stage::Done)
        };
        let from = usize::from(self.committed_in);
        if !self.shared.keeps(Rule::Contiguous) {
            let last = (from..self.incoming.len()).rev().find(done);
            return last.map_or(self.committed_in, |last| last as u8 + 1);
        }
        let rest = (from..self.incoming.len()).take_while(done).count();
        (from + rest) as u8
    }

    pub(super) fn worker_call(&self, worker: usize, record: usize) -> Option<Call> {
        let message = self.incoming[record];
        let taking = self.task(worker, record)?;
        let cancelled = End {
            call: taking.call,
            pieces: taking.sent,
            how: How::Cancelled,
        };
        let Taking { owner, attempt, .. } = taking;
        match taking.stage {
            Stage::Begins => Some(Call::Begin(message, owner, attempt, cancelled)),
            Stage::Writes => {
                let piece = (taking.sent, taking.call);
                Some(Call::Live(message, owner, attempt, piece))
            }
            Stage::Keeps(end) => {
                let how = How::Cancelled;
                Some(Call::Keep(message, owner, attempt, end, End { how, ..end }))
            }
            Stage::Produces(_) | Stage::Done => None,
        }
    }

    pub(super) fn work(&mut self, worker: usize, record: usize) -> Checked {
        let message = self.incoming[record];
        let tasks = &mut self.workers[worker].tasks;
        if tasks.len() <= record {
            tasks.resize(record + 1, None);
        }
        let Some(mut taking) = tasks[record] else {
            // One for each taking of this record by this worker.
            self.owners[worker][record] += 1;
            let owner = (worker as u8) << 6 | (record as u8) << 4 | self.owners[worker][record];
            tasks[record] = Some(Taking {
                owner,
                attempt: 0,
                call: 0,
                sent: 0,
                written: None,
                stage: Stage::Begins,
            });
            return Ok(());
        };
        let call = self.worker_call(worker, record);
        match (taking.stage, call) {
            (Stage::Begins, Some(Call::Begin(_, owner, had, cancelled))) => {
                match self.shared.begin(message, owner, had, cancelled) {
                    Begun::Ended(end, delivered) => {
                        taking.stage = delivered.map_or(Stage::Produces(end), |_| Stage::Done);
                    }
                    Begun::Busy(_) => taking.call = 0,
                    Begun::Attempt { number, .. } => {
                        taking.attempt = number;
                        taking.sent = 0;
                        if let Some(written) = taking.written {
                            taking.stage = Stage::Keeps(written);
                        } else {
                            if taking.call == 0 {
                                self.calls += 1;
                                taking.call = self.calls;
                                self.pay(message)?;
                            }
                            taking.stage = Stage::Writes;
                        }
                    }
                }
            }
            (Stage::Writes, Some(Call::Live(_, owner, attempt, piece))) => {
                match self.shared.live(message, owner, attempt, Some(piece)) {
                    Lived::Written => taking.sent += 1,
                    Lived::Expected(next) if next == taking.sent + 1 => taking.sent = next,
                    Lived::Expected(_) | Lived::Lost => taking.stage = Stage::Begins,
                    Lived::Fenced => {
                        taking.call = 0;
                        taking.stage = Stage::Begins;
                    }
                    Lived::Cancelled => {
                        taking.stage = Stage::Keeps(Self::end(taking, How::Cancelled));
                    }
                }
                if taking.stage == Stage::Writes && taking.sent == self.pieces {
                    let end = Self::end(taking, How::Answered);
                    taking.stage = if self.shared.keeps(Rule::KeptOnly) {
                        Stage::Keeps(end)
                    } else {
                        Stage::Produces(end)
                    };
                }
            }
            (Stage::Keeps(_), Some(Call::Keep(_, owner, attempt, end, cancelled))) => {
                match self.shared.keep(message, owner, attempt, end, cancelled) {
                    Keeping::Outcome(end, delivered) => {
                        taking.stage = delivered.map_or(Stage::Produces(end), |_| Stage::Done);
                    }
                    Keeping::Fenced => {
                        taking.written = Some(end);
                        taking.stage = Stage::Begins;
                    }
                }
            }
            (Stage::Produces(end), _) => {
                self.responses.push((message, end));
                taking.stage = Stage::Done;
            }
            _ => {}
        }
        self.workers[worker].tasks[record] = Some(taking);
        self.spread();
        Ok(())
    }

    fn end(taking: Taking, how: How) -> End {
        End {
            call: taking.call,
            pieces: taking.sent,
            how,
        }
    }

    /// The model is not paid twice while a lease holds.
    fn pay(&mut self, message: Message) -> Checked {
        let index = usize::from(message);
        self.paid[index] += 1;
        if self.paid[index] > 1 + self.expired[index] + self.losses {
            return Err(format!("message {message} is paid twice"));
        }
        Ok(())
    }
}
