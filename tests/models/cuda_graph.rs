//! The CUDA graph without a GPU: interpreted here in fp32 and rounded to 16 bits after every operator, and loaded by
//! ONNX Runtime as far as possible.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::causal;
use crate::support::packed::library;
use crate::support::reference::{Reference, encoders, model_dir, rank_correlation, root};
use half::{bf16, f16};
use prost::Message;
use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_model::Model;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::cuda::{
    self, CELLS, COLUMNS, CUMULATIVE, Floats, LAST_INDEX, PLACES, TOKEN_OFFSET,
};
use rerankd_model::graph::{self, Data, Graph, io};
use rerankd_model::onnx::{DataType, ModelProto, NodeProto};
use rerankd_runtime::cuda::check_without_gpu;
use rerankd_runtime::cuda::inputs::{Input, Numbers, input};
use rerankd_runtime::onnx::{Layout, PackedInputs};

const SINGLE: f32 = 1e-4;
const HALF: f32 = 5e-3;
const BATCH: usize = 16;

/// What the numbers of a tensor are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Half,
    Bfloat,
}

impl Kind {
    fn round(self, x: f32) -> f32 {
        match self {
            Self::Single => x,
            Self::Half => f16::from_f32(x).to_f32(),
            Self::Bfloat => bf16::from_f32(x).to_f32(),
        }
    }
}

/// A tensor.
#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
    kind: Kind,
}

impl Tensor {
    fn new(shape: &[usize], data: Vec<f32>, kind: Kind) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Self {
            shape: shape.to_vec(),
            data: data.into_iter().map(|x| kind.round(x)).collect(),
            kind,
        }
    }

    /// Integers; all that occur are exact in f32.
    fn whole(shape: &[usize], data: impl IntoIterator<Item = i64>) -> Self {
        Self::new(
            shape,
            data.into_iter().map(|x| x as f32).collect(),
            Kind::Single,
        )
    }

    fn columns(&self) -> usize {
        *self.shape.last().unwrap()
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact(self.columns())
    }

    /// Element by element with `other`; dimensions of 1, and those that are missing in front, are repeated.
    fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        assert_eq!(self.kind, other.kind, "one kind of number");
        let count = self.shape.len().max(other.shape.len());
        let dims = |shape: &[usize]| [&vec![1; count - shape.len()], shape].concat();
        let (ours, others) = (dims(&self.shape), dims(&other.shape));
        let pairs = ours.iter().zip(&others);
        let shape: Vec<usize> = pairs
            .map(|(&a, &b)| {
                assert!(a == b || a == 1 || b == 1, "{ours:?} and {others:?}");
                a.max(b)
            })
            .collect();
        let place = |dims: &[usize], index: usize| {
            let (mut rest, mut step, mut place) = (index, 1, 0);
            for (&dim, &all) in dims.iter().zip(&shape).rev() {
                place += rest % all % dim * step;
                rest /= all;
                step *= dim;
            }
            place
        };
        let number = |i| f(self.data[place(&ours, i)], other.data[place(&others, i)]);
        let data = (0..shape.iter().product()).map(number).collect();
        Self::new(&shape, data, self.kind)
    }

    fn map(&self, f: impl Fn(usize, f32) -> f32) -> Self {
        let columns = self.columns();
        let data = self.data.iter().enumerate();
        let data = data.map(|(i, &x)| f(i % columns, x)).collect();
        Self::new(&self.shape, data, self.kind)
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
    inputs: Vec<String>,
}

