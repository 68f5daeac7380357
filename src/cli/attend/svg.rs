//! The whole of it at once: a row for each predicted character, a column for each that could be seen.

use std::fmt::Write;

use super::super::printable::xml;
use super::{Head, Seen};

/// Side of a cell.
const CELL: usize = 9;
/// Room for the characters, for the bars of surprise, and for a title.
const LETTERS: usize = 14;
const BARS: usize = 90;
const TITLE: usize = 44;

/// A panel for each head, one below the other.
pub(super) fn picture(seen: &Seen) -> String {
    let n = seen.units.len();
    let (side, panel) = ((n + 1) * CELL, TITLE + LETTERS + (n + 1) * CELL);
    let (width, height) = (LETTERS + side + LETTERS + BARS + 24, seen.heads.len() * panel + 16);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"monospace\" font-size=\"{CELL}\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (i, head) in seen.heads.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(8 {})\">", i * panel + 8);
        draw(&mut svg, seen, head);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, seen: &Seen, head: &Head) {
    let n = seen.units.len();
    let (left, top, side) = (LETTERS, TITLE + LETTERS, (n + 1) * CELL);
    let (block, number) = (head.block, head.head);
    let _ = writeln!(
        svg,
        "<text x=\"0\" y=\"14\" font-family=\"sans-serif\" font-size=\"12\">{}: {:.3} bits per byte</text>\n\
         <text x=\"0\" y=\"30\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#555\">block {block}, head {number}: before the \
         character of a row it looked at those of the columns; red: how much that character surprised it</text>",
        xml(&seen.model),
        seen.bits_per_byte()
    );
    let letter = |svg: &mut String, x: usize, y: usize, text: &str| {
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", visible(text));
    };
    for column in 0..=n {
        let text = if column == 0 { "\n" } else { &seen.units[column - 1].text };
        letter(svg, left + column * CELL + CELL / 2, top - 3, text);
    }
    for (row, (unit, weights)) in seen.units.iter().zip(&head.weights).enumerate() {
        let y = top + row * CELL;
        letter(svg, left / 2 - 1, y + CELL - 1, &unit.text);
        for (column, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight >= 0.005) {
            let x = left + column * CELL;
            // The root shows small weights too.
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"#2563eb\" fill-opacity=\"{:.2}\"/>",
                weight.sqrt()
            );
        }
        let bar = (unit.bits / 12.0).clamp(0.0, 1.0) * BARS as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{y}\" width=\"{bar:.1}\" height=\"{}\" fill=\"#dc2626\"/>",
            left + side + LETTERS,
            CELL - 2
        );
        letter(svg, left + side + LETTERS / 2, y + CELL - 1, &unit.text);
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{side}\" height=\"{}\" fill=\"none\" stroke=\"#bbb\"/>",
        n * CELL
    );
}

/// A character that can be seen; a space is an open box, a line break an arrow.
fn visible(text: &str) -> String {
    match text {
        "\n" => "&#8629;".into(),
        " " => "&#9251;".into(),
        "\t" => "&#8677;".into(),
        text if text.chars().all(char::is_control) => "&#9633;".into(),
        text => xml(text),
    }
}
