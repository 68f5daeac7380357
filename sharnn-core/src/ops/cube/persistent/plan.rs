//! Which persistent kernel a size takes on a device: its blocks, shared memory and scratch; or why there is none.
//!
//! The formulas are those of the layout in `lstm.cu`, which refuses to be compiled where the numbers differ.

use std::fmt;

use burn_cubecl::cubecl::ir::DeviceProperties;

use crate::ops::Precision;
use crate::ops::cube::lstm::Keeps;

/// Threads of a block.
pub(super) const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

/// Most lanes that a kernel takes.
const MAX_LANES: usize = 64;

/// Numbers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Whether its compute capability is 8.0 or later.
    pub(super) is_recent: bool,
    /// Multiprocessors.
    pub(super) processors: usize,
    /// Most shared memory of a block, bytes.
    pub(super) shared: usize,
}

impl Device {
    pub(super) fn new(properties: &DeviceProperties) -> Self {
        let hardware = &properties.hardware;
        Self {
            // Copies that the multiprocessor makes by itself began with 8.0.
            is_recent: properties.features.copy_async && hardware.plane_size_min == 32,
            processors: hardware.num_streaming_multiprocessors.unwrap_or(0) as usize,
            shared: hardware.max_shared_memory_size,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    Forward(Keeps),
    Backward,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Self::Forward(_) => "forward",
            Self::Backward => "backward",
        }
    }
}

/// All that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) pass: Pass,
    pub(super) precision: Precision,
    pub(super) lanes: usize,
    pub(super) d: usize,
    /// Blocks that are launched, all of which must be on the device at once.
    pub(super) blocks: usize,
    /// Bytes of a block.
    pub(super) shared: usize,
    /// Words of the launch.
    pub(super) scratch: usize,
}

/// Why a size is left to the stepwise kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    OldDevice,
    UnknownDevice,
    TooManyLanes { lanes: usize },
    TooWide { pass: &'static str, d: usize, needs: usize, has: usize },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldDevice => write!(f, "the device's compute capability is below 8.0"),
            Self::UnknownDevice => write!(f, "the device does not tell how many multiprocessors it has"),
            Self::TooManyLanes { lanes } => write!(f, "{lanes} lanes are more than {MAX_LANES}"),
            Self::TooWide { pass, d, needs, has } => write!(
                f,
                "{pass}, a block of the LSTM of {d} units needs {needs} bytes of shared memory where the device has {has}"
            ),
        }
    }
}

impl Plan {
    /// The kernel for so many lanes and units.
    ///
    /// All blocks are on the device at once, if it has nothing else to do: there are no more of them than multiprocessors, and
    /// each fits one. What else it does comes to an end, so a block that has to wait for its place delays the others, and
    /// stops none. Only where two threads of the program, or two programs, launch such kernels at once may each have some
    /// of its blocks there and none all of them: then both give up when their waits end.
    pub(super) fn new(
        device: &Device,
        pass: Pass,
        precision: Precision,
        [lanes, d]: [usize; 2],
    ) -> Result<Self, Refused> {
        if !device.is_recent {
            return Err(Refused::OldDevice);
        }
        if device.processors == 0 {
            return Err(Refused::UnknownDevice);
        }
        if lanes > MAX_LANES {
            return Err(Refused::TooManyLanes { lanes });
        }
        // Eight units of a block are as many as multiply a whole tile.
        let blocks = device.processors.min(d.div_ceil(8));
        let tiles = Tiles::new(precision, lanes);
        let (shared, scratch) = match pass {
            Pass::Forward(_) => tiles.forward(d, blocks),
            Pass::Backward => tiles.backward(d, blocks),
        };
        if shared > device.shared {
            return Err(Refused::TooWide { pass: pass.name(), d, needs: shared, has: device.shared });
        }
        Ok(Self { pass, precision, lanes, d, blocks, shared, scratch })
    }