impl Interpreter {
    fn new(graph: &Graph) -> Self {
        let proto = ModelProto::decode(&graph.model[..]).unwrap().graph.unwrap();
        let mut values = BTreeMap::new();
        for weight in &graph.weights {
            let (data, kind) = match &weight.data {
                Data::F32(data) => (data.clone(), Kind::Single),
                Data::F16(data) => (data.iter().map(|x| x.to_f32()).collect(), Kind::Half),
                Data::BF16(data) => (data.iter().map(|x| x.to_f32()).collect(), Kind::Bfloat),
                Data::I32(data) => (data.iter().map(|&x| x as f32).collect(), Kind::Single),
                other => panic!("{other:?}"),
            };
            values.insert(weight.name.clone(), Tensor::new(&weight.shape, data, kind));
        }
        for constant in &proto.initializer {
            let bytes = &constant.raw_data;
            if !bytes.is_empty() {
                let numbers: Vec<i64> = if constant.data_type == DataType::Int32 as i32 {
                    let numbers = bytes.chunks_exact(4);
                    let number = |b: &[u8]| i32::from_le_bytes(b.try_into().unwrap());
                    numbers.map(|b| i64::from(number(b))).collect()
                } else {
                    let numbers = bytes.chunks_exact(8);
                    let number = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap());
                    numbers.map(number).collect()
                };
                let shape = [numbers.len()];
                values.insert(constant.name.clone(), Tensor::whole(&shape, numbers));
            }
        }
        Self {
            values,
            nodes: proto.node,
            inputs: proto.input.into_iter().map(|input| input.name).collect(),
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
            let kind = match attribute("to").i.unwrap() {
                // Integers are exact in f32.
                1 | 6 => Kind::Single,
                10 => Kind::Half,
                16 => Kind::Bfloat,
                other => panic!("to {other}"),
            };
            Tensor::new(&x.shape, x.data.clone(), kind)
        }
        "Gather" => gathered(x, second(), node.int("axis").unwrap_or(0)),
        "Reshape" => {
            let mut shape: Vec<i64> = second().data.iter().map(|&d| d as i64).collect();
            for (dim, &kept) in shape.iter_mut().zip(&x.shape) {
                if *dim == 0 {
                    *dim = kept as i64;
                }
            }
            let known: i64 = shape.iter().filter(|&&dim| dim > 0).product();
            let rest = x.data.len() / known as usize;
            let dim = |dim: i64| if dim == -1 { rest } else { dim as usize };
            let shape: Vec<usize> = shape.into_iter().map(dim).collect();
            Tensor::new(&shape, x.data.clone(), x.kind)
        }
        "Unsqueeze" => {
            let mut shape = x.shape.clone();
            shape.insert(second().data[0] as usize, 1);
            Tensor::new(&shape, x.data.clone(), x.kind)
        }
        "Transpose" => transposed(x, &attribute("perm").ints),
        "Concat" => {
            let parts: Vec<&Tensor> = inputs.iter().map(|part| part.unwrap()).collect();
            let row = |i: usize| {
                parts
                    .iter()
                    .flat_map(move |part| part.rows().nth(i).unwrap())
            };
            let data = (0..x.shape[0]).flat_map(row).copied().collect();
            let width = parts.iter().map(|part| part.columns()).sum();
            Tensor::new(&[x.shape[0], width], data, x.kind)
        }
        "ReduceMax" => {
            assert_eq!(attribute("axes").ints, [1]);
            let [rows, cells, columns] = x.shape[..] else {
                panic!("{:?}", x.shape)
            };
            let largest = |row: usize, column: usize| {
                let cell = |cell: usize| x.data[(row * cells + cell) * columns + column];
                (0..cells).map(cell).fold(f32::MIN, f32::max)
            };
            let data = (0..rows).flat_map(|row| (0..columns).map(move |c| largest(row, c)));
            Tensor::new(&[rows, columns], data.collect(), x.kind)
        }
        "MatMul" if x.shape.len() == 3 => {
            let [matrices, rows, _] = x.shape[..] else {
                panic!("{:?}", x.shape)
            };
            assert_eq!(second().shape[0], matrices, "{:?}", second().shape);
            let matrix = |x: &Tensor, at: usize| {
                let count = x.data.len() / matrices;
                let data = x.data[at * count..][..count].to_vec();
                Tensor::new(&x.shape[1..], data, x.kind)
            };
            let products =
                (0..matrices).map(|at| product(&matrix(x, at), &matrix(second(), at), None));
            let data = products.flat_map(|product| product.data).collect();
            Tensor::new(&[matrices, rows, second().columns()], data, x.kind)
        }
        "MatMul" => product(x, second(), None),
        "Gemm" => product(x, second(), inputs[2]),
        "Tanh" => x.map(|_, x| x.tanh()),
        "Relu" => x.map(|_, x| x.max(0.0)),
        "Sigmoid" => x.map(|_, x| 1.0 / (1.0 + (-x).exp())),
        "Gelu" => x.map(|_, x| gelu(x)),
        "Mul" => x.zip(second(), |x, y| x * y),
        "Add" => x.zip(second(), |x, y| x + y),
        "Sub" => x.zip(second(), |x, y| x - y),
        "QuickGelu" => {
            assert_eq!(attribute("alpha").f, Some(1.0));
            x.map(|_, x| x / (1.0 + (-x).exp()))
        }
        "SimplifiedLayerNormalization" => {
            let gamma = second();
            assert_eq!(x.kind, gamma.kind, "one kind of number");
            let epsilon = f64::from(attribute("epsilon").f.unwrap());
            let rows = x.rows().flat_map(|row| {
                let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
                let scale = (squares / row.len() as f64 + epsilon).sqrt().recip();
                let unit = row.iter().map(move |&x| (f64::from(x) * scale) as f32);
                unit.zip(&gamma.data).map(|(unit, gamma)| unit * gamma)
            });
            Tensor::new(&x.shape, rows.collect(), x.kind)
        }
        "BiasGelu" => x.map(|column, x| gelu(x + second().data[column])),
        "FastGelu" => {
            let bias = inputs.get(1).copied().flatten();
            x.map(|column, x| {
                let x = x + bias.map_or(0.0, |bias| bias.data[column]);
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            })
        }
        "LayerNormalization" => {
            let epsilon = f64::from(attribute("epsilon").f.unwrap());
            let (gamma, beta) = (second(), inputs.get(2).copied().flatten());
            assert_eq!(x.kind, gamma.kind, "one kind of number");
            let rows = x
                .rows()
                .map(|row| row.iter().map(|&x| f64::from(x)).collect());
            normalized(rows, &x.shape, epsilon, gamma, beta)
        }
        "RotaryEmbedding" => rotated(
            node,
            x,
            inputs[1].unwrap(),
            inputs[2].unwrap(),
            inputs[3].unwrap(),
        ),
        "SkipLayerNormalization" => {
            let (skip, gamma, beta) = (second(), inputs[2].unwrap(), inputs[3].unwrap());
            let bias = inputs.get(4).copied().flatten();
            let epsilon = f64::from(attribute("epsilon").f.unwrap());
            assert_eq!(
                (x.kind, skip.kind),
                (gamma.kind, beta.kind),
                "one kind of number"
            );
            let rows = x.rows().zip(skip.rows()).map(|(row, skip)| {
                let sum = |i: usize| row[i] + skip[i] + bias.map_or(0.0, |bias| bias.data[i]);
                (0..row.len()).map(|i| f64::from(sum(i))).collect()
            });
            normalized(rows, &x.shape, epsilon, gamma, Some(beta))
        }
        "PackedMultiHeadAttention" => {
            let heads = attribute("num_heads").i.unwrap() as usize;
            let scale = attribute("scale").f.unwrap();
            assert!(inputs[3].is_none(), "a bias would be copied");
            let [q, k, v] = [x, second(), inputs[2].unwrap()];
            assert!(x.kind != Kind::Bfloat && k.kind == x.kind && v.kind == x.kind);
            let added = inputs.get(6).copied().flatten();
            attention(
                [q, k, v],
                inputs[4].unwrap(),
                inputs[5].unwrap(),
                (heads, scale),
                added,
            )
        }
        other => panic!("{other} is unknown"),
    }
}

