//! Words of a command line, for messages that name a command to type.

use std::ffi::OsStr;
use std::path::Path;

/// A word, quoted for a shell where it has to be: in `'...'`, and what has control characters or is no UTF-8 in `$'...'`.
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./=,:+@%".contains(byte);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.bytes().all(|byte| plain(&byte)) => text.into(),
        Some(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let escaped = word.as_encoded_bytes().escape_ascii().to_string();
            format!("$'{}'", escaped.replace("\\\"", "\""))
        }
    }
}

/// A path, [`quoted`], which no program takes for an option.
pub fn quoted_path(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    match path.as_os_str().as_encoded_bytes().first() {
        Some(b'-') => quoted(Path::new(".").join(path)),
        _ => quoted(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_change_it() {
        for (word, typed) in [
            ("runs/001", "runs/001"),
            ("naïve", "'naïve'"),
            ("it's", r"'it'\''s'"),
            ("a b", "'a b'"),
            ("", "''"),
            ("a\n\"", "$'a\\n\"'"),
            ("--lr=1e-3", "--lr=1e-3"),
        ] {
            assert_eq!(quoted(word), typed);
        }
        assert_eq!([quoted_path("-rf"), quoted_path("a b")], ["./-rf", "'a b'"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_no_utf8_can_be_typed() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(quoted(OsStr::from_bytes(b"a\xff")), r"$'a\xff'");
    }
}
