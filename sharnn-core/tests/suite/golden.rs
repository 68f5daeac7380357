//! The model and its modules against golden tensors of the published model: outputs, losses, states, memories and every
//! gradient. `fixtures/README.md` says how the files were made and what they hold.

use crate::support::{Fixture, Place, WHOLE, burn_roundoff, fixtures, swap, unit_roundoff};
use burn::tensor::{Bool, Tensor};
use sharnn_core::{
    Attend, AutodiffBackend, Block, BlockState, LstmState, Pass, Precision, ShaRnn, ShaRnnConfig, ShaRnnState, gelu,
    overparam,
};

on_backends!(whole_models, whole_models_bf16, single_modules);

fn whole_models<B: AutodiffBackend>() {
    models_in::<B>(Precision::F32);
}

/// Where the device has bf16: its products of rounded operands, all else in f32.
fn whole_models_bf16<B: AutodiffBackend>() {
    let device = B::Device::default();
    if Precision::Bf16.is_supported::<B::InnerBackend>(&device) {
        models_in::<B>(Precision::Bf16);
    } else {
        eprintln!("{} has no bf16 on this device", B::name(&device));
    }
}

fn models_in<B: AutodiffBackend>(precision: Precision) {
    let pass = Pass { precision, ..Pass::default() };
    let unit_roundoff = unit_roundoff::<B>(precision);
    let rounds = unit_roundoff > 0.0;
    for fixture in fixtures("sha_") {
        let fixture = fixture.within(unit_roundoff);
        let device = B::Device::default();
        let model: ShaRnn<B> = fixture.load(fixture.config().init_seeded(0, &device), "param.", WHOLE);
        let mut state: ShaRnnState<B> = model.empty_state();
        for segment in 1.. {
            let name = |what: &str| format!("seg{segment}.{what}");
            if !fixture.has(&name("input")) {
                assert!(segment > 1, "{}: no segment", fixture.name);
                break;
            }
            if !fixture.bool("carry_hidden") {
                state = state.drop_hidden();
            }
            if !fixture.bool("carry_mem") {
                state = state.drop_memory();
            }
            let state_in = state.detach();
            let (input, target) =
                (fixture.ids::<B>(&name("input")).swap_dims(0, 1), fixture.ids::<B>(&name("target")).swap_dims(0, 1));
            let (h, _) = model.hidden(input.clone(), state_in.clone(), &pass);
            fixture.check(&name("h"), swap(h.clone()));
            let logits = match precision {
                Precision::F32 => model.forward(input.clone(), state_in.clone()).0,
                Precision::Bf16 => model.decode(h, &pass),
            };
            fixture.check(&name("logits"), swap(logits));
            let (loss, state_out) = model.loss(input, target, state_in, &pass);
            fixture.check(&name("loss"), loss.clone());

            let grads = loss.backward();
            if fixture.names().iter().any(|n| n.starts_with(&name("grad."))) {
                fixture.check_grads(&model, &grads, &name("grad."), WHOLE);
            }
            for (layer, block) in state_out.blocks.iter().enumerate() {
                let LstmState { h, c } = block.lstm.clone().unwrap();
                fixture.check(&name(&format!("hidden.{layer}.h")), h);
                fixture.check(&name(&format!("hidden.{layer}.c")), c);
                let memory = name(&format!("mem.{layer}"));
                assert_eq!(block.memory.is_some(), fixture.has(&memory), "{}: {memory}", fixture.name);
                if let Some(rows) = block.memory.clone() {
                    fixture.check(&memory, swap(rows));
                }
            }
            // What was rounded in one segment is not carried into the next: each is compared from the published model's state.
            state = if rounds { golden_state(&fixture, &name("")) } else { state_out };
        }
    }
}

/// The state that the fixture has at the end of a segment.
fn golden_state<B: AutodiffBackend>(fixture: &Fixture, segment: &str) -> ShaRnnState<B> {
    let block = |layer| {
        let lstm = |what| fixture.tensor::<B, 3>(&format!("{segment}hidden.{layer}.{what}")).squeeze_dim(0);
        let memory = format!("{segment}mem.{layer}");
        BlockState {
            lstm: Some(LstmState { h: lstm("h"), c: lstm("c") }),
            memory: fixture.has(&memory).then(|| swap(fixture.tensor(&memory))),
        }
    };
    ShaRnnState { blocks: (0..fixture.config().n_layers).map(block).collect(), recent: None }
}

