//! Tables: a heading, rows, columns as wide as their widest cell.

use super::{Paint, Style, clean};

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// Numbers stand right.
    pub right: bool,
}

impl Column {
    /// A column of words.
    #[must_use]
    pub const fn text(name: &'static str) -> Self {
        Self { name, right: false }
    }

    /// A column of numbers.
    #[must_use]
    pub const fn number(name: &'static str) -> Self {
        Self { name, right: true }
    }
}

/// Rows under a heading. Cells are cleaned of control characters.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Option<Paint>)>>,
}

impl Table {
    /// Without rows yet.
    #[must_use]
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One row of plain cells.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.painted_row(cells.into_iter().map(|cell| (cell, None)));
    }

    /// One row whose cells may be coloured.
    pub fn painted_row<I: IntoIterator<Item = (String, Option<Paint>)>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(|(cell, paint)| (clean(&cell), paint)).collect());
    }

    /// The lines: heading first, two spaces between columns, no space at the end.
    #[must_use]
    pub fn lines(&self, style: Style) -> Vec<String> {
        let widths: Vec<usize> = (0..self.columns.len()).map(|index| self.width(index)).collect();
        let heading =
            self.columns.iter().map(|column| (column.name.to_owned(), Some(Paint::Label))).collect();
        std::iter::once(&heading).chain(&self.rows).map(|cells| self.line(cells, &widths, style)).collect()
    }

    fn width(&self, index: usize) -> usize {
        let cells = self
            .rows
            .iter()
            .filter_map(|row| row.get(index))
            .map(|cell| console::measure_text_width(&cell.0));
        cells.chain([self.columns[index].name.len()]).max().unwrap_or(0)
    }

    fn line(&self, cells: &[(String, Option<Paint>)], widths: &[usize], style: Style) -> String {
        let mut line = String::new();
        let mut gap = 0;
        for ((column, width), (text, paint)) in self.columns.iter().zip(widths).zip(cells) {
            if text.is_empty() {
                gap += width + 2;
                continue;
            }
            let padding = width.saturating_sub(console::measure_text_width(text));
            line.push_str(&" ".repeat(gap + if column.right { padding } else { 0 }));
            line.push_str(&paint.map_or_else(|| text.clone(), |paint| style.paint(paint, text)));
            gap = 2 + if column.right { 0 } else { padding };
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[Column::text("name"), Column::number("size"), Column::text("note")]);
        table.row(["redis".into(), "1.00 GiB".into(), String::new()]);
        table.row(["ü".into(), "3 B".into(), "x\x1b".into()]);
        let lines = table.lines(Style::PLAIN);
        let wanted = ["name       size  note", "redis  1.00 GiB", "ü           3 B  x\\u{1b}"];
        assert_eq!(lines, wanted);
    }
}
