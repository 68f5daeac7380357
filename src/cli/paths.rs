//! Paths in JSON. A path need not be UTF-8.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path for a reader of JSON: bytes that are no UTF-8 are escaped, as `\xff`.
pub fn shown<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    let path = path.as_ref().as_os_str();
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => serializer.collect_str(&path.as_encoded_bytes().escape_ascii()),
    }
}

/// A path that is read again: a string, or where it is no UTF-8 the list of its bytes. For `#[serde(with)]`.
pub mod exact {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged, expecting = "a path is a string, or a list of bytes")]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        let form = path.as_ref().map(|path| match path.to_str() {
            Some(text) => Form::Text(text.into()),
            None => Form::Bytes(path.as_os_str().as_encoded_bytes().into()),
        });
        form.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Form>::deserialize(deserializer)?.map(|form| match form {
            Form::Text(text) => text.into(),
            Form::Bytes(bytes) => of_bytes(bytes),
        }))
    }

    #[cfg(unix)]
    fn of_bytes(bytes: Vec<u8>) -> PathBuf {
        let path: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(bytes);
        path.into()
    }

    /// Elsewhere names are Unicode, but for what no program makes.
    #[cfg(not(unix))]
    fn of_bytes(bytes: Vec<u8>) -> PathBuf {
        String::from_utf8_lossy(&bytes).into_owned().into()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Kept {
        #[serde(with = "exact")]
        path: Option<PathBuf>,
    }

    #[test]
    fn a_path_of_any_bytes_comes_back() {
        for (path, json) in [
            (&b"runs/001"[..], r#"{"path":"runs/001"}"#),
            ("naïve".as_bytes(), r#"{"path":"naïve"}"#),
            (b"a\xff", r#"{"path":[97,255]}"#),
            (b"a\n\"", r#"{"path":"a\n\""}"#),
        ] {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let kept = Kept { path: Some(path.clone()) };
            assert_eq!(serde_json::to_string(&kept).unwrap(), json);
            assert_eq!(serde_json::from_str::<Kept>(json).unwrap(), kept);
        }
        assert_eq!(serde_json::from_str::<Kept>(r#"{"path":null}"#).unwrap().path, None);
        #[derive(Serialize)]
        struct Report {
            #[serde(serialize_with = "shown")]
            path: PathBuf,
        }
        let report = Report { path: OsStr::from_bytes(b"a\xff").into() };
        assert_eq!(serde_json::to_string(&report).unwrap(), r#"{"path":"a\\xff"}"#);
    }
}
