//! A path in JSON: as text where it is text, else as its bytes. A file's name need not be UTF-8.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AnyPath {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    let any = |path: &PathBuf| match path.to_str() {
        Some(text) => AnyPath::Text(text.into()),
        None => AnyPath::Bytes { bytes: path.as_os_str().as_encoded_bytes().to_vec() },
    };
    path.as_ref().map(any).serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(Option::<AnyPath>::deserialize(deserializer)?.map(|path| match path {
        AnyPath::Text(text) => text.into(),
        AnyPath::Bytes { bytes } => of_bytes(bytes),
    }))
}

#[cfg(unix)]
fn of_bytes(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

/// Elsewhere a path has no bytes of its own: the nearest text.
#[cfg(not(unix))]
fn of_bytes(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}
