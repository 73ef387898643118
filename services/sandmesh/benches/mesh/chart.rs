//! The chart: for each line with a goal and a figure a bar, measured by what must be reached.

use std::fmt::Write;

use crate::{
    report::quantity,
    svg::{escaped, footer},
    verdict::{Row, Verdict},
};

const WIDTH: f64 = 1100.0;
const ROW: f64 = 26.0;
/// Where the bars begin, and how long one is that just reaches what must be.
const LEFT: f64 = 470.0;
const MUST: f64 = 180.0;
/// The longest bar, in multiples of what must be; longer ones are cut.
const LONGEST: f64 = 2.2;
const TOP: f64 = 64.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}.right{text-anchor:end}\
.aim{fill:#2e7d32}.must{fill:#1565c0}.missed{fill:#c62828}.must-line{stroke:#222;stroke-dasharray:4 3}\
.aim-line{stroke:#222;stroke-width:2}";

/// Draws the lines. A shorter bar is better; the dashed line is what must be reached, the mark in each row
/// what is aimed at.
pub(crate) fn bars(rows: &[Row], machine: &str) -> String {
    let drawn: Vec<_> = rows.iter().filter_map(Bar::of).collect();
    let height = TOP + ROW * drawn.len() as f64 + 52.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\"><style>{STYLE}</style>\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"12\" y=\"24\" font-weight=\"bold\">Got, as a share of what must be reached: shorter is \
         better</text><text x=\"12\" y=\"44\" class=\"small\">dashed: must; mark: aim; green: aim met, blue: \
         must met, red: missed</text>"
    );
    for (number, bar) in drawn.iter().enumerate() {
        bar.draw(&mut svg, TOP + ROW * number as f64);
    }
    let (x, bottom) = (LEFT + MUST, TOP + ROW * drawn.len() as f64);
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<line x1=\"{x}\" x2=\"{x}\" y1=\"{}\" y2=\"{bottom}\" class=\"must-line\"/>\
         {}</svg>",
        TOP - 6.0,
        footer(machine, 12.0, bottom + 24.0)
    );
    svg
}

struct Bar {
    what: String,
    label: String,
    class: &'static str,
    length: f64,
    aim: f64,
}

impl Bar {
    fn of(row: &Row) -> Option<Self> {
        let (got, must, aim) = (row.got?, row.must?, row.aim?);
        let class = match row.verdict {
            Verdict::Aim => "aim",
            Verdict::Must => "must",
            Verdict::Missed(_) => "missed",
            Verdict::Unknown(_) | Verdict::None => return None,
        };
        let share = |value: f64| if row.at_least { must / value } else { value / must };
        let [got_text, must_text, aim_text] = [got, must, aim].map(|value| quantity(Some(value), row.unit));
        Some(Self {
            what: row.what.replace('`', ""),
            label: format!("{got_text}  (must {must_text}, aim {aim_text})"),
            class,
            length: share(got).clamp(0.0, LONGEST) * MUST,
            aim: share(aim) * MUST,
        })
    }

    fn draw(&self, svg: &mut String, y: f64) {
        let (middle, aim) = (y + 16.0, LEFT + self.aim);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" class=\"right\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"16\" class=\"{}\"/>\
             <line x1=\"{aim:.1}\" x2=\"{aim:.1}\" y1=\"{}\" y2=\"{}\" class=\"aim-line\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{}</text>",
            LEFT - 8.0,
            escaped(&self.what),
            y + 3.0,
            self.length.max(1.0),
            self.class,
            y + 1.0,
            y + 21.0,
            LEFT + self.length.max(MUST) + 8.0,
            escaped(&self.label),
        );
    }
}
