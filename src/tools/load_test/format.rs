//! Numbers as the reports show them.

/// Formats a value with as many digits as are significant: three, and none after the point for
/// whole numbers.
pub(super) fn format_number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v.fract() < 1e-9 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}
