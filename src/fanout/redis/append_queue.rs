//! Sends the appends of all answers of a process together under load, in one pipeline for each few
//! milliseconds. Measured with 60 appends in a pipeline, an append then costs the client library
//! half and Redis two thirds of what two separate commands cost.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::{Client, Pipeline};
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, ListInterface, PubsubInterface};
use fred::types::Value;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Time for which appends are collected under load. An append waits for at most this time.
const COLLECTION_TIME: Duration = Duration::from_millis(4);

/// Number of appends within [`COLLECTION_TIME`] that are sent at once. At a lower rate (2,000 a
/// second) an append never waits.
const IMMEDIATE_APPENDS: usize = 8;

/// Maximum number of appends in one pipeline.
const MAX_PIPELINE_APPENDS: usize = 256;

/// The two commands that append a piece to a stream and publish it.
#[derive(Debug)]
pub(super) struct AppendCommands {
    /// The list with the stream's pieces.
    pub(super) key: String,
    /// The list element with the piece.
    pub(super) element: String,
    pub(super) live_channel: String,
    /// The `delta` frame with the piece.
    pub(super) frame: String,
}

/// Returns the length of the list, or the error of either command.
type AppendResult = Result<u64, Error>;

struct QueuedAppend {
    commands: AppendCommands,
    result: oneshot::Sender<AppendResult>,
}

/// Divides the time into collection periods. The first appends of a period are sent at once, and the
/// others together at its end. A period begins with the first append after the previous one.
#[derive(Clone)]
pub(super) struct AppendQueue {
    client: Client,
    /// The current period; `None` while there is none.
    period: Arc<Mutex<Option<Period>>>,
}

#[derive(Default)]
struct Period {
    /// Number of appends that were sent at once.
    immediate: usize,
    queued: Vec<QueuedAppend>,
}

impl AppendQueue {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            period: Arc::default(),
        }
    }

    /// Sends the commands, at once or at the end of the current period. They are not atomic: if
    /// only one is carried out, the caller's repeat sends both again, and readers drop what they
    /// have. Returns the length of the list.
    pub(super) async fn append(&self, commands: AppendCommands) -> AppendResult {
        let queued = {
            let mut period = self.period.lock();
            let is_first = period.is_none();
            let current = period.get_or_insert_default();
            if is_first {
                tokio::spawn(self.clone().send_queued_after_each_period());
            }
            if current.immediate < IMMEDIATE_APPENDS {
                current.immediate += 1;
                Err(commands)
            } else {
                let (result, receiver) = oneshot::channel();
                current.queued.push(QueuedAppend { commands, result });
                Ok(receiver)
            }
        };
        match queued {
            Ok(receiver) => receiver.await.unwrap_or_else(|_| Err(cancelled())),
            Err(commands) => {
                // Boxed, because the client library's future is large, and would be moved with this
                // one.
                let mut results = Box::pin(self.send(vec![commands])).await;
                results.pop().unwrap_or_else(|| Err(cancelled()))
            }
        }
    }

    /// Sends what was queued, at the end of each period. As long as appends are queued, the next
    /// period follows without a gap.
    async fn send_queued_after_each_period(self) {
        loop {
            tokio::time::sleep(COLLECTION_TIME).await;
            let queued = {
                let mut period = self.period.lock();
                let queued = period.take().map(|ended| ended.queued).unwrap_or_default();
                if queued.is_empty() {
                    return;
                }
                // Under load all appends of the next period wait for its end.
                *period = Some(Period {
                    immediate: IMMEDIATE_APPENDS,
                    queued: Vec::with_capacity(queued.len()),
                });
                queued
            };
            // A pipeline waits for its replies in a task of its own, so that the next one does not
            // wait for them.
            tokio::spawn(self.clone().send_in_pipelines(queued));
        }
    }

    async fn send_in_pipelines(self, queued: Vec<QueuedAppend>) {
        let mut queued = queued.into_iter().peekable();
        while queued.peek().is_some() {
            let pipeline = queued.by_ref().take(MAX_PIPELINE_APPENDS);
            let (commands, results): (Vec<_>, Vec<_>) = pipeline
                .filter(|append| !append.result.is_closed())
                .map(|append| (append.commands, append.result))
                .unzip();
            for (sender, result) in results.into_iter().zip(self.send(commands).await) {
                // The caller may have stopped to wait.
                let _ = sender.send(result);
            }
        }
    }

    /// Sends the commands in one pipeline. Returns the result of each append.
    async fn send(&self, appends: Vec<AppendCommands>) -> Vec<AppendResult> {
        let count = appends.len();
        let pipeline = self.client.pipeline();
        for append in appends {
            if let Err(error) = self.add(&pipeline, append).await {
                return vec![Err(error); count];
            }
        }
        let mut replies = pipeline.try_all::<Value>().await;
        if replies.len() != 2 * count {
            // The pipeline as a whole failed.
            let error = replies.pop().and_then(Result::err);
            return vec![Err(error.unwrap_or_else(cancelled)); count];
        }
        let mut replies = replies.into_iter();
        let next_result = || -> AppendResult {
            let (pushed, published) = (replies.next(), replies.next());
            published.unwrap_or_else(|| Err(cancelled()))?;
            pushed.unwrap_or_else(|| Err(cancelled()))?.convert()
        };
        std::iter::repeat_with(next_result).take(count).collect()
    }

    /// Adds the commands of an append to a pipeline. Sends nothing.
    async fn add(&self, pipeline: &Pipeline<Client>, append: AppendCommands) -> Result<(), Error> {
        let AppendCommands {
            key,
            element,
            live_channel,
            frame,
        } = append;
        let _: Value = pipeline.rpushx(key, element).await?;
        let _: Value = if self.client.is_clustered() {
            pipeline.spublish(live_channel, frame).await?
        } else {
            pipeline.publish(live_channel, frame).await?
        };
        Ok(())
    }
}

/// The error of an append whose result is not known.
fn cancelled() -> Error {
    Error::new(ErrorKind::Canceled, "the result of an append is not known")
}
