//! Whether the persistent kernels may be used, decided in one place.

use std::sync::OnceLock;

/// The variable that chooses how the LSTM is computed on CUDA.
pub const CUDA_LSTM_VARIABLE: &str = "SHARNN_CUDA_LSTM";

/// How the LSTM's steps are computed on CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaLstm {
    /// A launch a step.
    Stepwise,
    /// One launch a segment, which keeps the recurrent weights on the chip, where the device and the sizes allow it.
    Persistent,
    /// Whichever has been proved on a card: stepwise, until one has shown that the other is right and faster.
    Auto,
}

/// A value of [`CUDA_LSTM_VARIABLE`] that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{CUDA_LSTM_VARIABLE} = {value:?} is not known: use one of {}", CudaLstm::ALL.map(|(_, name)| name).join(", "))]
pub struct UnknownCudaLstm {
    /// The value as it was given.
    pub value: String,
}

impl CudaLstm {
    /// Every way, and its name for [`CUDA_LSTM_VARIABLE`].
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Stepwise, "stepwise"), (Self::Persistent, "persistent"), (Self::Auto, "auto")];

    /// The way that this process uses: the one that [`CUDA_LSTM_VARIABLE`] names, else [`Auto`](Self::Auto). The variable is
    /// read once.
    ///
    /// # Errors
    /// If the variable names a way that there is not.
    pub fn current() -> Result<Self, UnknownCudaLstm> {
        static CURRENT: OnceLock<Result<CudaLstm, UnknownCudaLstm>> = OnceLock::new();
        CURRENT.get_or_init(|| Self::from_value(std::env::var_os(CUDA_LSTM_VARIABLE))).clone()
    }

    /// How many launches of persistent kernels this process has made; those whose results were given up are not counted.
    pub fn persistent_launches() -> u64 {
        super::watch::launches()
    }

    fn from_value(value: Option<std::ffi::OsString>) -> Result<Self, UnknownCudaLstm> {
        let value = value.map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        if value.is_empty() {
            return Ok(Self::Auto);
        }
        let known = Self::ALL.into_iter().find(|(_, name)| *name == value);
        known.map(|(way, _)| way).ok_or(UnknownCudaLstm { value })
    }

    pub(super) fn may_be_persistent(self) -> bool {
        self == Self::Persistent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_and_no_other() {
        for (way, name) in CudaLstm::ALL {
            assert_eq!(CudaLstm::from_value(Some(name.into())), Ok(way));
        }
        for unset in [None, Some("".into())] {
            assert_eq!(CudaLstm::from_value(unset), Ok(CudaLstm::Auto));
        }
        let error = CudaLstm::from_value(Some("Persistent".into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "SHARNN_CUDA_LSTM = \"Persistent\" is not known: use one of stepwise, persistent, auto"
        );
    }

    #[test]
    fn auto_is_stepwise_until_a_card_has_proved_the_other() {
        assert_eq!(CudaLstm::ALL.map(|(way, _)| way.may_be_persistent()), [false, true, false]);
    }
}
