//! Variables of the environment that choose how CUDA computes.

use std::ffi::OsString;

/// A variable of the environment whose value is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?} cannot be used: use one of {}", known.join(", "))]
pub struct UnknownValue {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// The values that it can have.
    pub known: Vec<&'static str>,
}

/// What a variable chooses of `known`; the first of them where it is empty or not set.
pub(super) fn choose<T: Copy>(
    variable: &'static str,
    value: Option<OsString>,
    known: &[(T, &'static str)],
) -> Result<T, UnknownValue> {
    let value = value.map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
    let chosen = known.iter().find(|(_, name)| *name == value).or(known.first().filter(|_| value.is_empty()));
    chosen.map(|(choice, _)| *choice).ok_or_else(|| UnknownValue {
        variable,
        value,
        known: known.iter().map(|(_, name)| *name).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_and_no_other() {
        let known = [(1, "one"), (2, "two")];
        let chosen = |value: Option<&str>| choose("NUMBER", value.map(OsString::from), &known);
        assert_eq!([None, Some(""), Some("one"), Some("two")].map(chosen), [Ok(1), Ok(1), Ok(1), Ok(2)]);
        let error = chosen(Some("Two")).unwrap_err();
        assert_eq!(error.to_string(), "NUMBER=\"Two\" cannot be used: use one of one, two");
    }
}
