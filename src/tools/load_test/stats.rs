//! Counters and latency histograms of the clients. Each thread has its own statistics, so that the
//! message path has no shared state; they are merged at the end of the test.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Largest latency of the histograms, in microseconds (one hour). Longer latencies count as this.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// A histogram of latencies with a resolution of 0.1 %.
#[derive(Debug, Clone)]
pub(super) struct LatencyHistogram(Histogram<u64>);

impl LatencyHistogram {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_LATENCY_US, 3);
        Self(histogram.unwrap_or_else(|_| unreachable!("the bounds are valid constants")))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(as_micros(latency));
    }

    fn merge(&mut self, other: &Self) {
        // Adding can't fail, because all histograms have the same range.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The percentile in milliseconds; `None` when nothing was measured.
    pub(super) fn percentile_ms(&self, percent: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_percentile(percent) as f64 / 1e3)
    }

    pub(super) fn max_ms(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.max() as f64 / 1e3)
    }

    pub(super) fn mean_ms(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.mean() / 1e3)
    }
}

fn as_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The messages that were sent and answered in one time step of the test.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// Latencies of the answers, with a resolution of 1 % because there are many buckets; `None`
    /// before the first answer.
    latency: Option<Histogram<u32>>,
}

impl Bucket {
    fn new() -> Self {
        Self {
            sent: 0,
            answered: 0,
            latency: None,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        match (&mut self.latency, &other.latency) {
            (Some(latency), Some(added)) => {
                let _ = latency.add(added);
            }
            (latency @ None, Some(added)) => *latency = Some(added.clone()),
            (_, None) => {}
        }
    }

    pub(super) fn percentile_ms(&self, percent: f64) -> Option<f64> {
        let latency = self.latency.as_ref()?;
        Some(latency.value_at_percentile(percent) as f64 / 1e3)
    }
}

/// Counts over time, in buckets of equal width. The number of buckets is bounded: when the test
/// becomes too long for it, pairs of buckets are merged.
#[derive(Debug)]
pub(super) struct TimeSeries {
    pub(super) bucket_width: Duration,
    pub(super) buckets: Vec<Bucket>,
}

/// Maximum number of buckets, which is as many as a plot can show.
const MAX_BUCKETS: usize = 400;
/// Width of a bucket before buckets are merged.
const INITIAL_BUCKET_WIDTH: Duration = Duration::from_millis(200);

impl TimeSeries {
    fn new() -> Self {
        Self {
            bucket_width: INITIAL_BUCKET_WIDTH,
            buckets: Vec::new(),
        }
    }

    fn bucket_mut(&mut self, since_start: Duration) -> &mut Bucket {
        let index = |width: Duration| (since_start.as_nanos() / width.as_nanos()) as usize;
        while index(self.bucket_width) >= MAX_BUCKETS {
            self.widen();
        }
        let index = index(self.bucket_width);
        if self.buckets.len() <= index {
            self.buckets.resize_with(index + 1, Bucket::new);
        }
        &mut self.buckets[index]
    }

    /// Doubles the width of the buckets, by merging pairs of buckets.
    fn widen(&mut self) {
        self.bucket_width *= 2;
        let pairs = self.buckets.chunks(2).map(|pair| {
            let mut merged = pair[0].clone();
            if let Some(second) = pair.get(1) {
                merged.merge(second);
            }
            merged
        });
        self.buckets = pairs.collect();
    }

    pub(super) fn record_sent(&mut self, since_start: Duration) {
        self.bucket_mut(since_start).sent += 1;
    }

    pub(super) fn record_answered(&mut self, since_start: Duration, latency: Duration) {
        let bucket = self.bucket_mut(since_start);
        bucket.answered += 1;
        if bucket.latency.is_none() {
            bucket.latency = Histogram::new_with_bounds(1, MAX_LATENCY_US, 2).ok();
        }
        if let Some(histogram) = &mut bucket.latency {
            histogram.saturating_record(as_micros(latency));
        }
    }

    fn merge(&mut self, mut other: Self) {
        while self.bucket_width < other.bucket_width {
            self.widen();
        }
        while other.bucket_width < self.bucket_width {
            other.widen();
        }
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize_with(other.buckets.len(), Bucket::new);
        }
        for (bucket, added) in self.buckets.iter_mut().zip(&other.buckets) {
            bucket.merge(added);
        }
    }
}