/// LayerNorm of `rows`.
fn normalized(
    rows: impl Iterator<Item = Vec<f64>>,
    shape: &[usize],
    epsilon: f64,
    gamma: &Tensor,
    beta: Option<&Tensor>,
) -> Tensor {
    let mut data = Vec::new();
    for row in rows {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let deviation = (variance / row.len() as f64 + epsilon).sqrt();
        data.extend(row.iter().enumerate().map(|(i, x)| {
            let unit = ((x - mean) / deviation) as f32;
            unit * gamma.data[i] + beta.map_or(0.0, |beta| beta.data[i])
        }));
    }
    Tensor::new(shape, data, gamma.kind)
}

fn transposed(x: &Tensor, perm: &[i64]) -> Tensor {
    let shape: Vec<usize> = perm.iter().map(|&axis| x.shape[axis as usize]).collect();
    let step = |axis: usize| x.shape[axis + 1..].iter().product::<usize>();
    let steps: Vec<usize> = perm.iter().map(|&axis| step(axis as usize)).collect();
    let place = |index: usize| {
        let (mut rest, mut place) = (index, 0);
        for (dim, step) in shape.iter().zip(&steps).rev() {
            place += rest % dim * step;
            rest /= dim;
        }
        place
    };
    let data = (0..x.data.len())
        .map(|index| x.data[place(index)])
        .collect();
    Tensor::new(&shape, data, x.kind)
}

