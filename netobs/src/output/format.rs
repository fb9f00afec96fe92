//! Numbers and names for people. Rates are bits per second in SI steps (`1.25 Mb/s`), amounts are bytes
//! in IEC steps (`1.25 MiB`), both with three significant digits.

use std::borrow::Cow;

use ratatui::text::Span;

use crate::model::Traffic;

/// Characters of a name that a terminal shows at most, the `…` included.
pub const NAME_MAX: usize = 128;

const SI: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
const IEC: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// Bits per second: `0 b/s`, `1.25 Mb/s`.
pub fn bit_rate(bits_per_second: f64) -> String {
    let (number, prefix) = scale(bits_per_second, 1000.0, &SI);
    format!("{number} {prefix}b/s")
}

/// Packets (or anything countable) per second, without the unit: `850`, `1.25k`.
pub fn packet_rate(packets_per_second: f64) -> String {
    let (number, prefix) = scale(packets_per_second, 1000.0, &SI);
    format!("{number}{prefix}")
}

/// Bytes: `512 B`, `1.25 MiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn bytes(bytes: u64) -> String {
    let (number, prefix) = scale(bytes as f64, 1024.0, &IEC);
    format!("{number} {prefix}B")
}

/// An exact number with thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Share of `part` in `whole`: `12.5%`; `-` of nothing.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{:.1}%", 100.0 * part as f64 / whole as f64)
}

/// Packets that are not TCP, and all packets: both directions, as the stack counts.
pub fn non_tcp(rx: &Traffic, tx: &Traffic) -> (u64, u64) {
    let all = rx.packets + tx.packets;
    (all.saturating_sub(rx.protocol.tcp.packets + tx.protocol.tcp.packets), all)
}

/// The first 12 digits of an ID, as the engines show it.
pub fn short_id(id: &str) -> &str {
    id.char_indices().nth(12).map_or(id, |(end, _)| &id[..end])
}

/// A foreign name made safe for a terminal: [`visible`], and at most [`NAME_MAX`] characters.
pub fn escape(name: &str) -> String {
    clip(&visible(name), NAME_MAX)
}

/// A foreign name with everything that moves a cursor, turns the writing direction or hides itself
/// replaced by its code: `\n`, `\x1b`, `\u{202e}`. Of any length.
pub fn visible(name: &str) -> Cow<'_, str> {
    if !name.contains(is_hostile) {
        return Cow::Borrowed(name);
    }
    let mut text = String::with_capacity(name.len() + 8);
    for character in name.chars() {
        match character {
            '\n' | '\r' | '\t' => text.extend(character.escape_default()),
            c if c.is_ascii() && is_hostile(c) => text.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if is_hostile(c) => text.extend(c.escape_unicode()),
            c => text.push(c),
        }
    }
    Cow::Owned(text)
}

/// A foreign name as a cell of CSV: [`visible`], since CSV is looked at on terminals, too; and with a `'` before what
/// a spreadsheet would take for a formula.
pub fn cell(name: &str) -> Cow<'_, str> {
    let text = visible(name);
    if text.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']) {
        return Cow::Owned(format!("'{text}"));
    }
    text
}

/// JSON, in which what could do something to a terminal and need not be escaped is escaped all the same: the same
/// document. (Below U+0020 everything is already.)
pub fn escape_json(json: String) -> String {
    if !json.contains(is_hostile) {
        return json;
    }
    let mut text = String::with_capacity(json.len() + 64);
    for character in json.chars() {
        // Outside of strings there are none.
        if is_hostile(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(character);
        }
    }
    text
}

/// At most `max` columns of a terminal, with `…` for what is left out.
pub fn clip(text: &str, max: usize) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 1;
    for character in text.chars() {
        used += width(character.encode_utf8(&mut [0; 4]));
        if used > max {
            break;
        }
        short.push(character);
    }
    if max > 0 {
        short.push('…');
    }
    short
}

/// Columns that `text` takes on a terminal.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Filled up with spaces to a width.
pub fn pad(text: &str, to: usize, right: bool) -> String {
    let space = " ".repeat(to.saturating_sub(width(text)));
    if right { space + text } else { text.to_owned() + &space }
}

/// Controls (C0, DEL, C1), bidi marks, embeddings and isolates, line separators, zero-width and blank characters,
/// and tags.
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}'
            | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Three significant digits and a prefix, such that rounding never shows `1000` or `1024` of a unit.
fn scale(value: f64, base: f64, prefixes: &[&'static str; 7]) -> (String, &'static str) {
    let mut value = if value.is_finite() { value.max(0.0) } else { 0.0 };
    let mut step = 0;
    while value >= base - 0.5 && step < prefixes.len() - 1 {
        value /= base;
        step += 1;
    }
    let whole = value == value.trunc() && step == 0;
    let number = match value {
        _ if whole => format!("{value:.0}"),
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    };
    (number, prefixes[step])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_amounts_have_three_digits() {
        for (value, text) in [
            (0.0, "0 b/s"),
            (0.5, "0.50 b/s"),
            (999.0, "999 b/s"),
            (999.6, "1.00 kb/s"),
            (1_250_000.0, "1.25 Mb/s"),
            (12_345.0, "12.3 kb/s"),
            (99_960.0, "100 kb/s"),
            (2e9, "2.00 Gb/s"),
            (f64::NAN, "0 b/s"),
            (-1.0, "0 b/s"),
        ] {
            assert_eq!(bit_rate(value), text);
        }
        assert_eq!(packet_rate(850.0), "850");
        assert_eq!(packet_rate(3_100_000.0), "3.10M");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(1_258_291), "1.20 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(percent(1, 8), "12.5%");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn hostile_characters_become_visible() {
        assert_eq!(escape("web-1"), "web-1");
        assert_eq!(escape("a\x1b[31m\nb\u{7f}\u{9b}"), "a\\x1b[31m\\nb\\x7f\\u{9b}");
        assert_eq!(escape("x\u{202e}y\u{2066}\u{200f}"), "x\\u{202e}y\\u{2066}\\u{200f}");
        assert_eq!(escape("größe-雪"), "größe-雪");
    }

    #[test]
    fn long_names_are_cut_by_columns() {
        let cut = escape(&"x".repeat(500));
        assert_eq!(width(&cut), NAME_MAX);
        assert!(cut.ends_with('…'));
        assert_eq!(clip("雪雪雪", 5), "雪雪…");
        assert_eq!(clip("abc", 0), "");
        assert_eq!(short_id("0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("é"), "é");
    }
}
