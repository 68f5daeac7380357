//! What is carried on after a step that does not count: a select between two states, on the device.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};
use sharnn_core::{BlockState, LstmState, ShaRnnState};

/// The state to carry into the next segment: `new` where the step was `finite`, else what can be kept of `old`, the state
/// before the segment. The host does not wait.
///
/// After a step that was not finite:
/// - h and c are the old ones, or zeros where there were none.
/// - A memory of as many rows as before is the old one. A memory that grew has the old rows in it, which a bad segment
///   cannot have changed, and keeps them; of the segment's rows, those that hold a value that is not finite become zero.
///
/// The newest tokens are the new ones in any case: they were read. Shapes are those of `new` either way, so later segments run as they would have.
///
/// # Shapes
/// - `finite`: `[1]`
///
/// # Panics
/// If the states are of different numbers of blocks or batch sizes.
pub fn select_state<B: Backend>(
    finite: Tensor<B, 1, Bool>,
    new: ShaRnnState<B>,
    old: ShaRnnState<B>,
) -> ShaRnnState<B> {
    assert_eq!(
        new.blocks.len(),
        old.blocks.len(),
        "the new state is of {} blocks, the old one of {}",
        new.blocks.len(),
        old.blocks.len()
    );
    let skip = finite.bool_not();
    let block = |(new, old): (BlockState<B>, BlockState<B>)| BlockState {
        lstm: new.lstm.map(|new| select_lstm(&skip, new, old.lstm)),
        memory: new.memory.map(|new| select_memory(&skip, new, old.memory)),
    };
    let blocks = new.blocks.into_iter().zip(old.blocks).map(block).collect();
    ShaRnnState { blocks, recent: new.recent }
}

fn select_lstm<B: Backend>(skip: &Tensor<B, 1, Bool>, new: LstmState<B>, old: Option<LstmState<B>>) -> LstmState<B> {
    let skip = skip.clone().unsqueeze::<2>().expand(new.h.dims());
    match old {
        None => LstmState { h: new.h.mask_fill(skip.clone(), 0.0), c: new.c.mask_fill(skip, 0.0) },
        Some(old) => {
            let dims = [new.h.dims(), old.h.dims()];
            assert_eq!(dims[0], dims[1], "the new h has shape {:?}, the old one {:?}", dims[0], dims[1]);
            LstmState { h: new.h.mask_where(skip.clone(), old.h), c: new.c.mask_where(skip, old.c) }
        }
    }
}

fn select_memory<B: Backend>(skip: &Tensor<B, 1, Bool>, new: Tensor<B, 3>, old: Option<Tensor<B, 3>>) -> Tensor<B, 3> {
    let dims = new.dims();
    let skip = skip.clone().unsqueeze::<3>().expand(dims);
    if let Some(old) = old {
        let [[batch_size, rows, _], [old_batch_size, old_rows, _]] = [dims, old.dims()];
        assert_eq!(
            batch_size, old_batch_size,
            "the new memory is of batch size {batch_size}, the old one of {old_batch_size}"
        );
        if rows == old_rows {
            return new.mask_where(skip, old);
        }
    }
    let bad_rows = new.clone().is_finite().bool_not().any_dim(2).expand(dims);
    new.mask_fill(skip.bool_and(bad_rows), 0.0)
}