fn gathered(x: &Tensor, index: &Tensor, axis: i64) -> Tensor {
    let count: usize = x.shape[axis as usize + 1..].iter().product();
    let blocks = x.data.chunks_exact(x.shape[axis as usize] * count);
    let data = blocks.flat_map(|block| {
        let picked = index.data.iter().map(|&row| row as usize * count);
        picked.flat_map(|first| &block[first..first + count])
    });
    let (before, after) = (&x.shape[..axis as usize], &x.shape[axis as usize + 1..]);
    let shape = [before, &index.shape, after].concat();
    Tensor::new(&shape, data.copied().collect(), x.kind)
}

/// ONNX Runtime's operator, of sequences of one token: turns the first half of each head against the second.
fn rotated(node: &NodeProto, x: &Tensor, places: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let heads = node.int("num_heads").unwrap() as usize;
    let [tokens, 1, width] = x.shape[..] else {
        panic!("{:?}", x.shape)
    };
    assert_eq!(places.shape, [tokens, 1]);
    assert_eq!((cos.kind, sin.kind), (x.kind, x.kind), "one kind of number");
    let half = width / heads / 2;
    assert_eq!(cos.columns(), half);
    let mut data = Vec::with_capacity(x.data.len());
    for (head, numbers) in x.data.chunks_exact(2 * half).enumerate() {
        let at = places.data[head / heads] as usize * half;
        let (cos, sin) = (&cos.data[at..at + half], &sin.data[at..at + half]);
        let (first, second) = numbers.split_at(half);
        data.extend((0..half).map(|i| first[i] * cos[i] - second[i] * sin[i]));
        data.extend((0..half).map(|i| second[i] * cos[i] + first[i] * sin[i]));
    }
    Tensor::new(&x.shape, data, x.kind)
}

fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    assert_eq!(x.kind, weight.kind, "one kind of number");
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
    Tensor::new(&[x.shape[0], output], data, x.kind)
}