/// The number of occurrences of each code or reason.
pub(super) type Counts = BTreeMap<String, u64>;

pub(super) fn increment(counts: &mut Counts, name: &str) {
    if let Some(number) = counts.get_mut(name) {
        *number += 1;
    } else {
        counts.insert(name.to_owned(), 1);
    }
}

/// All counters and histograms of the clients of one thread.
#[derive(Debug)]
pub(super) struct Stats {
    /// Number of clients that connected.
    pub(super) connected: u64,
    /// Number of clients that could not connect, by reason.
    pub(super) not_connected: Counts,
    /// Number of connections that ended before the end of the test, by close code or error.
    pub(super) closed_early: Counts,
    /// When the first and the last of the connections in `closed_early` ended, since the start of
    /// the schedule.
    pub(super) closed_between: Option<(Duration, Duration)>,
    pub(super) reconnections: u64,
    /// Number of clients that were still disconnected at the end of the test, by the last reason.
    pub(super) not_reconnected: Counts,
    /// Number of scheduled messages that could not be sent.
    pub(super) not_sent: u64,
    /// Number of messages that were sent again with the same id after a lost connection.
    pub(super) resent: u64,
    pub(super) sent: u64,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    /// Number of accepted messages that ended with an error or were cancelled.
    pub(super) failed: u64,
    /// Number of messages that the server did not accept.
    pub(super) rejected: u64,
    /// Number of messages without an outcome at the end of the test.
    pub(super) lost: u64,
    /// Number of messages without an outcome when the user ended the test, instead of `lost`.
    pub(super) pending: u64,
    /// Number of outcomes of messages that already had an outcome.
    pub(super) duplicates: u64,
    /// Number of outcomes that arrived after the outcome of a later message.
    pub(super) out_of_order: u64,
    /// Number of answers that contain the marker of another message.
    pub(super) mixed_up: u64,
    /// Number of frames that can't be parsed, have an unknown type, or are outcomes of no message
    /// that was sent.
    pub(super) unexpected_frames: u64,
    /// Number of `delta` and `snapshot` frames.
    pub(super) deltas: u64,
    /// Number of `restarted` frames, each of which announces another attempt of a worker.
    pub(super) restarted: u64,
    /// Number of errors of rejected and of failed messages, by code.
    pub(super) errors: Counts,
    /// Number of errors with the code `rate_limited`, by error text.
    pub(super) rate_limit_texts: Counts,
    /// Time to open a connection: requesting the token, the TCP connection, the upgrade and, in
    /// chatmesh.v1, `welcome`.
    pub(super) connect_time: LatencyHistogram,
    /// From the scheduled time of a message to `accepted`, or to its outcome if the outcome arrives
    /// first; chatmesh.v1 only.
    pub(super) accept_time: LatencyHistogram,
    /// From the scheduled time of a message to the first text of any part of its answer.
    pub(super) first_token: LatencyHistogram,
    /// From the scheduled time of a message to its complete answer.
    pub(super) whole_answer: LatencyHistogram,
    /// From the time when the model wrote a token to its arrival at the client, if the tokens are
    /// timestamps (`mock-openai --stamp`).
    pub(super) token_latency: LatencyHistogram,
    /// From the scheduled time of a message to its sending. It is long if this machine is busy or
    /// the server does not read.
    pub(super) send_delay: LatencyHistogram,
    pub(super) series: TimeSeries,
    /// When the last outcome of an accepted message arrived, since the start of the schedule.
    pub(super) last_answer: Duration,
    /// Number of answers that contained a marker.
    pub(super) marked_answers: u64,
    /// Number of outcomes of classic messages that were assigned to a message by their order only.
    pub(super) guessed_outcomes: u64,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self {
            connected: 0,
            not_connected: Counts::new(),
            closed_early: Counts::new(),
            closed_between: None,
            reconnections: 0,
            not_reconnected: Counts::new(),
            not_sent: 0,
            resent: 0,
            sent: 0,
            accepted: 0,
            delivered: 0,
            failed: 0,
            rejected: 0,
            lost: 0,
            pending: 0,
            duplicates: 0,
            out_of_order: 0,
            mixed_up: 0,
            unexpected_frames: 0,
            deltas: 0,
            restarted: 0,
            errors: Counts::new(),
            rate_limit_texts: Counts::new(),
            connect_time: LatencyHistogram::new(),
            accept_time: LatencyHistogram::new(),
            first_token: LatencyHistogram::new(),
            whole_answer: LatencyHistogram::new(),
            token_latency: LatencyHistogram::new(),
            send_delay: LatencyHistogram::new(),
            series: TimeSeries::new(),
            last_answer: Duration::ZERO,
            marked_answers: 0,
            guessed_outcomes: 0,
        }
    }

    /// Counts a connection that ended before the end of the test.
    pub(super) fn record_early_close(&mut self, reason: &str, since_start: Duration) {
        increment(&mut self.closed_early, reason);
        let (first, last) = self.closed_between.unwrap_or((since_start, since_start));
        self.closed_between = Some((first.min(since_start), last.max(since_start)));
    }

    pub(super) fn merge(&mut self, other: Self) {
        if let Some((first, last)) = other.closed_between {
            let (own_first, own_last) = self.closed_between.unwrap_or((first, last));
            self.closed_between = Some((first.min(own_first), last.max(own_last)));
        }
        for (own, added) in [
            (&mut self.connected, other.connected),
            (&mut self.sent, other.sent),
            (&mut self.accepted, other.accepted),
            (&mut self.delivered, other.delivered),
            (&mut self.failed, other.failed),
            (&mut self.rejected, other.rejected),
            (&mut self.lost, other.lost),
            (&mut self.duplicates, other.duplicates),
            (&mut self.out_of_order, other.out_of_order),
            (&mut self.mixed_up, other.mixed_up),
            (&mut self.unexpected_frames, other.unexpected_frames),
            (&mut self.deltas, other.deltas),
            (&mut self.restarted, other.restarted),
            (&mut self.marked_answers, other.marked_answers),
            (&mut self.guessed_outcomes, other.guessed_outcomes),
            (&mut self.reconnections, other.reconnections),
            (&mut self.not_sent, other.not_sent),
            (&mut self.resent, other.resent),
        ] {
            *own += added;
        }
        for (own, added) in [
            (&mut self.not_connected, other.not_connected),
            (&mut self.closed_early, other.closed_early),
            (&mut self.not_reconnected, other.not_reconnected),
            (&mut self.errors, other.errors),
            (&mut self.rate_limit_texts, other.rate_limit_texts),
        ] {
            for (name, number) in added {
                *own.entry(name).or_default() += number;
            }
        }
        for (own, added) in [
            (&mut self.connect_time, &other.connect_time),
            (&mut self.accept_time, &other.accept_time),
            (&mut self.first_token, &other.first_token),
            (&mut self.whole_answer, &other.whole_answer),
            (&mut self.token_latency, &other.token_latency),
            (&mut self.send_delay, &other.send_delay),
        ] {
            own.merge(added);
        }
        self.series.merge(other.series);
        self.last_answer = self.last_answer.max(other.last_answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn long_test_keeps_its_counts_in_wider_buckets() {
        let mut long_series = TimeSeries::new();
        for second in 0..1_000 {
            long_series.record_sent(ms(second * 1_000));
            long_series.record_answered(ms(second * 1_000 + 5), ms(5));
        }
        assert!(long_series.buckets.len() <= MAX_BUCKETS);
        let mut short_series = TimeSeries::new();
        short_series.record_answered(ms(100), ms(900));
        short_series.merge(long_series);
        let total: u64 = short_series
            .buckets
            .iter()
            .map(|bucket| bucket.answered)
            .sum();
        assert_eq!(total, 1_001);
        assert_eq!(
            short_series.buckets.iter().map(|b| b.sent).sum::<u64>(),
            1_000
        );
        let slowest = short_series.buckets[0].percentile_ms(100.0).unwrap();
        assert!((890.0..910.0).contains(&slowest), "{slowest}");
    }

    #[test]
    fn percentiles_are_exact_to_a_thousandth() {
        let mut latency = LatencyHistogram::new();
        assert_eq!(latency.percentile_ms(50.0), None);
        for n in 1..=1_000 {
            latency.record(ms(n));
        }
        for (percent, expected) in [(50.0, 500.0), (99.0, 990.0), (99.9, 999.0)] {
            let actual = latency.percentile_ms(percent).unwrap();
            // When the rank falls between two values, either value is correct.
            assert!(
                (actual - expected).abs() <= expected / 500.0,
                "{percent}: {actual}"
            );
        }
    }
}
