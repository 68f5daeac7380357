//! Bytes as text that is safe to show on a terminal.

use std::io::{self, Write};

use serde::Serialize;

use crate::train::{printable, printable_line};

/// A value as a line of JSON whose text a terminal may show: what it would obey is escaped, where JSON itself does not ask for it
/// too.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(escaped(&serde_json::to_string(value)?))
}

/// The same in lines that a reader finds his way in.
pub fn json_lines(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(escaped(&serde_json::to_string_pretty(value)?))
}

/// Within strings JSON escapes line feeds itself; those that are left stand between values.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_control() && c != '\n' {
            text.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            text.push(c);
        }
    }
    text
}

/// Text for XML and HTML, between tags or quotes. Control characters, but for line feed and tab, and what XML allows in no form are
/// replaced, so that a picture is well-formed whatever it shows.
pub fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(in_xml(c)),
        }
    }
    escaped
}

/// A line for whoever escapes it by itself.
pub fn xml_line(text: &str) -> String {
    printable_line(text).chars().map(in_xml).collect()
}

fn in_xml(c: char) -> char {
    if matches!(c, '\u{FFFE}' | '\u{FFFF}') { char::REPLACEMENT_CHARACTER } else { c }
}

/// Writes bytes as text for a terminal. A character that is not complete yet waits for its other bytes.
pub struct Printable<W> {
    out: W,
    pending: Vec<u8>,
}

impl<W: Write> Printable<W> {
    pub fn new(out: W) -> Self {
        Self { out, pending: Vec::new() }
    }

    /// Writes what still waits, and ends the line.
    pub fn finish(mut self) -> io::Result<()> {
        let rest = if self.pending.is_empty() { "\n" } else { "\u{FFFD}\n" };
        self.out.write_all(rest.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut complete = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(&printable(chunk.valid()));
            complete += chunk.valid().len();
            let invalid = chunk.invalid();
            // At the end it may be the beginning of a character: the error then has no length.
            let at_end = complete + invalid.len() == self.pending.len();
            let waits = at_end && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if invalid.is_empty() || waits {
                continue;
            }
            text.push('\u{FFFD}');
            complete += invalid.len();
        }
        self.pending.drain(..complete);
        self.out.write_all(text.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal gets of `bytes`, written one at a time.
    fn printed(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        let mut printable = Printable::new(&mut out);
        for byte in bytes {
            printable.write_all(&[*byte]).unwrap();
        }
        printable.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn characters_cut_into_bytes_come_out_whole() {
        assert_eq!(printed("naïve €\t🦀\n".as_bytes()), "naïve €\t🦀\n\n");
    }

    #[test]
    fn json_is_the_same_value_and_holds_no_control_character() {
        let value = "a\x1b\x7f\u{9b}é\n";
        let line = json(&value).unwrap();
        assert_eq!(line, r#""a\u001b\u007f\u009bé\n""#);
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), value);
        let lines = json_lines(&[value]).unwrap();
        assert_eq!(lines, "[\n  \"a\\u001b\\u007f\\u009bé\\n\"\n]");
        assert_eq!(serde_json::from_str::<Vec<String>>(&lines).unwrap(), [value]);
    }

    #[test]
    fn xml_holds_what_xml_may_hold() {
        let text = "a\0\x1b\x7f\u{9b}\u{FFFE}\u{FFFF}<&>\"\n\té";
        assert_eq!(xml(text), format!("a{}&lt;&amp;&gt;&quot;\n\té", "\u{FFFD}".repeat(6)));
        assert_eq!(xml_line(text), format!("a{}<&>\"\u{FFFD}\té", "\u{FFFD}".repeat(6)));
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(printed(b"a\xFFb\xC3(\x1B[2J"), "a\u{FFFD}b\u{FFFD}(\u{FFFD}[2J\n");
        assert_eq!(printed(b"a\xE2\x82"), "a\u{FFFD}\n");
    }

    #[test]
    fn every_pair_of_bytes_can_be_printed() {
        for pair in 0..=u16::MAX {
            let bytes = pair.to_be_bytes();
            let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c };
            let expected: String = String::from_utf8_lossy(&bytes).chars().map(shown).collect();
            assert_eq!(printed(&bytes), expected + "\n", "{bytes:?}");
        }
    }
}