/// ONNX Runtime's operator as documented: scatters queries, keys and values, `[tokens, heads * size]` each, to the
/// padded cells in `offset`, attends within each row up to its length from `starts`, with `added` to the scores,
/// and gathers the tokens.
fn attention(
    parts: [&Tensor; 3],
    offset: &Tensor,
    starts: &Tensor,
    (heads, scale): (usize, f32),
    added: Option<&Tensor>,
) -> Tensor {
    let [tokens, width] = parts[0].shape[..] else {
        panic!("{:?}", parts[0].shape)
    };
    let size = width / heads;
    let (sequences, longest) = (offset.shape[0], offset.shape[1]);
    if let Some(added) = added {
        assert_eq!(added.kind, parts[0].kind, "one kind of number");
        assert!(longest.is_multiple_of(16), "fp32 reads rows of 64 bytes");
        let [batch, rows, queries, keys] = added.shape[..] else {
            panic!("{:?}", added.shape)
        };
        assert!(batch == 1 || batch == sequences);
        assert!((rows == 1 || rows == heads) && queries == longest && keys == longest);
    }
    let mut cells = vec![vec![0.0; 3 * width]; sequences * longest];
    for token in 0..tokens {
        let cell = &mut cells[offset.data[token] as usize];
        for (part, numbers) in parts.iter().enumerate() {
            let row = &numbers.data[token * width..][..width];
            cell[part * width..][..width].copy_from_slice(row);
        }
    }
    let mut context = vec![vec![0.0; width]; sequences * longest];
    for row in 0..sequences {
        let length = (starts.data[row + 1] - starts.data[row]) as usize;
        let cell = |column: usize| &cells[row * longest + column];
        for (head, query) in (0..heads).flat_map(|head| (0..length).map(move |q| (head, q))) {
            let part =
                |column: usize, part: usize| &cell(column)[part * width + head * size..][..size];
            let addend = |key: usize| {
                added.map_or(0.0, |added| {
                    let (batch, heads) = (added.shape[0], added.shape[1]);
                    let head = row % batch * heads + head % heads;
                    added.data[(head * longest + query) * longest + key]
                })
            };
            let scores = (0..length).map(|key| {
                let dot = part(query, 0).iter().zip(part(key, 1)).map(|(a, b)| a * b);
                dot.sum::<f32>() * scale + addend(key)
            });
            let scores: Vec<f32> = scores.collect();
            let largest = scores.iter().copied().fold(f32::MIN, f32::max);
            let scores: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
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
    Tensor::new(&[tokens, width], data.collect(), parts[0].kind)
}

/// The inputs of `graph` for a batch.
fn inputs(names: &[String], batch: &Batch, layout: Layout) -> BTreeMap<String, Tensor> {
    let packed = PackedInputs::new(batch, layout);
    let tensor = |name: &String| {
        let Input { shape, numbers } = input(name, batch, &packed).unwrap();
        let tensor = match numbers {
            Numbers::I32(numbers) => Tensor::whole(&shape, numbers.into_iter().map(i64::from)),
            Numbers::I64(numbers) => Tensor::whole(&shape, numbers),
            Numbers::F32(numbers) => Tensor::new(&shape, numbers, Kind::Single),
        };
        (name.clone(), tensor)
    };
    names.iter().map(tensor).collect()
}

fn graph_of(model: &Model, floats: Floats) -> Graph {
    cuda::build(model, floats).unwrap()
}

fn encoded(model: &Model, pairs: &[Pair]) -> Vec<Encoding> {
    let encoder = PairEncoder::for_model(model).unwrap();
    let pairs = encoder.encode(pairs, &AtomicBool::new(false)).unwrap();
    pairs.into_iter().map(|pair| pair.encoding).collect()
}

/// All pairs of a model's reference, and their logits.
pub fn reference(name: &str) -> (Vec<Encoding>, Vec<f32>) {
    if causal::MODELS.contains(&name) {
        let reference = causal::Reference::read(name);
        return (reference.encodings(), reference.logits());
    }
    let model = Model::open(&model_dir(name)).unwrap();
    let reference = Reference::read(name);
    (encoded(&model, &reference.pairs()), reference.logits())
}

/// Some pairs and logits of the reference, without slow ones.
fn short(model: &Model, name: &str) -> (Vec<Encoding>, Vec<f32>) {
    let (pairs, logits) = reference(name);
    let kept = pairs
        .into_iter()
        .zip(logits.chunks_exact(model.manifest.labels.len()))
        .filter(|(pair, _)| pair.len() <= 96)
        .take(2 * BATCH);
    let (pairs, logits): (Vec<_>, Vec<_>) = kept.unzip();
    assert_eq!(pairs.len(), 2 * BATCH);
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
        let layout = Layout::of(&model.manifest);
        let mut inputs = inputs(&interpreter.inputs, &Batch::pack(chunk), layout);
        fault(&mut inputs);
        logits.extend(interpreter.run(inputs));
    }
    logits
}

/// The largest error of the logits of `name` with `fault` applied to the inputs, and the spread of the
/// reference.
fn off(name: &str, floats: Floats, fault: impl Fn(&mut BTreeMap<String, Tensor>)) -> (f32, f32) {
    let model = Model::open(&model_dir(name)).unwrap();
    let (pairs, expected) = short(&model, name);
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

/// Every model with a reference.
pub fn models() -> Vec<String> {
    let decoders = causal::MODELS.map(String::from);
    encoders().into_iter().chain(decoders).collect()
}

/// How far logits may be from the reference in fp32.
pub fn tolerance(expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
    SINGLE * largest
}

#[test]
fn it_gives_the_reference_logits() {
    for name in models() {
        let model = Model::open(&model_dir(&name)).unwrap();
        let (pairs, expected) = short(&model, &name);
        let off = worst(&logits(&model, Floats::Single, &pairs, |_| ()), &expected);
        println!("{name}: off by {off:.1e}");
        assert!(off <= tolerance(&expected), "{name}: off by {off}");
    }
}

/// A model of each form of attention. Not `tiny-ettin`: a LayerNorm in its head makes one pair move far.
pub const FORMS: [&str; 8] = [
    "tiny-bert",
    "tiny-mpnet",
    "tiny-jina-v1",
    "tiny-gte",
    "tiny-modernbert",
    "tiny-deberta-v3",
    "causal-qwen3",
    "causal-mistral",
];

/// A coarse check for a graph that is wrong in 16 bits only: tiny random models are no measure of accuracy.
#[test]
fn sixteen_bits_move_tiny_models_little() {
    for name in FORMS {
        for (floats, most) in [(Floats::Half, 0.02), (Floats::Bfloat, 0.15)] {
            let (off, spread) = off(name, floats, |_| ());
            println!("{name}: {floats:?} is off by {off:.1e} of {spread:.1}");
            assert!(off <= most * spread, "{name}: off by {off} of {spread}");
            assert!(off > SINGLE, "{name}: the numbers are not of 16 bits");
        }
    }
}

#[test]
fn sixteen_bits_keep_logits_and_order_of_a_trained_model() {
    let root = root();
    let model = Model::open(&root.join("models/minilm-l6-rank")).unwrap();
    let text = std::fs::read_to_string(root.join("tests/reference/quality.tsv")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    let pairs: Vec<Pair> = lines
        .step_by(16)
        .map(|(query, document)| Pair {
            query: query.into(),
            document: document.into(),
        })
        .collect();
    let pairs = encoded(&model, &pairs);
    let exact = logits(&model, Floats::Single, &pairs, |_| ());
    let half = logits(&model, Floats::Half, &pairs, |_| ());
    let off = worst(&half, &exact);
    let rank = rank_correlation(&half, &exact);
    println!(
        "{} pairs: off by {off:.1e}, rank correlation {rank:.5}",
        pairs.len()
    );
    assert!(off <= HALF, "off by {off}");
    assert!(rank >= 0.999, "rank correlation {rank}");
    let bfloat = logits(&model, Floats::Bfloat, &pairs, |_| ());
    let rank = rank_correlation(&bfloat, &exact);
    println!("in bf16, rank correlation {rank:.5}");
    assert!(rank >= 0.998, "rank correlation {rank}");
}

/// The checks above detect wrong inputs.
#[test]
fn wrong_inputs_are_noticed() {
    type Change = fn(&mut Vec<f32>);
    let shorter: Change = |starts| starts[1] -= 1.0;
    let reversed: Change = |numbers| numbers.reverse();
    let twice: Change = |numbers| numbers.iter_mut().for_each(|number| *number *= 2.0);
    for (model, name, change) in [
        ("tiny-bert", CUMULATIVE, shorter),
        ("tiny-bert", io::CLS_INDEX, |rows| rows.rotate_left(1)),
        ("tiny-bert", TOKEN_OFFSET, reversed),
        ("tiny-gte", PLACES, reversed),
        ("tiny-modernbert", PLACES, reversed),
        ("tiny-modernbert", COLUMNS, twice),
        ("tiny-mpnet", COLUMNS, twice),
        ("tiny-jina-v1", COLUMNS, twice),
        ("tiny-deberta-v3", COLUMNS, reversed),
        ("tiny-deberta-v3", CELLS, reversed),
        ("causal-qwen3", COLUMNS, reversed),
        ("causal-qwen3", PLACES, reversed),
        ("causal-qwen3", LAST_INDEX, reversed),
        ("causal-mistral", COLUMNS, twice),
    ] {
        let fault = |inputs: &mut BTreeMap<String, Tensor>| {
            change(&mut inputs.get_mut(name).unwrap().data);
        };
        let (off, _) = off(model, Floats::Single, fault);
        assert!(off > 10.0 * SINGLE, "{model}, {name}: off by {off}");
    }
}

/// Scores are independent of the batch, in either precision.
#[test]
fn a_score_does_not_depend_on_its_batch() {
    let model = Model::open(&model_dir("tiny-roberta")).unwrap();
    let (encodings, _) = short(&model, "tiny-roberta");
    let interpreter = Interpreter::new(&graph_of(&model, Floats::Half));
    let score = |chunk: &[Encoding]| {
        let layout = Layout::of(&model.manifest);
        interpreter.run(inputs(&interpreter.inputs, &Batch::pack(chunk), layout))
    };
    let together = score(&encodings[..8]);
    let alone: Vec<f32> = encodings[..8].chunks(1).flat_map(score).collect();
    assert_eq!(worst(&together, &alone), 0.0);
}

#[test]
fn nothing_of_a_processor_is_left() {
    for name in models() {
        let model = Model::open(&model_dir(&name)).unwrap();
        let graph = graph_of(&model, Floats::Half);
        let proto = ModelProto::decode(&graph.model[..]).unwrap().graph.unwrap();
        let layers = model.manifest.encoder.layers;
        let count = |operator| proto.node.iter().filter(|n| n.op_type == operator).count();
        assert_eq!(count("PackedMultiHeadAttention"), layers, "{name}");
        let own = |node: &NodeProto| node.domain == graph::operator::DOMAIN;
        assert!(!proto.node.iter().any(own), "{name}");
        // The head is fp32, the encoder fp16.
        let widens = |n: &&NodeProto| n.int("to") == Some(DataType::Float as i64);
        assert_eq!(proto.node.iter().filter(widens).count(), 1, "{name}");
        let head: usize = model.manifest.head.steps.len();
        let wide = |weight: &&graph::Weight| matches!(weight.data, Data::F32(_));
        let wide = graph.weights.iter().filter(wide).count();
        assert!(wide <= 3 * head, "{name}: {wide} weights are fp32");
        let host = [io::LENGTHS, io::SEGMENTS, io::KEEP];
        assert!(
            proto
                .input
                .iter()
                .all(|input| !host.contains(&&*input.name))
        );
    }
}

/// ONNX Runtime accepts every graph and lacks only the kernel of the operator without a CPU implementation.
#[test]
fn onnx_runtime_takes_all_of_it_but_what_needs_a_gpu() {
    let library = library();
    for name in models() {
        let model = Model::open(&model_dir(&name)).unwrap();
        for floats in [Floats::Single, Floats::Half, Floats::Bfloat] {
            let error = check_without_gpu(&library, graph_of(&model, floats)).unwrap_err();
            let error = error.to_string();
            // Either message says so. The processor has no kernels for bf16 either.
            let missing = [
                "Could not find an implementation for",
                "Failed to find kernel for",
            ];
            assert!(
                missing.iter().any(|words| error.contains(words)),
                "{name}: {error}"
            );
            let bfloat = floats == Floats::Bfloat;
            assert!(
                bfloat || error.contains("PackedMultiHeadAttention(1)"),
                "{name}: {error}"
            );
        }
    }
}
