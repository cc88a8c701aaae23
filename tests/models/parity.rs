//! Logits of the packed graph match those of sentence-transformers, and planted faults are detected.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use crate::support::packed::{self, library};
use crate::support::reference::{Reference, for_each_encoder, model_dir};
use rerankd_core::{Batch, Encoding};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::isa::InstructionSet;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::{self, Data, Precision, Rows};
use rerankd_model::head::{HeadAct, HeadStep, Pooling};
use rerankd_model::rotary::{Rotary, Scaling};
use rerankd_model::{AttentionPositions, Disentangled, HiddenAct, LayerForm, Model, PreNormGated};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::{Layout, OnnxModel, OnnxScorer, PackedInputs};

const TOLERANCE: f32 = 1e-4;
/// A fault must change some logit by more than ten times the tolerance.
const NOTICED: f32 = 10.0 * TOLERANCE;
/// Sequences per batch, enough for different lengths.
const BATCH: usize = 16;

fn open(model: &Model, layout: Layout, precision: Precision, set: InstructionSet) -> OnnxScorer {
    let graph = graph::build(model, Rows::FirstOfEach, precision).unwrap();
    let model = OnnxModel::new(&library(), graph, layout, ComputePool::one_core(set)).unwrap();
    model.session(1).unwrap()
}

/// All fp32 implementations, by name.
fn ways() -> Vec<(String, Precision, InstructionSet)> {
    let way = |set: InstructionSet| (set.name().to_owned(), Precision::Fp32, set);
    let mut ways: Vec<_> = InstructionSet::available().into_iter().map(way).collect();
    ways.push((
        "onnxruntime".into(),
        Precision::Fp32Nodes,
        InstructionSet::best(),
    ));
    ways
}

fn encodings(model: &Model, reference: &Reference) -> Vec<Encoding> {
    let encoder = PairEncoder::for_model(model).unwrap();
    let encoded = encoder
        .encode(&reference.pairs(), &AtomicBool::new(false))
        .unwrap();
    encoded.into_iter().map(|pair| pair.encoding).collect()
}

/// Logits of all `encodings` in consecutive batches, with `fault` applied to the inputs.
fn run(
    scorer: &mut OnnxScorer,
    layout: Layout,
    encodings: &[Encoding],
    fault: impl Fn(&mut PackedInputs),
) -> Vec<f32> {
    let mut logits = Vec::new();
    for chunk in encodings.chunks(BATCH) {
        let mut inputs = PackedInputs::new(&Batch::pack(chunk), layout);
        fault(&mut inputs);
        logits.extend(scorer.run(&inputs).unwrap());
    }
    logits
}

