//! The program's commands over files from outside: what only they read (data.json, ends.json, from.json, curves, prompts, lines), and what
//! they print. The first byte says which command and which file, the others are what is in it.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sharnn::cli;
use sharnn_fuzz::{RUN, check_text, place, printed, seed, write_run};

const MANIFEST: &str = "step-00000003/checkpoint.json";

/// Words of a command and the file of the run that is hostile. RUN is the run, FILE that file, OUT one to write.
const COMMANDS: [(&str, &str); 15] = [
    ("plot RUN --svg OUT", "metrics.jsonl"),
    ("plot RUN --svg OUT --over steps", "metrics.jsonl"),
    ("plot RUN --svg OUT", MANIFEST),
    ("inspect RUN", MANIFEST),
    ("inspect RUN --json", MANIFEST),
    ("inspect FILE", "best/weights.safetensors"),
    ("score FILE --model RUN --json --alone", "text"),
    ("score FILE --model RUN --top 3", "text"),
    ("score FILE --model RUN", "text"),
    ("generate --model RUN --prompt-file FILE -n 5", "text"),
    ("attend --model RUN --file FILE --out OUT", "text"),
    ("import best/weights.safetensors --vocabulary FILE --to OUT", "vocabulary.json"),
    ("eval --model RUN --json", "data.json"),
    ("train --resume --out RUN --steps 4 --quiet", "ends.json"),
    ("train --resume --out RUN --steps 4 --quiet", "from.json"),
];

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let Some((which, contents)) = bytes.split_first() else { return };
    let (command, file) = COMMANDS[usize::from(*which) % COMMANDS.len()];
    let run = place().join("run");
    write_run(&run, file, contents);
    let path = |path: &Path| path.display().to_string();
    let words = command.split(' ').map(|word| match word {
        "RUN" => path(&run),
        "FILE" => path(&run.join(file)),
        "OUT" => path(&run.join("out")),
        "best/weights.safetensors" => path(&run.join(word)),
        word => word.to_string(),
    });
    let arguments: Vec<String> = std::iter::once("sharnn".to_string()).chain(words).collect();
    let printed = printed(|| {
        let _ = cli::run(arguments);
    });
    // What it generates goes into a file as it is.
    if !command.starts_with("generate") {
        let text = std::str::from_utf8(&printed).expect("what is printed is text");
        check_text(&text.replace('\t', " "));
    }
    assert!(printed.len() < 20_000 + 400 * contents.len(), "{command} prints {} bytes", printed.len());
    if command.starts_with("plot") && let Ok(picture) = fs::read_to_string(run.join("out")) {
        check_text(&picture);
    }
});

fn seeds() -> Vec<Vec<u8>> {
    let contents = |file: &str| match file {
        "text" => b"a line\nanother line\n".to_vec(),
        "vocabulary.json" => serde_json::to_vec(&(0..20).collect::<Vec<u8>>()).unwrap(),
        "ends.json" => br#"{"steps":4,"epochs":null,"seconds":null}"#.to_vec(),
        "from.json" => br#"{"model":"bundled"}"#.to_vec(),
        file => RUN[Path::new(file)].clone(),
    };
    let seed = |(i, (_, file)): (usize, &(&str, &str))| [&[i as u8], &contents(file)[..]].concat();
    COMMANDS.iter().enumerate().map(seed).collect()
}
