//! Which instructions the kernels use, decided in one place.

use std::sync::OnceLock;

/// The variable that chooses instructions by name, in place of detection.
pub const ISA_VARIABLE: &str = "SHARNN_ISA";

/// A set of instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 and FMA: 8 lanes of f32.
    Avx2,
    /// AVX-512 F: 16 lanes of f32. Chosen by [`ISA_VARIABLE`] only.
    Avx512,
}

impl Isa {
    /// Every set, and its name for [`ISA_VARIABLE`].
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Portable, "portable"), (Self::Avx2, "avx2"), (Self::Avx512, "avx512")];

    /// The name for [`ISA_VARIABLE`].
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Whether this CPU has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The set that all kernels of this process use: the one that [`ISA_VARIABLE`] names, or AVX2 where the CPU has it.
    /// AVX-512 has not been tested on such a CPU yet and is never chosen by itself.
    ///
    /// # Panics
    /// If the variable names a set that there is not, or that this CPU does not have.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name).unwrap_or_else(|message| panic!("{message}")),
            _ if Self::Avx2.is_available() => Self::Avx2,
            _ => Self::Portable,
        })
    }

    fn named(name: &str) -> Result<Self, String> {
        let Some(&(isa, _)) = Self::ALL.iter().find(|(_, known)| *known == name) else {
            return Err(format!("{ISA_VARIABLE} = {name:?} is not known: use portable, avx2 or avx512"));
        };
        match isa.is_available() {
            true => Ok(isa),
            false => Err(format!("{ISA_VARIABLE} = {name:?}, which this CPU does not have: use portable")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_variable() {
        for (isa, name) in Isa::ALL {
            assert_eq!(isa.name(), name);
            assert_eq!(Isa::named(name).is_ok(), isa.is_available());
        }
        assert!(Isa::named("sse9").unwrap_err().contains("portable, avx2 or avx512"));
    }
}