fn worst(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    ours.iter()
        .zip(reference)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn check(name: &str) {
    check_within(name, TOLERANCE);
}

fn check_within(name: &str, tolerance: f32) {
    let model = Model::open(&model_dir(name)).unwrap();
    let reference = Reference::read(name);
    let layout = Layout::of(&model.manifest);
    let encodings = encodings(&model, &reference);
    let expected = reference.logits();
    let spread = |f: fn(f32, f32) -> f32, start| expected.iter().copied().fold(start, f);
    assert!(spread(f32::max, f32::MIN) - spread(f32::min, f32::MAX) >= 0.5);
    for (way, precision, set) in ways() {
        let mut scorer = open(&model, layout, precision, set);
        let worst = worst(&run(&mut scorer, layout, &encodings, |_| ()), &expected);
        assert!(worst <= tolerance, "{name}, {way}: off by {worst}");
    }
}

#[test]
fn every_encoder_gives_the_reference_logits() {
    for_each_encoder(check);
}

/// Plants a fault in the model, its layout or its inputs, and returns the largest error of the logits.
fn planted(
    name: &str,
    change_model: impl FnOnce(&mut Model),
    change_layout: impl FnOnce(&mut Layout),
    change_inputs: impl Fn(&mut PackedInputs),
) -> f32 {
    let changes = (change_model, change_layout, change_inputs);
    planted_in(name, Precision::Fp32, changes)
}

fn planted_in(
    name: &str,
    precision: Precision,
    (change_model, change_layout, change_inputs): (
        impl FnOnce(&mut Model),
        impl FnOnce(&mut Layout),
        impl Fn(&mut PackedInputs),
    ),
) -> f32 {
    let mut model = Model::open(&model_dir(name)).unwrap();
    let reference = Reference::read(name);
    let encodings = encodings(&model, &reference);
    let mut layout = Layout::of(&model.manifest);
    change_model(&mut model);
    change_layout(&mut layout);
    let mut scorer = open(&model, layout, precision, InstructionSet::best());
    noticed(&mut scorer, layout, &encodings, &reference, change_inputs)
}

/// The largest error of the logits: of the first batch that detects the fault, else of all.
fn noticed(
    scorer: &mut OnnxScorer,
    layout: Layout,
    encodings: &[Encoding],
    reference: &Reference,
    fault: impl Fn(&mut PackedInputs),
) -> f32 {
    let logits = reference.logits();
    let labels = logits.len() / encodings.len();
    let mut off: f32 = 0.0;
    for (chunk, expected) in encodings.chunks(BATCH).zip(logits.chunks(BATCH * labels)) {
        off = off.max(worst(&run(scorer, layout, chunk, &fault), expected));
        if off > NOTICED {
            break;
        }
    }
    off
}

#[track_caller]
fn assert_noticed(off: f32) {
    assert!(off > NOTICED, "the fault moved no logit by more than {off}");
}

#[test]
fn tanh_gelu_is_noticed() {
    for name in [
        "tiny-bert",
        "tiny-roberta",
        "tiny-distilbert",
        "tiny-electra",
        "tiny-mpnet",
        "tiny-deberta-v3",
        "tiny-modernbert",
        "tiny-jina-v1",
        "tiny-jina-v2",
        "tiny-gte",
    ] {
        let fault = |model: &mut Model| model.manifest.encoder.hidden_act = HiddenAct::GeluTanh;
        assert_noticed(planted(name, fault, |_| (), |_| ()));
    }
}

#[test]
fn another_layer_norm_epsilon_is_noticed() {
    for name in ["tiny-bert", "tiny-roberta"] {
        let fault = |model: &mut Model| {
            let epsilon = &mut model.manifest.encoder.layer_norm_eps;
            *epsilon = if *epsilon > 5e-4 { 1e-5 } else { 1e-3 };
        };
        assert_noticed(planted(name, fault, |_| (), |_| ()));
    }
}

#[test]
fn missing_token_types_are_noticed() {
    let positions = Model::open(&model_dir("tiny-bert"))
        .unwrap()
        .manifest
        .encoder
        .max_positions as i64;
    let fault = |inputs: &mut PackedInputs| {
        inputs
            .position_ids
            .iter_mut()
            .for_each(|id| *id %= positions);
    };
    assert_noticed(planted("tiny-bert", |_| (), |_| (), fault));
}

#[test]
fn positions_off_by_one_are_noticed() {
    let fault = |layout: &mut Layout| layout.first_position -= 1;
    assert_noticed(planted("tiny-roberta", |_| (), fault, |_| ()));
    let fault = |inputs: &mut PackedInputs| {
        inputs
            .position_ids
            .iter_mut()
            .for_each(|id| *id = (*id - 1).max(0));
    };
    assert_noticed(planted("tiny-bert", |_| (), |_| (), fault));
}

#[test]
fn attention_beyond_a_sequence_is_noticed() {
    for name in ["tiny-bert", "tiny-roberta"] {
        // Every other sequence attends to the first token of the next one.
        let fault = |inputs: &mut PackedInputs| {
            for pair in inputs.lengths.chunks_exact_mut(2) {
                pair[0] += 1;
                pair[1] -= 1;
            }
        };
        assert_noticed(planted(name, |_| (), |_| (), fault));
    }
}

#[test]
fn the_first_token_of_the_wrong_row_is_noticed() {
    // Fused layers find first tokens by the lengths, which the previous test covers.
    let noticed = |name: &str, fault: fn(&mut PackedInputs)| {
        let changes = (|_: &mut Model| (), |_: &mut Layout| (), fault);
        assert_noticed(planted_in(name, Precision::Fp32Nodes, changes));
    };
    for name in ["tiny-bert", "tiny-roberta"] {
        noticed(name, |inputs| inputs.cls_index.rotate_left(1));
        noticed(name, |inputs| {
            inputs.cls_index.iter_mut().for_each(|row| *row += 1);
        });
    }
}

#[test]
fn a_missing_bias_is_noticed() {
    for (name, bias) in [
        (
            "tiny-distilbert",
            "distilbert.transformer.layer.1.attention.out_lin.bias",
        ),
        (
            "tiny-distilbert",
            "distilbert.transformer.layer.0.ffn.lin2.bias",
        ),
        ("tiny-distilbert", "pre_classifier.bias"),
        ("tiny-jina-v2", "roberta.emb_ln.bias"),
        ("tiny-jina-v2", "roberta.encoder.layers.1.mixer.Wq.bias"),
        (
            "tiny-jina-v2",
            "roberta.encoder.layers.2.mixer.out_proj.bias",
        ),
        ("tiny-jina-v1", "alibi"),
        ("tiny-jina-v1", "bert.encoder.layer.0.mlp.wo.bias"),
        ("tiny-jina-v1", "bert.pooler.dense.bias"),
        ("tiny-gte", "new.encoder.layer.0.attention.q_proj.bias"),
        ("tiny-gte", "new.encoder.layer.1.kv.bias"),
        ("tiny-gte", "new.encoder.layer.2.mlp.down_proj.bias"),
        ("tiny-gte", "embeddings.position_table"),
        ("tiny-gte-en", "new.pooler.dense.bias"),
        ("tiny-ettin", "3_LayerNorm/norm.bias"),
        ("tiny-electra", "electra.embeddings_project.bias"),
        ("tiny-electra", "classifier.dense.bias"),
        ("tiny-mpnet", "mpnet.encoder.relative_attention_bias.weight"),
        ("tiny-deberta-v3", "deberta.encoder.layer.1.kv.bias"),
        (
            "tiny-deberta-v3",
            "deberta.encoder.layer.0.attention.self.query_proj.bias",
        ),
        ("tiny-deberta-v3", "deberta.encoder.layer.2.position_keys"),
        (
            "tiny-deberta-v3",
            "deberta.encoder.layer.2.position_queries",
        ),
        ("tiny-deberta-v3", "pooler.dense.bias"),
        (
            "tiny-deberta-v2-unshared",
            "deberta.embeddings.LayerNorm.bias",
        ),
        ("tiny-modernbert-biased", "model.layers.1.attn.Wqkv.kv.bias"),
        (
            "tiny-modernbert-biased",
            "model.layers.2.attn.Wqkv.query.bias",
        ),
        ("tiny-modernbert-biased", "model.layers.0.mlp.Wi.gate.bias"),
        ("tiny-modernbert-biased", "model.final_norm.bias"),
        ("tiny-modular", "2_Dense/linear.bias"),
        ("tiny-modular", "4_LayerNorm/norm.bias"),
        (
            "tiny-bert",
            "bert.encoder.layer.1.attention.self.query.bias",
        ),
        (
            "tiny-bert",
            "bert.encoder.layer.2.attention.output.dense.bias",
        ),
        ("tiny-bert", "bert.pooler.dense.bias"),
        (
            "tiny-roberta",
            "roberta.encoder.layer.0.intermediate.dense.bias",
        ),
        ("tiny-roberta", "roberta.encoder.layer.2.output.dense.bias"),
        ("tiny-roberta", "classifier.dense.bias"),
    ] {
        let model = Model::open(&model_dir(name)).unwrap();
        let reference = Reference::read(name);
        let layout = Layout::of(&model.manifest);
        let mut graph = graph::build(&model, Rows::FirstOfEach, Precision::Fp32).unwrap();
        let weight = graph.weights.iter_mut().find(|w| w.name == bias);
        match &mut weight.unwrap_or_else(|| panic!("no weight {bias}")).data {
            Data::F32(data) => data.fill(0.0),
            Data::F16(_) | Data::BF16(_) | Data::I8(_) | Data::I32(_) => {
                unreachable!("a bias is never quantised")
            }
        }
        let opened = OnnxModel::new(&library(), graph, layout, ComputePool::default()).unwrap();
        let encodings = encodings(&model, &reference);
        let mut scorer = opened.session(1).unwrap();
        let off = noticed(&mut scorer, layout, &encodings, &reference, |_| ());
        assert!(off > NOTICED, "{name} without {bias}: off by only {off}");
    }
}

#[test]
fn a_batch_that_borrows_cores_has_the_bits_of_one_that_does_not() {
    for name in [
        "tiny-bert",
        "tiny-xlm-roberta",
        "tiny-mpnet",
        "tiny-deberta-v3",
        "tiny-modernbert",
        "tiny-gte",
        "tiny-jina-v1",
    ] {
        let model = Model::open(&model_dir(name)).unwrap();
        let encodings = encodings(&model, &Reference::read(name));
        let ids: Vec<u32> = encodings.iter().flat_map(|e| e.ids.clone()).collect();
        let sequences = [1, 70, model.manifest.max_length, 33].map(|length| Encoding {
            ids: ids.iter().cycle().take(length).copied().collect(),
            type_ids: vec![0; length],
        });
        let batch = Batch::pack(&sequences);
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8] {
            let score = |pool: ComputePool| {
                let onnx = packed::open(&model, Rows::FirstOfEach, precision, pool);
                onnx.session(1).unwrap().score_alone(&batch).unwrap()
            };
            let one_core = score(ComputePool::default());
            let borrowing = score(ComputePool::new(3).unwrap());
            assert_eq!(one_core, borrowing, "{name}, {}", precision.name());
        }
    }
}

