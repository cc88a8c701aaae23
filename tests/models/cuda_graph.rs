//! The CUDA graph without a GPU: interpreted here in fp32 and with fp16 rounding, and loaded by ONNX Runtime as
//! far as possible.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::support::packed::library;
use crate::support::reference::{Reference, model_dir, root};
use half::f16;
use prost::Message;
use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_model::Model;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::cuda::{CUMULATIVE, Floats, TOKEN_OFFSET, lower};
use rerankd_model::graph::{self, Data, Graph, Precision, Rows, io};
use rerankd_model::onnx::{ModelProto, NodeProto};
use rerankd_runtime::cuda::check_without_gpu;
use rerankd_runtime::cuda::offsets::{cumulative, token_offset};
use rerankd_runtime::onnx::{Layout, PackedInputs};
use rerankd_tools::eval::metric::spearman;

const SINGLE: f32 = 1e-4;
const HALF: f32 = 5e-3;
const BATCH: usize = 16;

/// A tensor.
#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
    /// Whether it is fp16.
    half: bool,
}

impl Tensor {
    fn new(shape: &[usize], data: Vec<f32>, half: bool) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        let data = match half {
            true => data.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
            false => data,
        };
        Self {
            shape: shape.to_vec(),
            data,
            half,
        }
    }

    /// Integers; all that occur are exact in f32.
    fn whole(shape: &[usize], data: impl IntoIterator<Item = i64>) -> Self {
        Self::new(shape, data.into_iter().map(|x| x as f32).collect(), false)
    }

    fn columns(&self) -> usize {
        *self.shape.last().unwrap()
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact(self.columns())
    }

    fn map(&self, f: impl Fn(usize, f32) -> f32) -> Self {
        let columns = self.columns();
        let data = self.data.iter().enumerate();
        let data = data.map(|(i, &x)| f(i % columns, x)).collect();
        Self::new(&self.shape, data, self.half)
    }
}

fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
}

/// By series, or by continued fraction where that converges faster.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (size, size);
    for n in 1..200 {
        term *= -size * size / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// Interprets a graph node by node.
struct Interpreter {
    values: BTreeMap<String, Tensor>,
    nodes: Vec<NodeProto>,
}

impl Interpreter {
    fn new(graph: &Graph) -> Self {
        let proto = ModelProto::decode(&graph.model[..]).unwrap().graph.unwrap();
        let mut values = BTreeMap::new();
        for weight in &graph.weights {
            let (data, half) = match &weight.data {
                Data::F32(data) => (data.clone(), false),
                Data::F16(data) => (data.iter().map(|x| x.to_f32()).collect(), true),
                other => panic!("{other:?}"),
            };
            values.insert(weight.name.clone(), Tensor::new(&weight.shape, data, half));
        }
        for constant in &proto.initializer {
            let bytes = &constant.raw_data;
            if !bytes.is_empty() {
                let numbers = bytes
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()));
                let shape = [bytes.len() / 8];
                values.insert(constant.name.clone(), Tensor::whole(&shape, numbers));
            }
        }
        Self {
            values,
            nodes: proto.node,
        }
    }

    fn run(&self, inputs: BTreeMap<String, Tensor>) -> Vec<f32> {
        let mut values = inputs;
        for node in &self.nodes {
            let inputs: Vec<Option<&Tensor>> = node
                .input
                .iter()
                .map(|name| {
                    let found = values.get(name).or_else(|| self.values.get(name));
                    assert!(
                        found.is_some() || name.is_empty(),
                        "{} reads {name}",
                        node.name
                    );
                    found
                })
                .collect();
            let value = compute(node, &inputs);
            values.insert(node.output[0].clone(), value);
        }
        values[io::LOGITS].data.clone()
    }
}

