//! CUDA. Tests that need a GPU run with `RERANKD_TEST_CUDA=1`, and then fail if there is none.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::causal;
use crate::cuda_graph::{FORMS, models, reference, tolerance};
use crate::support::reference::{model_dir, rank_correlation, root};
use rerankd::config::{Device, Precision};
use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_engine::load::{Bare, LoadConfig, load, sessions};
use rerankd_engine::metrics::Metrics;
use rerankd_model::Model;
use rerankd_model::encoder::Encoder;
use rerankd_model::graph::cuda::Floats;
use rerankd_runtime::cuda::need;
use rerankd_runtime::{Scorer, driver};

fn config(model: &Path, device: Device, precision: Precision) -> LoadConfig {
    LoadConfig {
        model: Some(model.to_owned()),
        runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
        library_path: std::env::var_os("LD_LIBRARY_PATH"),
        threads: 1,
        precision,
        device,
        ..LoadConfig::default()
    }
}

fn wanted() -> bool {
    std::env::var_os("RERANKD_TEST_CUDA").is_some_and(|value| value == "1")
}

/// Without a GPU, `cuda` fails with what is missing and what to do; `auto` runs and reports why it does not
/// use a GPU.
#[test]
fn without_a_gpu_it_is_said() {
    if wanted() {
        return;
    }
    let model = model_dir("tiny-bert");
    let error = match load(
        &config(&model, Device::Cuda(0), Precision::Auto),
        Metrics::new(),
    ) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(
        error.contains("`--device cuda:0` cannot be used"),
        "{error}"
    );
    assert!(error.contains("hint:") && !error.contains('\n'), "{error}");

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let reranker = load(
        &config(&model, Device::Auto, Precision::Fp32),
        Metrics::new(),
    )
    .unwrap();
    let info = reranker.info();
    assert_eq!((info.device.as_str(), info.precision), ("cpu", "fp32"));
    assert!(
        info.device_because.contains("no GPU can be used"),
        "{info:?}"
    );
    let nodes: Vec<_> = info.providers.iter().collect();
    assert!(
        matches!(nodes[..], [(name, 10..)] if name == "CPUExecutionProvider"),
        "{nodes:?}"
    );
}

#[test]
fn an_arithmetic_that_the_device_has_not_is_refused() {
    let model = model_dir("tiny-bert");
    let refused = config(&model, Device::Cpu, Precision::Fp16);
    let error = match load(&refused, Metrics::new()) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("fp16") && error.contains("hint:"), "{error}");
}

/// Logits of `encodings` on a device, in batches of a given size.
fn logits(engine: &mut Bare, encodings: &[Encoding], batch: usize) -> Vec<f32> {
    // Both scorers of a GPU are used.
    let count = engine.sessions.len();
    let chunks = encodings.chunks(batch).enumerate();
    chunks
        .flat_map(|(i, chunk)| {
            let scorer: &mut dyn Scorer = &mut *engine.sessions[i % count];
            scorer.score(&Batch::pack(chunk)).unwrap()
        })
        .collect()
}

fn worst(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let off = ours.iter().zip(reference).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max)
}

fn encodings(encoder: &Encoder, pairs: &[Pair]) -> Vec<Encoding> {
    let encoded = encoder.encode(pairs, &AtomicBool::new(false)).unwrap();
    encoded.into_iter().map(|pair| pair.encoding).collect()
}

fn on_gpu(model: &Path, precision: Precision) -> Bare {
    sessions(&config(model, Device::Cuda(0), precision)).unwrap_or_else(|error| panic!("{error}"))
}

/// The model in the repository and the pairs of `tests/reference/quality.tsv`.
fn real() -> (PathBuf, Vec<Pair>) {
    let root = root();
    let text = std::fs::read_to_string(root.join("tests/reference/quality.tsv")).unwrap();
    let pairs = text.lines().filter_map(|line| {
        let (query, document) = line.split_once('\t')?;
        Some(Pair {
            query: query.into(),
            document: document.into(),
        })
    });
    (root.join("models/minilm-l6-rank"), pairs.collect())
}

