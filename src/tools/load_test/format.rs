//! Formats numbers for the reports.

/// Formats a value: without decimals if it is a whole number or at least 100, with one decimal from
/// 10 on, otherwise with two decimals.
pub(super) fn format_number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v.fract() < 1e-9 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}