fn compute(node: &NodeProto, inputs: &[Option<&Tensor>]) -> Tensor {
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name == name).unwrap();
    let x = inputs[0].unwrap();
    let second = || inputs[1].unwrap();
    match node.op_type.as_str() {
        "Identity" => x.clone(),
        "Cast" => {
            assert_eq!(attribute("to").i, Some(1));
            Tensor::new(&x.shape, x.data.clone(), false)
        }
        "Gather" => {
            let rows: Vec<&[f32]> = x.rows().collect();
            let picked = second()
                .data
                .iter()
                .flat_map(|&row| rows[row as usize].to_vec());
            let shape = [second().data.len(), x.columns()];
            Tensor::new(&shape, picked.collect(), x.half)
        }
        "Reshape" => {
            let mut shape: Vec<usize> = second().data.iter().map(|&d| d as usize).collect();
            for (dim, kept) in shape.iter_mut().zip(&x.shape) {
                if *dim == 0 {
                    *dim = *kept;
                }
            }
            Tensor::new(&shape, x.data.clone(), x.half)
        }
        "MatMul" => product(x, second(), None),
        "Gemm" => product(x, second(), inputs[2]),
        "Tanh" => x.map(|_, x| x.tanh()),
        "Relu" => x.map(|_, x| x.max(0.0)),
        "Add" => x.map(|column, x| x + second().data[column]),
        "BiasGelu" => x.map(|column, x| gelu(x + second().data[column])),
        "FastGelu" => x.map(|column, x| {
            let x = x + second().data[column];
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }),
        "SkipLayerNormalization" => {
            let (skip, gamma, beta) = (second(), inputs[2].unwrap(), inputs[3].unwrap());
            let bias = inputs.get(4).copied().flatten();
            let epsilon = f64::from(attribute("epsilon").f.unwrap());
            let mut data = Vec::new();
            for (row, skip) in x.rows().zip(skip.rows()) {
                let sum = |i: usize| row[i] + skip[i] + bias.map_or(0.0, |bias| bias.data[i]);
                let sums: Vec<f64> = (0..row.len()).map(|i| f64::from(sum(i))).collect();
                let mean = sums.iter().sum::<f64>() / sums.len() as f64;
                let variance = sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                let deviation = (variance / sums.len() as f64 + epsilon).sqrt();
                data.extend(sums.iter().enumerate().map(|(i, x)| {
                    let unit = ((x - mean) / deviation) as f32;
                    unit * gamma.data[i] + beta.data[i]
                }));
            }
            assert_eq!(
                (x.half, skip.half),
                (gamma.half, beta.half),
                "one kind of number"
            );
            Tensor::new(&x.shape, data, x.half)
        }
        "PackedMultiHeadAttention" => {
            let heads = attribute("num_heads").i.unwrap() as usize;
            let scale = attribute("scale").f.unwrap();
            assert!(inputs[1].is_none() && inputs[2].is_none(), "all in one");
            attention(
                x,
                inputs[3].unwrap(),
                inputs[4].unwrap(),
                inputs[5].unwrap(),
                heads,
                scale,
            )
        }
        other => panic!("{other} is unknown"),
    }
}

fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    assert_eq!(x.half, weight.half, "one kind of number");
    let (input, output) = (weight.shape[0], weight.shape[1]);
    let mut data = Vec::with_capacity(x.shape[0] * output);
    for row in x.rows() {
        let mut sums = match bias {
            Some(bias) => bias.data.clone(),
            None => vec![0.0; output],
        };
        for (i, &number) in row.iter().enumerate().take(input) {
            let weights = &weight.data[i * output..][..output];
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += number * weight;
            }
        }
        data.extend(sums);
    }
    Tensor::new(&[x.shape[0], output], data, x.half)
}

/// ONNX Runtime's operator as documented: scatters `qkv`, `[tokens, heads, 3, size]`, to the padded cells
/// in `offset`, attends within each row up to its length from `starts`, and gathers the tokens,
/// `[tokens, heads * size]`.
fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    offset: &Tensor,
    starts: &Tensor,
    heads: usize,
    scale: f32,
) -> Tensor {
    let (tokens, size) = (qkv.shape[0], qkv.shape[3]);
    assert_eq!(qkv.shape, [tokens, heads, 3, size]);
    let (sequences, longest) = (offset.shape[0], offset.shape[1]);
    let width = heads * size;
    let mut cells = vec![vec![0.0; 3 * width]; sequences * longest];
    for token in 0..tokens {
        let cell = &mut cells[offset.data[token] as usize];
        for (part, head, i) in (0..3 * width).map(|i| (i / width, i % width / size, i % size)) {
            let number = qkv.data[((token * heads + head) * 3 + part) * size + i];
            cell[part * width + head * size + i] =
                number + bias.data[part * width + head * size + i];
        }
    }
    let mut context = vec![vec![0.0; width]; sequences * longest];
    for row in 0..sequences {
        let length = (starts.data[row + 1] - starts.data[row]) as usize;
        let cell = |column: usize| &cells[row * longest + column];
        for (head, query) in (0..heads).flat_map(|head| (0..length).map(move |q| (head, q))) {
            let part =
                |column: usize, part: usize| &cell(column)[part * width + head * size..][..size];
            let scores = (0..length).map(|key| {
                let dot = part(query, 0).iter().zip(part(key, 1)).map(|(a, b)| a * b);
                (dot.sum::<f32>() * scale).exp()
            });
            let scores: Vec<f32> = scores.collect();
            let sum: f32 = scores.iter().sum();
            let out = &mut context[row * longest + query][head * size..][..size];
            for (key, score) in scores.iter().enumerate() {
                for (out, value) in out.iter_mut().zip(part(key, 2)) {
                    *out += score / sum * value;
                }
            }
        }
    }
    let data = (0..tokens).flat_map(|token| context[offset.data[token] as usize].clone());
    Tensor::new(&[tokens, width], data.collect(), qkv.half)
}

