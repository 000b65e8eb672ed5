//! Lines over time as SVG, without any script.

use std::fmt::Write as _;

use super::values::short;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;

/// A line: a value where there is one for each moment.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) values: Vec<Option<f64>>,
}

/// Lines over the same moments.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    /// Seconds from one value to the next.
    pub(super) step: f64,
    pub(super) lines: Vec<Line>,
    /// Each tenfold is as high as the one before.
    pub(super) logarithmic: bool,
}

/// Where values stand.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(plot: &Plot) -> Self {
        let values = plot.lines.iter().flat_map(|line| &line.values).flatten();
        let (low, high) = values.fold((f64::MAX, 0.0_f64), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
        if plot.logarithmic {
            let low = low.clamp(0.01, 1e9);
            Self {
                low: 10_f64.powf(low.log10().floor()),
                high: 10_f64.powf(high.max(low * 1.01).log10().ceil()),
                logarithmic: true,
            }
        } else {
            let step = nice(high / 4.0);
            Self {
                low: 0.0,
                high: (high / step).ceil().max(1.0) * step,
                logarithmic: false,
            }
        }
    }

    fn y(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            let value = value.max(self.low);
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        };
        TOP + (1.0 - part.clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut tick = self.low;
        let step = nice(self.high / 4.0);
        while tick <= self.high * 1.001 {
            ticks.push(tick);
            tick = if self.logarithmic {
                tick * 10.0
            } else {
                tick + step
            };
        }
        ticks
    }
}

/// The next of 1, 2, 5, 10, 20 …
fn nice(value: f64) -> f64 {
    let value = value.max(1e-6);
    let unit = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * unit >= value * 0.999);
    step.unwrap_or(10.0) * unit
}

impl Plot {
    fn moments(&self) -> usize {
        let lengths = self.lines.iter().map(|line| line.values.len());
        lengths.max().unwrap_or(0)
    }

    fn x(&self, moment: f64) -> f64 {
        let all = (self.moments() as f64).max(1.0);
        LEFT + moment / all * (WIDTH - LEFT - RIGHT)
    }

    /// The plot as part of a page.
    pub(super) fn figure(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "<figure><figcaption><b>{}</b>", self.title)?;
        for (n, line) in self.lines.iter().enumerate() {
            write!(out, " <span class=\"key k{n}\">{}</span>", line.name)?;
        }
        writeln!(out, "</figcaption>")?;
        writeln!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.title
        )?;
        let scale = Scale::of(self);
        let (bottom, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in scale.ticks() {
            let y = scale.y(tick);
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{end}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                short(tick)
            )?;
        }
        let seconds = self.moments() as f64 * self.step;
        let step = nice(seconds / 8.0);
        let mut tick = 0.0;
        while tick <= seconds * 1.001 {
            writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} s</text>",
                self.x(tick / self.step),
                bottom + 18.0,
                short(tick)
            )?;
            tick += step;
        }
        // The first lies on top.
        for (n, line) in self.lines.iter().enumerate().rev() {
            let mut path = String::new();
            let mut draws = false;
            for (moment, value) in line.values.iter().enumerate() {
                let Some(value) = value else {
                    draws = false;
                    continue;
                };
                let x = self.x(moment as f64 + 0.5);
                let pen = if draws { 'L' } else { 'M' };
                write!(path, "{pen}{x:.1} {:.1}", scale.y(*value))?;
                if !draws {
                    // One moment alone would not be seen.
                    write!(path, "h.1")?;
                }
                draws = true;
            }
            writeln!(out, "<path class=\"line k{n}\" d=\"{path}\"/>")?;
        }
        self.hints(out, bottom)?;
        writeln!(out, "</svg></figure>")
    }

    /// What a pointer shows: the numbers of each moment.
    fn hints(&self, out: &mut String, bottom: f64) -> std::fmt::Result {
        for moment in 0..self.moments() {
            let (x, next) = (self.x(moment as f64), self.x(moment as f64 + 1.0));
            write!(
                out,
                "<rect class=\"hint\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} s",
                next - x,
                bottom - TOP,
                short(moment as f64 * self.step)
            )?;
            for line in &self.lines {
                if let Some(Some(value)) = line.values.get(moment) {
                    write!(out, "\n{} {} {}", line.name, short(*value), self.unit)?;
                }
            }
            writeln!(out, "</title></rect>")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(values: Vec<Option<f64>>, logarithmic: bool) -> Plot {
        Plot {
            title: "t",
            unit: "ms",
            step: 0.2,
            lines: vec![Line {
                name: "p50",
                values,
            }],
            logarithmic,
        }
    }

    #[test]
    fn every_value_is_drawn_within_the_plot() {
        for logarithmic in [false, true] {
            let values = vec![Some(0.0), Some(0.004), None, Some(37.0), Some(12_345.6)];
            let plot = plot(values, logarithmic);
            let scale = Scale::of(&plot);
            for value in plot.lines[0].values.iter().flatten() {
                let y = scale.y(*value);
                assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{value} at {y}");
            }
            assert!(
                (2..=12).contains(&scale.ticks().len()),
                "{:?}",
                scale.ticks()
            );
            assert!(!plot.figure().contains("NaN"));
        }
    }

    #[test]
    fn a_plot_of_nothing_is_empty_and_not_broken() {
        for logarithmic in [false, true] {
            let figure = plot(Vec::new(), logarithmic).figure();
            assert!(figure.ends_with("</svg></figure>\n"));
            assert!(
                !figure.contains("NaN") && !figure.contains("inf"),
                "{figure}"
            );
        }
    }
}