fn single_modules<B: AutodiffBackend>() {
    for fixture in fixtures("mod_") {
        // The attention that returns its weights is a plain statement.
        let fixture = fixture.within(burn_roundoff::<B>());
        let name = fixture.name.clone();
        match name.trim_start_matches("mod_") {
            "attention_vqcollapse" => collapsed_attention::<B>(&fixture),
            rest if rest.starts_with("attention") => attention::<B>(&fixture),
            rest if rest.starts_with("boom") => boom::<B>(&fixture),
            rest if rest.starts_with("lstm") => lstm::<B>(&fixture),
            rest if rest.starts_with("block") => block::<B>(&fixture),
            rest if rest.starts_with("overparam") => overparameterised::<B>(&fixture),
            rest if rest.starts_with("gelu") => activation::<B>(&fixture),
            rest if rest.starts_with("layernorm") => layer_norm::<B>(&fixture),
            rest => panic!("no test for the fixture mod_{rest}"),
        }
    }
}

/// A block of the fixture's sizes, its parameters not yet set. The path of its modules in the model is `blocks.0.`.
fn fresh_block<B: AutodiffBackend>(fixture: &Fixture, attends: bool) -> Block<B> {
    let config = ShaRnnConfig {
        vocab_size: 1,
        d_model: fixture.usize("C"),
        d_ff: fixture.usize("H"),
        n_layers: 1,
        n_heads: if fixture.has_metadata("heads") { fixture.usize("heads") } else { 1 },
        attend: if attends { Attend::All } else { Attend::None },
        ..ShaRnnConfig::xs()
    };
    config.init_seeded::<B>(0, &B::Device::default()).blocks.remove(0)
}

fn tracked<B: AutodiffBackend, const D: usize>(fixture: &Fixture, name: &str) -> Tensor<B, D> {
    fixture.tensor::<B, D>(name).require_grad()
}

/// `Σ out ⊙ cot`. `out` lives on beside its clone: burn-tch 0.21 takes what `swap_dims` returns for the only owner of its memory, and
/// would multiply in place what other tensors share.
fn objective<B: AutodiffBackend, const D: usize>(fixture: &Fixture, name: &str, out: Tensor<B, D>) -> Tensor<B, 1> {
    fixture.check(&format!("out.{name}"), out.clone());
    (out.clone() * fixture.tensor(&format!("cot.{name}"))).sum()
}

fn attention<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place = Place { path: "blocks.0.attending.attention.", strip: "blocks.0.attn." };
    let module = fixture.load(fresh_block::<B>(fixture, true).attending.unwrap().attention, "param.", PLACE);
    let (query, key, value) = (tracked(fixture, "in.query"), tracked(fixture, "in.key"), tracked(fixture, "in.value"));
    let hidden: Tensor<B, 2, Bool> = fixture.tensor::<B, 2>("in.attn_mask").lower_elem(-1.0);
    let (mix, focus) = module.forward_with_weights(
        swap(query.clone()),
        swap(key.clone()),
        swap(value.clone()),
        hidden,
        Precision::F32,
    );
    let total = objective(fixture, "mix", swap(mix)) + objective(fixture, "focus", focus);
    fixture.check("objective", total.clone());
    let grads = total.backward();
    fixture.check_grads(&module, &grads, "grad.", PLACE);
    fixture.check("grad_in.query", query.grad(&grads).unwrap());
    fixture.check("grad_in.key", key.grad(&grads).unwrap());
    fixture.check("grad_in.value", value.grad(&grads).unwrap());
}

fn collapsed_attention<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place = Place { path: "blocks.0.attending.attention.", strip: "blocks.0.attn." };
    let mut block = fresh_block::<B>(fixture, true);
    let module = fixture.load(block.attending.take().unwrap().attention, "param_before.", PLACE);
    let hidden: Tensor<B, 2, Bool> = fixture.tensor::<B, 2>("in.attn_mask").lower_elem(-1.0);
    let mix = |module: &sharnn_core::SingleHeadAttention<B>| {
        let input = |name| swap(fixture.tensor::<B, 3>(name));
        let (query, key, value) = (input("in.query"), input("in.key"), input("in.value"));
        swap(module.forward_with_weights(query, key, value, hidden.clone(), Precision::F32).0)
    };
    fixture.check("out.mix_before", mix(&module));
    let module = module.collapse();
    assert!(module.value_gate.linear.is_none());
    fixture.check("vs_after", module.value_gate.gate.val());
    fixture.check("out.mix_after", mix(&module));
}

fn boom<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place = Place { path: "blocks.0.boom.", strip: "blocks.0.ff." };
    let module = fixture.load(fresh_block::<B>(fixture, false).boom, "param.", PLACE);
    let x = tracked(fixture, "in.x");
    let total = objective(fixture, "y", module.forward(x.clone(), Precision::F32));
    fixture.check("objective", total.clone());
    let grads = total.backward();
    fixture.check_grads(&module, &grads, "grad.", PLACE);
    fixture.check("grad_in.x", x.grad(&grads).unwrap());
}