/// Checks all of `names`, also after one has failed: a GPU may be there only once.
fn check_each<T: Display>(names: impl IntoIterator<Item = T>, check: impl Fn(&T)) {
    let names = names.into_iter();
    let fails = |name: &T| catch_unwind(AssertUnwindSafe(|| check(name))).is_err();
    let failed: Vec<_> = names.filter(fails).map(|name| name.to_string()).collect();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

#[test]
#[should_panic(expected = "failed: a, c")]
fn every_name_is_checked_after_a_failure() {
    check_each(["a", "b", "c"], |name| assert_eq!(*name, "b"));
}

#[test]
fn fp32_gives_the_reference_logits_on_a_gpu() {
    if !wanted() {
        return;
    }
    check_each(models(), |name| {
        let (encodings, expected) = reference(name);
        let mut gpu = on_gpu(&model_dir(name), Precision::Fp32);
        assert_eq!(gpu.precision, "fp32");
        let off = worst(&logits(&mut gpu, &encodings, 16), &expected);
        println!("{name}: off by {off:.1e}");
        assert!(off <= tolerance(&expected), "{name}: off by {off}");
    });
}

#[test]
fn fp16_keeps_logits_and_order_on_a_gpu() {
    if !wanted() {
        return;
    }
    let (model, pairs) = real();
    let mut cpu = sessions(&config(&model, Device::Cpu, Precision::Fp32)).unwrap();
    let mut gpu = on_gpu(&model, Precision::Fp16);
    let encodings = encodings(&cpu.encoder, &pairs);
    let (exact, half) = (
        logits(&mut cpu, &encodings, 16),
        logits(&mut gpu, &encodings, 64),
    );
    let off = worst(&half, &exact);
    let rank = rank_correlation(&half, &exact);
    println!("off by {off:.1e}, rank correlation {rank:.5}");
    assert!(off <= 5e-3, "off by {off}");
    assert!(rank >= 0.999, "rank correlation {rank}");
}

/// A coarse check of every graph in 16 bits: tiny random models are no measure of accuracy.
#[test]
fn sixteen_bits_move_tiny_models_little_on_a_gpu() {
    if !wanted() {
        return;
    }
    check_each(FORMS, |name| {
        let (encodings, expected) = reference(name);
        let spread = expected.iter().copied().fold(f32::MIN, f32::max)
            - expected.iter().copied().fold(f32::MAX, f32::min);
        for (precision, most) in [(Precision::Fp16, 0.02), (Precision::Bf16, 0.15)] {
            let mut gpu = on_gpu(&model_dir(name), precision);
            assert_eq!(gpu.precision, precision.name());
            let off = worst(&logits(&mut gpu, &encodings, 16), &expected);
            println!(
                "{name}: {} is off by {off:.1e} of {spread:.1}",
                precision.name()
            );
            assert!(off <= most * spread, "{name}: off by {off} of {spread}");
        }
    });
}

/// Memory that a large batch takes, of sequences of one length and of many.
#[test]
fn memory_is_within_the_estimate_on_a_gpu() {
    if !wanted() {
        return;
    }
    let (folder, pairs) = real();
    let manifest = Model::open(&folder).unwrap().manifest;
    let capability = driver::facts(0).unwrap().capability;
    for (precision, floats) in [
        (Precision::Fp32, Floats::Single),
        (Precision::Fp16, Floats::Half),
        (Precision::Bf16, Floats::Bfloat),
    ] {
        let mut gpu = on_gpu(&folder, precision);
        let encodings = encodings(&gpu.encoder, &pairs);
        gpu.sessions[0]
            .score(&Batch::pack(&encodings[..1]))
            .unwrap();
        let tokens = encodings.iter().map(Encoding::len).sum::<usize>();
        let times = std::iter::repeat_n(&encodings, 16_384 / tokens + 1);
        let large: Vec<Encoding> = times.flatten().cloned().collect();
        let batch = Batch::pack(&large);
        let free = driver::free_memory(0).unwrap();
        gpu.sessions[0].score(&batch).unwrap();
        // What the arena took stays with it.
        let taken = free.saturating_sub(driver::free_memory(0).unwrap());
        let estimate = need(&manifest, floats, capability).of(&batch);
        println!(
            "{}: {taken} bytes of {estimate}, off by {:.2}",
            precision.name(),
            taken as f64 / estimate as f64
        );
        assert!(taken <= estimate, "{} bytes more", taken - estimate);
    }
}

#[test]
fn a_score_does_not_depend_on_its_batch_on_a_gpu() {
    if !wanted() {
        return;
    }
    let (model, pairs) = real();
    for (precision, allowed) in [
        (Precision::Fp32, 1e-5),
        (Precision::Fp16, 1e-3),
        (Precision::Bf16, 1e-2),
    ] {
        let mut gpu = on_gpu(&model, precision);
        let encodings = encodings(&gpu.encoder, &pairs);
        let together = logits(&mut gpu, &encodings, 100);
        for batch in [1, 7] {
            let off = worst(&logits(&mut gpu, &encodings, batch), &together);
            println!("{}, batches of {batch}: off by {off:.1e}", precision.name());
            assert!(off <= allowed, "{}: off by {off}", precision.name());
        }
    }
}

#[test]
fn every_node_runs_on_the_gpu() {
    if !wanted() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    check_each(models(), |name| {
        let config = config(&model_dir(name), Device::Cuda(0), Precision::Auto);
        let reranker = load(&config, Metrics::new()).unwrap_or_else(|error| panic!("{error}"));
        let info = reranker.info();
        let precision = match causal::MODELS.contains(&name.as_str()) {
            true => "bf16",
            false => "fp16",
        };
        assert_eq!(
            (info.device.as_str(), info.precision),
            ("cuda:0", precision)
        );
        let nodes: Vec<_> = info.providers.keys().collect();
        assert_eq!(nodes, ["CUDAExecutionProvider"], "{name}");
        let model = Model::open(&model_dir(name)).unwrap();
        let least = 9 * model.manifest.encoder.layers;
        assert!(
            info.providers["CUDAExecutionProvider"] >= least,
            "{name}: {info:?}"
        );
    });
}
