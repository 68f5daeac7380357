//! Where two values of JSON differ.

use std::collections::BTreeSet;

use serde_json::Value;

/// Path of the first place where two values differ, below `path`, and what either has there.
pub(crate) fn json_difference(path: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    match (a, b) {
        _ if a == b => None,
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                json_difference(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| json_difference(&format!("{path}[{i}]"), a, b))
        }
        _ => Some((path.into(), a.to_string(), b.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let saved = json!({"a": 1, "b": [{"lr": 1.0}, {"lr": 2.0}], "c": {"x": null}});
        assert_eq!(json_difference("r", &saved, &saved), None);
        let mut given = saved.clone();
        given["b"][1]["lr"] = json!(3.0);
        assert_eq!(json_difference("r", &saved, &given), Some(("r.b[1].lr".into(), "2.0".into(), "3.0".into())));
        let mut given = saved.clone();
        given["c"] = json!({"y": 1});
        assert_eq!(json_difference("", &saved, &given), Some(("c.y".into(), "null".into(), "1".into())));
    }
}