fn lstm<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place = Place { path: "blocks.0.lstm.", strip: "blocks.0." };
    let module = fixture.load(fresh_block::<B>(fixture, false).lstm, "param.", PLACE);
    let x = tracked::<B, 3>(fixture, "in.x");
    let given = fixture.has("in.h0");
    let before = given.then(|| (tracked::<B, 3>(fixture, "in.h0"), tracked::<B, 3>(fixture, "in.c0")));
    let state = before.clone().map(|(h0, c0)| LstmState { h: h0.squeeze_dim(0), c: c0.squeeze_dim(0) });
    let (y, LstmState { h, c }) = module.forward(swap(x.clone()), state, Precision::F32);
    let total = objective(fixture, "y", swap(y))
        + objective(fixture, "h", h.unsqueeze::<3>())
        + objective(fixture, "c", c.unsqueeze::<3>());
    fixture.check("objective", total.clone());
    let grads = total.backward();
    fixture.check_grads(&module, &grads, "grad.", PLACE);
    fixture.check("grad_in.x", x.grad(&grads).unwrap());
    if let Some((h0, c0)) = before {
        fixture.check("grad_in.h0", h0.grad(&grads).unwrap());
        fixture.check("grad_in.c0", c0.grad(&grads).unwrap());
    }
}

fn block<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place = Place { path: "blocks.0.", strip: "blocks.0." };
    let attends = fixture.bool("use_attn");
    let module = fixture.load(fresh_block::<B>(fixture, attends), "param.", PLACE);
    let (h, h0, c0) = (tracked::<B, 3>(fixture, "in.h"), tracked::<B, 3>(fixture, "in.h0"), tracked(fixture, "in.c0"));
    let c0: Tensor<B, 3> = c0;
    let memory = attends.then(|| tracked::<B, 3>(fixture, "in.mem"));
    let state = BlockState {
        lstm: Some(LstmState { h: h0.clone().squeeze_dim(0), c: c0.clone().squeeze_dim(0) }),
        memory: memory.clone().map(swap),
    };
    let (out, state) = module.forward(swap(h.clone()), state, fixture.usize("len_pe"), 0, &Pass::default());
    let lstm = state.lstm.unwrap();
    let mut total = objective(fixture, "h", swap(out))
        + objective(fixture, "hid_h", lstm.h.unsqueeze::<3>())
        + objective(fixture, "hid_c", lstm.c.unsqueeze::<3>());
    if let Some(rows) = state.memory {
        total = total + objective(fixture, "new_mem", swap(rows));
    }
    fixture.check("objective", total.clone());
    let grads = total.backward();
    fixture.check_grads(&module, &grads, "grad.", PLACE);
    fixture.check("grad_in.h", h.grad(&grads).unwrap());
    fixture.check("grad_in.h0", h0.grad(&grads).unwrap());
    fixture.check("grad_in.c0", c0.grad(&grads).unwrap());
    if let Some(memory) = memory {
        fixture.check("grad_in.mem", memory.grad(&grads).unwrap());
    }
}

fn overparameterised<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place =
        Place { path: "blocks.0.attending.attention.value_gate.linear.", strip: "blocks.0.attn.vq.l1." };
    let gate = fresh_block::<B>(fixture, true).attending.unwrap().attention.value_gate;
    let linear = fixture.load(gate.linear.unwrap(), "param.l1.", PLACE);
    let x = tracked(fixture, "in.x");
    let total = objective(fixture, "y", overparam(&linear, x.clone(), Precision::F32));
    fixture.check("objective", total.clone());
    let grads = total.backward();
    fixture.check_grads(&linear, &grads, "grad.l1.", PLACE);
    fixture.check("grad_in.x", x.grad(&grads).unwrap());
}

fn activation<B: AutodiffBackend>(fixture: &Fixture) {
    let x: Tensor<B, 3> = tracked(fixture, "in.x");
    let total = objective(fixture, "y", gelu(x.clone()));
    fixture.check("objective", total.clone());
    fixture.check("grad_in.x", x.grad(&total.backward()).unwrap());
}

fn layer_norm<B: AutodiffBackend>(fixture: &Fixture) {
    const PLACE: Place = Place { path: "blocks.0.norm_start.", strip: "blocks.0.lnstart." };
    let norm = fixture.load(fresh_block::<B>(fixture, false).norm_start, "param.ln.", PLACE);
    let x = tracked(fixture, "in.x");
    let total = objective(fixture, "y", norm.forward(x.clone()));
    fixture.check("objective", total.clone());
    let grads = total.backward();
    fixture.check_grads(&norm, &grads, "grad.ln.", PLACE);
    fixture.check("grad_in.x", x.grad(&grads).unwrap());
}