#[test]
fn another_bias_by_distance_is_noticed() {
    let faults: [fn(i64) -> usize; 3] = [
        |distance| (distance + 16).clamp(0, 31) as usize,
        // Near distances only.
        |distance| if distance > 0 { 16 } else { 0 } + distance.unsigned_abs().min(9) as usize,
        |_| 0,
    ];
    for fault in faults {
        let change = |model: &mut Model| {
            let LayerForm::PostNormRelativeBias(bias) = &mut model.manifest.encoder.form else {
                panic!("no relative bias");
            };
            bias.rows = (-128..=128).map(fault).collect();
        };
        assert_noticed(planted("tiny-mpnet", change, |_| (), |_| ()));
    }
}

#[test]
fn another_disentangled_attention_is_noticed() {
    type Fault = fn(&mut Disentangled);
    let faults: [(&str, Fault); 9] = [
        ("distances mirrored", |relative| relative.rows.reverse()),
        ("distances + 1", |relative| relative.rows.rotate_left(1)),
        ("distances - 1", |relative| relative.rows.rotate_right(1)),
        ("near distances only", |relative| {
            let middle = relative.rows.len() / 2;
            let (first, last) = (relative.rows[middle - 30], relative.rows[middle + 30]);
            let near = |row: &mut usize| *row = (*row).clamp(first, last);
            relative.rows.iter_mut().for_each(near);
        }),
        ("far distances mirrored", |relative| {
            let middle = relative.rows.len() / 2;
            let (before, behind) = relative.rows.split_at_mut(middle - 135);
            let last = behind.len() - before.len();
            before.swap_with_slice(&mut behind[last..]);
            before.reverse();
            behind[last..].reverse();
        }),
        ("no content to position", |relative| {
            relative.position_keys = false;
        }),
        ("no position to content", |relative| {
            relative.position_queries = false;
        }),
        ("scale of one term", |relative| relative.terms = 1),
        ("scale of two terms", |relative| relative.terms = 2),
    ];
    let change = |relative: fn(&mut Disentangled)| {
        move |model: &mut Model| {
            let LayerForm::PostNormDisentangled(disentangled) = &mut model.manifest.encoder.form
            else {
                panic!("no disentangled attention");
            };
            relative(disentangled);
        }
    };
    for name in ["tiny-deberta-v3", "tiny-deberta-v2-unshared"] {
        for (fault, change_relative) in faults {
            // These share one bucket.
            if (name, fault) == ("tiny-deberta-v2-unshared", "far distances mirrored") {
                continue;
            }
            let off = planted(name, change(change_relative), |_| (), |_| ());
            assert!(off > NOTICED, "{name}, {fault}: off by only {off}");
        }
    }
    let no_norm = change(|relative| relative.norm = None);
    assert_noticed(planted("tiny-deberta-v3", no_norm, |_| (), |_| ()));
    let projections: [fn(&mut Disentangled); 2] = [
        |relative| relative.key = "attention.self.key_proj",
        |relative| relative.query = "attention.self.query_proj",
    ];
    for shared in projections {
        let fault = change(shared);
        assert_noticed(planted("tiny-deberta-v2-unshared", fault, |_| (), |_| ()));
    }
    for name in ["tiny-deberta-v3", "tiny-deberta-v2-unshared"] {
        let swapped = change(|relative| std::mem::swap(&mut relative.key, &mut relative.query));
        assert_noticed(planted(name, swapped, |_| (), |_| ()));
    }
}