fn inputs(batch: &Batch, layout: Layout) -> BTreeMap<String, Tensor> {
    let packed = PackedInputs::new(batch, layout);
    let (lengths, longest) = (batch.lengths(), batch.longest());
    let row = |numbers: &[i64]| Tensor::whole(&[numbers.len()], numbers.iter().copied());
    let starts = cumulative(lengths).into_iter().map(i64::from);
    let offsets = token_offset(lengths, longest).into_iter().map(i64::from);
    [
        (io::INPUT_IDS, row(&packed.input_ids)),
        (io::POSITION_IDS, row(&packed.position_ids)),
        (io::CLS_INDEX, row(&packed.cls_index)),
        (CUMULATIVE, Tensor::whole(&[lengths.len() + 1], starts)),
        (
            TOKEN_OFFSET,
            Tensor::whole(&[lengths.len(), longest], offsets),
        ),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into()
}

fn graph_of(model: &Model, floats: Floats) -> Graph {
    let graph = graph::build(model, Rows::FirstOfEach, Precision::Fp32Nodes).unwrap();
    lower(graph, floats).unwrap()
}

fn encoded(model: &Model, pairs: &[Pair]) -> Vec<Encoding> {
    let encoder = PairEncoder::for_model(model).unwrap();
    let pairs = encoder.encode(pairs, &AtomicBool::new(false)).unwrap();
    pairs.into_iter().map(|pair| pair.encoding).collect()
}

/// Pairs and logits of the reference, without slow ones.
fn short(model: &Model, reference: &Reference) -> (Vec<Encoding>, Vec<f32>) {
    let logits = reference.logits();
    let pairs = encoded(model, &reference.pairs()).into_iter();
    let kept = pairs
        .zip(logits.chunks_exact(model.manifest.labels.len()))
        .filter(|(pair, _)| pair.len() <= 96);
    let (pairs, logits): (Vec<_>, Vec<_>) = kept.unzip();
    assert!(pairs.len() >= 2 * BATCH);
    (pairs, logits.concat())
}

/// Logits of `pairs`, the inputs changed by `fault`.
fn logits(
    model: &Model,
    floats: Floats,
    pairs: &[Encoding],
    fault: impl Fn(&mut BTreeMap<String, Tensor>),
) -> Vec<f32> {
    let interpreter = Interpreter::new(&graph_of(model, floats));
    let mut logits = Vec::new();
    for chunk in pairs.chunks(BATCH) {
        let mut inputs = inputs(&Batch::pack(chunk), Layout::of(&model.manifest));
        fault(&mut inputs);
        logits.extend(interpreter.run(inputs));
    }
    logits
}

/// The largest error of the logits of `name` with `fault` applied to the inputs, and the spread of the
/// reference.
fn off(name: &str, floats: Floats, fault: impl Fn(&mut BTreeMap<String, Tensor>)) -> (f32, f32) {
    let model = Model::open(&model_dir(name)).unwrap();
    let (pairs, expected) = short(&model, &Reference::read(name));
    let spread = expected.iter().copied().fold(f32::MIN, f32::max)
        - expected.iter().copied().fold(f32::MAX, f32::min);
    let ours = logits(&model, floats, &pairs, fault);
    (worst(&ours, &expected), spread)
}

fn worst(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let off = ours.iter().zip(reference).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max)
}

const MODELS: [&str; 4] = [
    "tiny-bert",
    "tiny-bert-3-labels",
    "tiny-roberta",
    "tiny-xlm-roberta",
];

#[test]
fn it_gives_the_reference_logits() {
    for name in MODELS {
        let (off, _) = off(name, Floats::Single, |_| ());
        assert!(off <= SINGLE, "{name}: off by {off}");
    }
}

/// A coarse check for a graph that is wrong in fp16 only: tiny random models are no measure of accuracy.
#[test]
fn sixteen_bits_move_tiny_models_little() {
    for name in MODELS {
        let (off, spread) = off(name, Floats::Half, |_| ());
        println!("{name}: 16 bits are off by {off:.1e} of {spread:.1}");
        assert!(off <= 0.02 * spread, "{name}: off by {off} of {spread}");
        assert!(off > SINGLE, "{name}: the numbers are not of 16 bits");
    }
}

