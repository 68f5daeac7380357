//! Text that is harmless on a terminal, whatever file name, data or model it comes from.

/// The text with a replacement character for each control character but the line feed and the tab: no escape sequence is left
/// that could move the cursor, rename the window or hide a line.
///
/// ```
/// assert_eq!(sharnn_train::printable("a\x1b[2Jb\n"), "a\u{FFFD}[2Jb\n");
/// ```
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// The same of what is to be one line: no line feed is left either, so that no name ends it and begins another.
///
/// ```
/// assert_eq!(sharnn_train::printable_line("a\nb"), "a\u{FFFD}b");
/// ```
pub fn printable_line(text: &str) -> String {
    printable(text).replace('\n', "\u{FFFD}")
}
