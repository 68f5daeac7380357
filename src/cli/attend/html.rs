//! The text as a page that shows, for the character under the pointer, where the head looked.

use std::fmt::Write;

use super::super::printable::xml;
use super::{Head, Seen, Unit};

/// Weights below this are left out.
const LEAST_WEIGHT: f32 = 0.004;

/// The page, which needs nothing from anywhere.
pub(super) fn page(seen: &Seen) -> String {
    let mut text =
        String::from("<span class=\"u start\" data-i=\"0\" title=\"the newline before the text\">&#8629;</span>");
    for (i, unit) in seen.units.iter().enumerate() {
        let _ = write!(
            text,
            "<span class=\"u\" data-i=\"{}\" style=\"background:{}\" title=\"{:.2} bits\">{}</span>",
            i + 1,
            surprise_color(unit),
            unit.bits,
            shown(&unit.text)
        );
    }
    let options: String = seen.heads.iter().enumerate().map(|(i, head)| option(i, head)).collect();
    let weights: Vec<String> = seen.heads.iter().map(sparse).collect();
    PAGE.replace("{model}", &xml(&seen.model))
        .replace("{bpb}", &format!("{:.3}", seen.bits_per_byte()))
        .replace("{options}", &options)
        .replace("{weights}", &weights.join(","))
        .replace("{text}", &text)
}

fn option(i: usize, head: &Head) -> String {
    format!("<option value=\"{i}\">block {}, head {}</option>", head.block, head.head)
}

/// For each unit the places that its query looked at, and how much in thousandths.
fn sparse(head: &Head) -> String {
    let query = |weights: &Vec<f32>| {
        let kept = weights.iter().enumerate().filter(|(_, weight)| **weight >= LEAST_WEIGHT);
        let pairs: Vec<String> = kept.map(|(key, weight)| format!("{key},{:.0}", 1000.0 * weight)).collect();
        format!("[{}]", pairs.join(","))
    };
    format!("[{}]", head.weights.iter().map(query).collect::<Vec<_>>().join(","))
}

/// From white at no surprise to red at 8 bits.
fn surprise_color(unit: &Unit) -> String {
    let part = (unit.bits / 8.0).clamp(0.0, 1.0);
    format!("rgba(220,38,38,{:.2})", 0.85 * part)
}

/// A character as it is seen: a line break also breaks the line.
fn shown(text: &str) -> String {
    match text {
        "\n" => "&#8629;\n".into(),
        text => xml(text),
    }
}

const PAGE: &str = r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Where the attention head looks</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
pre { font: 16px/2 monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.u { cursor: crosshair; border-bottom: 4px solid transparent }
.start { color: #888 }
.u.here { outline: 2px solid #111 }
.scale { display: inline-block; width: 8em; height: .8em; vertical-align: middle }
</style>
<h1>Where the attention head looks</h1>
<p>Read by {model}: {bpb} bits per byte. Red is surprise, from none
<span class="scale" style="background:linear-gradient(90deg,#fff,rgba(220,38,38,.85))"></span> to 8 bits a character or more. Point at a
character: the blue bars show what the head looked at just before it, to predict it. Click to keep them.</p>
<p><label>Head: <select id="head">{options}</select></label></p>
<pre id="text">{text}</pre>
<script>
const weights = [{weights}];
const units = [...document.querySelectorAll('.u')];
let kept = null;
function clear() { for (const u of units) { u.style.borderBottomColor = 'transparent'; u.classList.remove('here'); } }
function show(i) {
  clear();
  if (!(i > 0)) return;
  units[i].classList.add('here');
  const row = weights[document.getElementById('head').value][i - 1];
  let most = 1;
  for (let k = 1; k < row.length; k += 2) most = Math.max(most, row[k]);
  for (let k = 0; k < row.length; k += 2)
    units[row[k]].style.borderBottomColor = 'rgba(37,99,235,' + Math.max(.12, row[k + 1] / most) + ')';
}
const text = document.getElementById('text');
const at = e => e.target.dataset && e.target.dataset.i !== undefined ? +e.target.dataset.i : null;
text.addEventListener('mouseover', e => { if (kept === null && at(e) !== null) show(at(e)); });
text.addEventListener('mouseleave', () => { if (kept === null) clear(); });
text.addEventListener('click', e => { kept = kept === at(e) ? null : at(e); show(kept); });
document.getElementById('head').addEventListener('change', () => show(kept));
</script>
</html>
"#;
