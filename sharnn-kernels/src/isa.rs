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
    /// The best of the two for f32, and bfloat16 products on matrix tiles in plain Rust: slow, for tests of what
    /// surrounds the tiles.
    Tiles,
    /// AVX-512 F: 16 lanes of f32.
    Avx512,
    /// AVX-512 F, and its dot products of pairs of bfloat16.
    Avx512Bf16,
    /// AVX-512 F, and the matrix tiles of AMX for bfloat16 (Linux).
    Amx,
    /// NEON of 64-bit ARM: 8 lanes of f32 in two registers.
    Neon,
    /// NEON, and its matrix products of bfloat16.
    NeonBf16,
    /// WebAssembly's simd128: 8 lanes of f32 in two registers.
    Simd128,
}

/// What computes on f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    Portable,
    Avx2,
    Avx512,
    Neon,
    Simd128,
}

/// What multiplies bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bf16Unit {
    /// The vectors, on f32 that were rounded.
    Vectors,
    /// Tiles in plain Rust.
    Software,
    /// Dot products of pairs.
    Avx512,
    /// Tiles.
    Amx,
    /// Products of two rows and two columns.
    Neon,
}

/// What multiplies whole numbers of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Integers {
    Portable,
    Avx2,
    /// AVX2, and AVX-VNNI: a product and its sum in one instruction.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 BW and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    Neon,
    /// NEON, and its dot products of 8 bits.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// NEON, and its matrix products of 8 bits.
    #[cfg(target_arch = "aarch64")]
    NeonSquares,
    Simd128,
}

impl Isa {
    /// Every set, and its name for [`ISA_VARIABLE`].
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Portable, "portable"),
        (Self::Avx2, "avx2"),
        (Self::Tiles, "tiles"),
        (Self::Avx512, "avx512"),
        (Self::Avx512Bf16, "avx512-bf16"),
        (Self::Amx, "amx"),
        (Self::Neon, "neon"),
        (Self::NeonBf16, "neon-bf16"),
        (Self::Simd128, "simd128"),
    ];

    /// The name for [`ISA_VARIABLE`].
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Whether this CPU has the instructions, and the system lets this process use them.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable | Self::Tiles => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.is_available() && crate::gemm::amx_is_granted(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => Self::Neon.is_available() && std::arch::is_aarch64_feature_detected!("bf16"),
            // Code with other instructions would not have been loaded.
            #[cfg(target_arch = "wasm32")]
            Self::Simd128 => true,
            _ => false,
        }
    }

    /// The set that all kernels of this process use: the one that [`ISA_VARIABLE`] names, or the [best](Self::detected).
    ///
    /// # Panics
    /// If the variable names a set that there is not, or that this CPU does not have.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name).unwrap_or_else(|message| panic!("{message}")),
            _ => Self::detected(),
        })
    }

    /// The best set that this CPU has. On Intel's CPUs products by AVX-512's dot products of bfloat16 are slower than those of
    /// f32, so they are not chosen there.
    pub fn detected() -> Self {
        let best = [Self::Amx, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::NeonBf16, Self::Neon, Self::Simd128];
        let is_worse = |isa| isa == Self::Avx512Bf16 && is_intel();
        best.into_iter().find(|&isa| isa.is_available() && !is_worse(isa)).unwrap_or(Self::Portable)
    }

    /// What computes on f32.
    pub(crate) fn vectors(self) -> Vectors {
        match self {
            Self::Portable => Vectors::Portable,
            Self::Avx2 => Vectors::Avx2,
            Self::Tiles => match Self::detected().vectors() {
                Vectors::Avx512 => Vectors::Avx2,
                vectors => vectors,
            },
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => Vectors::Avx512,
            Self::Neon | Self::NeonBf16 => Vectors::Neon,
            Self::Simd128 => Vectors::Simd128,
        }
    }

    /// What multiplies bfloat16.
    pub(crate) fn bf16_unit(self) -> Bf16Unit {
        match self {
            Self::Portable | Self::Avx2 | Self::Avx512 | Self::Neon | Self::Simd128 => Bf16Unit::Vectors,
            Self::Tiles => Bf16Unit::Software,
            Self::Avx512Bf16 => Bf16Unit::Avx512,
            Self::Amx => Bf16Unit::Amx,
            Self::NeonBf16 => Bf16Unit::Neon,
        }
    }

    /// What multiplies whole numbers of 16 bits.
    pub(crate) fn integers(self) -> Integers {
        match self.vectors() {
            Vectors::Portable => Integers::Portable,
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") => {
                Integers::Avx512
            }
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 | Vectors::Avx512 if is_x86_feature_detected!("avxvnni") => Integers::AvxVnni,
            Vectors::Avx2 | Vectors::Avx512 => Integers::Avx2,
            #[cfg(target_arch = "aarch64")]
            Vectors::Neon if std::arch::is_aarch64_feature_detected!("i8mm") => Integers::NeonSquares,
            #[cfg(target_arch = "aarch64")]
            Vectors::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => Integers::NeonDot,
            Vectors::Neon => Integers::Neon,
            Vectors::Simd128 => Integers::Simd128,
        }
    }

    fn named(name: &str) -> Result<Self, String> {
        let Some(&(isa, _)) = Self::ALL.iter().find(|(_, known)| *known == name) else {
            let names = Self::ALL.map(|(_, name)| name).join(", ");
            return Err(format!("{ISA_VARIABLE} = {name:?} is not known: use one of {names}"));
        };
        match isa.is_available() {
            true => Ok(isa),
            false => Err(format!("{ISA_VARIABLE} = {name:?}, which this CPU does not have: use portable")),
        }
    }
}

/// What the CPU says of itself in a leaf, or in its first part.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cpuid(leaf: u32) -> std::arch::x86_64::CpuidResult {
    #[allow(unused_unsafe, reason = "it is a safe function in newer compilers than the oldest that will do")]
    // SAFETY: every CPU of 64 bits has the instruction.
    unsafe {
        std::arch::x86_64::__cpuid_count(leaf, 0)
    }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let maker = cpuid(0);
    [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_set_is_detected() {
        let detected = Isa::detected();
        assert!(detected.is_available() && detected != Isa::Tiles, "{detected:?}");
        // Not what decides, where the system says it too.
        let intel = match std::fs::read_to_string("/proc/cpuinfo") {
            Ok(cpus) => cpus.contains("GenuineIntel"),
            Err(_) => is_intel(),
        };
        let [worse, better] = match intel {
            true => [Isa::Avx512Bf16, Isa::Avx512],
            false => [Isa::Avx512, Isa::Avx512Bf16],
        };
        let ranking = [Isa::Portable, Isa::Avx2, worse, better, Isa::Amx, Isa::Neon, Isa::NeonBf16, Isa::Simd128];
        let rank = |isa| ranking.iter().position(|&known| known == isa);
        for isa in ranking {
            assert!(!isa.is_available() || rank(isa) <= rank(detected), "{isa:?} is better than {detected:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_variable() {
        for (isa, name) in Isa::ALL {
            assert_eq!(isa.name(), name);
            assert_eq!(Isa::named(name).is_ok(), isa.is_available());
        }
        assert!(
            Isa::named("sse9")
                .unwrap_err()
                .contains("portable, avx2, tiles, avx512, avx512-bf16, amx, neon, neon-bf16, simd128")
        );
    }
}