#[test]
fn other_layers_with_gates_are_noticed() {
    let faults: [fn(&mut PreNormGated); 7] = [
        |gated| gated.window += 1,
        |gated| gated.window -= 1,
        |gated| gated.global_theta *= 1.5,
        |gated| gated.local_theta *= 1.5,
        |gated| gated.local[0] = true,
        |gated| gated.local[1] = false,
        |gated| gated.local[2] = false,
    ];
    for name in ["tiny-modernbert", "tiny-modernbert-biased"] {
        for fault in faults {
            let change = |model: &mut Model| {
                let LayerForm::PreNormGated(gated) = &mut model.manifest.encoder.form else {
                    panic!("not gated");
                };
                fault(gated);
            };
            assert_noticed(planted(name, change, |_| (), |_| ()));
        }
        let pooling = |model: &mut Model| {
            let pooling = &mut model.manifest.head.pooling[0];
            *pooling = match pooling {
                Pooling::Mean => Pooling::First,
                _ => Pooling::Mean,
            };
        };
        assert_noticed(planted(name, pooling, |_| (), |_| ()));
    }
}

#[test]
fn other_rotary_embeddings_are_noticed() {
    let faults: [fn(&mut Rotary); 4] = [
        |rotary| rotary.theta *= 2.0,
        |rotary| rotary.scaling = Scaling::None,
        |rotary| rotary.scaling = Scaling::Linear { factor: 2.0 },
        |rotary| {
            let Scaling::Ntk { mixed, .. } = &mut rotary.scaling else {
                panic!("not stretched");
            };
            *mixed = match mixed {
                Some(_) => None,
                None => Some(0.3),
            };
        },
    ];
    for name in ["tiny-gte", "tiny-gte-en"] {
        for fault in faults {
            let change = |model: &mut Model| {
                let LayerForm::PostNormGated(gated) = &mut model.manifest.encoder.form else {
                    panic!("not gated");
                };
                let AttentionPositions::Rotary(rotary) = &mut gated.positions else {
                    panic!("not rotary");
                };
                fault(rotary);
            };
            assert_noticed(planted(name, change, |_| (), |_| ()));
        }
    }
}

