//! What clients count and measure. Each thread has its own, so that nothing is shared on the way of
//! a message; they are added up at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest that is told apart, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Times in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Times(Histogram<u64>);

impl Times {
    pub(super) fn new() -> Self {
        let times = Histogram::new_with_bounds(1, LONGEST_US, 3);
        // The bounds are constants that are in order.
        Self(times.unwrap_or_else(|_| unreachable!("bounds of a histogram")))
    }

    pub(super) fn record(&mut self, time: Duration) {
        self.0.saturating_record(micros(time));
    }

    fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds that so many percent are not above; `None` where nothing was measured.
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

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A moment of the test.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// Whole answers that came in it. Coarser than [`Times`], as there are many of these.
    times: Option<Histogram<u32>>,
}

impl Bucket {
    fn new() -> Self {
        Self {
            sent: 0,
            answered: 0,
            times: None,
        }
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        match (&mut self.times, &other.times) {
            (Some(times), Some(more)) => {
                let _ = times.add(more);
            }
            (times @ None, Some(more)) => *times = Some(more.clone()),
            (_, None) => {}
        }
    }

    pub(super) fn percentile_ms(&self, percent: f64) -> Option<f64> {
        let times = self.times.as_ref()?;
        Some(times.value_at_percentile(percent) as f64 / 1e3)
    }
}

/// The test over time. As it gets longer, its buckets do: there is a bound to them.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) width: Duration,
    pub(super) buckets: Vec<Bucket>,
}

/// More than a plot is wide.
const BUCKETS: usize = 400;
const FIRST_WIDTH: Duration = Duration::from_millis(200);

impl Series {
    fn new() -> Self {
        Self {
            width: FIRST_WIDTH,
            buckets: Vec::new(),
        }
    }

    fn at(&mut self, since_begin: Duration) -> &mut Bucket {
        let number = |width: Duration| (since_begin.as_nanos() / width.as_nanos()) as usize;
        while number(self.width) >= BUCKETS {
            self.widen();
        }
        let number = number(self.width);
        if self.buckets.len() <= number {
            self.buckets.resize_with(number + 1, Bucket::new);
        }
        &mut self.buckets[number]
    }

    fn widen(&mut self) {
        self.width *= 2;
        let pairs = self.buckets.chunks(2).map(|pair| {
            let mut both = pair[0].clone();
            if let Some(second) = pair.get(1) {
                both.add(second);
            }
            both
        });
        self.buckets = pairs.collect();
    }

    pub(super) fn sent(&mut self, since_begin: Duration) {
        self.at(since_begin).sent += 1;
    }

    pub(super) fn answered(&mut self, since_begin: Duration, took: Duration) {
        let bucket = self.at(since_begin);
        bucket.answered += 1;
        if bucket.times.is_none() {
            bucket.times = Histogram::new_with_bounds(1, LONGEST_US, 2).ok();
        }
        if let Some(times) = &mut bucket.times {
            times.saturating_record(micros(took));
        }
    }

    fn add(&mut self, mut other: Self) {
        while self.width < other.width {
            self.widen();
        }
        while other.width < self.width {
            other.widen();
        }
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize_with(other.buckets.len(), Bucket::new);
        }
        for (mine, more) in self.buckets.iter_mut().zip(&other.buckets) {
            mine.add(more);
        }
    }
}

/// Names with how often they came.
pub(super) type Counts = BTreeMap<String, u64>;

pub(super) fn count(counts: &mut Counts, name: &str) {
    if let Some(number) = counts.get_mut(name) {
        *number += 1;
    } else {
        counts.insert(name.to_owned(), 1);
    }
}

