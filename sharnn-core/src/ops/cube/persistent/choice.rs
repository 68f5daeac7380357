//! Whether the persistent kernels may be used, decided in one place.

use std::sync::OnceLock;

use crate::ops::cube::variable::{UnknownValue, choose};

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

impl CudaLstm {
    /// Every way, and its name for [`CUDA_LSTM_VARIABLE`]; the first is that of a process without the variable.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Auto, "auto"), (Self::Stepwise, "stepwise"), (Self::Persistent, "persistent")];

    /// The way that this process uses: the one that [`CUDA_LSTM_VARIABLE`] names, else [`Auto`](Self::Auto). The variable is
    /// read once.
    ///
    /// # Errors
    /// If the variable names a way that there is not.
    pub fn current() -> Result<Self, UnknownValue> {
        static CURRENT: OnceLock<Result<CudaLstm, UnknownValue>> = OnceLock::new();
        CURRENT.get_or_init(|| choose(CUDA_LSTM_VARIABLE, std::env::var_os(CUDA_LSTM_VARIABLE), &CudaLstm::ALL)).clone()
    }

    /// How many launches of persistent kernels this process has made. A first launch of a kernel that gave up is not among
    /// them; later ones are, since nothing waits for what became of them.
    pub fn persistent_launches() -> u64 {
        super::watch::launches()
    }

    pub(super) fn may_be_persistent(self) -> bool {
        self == Self::Persistent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_stepwise_until_a_card_has_proved_the_other() {
        assert_eq!(CudaLstm::ALL.map(|(way, _)| way.may_be_persistent()), [false, false, true]);
    }
}