#[test]
fn a_swapped_gate_is_noticed() {
    for name in ["tiny-gte", "tiny-jina-v1"] {
        let change = |model: &mut Model| {
            let encoder = &mut model.manifest.encoder;
            let LayerForm::PostNormGated(gated) = &mut encoder.form else {
                panic!("not gated");
            };
            std::mem::swap(&mut gated.gate, &mut encoder.tensors.up);
        };
        assert_noticed(planted(name, change, |_| (), |_| ()));
    }
}

#[test]
fn slopes_of_other_heads_are_noticed() {
    let model = Model::open(&model_dir("tiny-jina-v1")).unwrap();
    let reference = Reference::read("tiny-jina-v1");
    let layout = Layout::of(&model.manifest);
    let mut graph = graph::build(&model, Rows::FirstOfEach, Precision::Fp32).unwrap();
    let alibi = graph
        .weights
        .iter_mut()
        .find(|w| w.name == "alibi")
        .unwrap();
    let width = alibi.shape[1];
    let Data::F32(table) = &mut alibi.data else {
        panic!("ALiBi is in fp32");
    };
    table.rotate_left(width);
    let opened = OnnxModel::new(&library(), graph, layout, ComputePool::default()).unwrap();
    let encodings = encodings(&model, &reference);
    let mut scorer = opened.session(1).unwrap();
    assert_noticed(noticed(&mut scorer, layout, &encodings, &reference, |_| ()));
}