    /// The name of the kernel in its source.
    pub(super) fn entry(&self) -> &'static str {
        match self.pass {
            Pass::Forward(_) => "lstm_persistent_forward",
            Pass::Backward => "lstm_persistent_backward",
        }
    }

    /// What `lstm.cu` is compiled with.
    pub(super) fn defines(&self) -> Vec<(&'static str, usize)> {
        let Self { pass, precision, lanes, d, blocks, shared, scratch } = *self;
        let (keeps, of_pass) = match pass {
            Pass::Forward(keeps) => (keeps, ["SHARNN_FORWARD_SHARED", "SHARNN_FORWARD_SCRATCH"]),
            Pass::Backward => {
                (Keeps { gates: true, cells: true }, ["SHARNN_BACKWARD_SHARED", "SHARNN_BACKWARD_SCRATCH"])
            }
        };
        vec![
            ("SHARNN_D", d),
            ("SHARNN_LANES", lanes),
            ("SHARNN_BLOCKS", blocks),
            ("SHARNN_THREADS", THREADS),
            ("SHARNN_BF16", (precision == Precision::Bf16).into()),
            ("SHARNN_KEEPS_GATES", keeps.gates.into()),
            ("SHARNN_KEEPS_CELLS", keeps.cells.into()),
            (of_pass[0], shared),
            (of_pass[1], scratch),
        ]
    }
}

/// What both layouts have in common.
struct Tiles {
    bf16: bool,
    lanes: usize,
    /// Tiles of 16 lanes.
    lane_tiles: usize,
    /// Words that the hidden states of 16 units take.
    words: usize,
    /// Most tiles of columns that a warp adds up at once.
    cap: usize,
}

impl Tiles {
    fn new(precision: Precision, lanes: usize) -> Self {
        let bf16 = precision == Precision::Bf16;
        let lane_tiles = lanes.div_ceil(16);
        let (words, most) = if bf16 { (128, 8) } else { (256, 4) };
        Self { bf16, lanes, lane_tiles, words: lane_tiles * words, cap: most.min((16 / lane_tiles).max(1)) }
    }

    /// Bytes in which the warps' sums meet.
    fn sums(&self, columns: usize) -> usize {
        let staged = if self.bf16 { 0 } else { WARPS * 64 * 16 * self.lane_tiles };
        // A tile of columns more keeps neighbouring rows apart.
        (WARPS * 512 * (columns + 1)).max(staged)
    }

    /// Bytes of the weights' tiles, of 16 terms and 8 columns, and of the sums. Weights that 96 registers of a thread hold leave
    /// their place to the sums.
    fn product(&self, terms: usize, columns: usize, at_once: usize) -> usize {
        let weights = terms * columns * if self.bf16 { 256 } else { 512 };
        let sums = self.sums(at_once);
        let held = self.bf16 && at_once == columns && terms.div_ceil(WARPS) * columns <= 48;
        if held { weights.max(sums) } else { weights + sums }
    }

    /// Bytes of shared memory and words of scratch.
    fn forward(&self, d: usize, blocks: usize) -> (usize, usize) {
        let columns = d.div_ceil(blocks).div_ceil(2);
        let terms = d.div_ceil(16);
        let at_once = columns.min(self.cap);
        let passes = columns.div_ceil(at_once);
        let of_gates = 24 * passes * self.lane_tiles * 32 * at_once + 32 * columns + 16;
        (self.product(terms, columns, at_once) + of_gates, 64 + 2 * terms * self.words)
    }

    /// The same.
    fn backward(&self, d: usize, blocks: usize) -> (usize, usize) {
        let groups = match blocks {
            64.. => 8,
            16.. => 4,
            4.. => 2,
            _ => 1,
        };
        let own = d.div_ceil(blocks / groups * groups);
        let column_groups = d.div_ceil(own * groups);
        let terms = (column_groups * own).div_ceil(4);
        let columns = (groups * own).div_ceil(8);
        let shared = self.product(terms, columns, columns.min(self.cap)) + 32 * self.lanes * own + 16;
        let states = 2 * groups * terms * self.words;
        let partial_sums = 2 * column_groups * groups * 16 * self.lane_tiles * 8 * columns;
        (shared, 32 * (1 + groups + column_groups) + states + partial_sums)
    }
}