#[test]
fn sixteen_bits_keep_logits_and_order_of_a_trained_model() {
    let root = root();
    let model = Model::open(&root.join("models/minilm-l6-rank")).unwrap();
    let text = std::fs::read_to_string(root.join("tests/reference/quality.tsv")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    let pairs: Vec<Pair> = lines
        .step_by(8)
        .map(|(query, document)| Pair {
            query: query.into(),
            document: document.into(),
        })
        .collect();
    let pairs = encoded(&model, &pairs);
    let exact = logits(&model, Floats::Single, &pairs, |_| ());
    let half = logits(&model, Floats::Half, &pairs, |_| ());
    let off = worst(&half, &exact);
    let wide = |logits: &[f32]| logits.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let rank = spearman(&wide(&half), &wide(&exact)).unwrap();
    println!(
        "{} pairs: off by {off:.1e}, rank correlation {rank:.5}",
        pairs.len()
    );
    assert!(off <= HALF, "off by {off}");
    assert!(rank >= 0.999, "rank correlation {rank}");
}

/// The checks above detect wrong inputs.
#[test]
fn wrong_inputs_are_noticed() {
    let moved = |name: &'static str, change: fn(&mut Vec<f32>)| {
        let fault = move |inputs: &mut BTreeMap<String, Tensor>| {
            change(&mut inputs.get_mut(name).unwrap().data);
        };
        off("tiny-bert", Floats::Single, fault).0
    };
    assert!(moved(CUMULATIVE, |starts| starts[1] -= 1.0) > 10.0 * SINGLE);
    assert!(moved(io::CLS_INDEX, |rows| rows.rotate_left(1)) > 10.0 * SINGLE);
    assert!(moved(TOKEN_OFFSET, |cells| cells.reverse()) > 10.0 * SINGLE);
}

/// Scores are independent of the batch, in either precision.
#[test]
fn a_score_does_not_depend_on_its_batch() {
    let model = Model::open(&model_dir("tiny-roberta")).unwrap();
    let (encodings, _) = short(&model, &Reference::read("tiny-roberta"));
    let interpreter = Interpreter::new(&graph_of(&model, Floats::Half));
    let score = |chunk: &[Encoding]| {
        interpreter.run(inputs(&Batch::pack(chunk), Layout::of(&model.manifest)))
    };
    let together = score(&encodings[..8]);
    let alone: Vec<f32> = encodings[..8].chunks(1).flat_map(score).collect();
    assert_eq!(worst(&together, &alone), 0.0);
}

#[test]
fn nothing_of_a_processor_is_left() {
    for name in MODELS {
        let model = Model::open(&model_dir(name)).unwrap();
        let graph = graph_of(&model, Floats::Half);
        let proto = ModelProto::decode(&graph.model[..]).unwrap().graph.unwrap();
        let layers = model.manifest.encoder.layers;
        let count = |operator| proto.node.iter().filter(|n| n.op_type == operator).count();
        assert_eq!(count("PackedMultiHeadAttention"), layers, "{name}");
        assert!(
            proto
                .node
                .iter()
                .all(|node| node.domain != graph::operator::DOMAIN)
        );
        // The head is fp32, the encoder fp16.
        assert_eq!(count("Cast"), 1, "{name}");
        let wide = |weight: &&graph::Weight| matches!(weight.data, Data::F32(_));
        let wide: Vec<&str> = graph
            .weights
            .iter()
            .filter(wide)
            .map(|w| &*w.name)
            .collect();
        assert_eq!(wide.len(), 4, "{name}: {wide:?}");
        assert!(proto.input.iter().all(|input| input.name != io::LENGTHS));
    }
}

/// ONNX Runtime accepts the graph and lacks only the kernel of the operator without a CPU implementation.
#[test]
fn onnx_runtime_takes_all_of_it_but_what_needs_a_gpu() {
    let library = library();
    for floats in [Floats::Single, Floats::Half] {
        let model = Model::open(&model_dir("tiny-bert")).unwrap();
        let error = check_without_gpu(&library, graph_of(&model, floats)).unwrap_err();
        let error = error.to_string();
        // Either message says so.
        let missing = [
            "Could not find an implementation for",
            "Failed to find kernel for",
        ];
        assert!(missing.iter().any(|words| error.contains(words)), "{error}");
        assert!(error.contains("PackedMultiHeadAttention(1)"), "{error}");
    }
}
