//! Aligned text: tables and lists of fields.

use std::fmt;

/// Rows under a header, each column as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table of these rows.
    pub(super) fn new(header: [&'static str; N], rows: impl IntoIterator<Item = [String; N]>) -> Self {
        let rows = rows.into_iter().map(|row| row.map(|cell| plain(&cell))).collect();
        Self { header, rows }
    }

    fn widths(&self) -> [usize; N] {
        let mut widths = self.header.map(width);
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = width(cell).max(*widest);
            }
        }
        widths
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let header = self.header.map(str::to_owned);
        for row in std::iter::once(&header).chain(&self.rows) {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Names and values, a line each; empty values are left out.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    /// Adds a line, unless the value is empty.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((name, plain(&value)));
        }
        self
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.0.iter().map(|(name, _)| width(name) + 1).max().unwrap_or(0);
        for (name, value) in &self.0 {
            writeln!(f, "{:widest$}  {value}", format!("{name}:"))?;
        }
        Ok(())
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// The text with control characters written out: names and messages come from others and must not drive
/// the terminal.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            plain.extend(char.escape_default());
        } else {
            plain.push(char);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let rows = [["sess_1", "running", ""], ["ü", "creating", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            Table::new(["ID", "STATUS", "NOTE"], rows).to_string(),
            "ID      STATUS    NOTE\nsess_1  running\nü       creating  x\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(["ID", "STATUS"], []).to_string(), "ID  STATUS\n");
    }

    #[test]
    fn empty_fields_are_left_out() {
        let fields = Fields::default().with("id", "a").with("reason", "").with("template", "b");
        assert_eq!(fields.to_string(), "id:        a\ntemplate:  b\n");
    }

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(plain("a\u{1b}[31m\tb"), "a\\u{1b}[31m\\tb");
    }
}