#[test]
fn another_head_is_noticed() {
    for name in [
        "tiny-bert",
        "tiny-roberta",
        "tiny-distilbert",
        "tiny-electra",
        "tiny-gte",
        "tiny-jina-v1",
        "tiny-jina-v2",
        "tiny-deberta-v3",
        "tiny-deberta-v2-unshared",
    ] {
        let fault = |model: &mut Model| {
            let HeadStep::Dense(dense) = &mut model.manifest.head.steps[0] else {
                panic!("{name} begins with another step");
            };
            dense.activation = match dense.activation {
                HeadAct::Tanh => HeadAct::Relu,
                _ => HeadAct::Tanh,
            };
        };
        assert_noticed(planted(name, fault, |_| (), |_| ()));
    }
    for place in 0..6 {
        let fault = |model: &mut Model| {
            let pooling = &mut model.manifest.head.pooling;
            pooling[place] = match pooling[place] {
                Pooling::Mean => Pooling::First,
                _ => Pooling::Mean,
            };
        };
        assert_noticed(planted("tiny-modular", fault, |_| (), |_| ()));
    }
}

#[test]
fn a_score_does_not_depend_on_its_batch() {
    for_each_encoder(check_every_batch);
}

fn check_every_batch(name: &str) {
    let model = Model::open(&model_dir(name)).unwrap();
    let layout = Layout::of(&model.manifest);
    // The batch could affect a score through lengths and offsets only, so one pair per length is enough.
    let mut encodings = encodings(&model, &Reference::read(name));
    let mut lengths = BTreeSet::new();
    encodings.retain(|encoding| lengths.insert(encoding.ids.len()));
    assert!(
        encodings.len() >= 80,
        "{name}: only {} lengths",
        encodings.len()
    );
    for (way, precision, path) in ways() {
        let mut scorer = open(&model, layout, precision, path);
        // Our matrix products sum in a fixed order; those of ONNX Runtime may not.
        let tolerated = match precision {
            Precision::Fp32Nodes => 1e-5,
            _ => 0.0,
        };
        check_company(
            &mut scorer,
            &encodings,
            tolerated,
            &format!("{name}, {way}"),
        );
    }
}

/// Compares scores in different batches with those of single sequences.
fn check_company(scorer: &mut OnnxScorer, encodings: &[Encoding], tolerated: f32, who: &str) {
    let alone: Vec<Vec<f32>> = encodings
        .iter()
        .map(|encoding| scorer.score(&Batch::pack([encoding])).unwrap())
        .collect();
    let labels = alone[0].len();
    // Prime strides combine every length with many others.
    for (stride, size) in [(1, 7), (61, 13), (37, 32)] {
        assert!(stride == 1 || !encodings.len().is_multiple_of(stride));
        let order: Vec<usize> = (0..encodings.len())
            .map(|i| i * stride % encodings.len())
            .collect();
        for chunk in order.chunks(size) {
            let batch = Batch::pack(chunk.iter().map(|&i| &encodings[i]));
            let together = scorer.score(&batch).unwrap();
            for (&index, logits) in chunk.iter().zip(together.chunks_exact(labels)) {
                let off = worst(logits, &alone[index]);
                assert!(off <= tolerated, "{who}: {index} moved by {off} in company");
            }
        }
    }
}
