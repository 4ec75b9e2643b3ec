//! Numbers and text for people: sizes, times, tables, bars, and the removal of whatever could confuse a terminal. Pure
//! functions; this room never prints, never asks whether there is a terminal and knows no message.

mod clean;
mod parse;
mod size;
mod style;
mod table;
mod time;

pub use clean::clean;
pub use parse::{BadQuantity, parse_millis, parse_rate, parse_size};
pub use size::{bytes, count, percent, rate, rate_over};
pub use style::{Glyphs, Paint, Style};
pub use table::{Column, Table};
pub use time::{duration_us, instant_ms, milliseconds};
