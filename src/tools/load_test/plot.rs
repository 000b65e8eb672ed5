//! Renders line charts over time as SVG without scripts, for the HTML report.

use std::fmt::Write as _;

use super::format::format_number;

/// Width of the whole chart, in SVG units like all lengths here.
const WIDTH: f64 = 820.0;
/// Height of the whole chart.
const HEIGHT: f64 = 240.0;
/// Space to the left of the lines, for the labels of the vertical axis.
const MARGIN_LEFT: f64 = 58.0;
/// Space to the right of the lines.
const MARGIN_RIGHT: f64 = 12.0;
/// Space above the lines.
const MARGIN_TOP: f64 = 10.0;
/// Space below the lines, for the labels of the time axis.
const MARGIN_BOTTOM: f64 = 30.0;

/// One line of a plot: a value for each time step, or `None` where nothing was measured.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) values: Vec<Option<f64>>,
}

/// A chart of several lines over the same time steps.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    /// Time between two values of a line, in seconds.
    pub(super) step_seconds: f64,
    pub(super) lines: Vec<Line>,
    /// Whether the vertical axis is logarithmic.
    pub(super) is_logarithmic: bool,
}

/// The vertical axis of a plot, from its lowest to its highest value.
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Scale {
    fn for_plot(plot: &Plot) -> Self {
        let values = plot.lines.iter().flat_map(|line| &line.values).flatten();
        let (low, high) = values.fold((f64::MAX, 0.0_f64), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
        if plot.is_logarithmic {
            let low = low.clamp(0.01, 1e9);
            Self {
                low: 10_f64.powf(low.log10().floor()),
                high: 10_f64.powf(high.max(low * 1.01).log10().ceil()),
                is_logarithmic: true,
            }
        } else {
            let step = round_up_to_tick(high / 4.0);
            Self {
                low: 0.0,
                high: (high / step).ceil().max(1.0) * step,
                is_logarithmic: false,
            }
        }
    }

    /// The vertical coordinate of a value.
    fn y(&self, value: f64) -> f64 {
        let fraction = if self.is_logarithmic {
            let value = value.max(self.low);
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        };
        MARGIN_TOP + (1.0 - fraction.clamp(0.0, 1.0)) * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)
    }

    /// The values that have a horizontal line and a label.
    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut tick = self.low;
        let step = round_up_to_tick(self.high / 4.0);
        while tick <= self.high * 1.001 {
            ticks.push(tick);
            tick = if self.is_logarithmic {
                tick * 10.0
            } else {
                tick + step
            };
        }
        ticks
    }
}

/// Returns the smallest number that is 1, 2 or 5 times a power of ten and not below the value, with
/// a tolerance of 0.1 %.
fn round_up_to_tick(value: f64) -> f64 {
    let value = value.max(1e-6);
    let unit = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * unit >= value * 0.999);
    step.unwrap_or(10.0) * unit
}

impl Plot {
    /// Number of values of the longest line.
    fn step_count(&self) -> usize {
        let lengths = self.lines.iter().map(|line| line.values.len());
        lengths.max().unwrap_or(0)
    }

    /// The horizontal coordinate of the start of a step; fractions of a step are allowed.
    fn x(&self, step: f64) -> f64 {
        let steps = (self.step_count() as f64).max(1.0);
        MARGIN_LEFT + step / steps * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)
    }

    /// Renders the plot as an HTML `figure`.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a string can't fail.
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
        let scale = Scale::for_plot(self);
        let (bottom, end) = (HEIGHT - MARGIN_BOTTOM, WIDTH - MARGIN_RIGHT);
        for tick in scale.ticks() {
            let y = scale.y(tick);
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{MARGIN_LEFT} {y:.1}H{end}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                MARGIN_LEFT - 6.0,
                y + 4.0,
                format_number(tick)
            )?;
        }
        let seconds = self.step_count() as f64 * self.step_seconds;
        let interval = round_up_to_tick(seconds / 8.0);
        let mut tick = 0.0;
        while tick <= seconds * 1.001 {
            writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} s</text>",
                self.x(tick / self.step_seconds),
                bottom + 18.0,
                format_number(tick)
            )?;
            tick += interval;
        }
        // The first line is drawn last, so that it is on top.
        for (n, line) in self.lines.iter().enumerate().rev() {
            let mut path = String::new();
            let mut is_drawing = false;
            for (step, value) in line.values.iter().enumerate() {
                let Some(value) = value else {
                    is_drawing = false;
                    continue;
                };
                let x = self.x(step as f64 + 0.5);
                let pen = if is_drawing { 'L' } else { 'M' };
                write!(path, "{pen}{x:.1} {:.1}", scale.y(*value))?;
                if !is_drawing {
                    // A short horizontal line makes a value visible that has no neighbours.
                    write!(path, "h.1")?;
                }
                is_drawing = true;
            }
            writeln!(out, "<path class=\"line k{n}\" d=\"{path}\"/>")?;
        }
        self.write_tooltips(out, bottom)?;
        writeln!(out, "</svg></figure>")
    }

    /// Writes the tooltips, which show the values of each step.
    fn write_tooltips(&self, out: &mut String, bottom: f64) -> std::fmt::Result {
        for step in 0..self.step_count() {
            let (x, next) = (self.x(step as f64), self.x(step as f64 + 1.0));
            write!(
                out,
                "<rect class=\"hint\" x=\"{x:.1}\" y=\"{MARGIN_TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} s",
                next - x,
                bottom - MARGIN_TOP,
                format_number(step as f64 * self.step_seconds)
            )?;
            for line in &self.lines {
                if let Some(Some(value)) = line.values.get(step) {
                    write!(
                        out,
                        "\n{} {} {}",
                        line.name,
                        format_number(*value),
                        self.unit
                    )?;
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

    fn plot(values: Vec<Option<f64>>, is_logarithmic: bool) -> Plot {
        Plot {
            title: "t",
            unit: "ms",
            step_seconds: 0.2,
            lines: vec![Line {
                name: "p50",
                values,
            }],
            is_logarithmic,
        }
    }

    #[test]
    fn values_are_drawn_within_the_plot() {
        for is_logarithmic in [false, true] {
            let values = vec![Some(0.0), Some(0.004), None, Some(37.0), Some(12_345.6)];
            let plot = plot(values, is_logarithmic);
            let scale = Scale::for_plot(&plot);
            for value in plot.lines[0].values.iter().flatten() {
                let y = scale.y(*value);
                assert!(
                    (MARGIN_TOP..=HEIGHT - MARGIN_BOTTOM).contains(&y),
                    "{value} at {y}"
                );
            }
            assert!(
                (2..=12).contains(&scale.ticks().len()),
                "{:?}",
                scale.ticks()
            );
            assert!(!plot.render().contains("NaN"));
        }
    }

    #[test]
    fn plot_without_values_is_valid() {
        for is_logarithmic in [false, true] {
            let figure = plot(Vec::new(), is_logarithmic).render();
            assert!(figure.ends_with("</svg></figure>\n"));
            assert!(
                !figure.contains("NaN") && !figure.contains("inf"),
                "{figure}"
            );
        }
    }
}
