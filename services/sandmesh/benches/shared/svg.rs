//! What charts and tables of every bench have in common: text, figures, and lines over time.

use std::fmt::Write;

const CELL: (f64, f64) = (360.0, 130.0);
const PLOT: (f64, f64) = (320.0, 70.0);
const COLUMNS_ABREAST: usize = 3;
const TOP: f64 = 56.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}\
    polyline{fill:none;stroke:#1565c0;stroke-width:1.5}.frame{fill:none;stroke:#ccc}";

/// Samples over time: the first column is that, in a unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Series<'a, const N: usize> {
    /// What is in each column.
    pub(crate) names: [&'a str; N],
    /// The samples.
    pub(crate) samples: &'a [[f64; N]],
    /// The unit of time.
    pub(crate) unit: &'a str,
}

impl<const N: usize> Series<'_, N> {
    /// Draws every column but the time over the time, each from zero to its largest value.
    pub(crate) fn chart(&self, machine: &str) -> String {
        let (width, rows) = (CELL.0 * COLUMNS_ABREAST as f64, (N - 1).div_ceil(COLUMNS_ABREAST));
        let height = TOP + CELL.1 * rows as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\"><style>{STYLE}</style>\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
             {}",
            footer(machine, 12.0, 20.0)
        );
        for column in 1..N {
            let x = 12.0 + CELL.0 * ((column - 1) % COLUMNS_ABREAST) as f64;
            let y = TOP + CELL.1 * ((column - 1) / COLUMNS_ABREAST) as f64;
            self.one(&mut svg, column, (x, y));
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn one(&self, svg: &mut String, column: usize, (x, y): (f64, f64)) {
        let most = self.samples.iter().map(|sample| sample[column]).fold(0.0, f64::max);
        let end = self.samples.last().map_or(1.0, |sample| sample[0]);
        let points = self.samples.iter().filter(|sample| sample[column].is_finite()).map(|sample| {
            let share = if most > 0.0 { sample[column] / most } else { 0.0 };
            format!("{:.1},{:.1}", x + PLOT.0 * sample[0] / end, y + 20.0 + PLOT.1 * (1.0 - share))
        });
        let points: Vec<_> = points.collect();
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<text x=\"{x}\" y=\"{}\">{}</text><text x=\"{}\" y=\"{}\" class=\"small\" text-anchor=\"end\">most \
             {}, {end:.0} {}</text><rect x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"frame\"/>\
             <polyline points=\"{}\"/>",
            y + 14.0,
            escaped(self.names[column]),
            x + PLOT.0,
            y + 14.0,
            short(most),
            self.unit,
            y + 20.0,
            PLOT.0,
            PLOT.1,
            points.join(" "),
        );
    }

    /// All of it as text.
    pub(crate) fn csv(&self) -> String {
        let row = |sample: &[f64; N]| sample.map(|value| format!("{value:.2}")).join(",");
        let lines: Vec<_> =
            std::iter::once(self.names.join(",")).chain(self.samples.iter().map(row)).collect();
        lines.join("\n") + "\n"
    }
}

/// A long line about the machine, as two.
pub(crate) fn footer(machine: &str, x: f64, y: f64) -> String {
    let (first, rest) = machine.split_once("; ").unwrap_or((machine, ""));
    format!(
        "<text x=\"{x}\" y=\"{y}\" class=\"small\">{}</text><text x=\"{x}\" y=\"{}\" \
         class=\"small\">{}</text>",
        escaped(first),
        y + 15.0,
        escaped(rest)
    )
}

/// Text as it may stand in XML.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// With as many digits as say something.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
