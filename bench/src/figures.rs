//! Medians, and the table in which they are printed.

/// The middle value; 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (Some(lower), Some(upper)) =
        (values.get(values.len().saturating_sub(1) / 2), values.get(values.len() / 2))
    else {
        return 0.0;
    };
    f64::midpoint(*lower, *upper)
}

/// The median of `values` divided, run by run, by `floors`: noise that both shared cancels out.
pub(crate) fn median_ratio(values: &[f64], floors: &[f64]) -> f64 {
    median(ratios(values, floors))
}

/// The ratios of `values` to `floors`, run by run.
pub(crate) fn ratios(values: &[f64], floors: &[f64]) -> Vec<f64> {
    values.iter().zip(floors).map(|(value, floor)| value / floor).collect()
}

/// From where to where values go, with so many digits.
pub(crate) fn spread(values: &[f64], digits: usize) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{low:.digits$}–{high:.digits$}")
}

/// Prints rows in columns, as a Markdown table.
pub(crate) fn print(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        println!("|{}", padded.collect::<String>());
    };
    println!();
    line(head);
    let rule = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2)));
    println!("|{}", rule.collect::<String>());
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn a_spread_goes_from_the_least_to_the_most() {
        assert_eq!(spread(&[2.0, 1.0, 3.25], 1), "1.0–3.2");
    }

    #[test]
    fn a_ratio_is_taken_run_by_run() {
        assert_eq!(median_ratio(&[2.0, 20.0, 4.0], &[1.0, 10.0, 1.0]), 2.0);
    }
}
