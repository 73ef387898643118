//! The chart of a soak: one small line for each column, from zero to its largest value.

use std::fmt::Write;

use super::sample::{COLUMNS, Sample};
use crate::{
    chart::{escaped, footer},
    verdict::short,
};

const CELL: (f64, f64) = (360.0, 130.0);
const PLOT: (f64, f64) = (320.0, 70.0);
const COLUMNS_ABREAST: usize = 3;
const TOP: f64 = 56.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}\
    polyline{fill:none;stroke:#1565c0;stroke-width:1.5}.frame{fill:none;stroke:#ccc}";

/// Draws every column but the time over the time.
pub(crate) fn lines(samples: &[Sample], machine: &str) -> String {
    let columns = 1..COLUMNS.len();
    let (width, rows) = (CELL.0 * COLUMNS_ABREAST as f64, columns.len().div_ceil(COLUMNS_ABREAST));
    let height = TOP + CELL.1 * rows as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\"><style>{STYLE}</style>\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         {}",
        footer(machine, 12.0, 20.0)
    );
    for (number, column) in columns.enumerate() {
        let x = 12.0 + CELL.0 * (number % COLUMNS_ABREAST) as f64;
        let y = TOP + CELL.1 * (number / COLUMNS_ABREAST) as f64;
        one(&mut svg, samples, column, (x, y));
    }
    svg.push_str("</svg>\n");
    svg
}

fn one(svg: &mut String, samples: &[Sample], column: usize, (x, y): (f64, f64)) {
    let most = samples.iter().map(|sample| sample[column]).fold(0.0, f64::max);
    let end = samples.last().map_or(1.0, |sample| sample[0]);
    let points = samples.iter().map(|sample| {
        let share = if most > 0.0 { sample[column] / most } else { 0.0 };
        format!("{:.1},{:.1}", x + PLOT.0 * sample[0] / end, y + 20.0 + PLOT.1 * (1.0 - share))
    });
    let points: Vec<_> = points.collect();
    // Writing to a string cannot fail.
    let _ = write!(
        svg,
        "<text x=\"{x}\" y=\"{}\">{}</text><text x=\"{}\" y=\"{}\" class=\"small\" text-anchor=\"end\">most \
         {}, {end:.0} s</text><rect x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"frame\"/>\
         <polyline points=\"{}\"/>",
        y + 14.0,
        escaped(COLUMNS[column].0),
        x + PLOT.0,
        y + 14.0,
        short(most),
        y + 20.0,
        PLOT.0,
        PLOT.1,
        points.join(" "),
    );
}
