//! What is wrong with JSON, in the words of whoever wrote it, who need not know the types that it is read into.

use super::tensors::shown;

/// What is wrong with JSON, for a message: no name of a type of ours, no control characters, and not the whole of a long text.
pub fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = match text.strip_prefix("unknown variant ") {
        Some(rest) => format!("unknown name {rest}"),
        None => text,
    };
    let Some((found, rest)) = text.rsplit_once(", expected ") else { return shown(unnamed(&text)) };
    let (expected, place) = match rest.find(" at line ") {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    shown(&format!("{}, expected {}{place}", of_found(found), of_expected(expected)))
}

/// What was expected.
fn of_expected(text: &str) -> &str {
    match text {
        "u8" => "a whole number from 0 to 255",
        "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        "string or map" => "a string or an object",
        "unit" => "null",
        _ if text.starts_with("struct ") || text.starts_with("internally tagged enum ") => "an object",
        _ if text.starts_with("unit variant ") => "a name alone",
        _ if text.starts_with("newtype variant ") => "a name with a value",
        _ if ["enum ", "tuple ", "variant "].iter().any(|word| text.contains(word)) => "another value",
        _ => text,
    }
}

/// What was found.
fn of_found(text: &str) -> String {
    let Some((kind, what)) = text.split_once(": ") else { return text.into() };
    let what = match what {
        "map" => "an object",
        "sequence" => "a list",
        "unit" | "Option value" => "null",
        "unit variant" => "a name alone",
        "newtype variant" | "tuple variant" | "struct variant" => "a name with a value",
        _ => what,
    };
    format!("{kind}: {what}")
}

/// A text without a name of a type.
fn unnamed(text: &str) -> &str {
    if text.starts_with("data did not match any variant of ") {
        "it has none of the forms that are known"
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::recipe::Recipe;

    fn said<T: DeserializeOwned>(json: &str) -> String {
        json_error(&serde_json::from_str::<T>(json).err().expect(json))
    }

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    #[test]
    fn what_was_expected_is_said_without_a_type() {
        assert_eq!(
            said::<u64>("-1"),
            "invalid value: integer `-1`, expected a whole number of at least 0 at line 1 column 2"
        );
        assert_eq!(
            said::<Vec<u8>>("[256]"),
            "invalid value: integer `256`, expected a whole number from 0 to 255 at line 1 column 4"
        );
        assert_eq!(said::<f64>("\"a\""), "invalid type: string \"a\", expected a number at line 1 column 3");
        assert_eq!(
            said::<f64>("\", expected f64\""),
            "invalid type: string \", expected f64\", expected a number at line 1 column 16"
        );
        assert_eq!(said::<bool>("{}"), "invalid type: an object, expected true or false at line 1 column 0");
        assert_eq!(said::<Recipe>("null"), "invalid type: null, expected an object at line 1 column 4");
        assert_eq!(
            said::<crate::recipe::Schedule>("\"up\""),
            "unknown name `up`, expected one of `constant`, `linear`, `cosine`, `late` at line 1 column 4"
        );
        assert_eq!(said::<Form>("3"), "it has none of the forms that are known");
        assert_eq!(said::<Recipe>("{"), "EOF while parsing an object at line 1 column 1");
    }
}