#[cfg(test)]
pub(in crate::ops::cube) mod tests {
    use super::*;

    /// An H100, of 132 multiprocessors and 227 KB of shared memory a block.
    pub(in crate::ops::cube) const H100: Device = Device { is_recent: true, processors: 132, shared: 232_448 };
    pub(in crate::ops::cube) const A100: Device = Device { is_recent: true, processors: 108, shared: 166_912 };

    const KEEPS: Keeps = Keeps { gates: true, cells: true };

    #[test]
    fn the_papers_size_fits_an_h100_in_bf16_and_in_f32() {
        let [forward, backward] = [Pass::Forward(KEEPS), Pass::Backward]
            .map(|pass| Plan::new(&H100, pass, Precision::Bf16, [16, 1024]).unwrap());
        assert_eq!((forward.blocks, backward.blocks), (128, 128));
        // A block has 8 units: 64 tiles of terms by 4 of columns, 256 bytes each. A thread holds its part of them.
        assert_eq!(forward.shared, 64 * 4 * 256 + 24 * 32 * 4 + 32 * 4 + 16);
        assert_eq!(forward.scratch, 64 + 2 * 64 * 128);
        // Eight groups of blocks for the terms, 16 for the columns; 32 tiles of terms by 8 of columns.
        assert_eq!(backward.shared, 32 * 8 * 256 + 32 * 16 * 8 + 16);
        assert_eq!(backward.scratch, 32 * (1 + 8 + 16) + 2 * 8 * 32 * 128 + 2 * 16 * 8 * 16 * 8 * 8);
        for pass in [Pass::Forward(KEEPS), Pass::Backward] {
            assert!(Plan::new(&H100, pass, Precision::F32, [16, 1024]).is_ok());
        }
        // In f32 the sums have a place of their own.
        let forward = Plan::new(&H100, Pass::Forward(KEEPS), Precision::F32, [16, 1024]).unwrap();
        assert_eq!(forward.shared, 64 * 4 * 512 + 8 * 512 * 5 + 24 * 32 * 4 + 32 * 4 + 16);
    }

    #[test]
    fn there_are_never_more_blocks_than_multiprocessors() {
        for processors in [1, 3, 46, 108, 132] {
            for d in [1, 7, 16, 100, 256, 1000, 1024] {
                let device = Device { processors, shared: usize::MAX, ..H100 };
                let plan = Plan::new(&device, Pass::Backward, Precision::Bf16, [16, d]).unwrap();
                assert!((1..=processors).contains(&plan.blocks), "{processors} {d} {plan:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_resident_is_refused_with_its_reason() {
        let plan = |device: Device, precision, size| Plan::new(&device, Pass::Forward(KEEPS), precision, size);
        let refused = |device, size| plan(device, Precision::F32, size).unwrap_err().to_string();
        assert!(refused(Device { is_recent: false, ..H100 }, [16, 1024]).contains("below 8.0"));
        assert!(refused(Device { processors: 0, ..H100 }, [16, 1024]).contains("how many multiprocessors"));
        assert_eq!(refused(H100, [65, 1024]), "65 lanes are more than 64");
        assert!(plan(H100, Precision::F32, [64, 1024]).is_ok() && plan(H100, Precision::F32, [1, 1]).is_ok());
        // On half the multiprocessors each has twice the weights, which are too many in f32 and not in bf16.
        let small = Device { processors: 64, ..H100 };
        assert!(refused(small, [16, 1024]).starts_with("forward, a block of the LSTM of 1024 units needs "));
        assert!(plan(small, Precision::Bf16, [16, 1024]).is_ok());
        assert!(refused(H100, [16, 4096]).contains("where the device has 232448"));
    }
}