/// Everything that a thread's clients saw.
#[derive(Debug)]
pub(super) struct Stats {
    pub(super) connected: u64,
    /// Connections that could not be made, by reason.
    pub(super) not_connected: Counts,
    /// Connections that ended before the test, by close code.
    pub(super) closed: Counts,
    /// Since the beginning, when the first and the last of them ended.
    pub(super) closed_at: Option<(Duration, Duration)>,
    /// Of clients that came back.
    pub(super) returned: u64,
    /// Clients that were not back at the end, by the last reason.
    pub(super) away: Counts,
    /// Messages of the schedule that could not be sent.
    pub(super) not_sent: u64,
    /// Messages that were sent once more by their id after a connection was lost.
    pub(super) sent_again: u64,
    pub(super) sent: u64,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    /// Ended by an error or as cancelled.
    pub(super) failed: u64,
    /// Not taken by the server.
    pub(super) refused: u64,
    /// Neither answered nor refused when the test ended.
    pub(super) lost: u64,
    /// The same, where the user ended the test.
    pub(super) open: u64,
    pub(super) doubles: u64,
    pub(super) out_of_order: u64,
    /// Answers with the text of another message's.
    pub(super) mixed_up: u64,
    /// Frames that can't be read, or are about messages that were not sent.
    pub(super) strange: u64,
    pub(super) deltas: u64,
    pub(super) restarted: u64,
    /// Codes of errors, of refusals and of failures.
    pub(super) errors: Counts,
    /// Which limits of the server were met, by its text.
    pub(super) limits: Counts,
    pub(super) connecting: Times,
    pub(super) acceptance: Times,
    pub(super) first_token: Times,
    pub(super) whole: Times,
    /// From the model's write to the client, where its tokens tell (`mock-openai --stamp`).
    pub(super) token: Times,
    /// How late messages were sent, by this side's fault or because the server did not read.
    pub(super) late: Times,
    pub(super) series: Series,
    /// Since the beginning, when the last answer came.
    pub(super) last_answer: Duration,
    /// Answers that could be told apart by their text.
    pub(super) recognised: u64,
    /// Ends of classic messages that did not say whose they were.
    pub(super) guessed: u64,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self {
            connected: 0,
            not_connected: Counts::new(),
            closed: Counts::new(),
            closed_at: None,
            returned: 0,
            away: Counts::new(),
            not_sent: 0,
            sent_again: 0,
            sent: 0,
            accepted: 0,
            delivered: 0,
            failed: 0,
            refused: 0,
            lost: 0,
            open: 0,
            doubles: 0,
            out_of_order: 0,
            mixed_up: 0,
            strange: 0,
            deltas: 0,
            restarted: 0,
            errors: Counts::new(),
            limits: Counts::new(),
            connecting: Times::new(),
            acceptance: Times::new(),
            first_token: Times::new(),
            whole: Times::new(),
            token: Times::new(),
            late: Times::new(),
            series: Series::new(),
            last_answer: Duration::ZERO,
            recognised: 0,
            guessed: 0,
        }
    }

    /// A connection has ended early.
    pub(super) fn closed(&mut self, why: &str, since_begin: Duration) {
        count(&mut self.closed, why);
        let (first, last) = self.closed_at.unwrap_or((since_begin, since_begin));
        self.closed_at = Some((first.min(since_begin), last.max(since_begin)));
    }

    pub(super) fn add(&mut self, other: Self) {
        if let Some((first, last)) = other.closed_at {
            let (mine_first, mine_last) = self.closed_at.unwrap_or((first, last));
            self.closed_at = Some((first.min(mine_first), last.max(mine_last)));
        }
        for (mine, more) in [
            (&mut self.connected, other.connected),
            (&mut self.sent, other.sent),
            (&mut self.accepted, other.accepted),
            (&mut self.delivered, other.delivered),
            (&mut self.failed, other.failed),
            (&mut self.refused, other.refused),
            (&mut self.lost, other.lost),
            (&mut self.doubles, other.doubles),
            (&mut self.out_of_order, other.out_of_order),
            (&mut self.mixed_up, other.mixed_up),
            (&mut self.strange, other.strange),
            (&mut self.deltas, other.deltas),
            (&mut self.restarted, other.restarted),
            (&mut self.recognised, other.recognised),
            (&mut self.guessed, other.guessed),
            (&mut self.returned, other.returned),
            (&mut self.not_sent, other.not_sent),
            (&mut self.sent_again, other.sent_again),
        ] {
            *mine += more;
        }
        for (mine, more) in [
            (&mut self.not_connected, other.not_connected),
            (&mut self.closed, other.closed),
            (&mut self.away, other.away),
            (&mut self.errors, other.errors),
            (&mut self.limits, other.limits),
        ] {
            for (name, number) in more {
                *mine.entry(name).or_default() += number;
            }
        }
        for (mine, more) in [
            (&mut self.connecting, &other.connecting),
            (&mut self.acceptance, &other.acceptance),
            (&mut self.first_token, &other.first_token),
            (&mut self.whole, &other.whole),
            (&mut self.token, &other.token),
            (&mut self.late, &other.late),
        ] {
            mine.add(more);
        }
        self.series.add(other.series);
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
    fn a_long_test_keeps_its_counts_in_wider_buckets() {
        let mut long = Series::new();
        for second in 0..1_000 {
            long.sent(ms(second * 1_000));
            long.answered(ms(second * 1_000 + 5), ms(5));
        }
        assert!(long.buckets.len() <= BUCKETS);
        let mut short = Series::new();
        short.answered(ms(100), ms(900));
        short.add(long);
        let total: u64 = short.buckets.iter().map(|bucket| bucket.answered).sum();
        assert_eq!(total, 1_001);
        assert_eq!(short.buckets.iter().map(|b| b.sent).sum::<u64>(), 1_000);
        let slowest = short.buckets[0].percentile_ms(100.0).unwrap();
        assert!((890.0..910.0).contains(&slowest), "{slowest}");
    }

    #[test]
    fn percentiles_are_exact_to_a_thousandth() {
        let mut times = Times::new();
        assert_eq!(times.percentile_ms(50.0), None);
        for n in 1..=1_000 {
            times.record(ms(n));
        }
        for (percent, want) in [(50.0, 500.0), (99.0, 990.0), (99.9, 999.0)] {
            let got = times.percentile_ms(percent).unwrap();
            // Where the rank lies between two values, either may be meant.
            assert!((got - want).abs() <= want / 500.0, "{percent}: {got}");
        }
    }
}
