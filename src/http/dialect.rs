//! Wire formats. Each is a file or folder of one shape: request types, `into_command`, the
//! response's `fill`, and the body of an error. They translate and decide nothing.

pub mod cohere;
pub mod detect;
pub mod echo;
pub mod field;
pub mod infinity;
pub mod llamacpp;
pub mod mixedbread;
pub mod native;
pub mod nvidia;
pub mod open_inference;
mod request;
pub mod tei;
mod usage;
pub mod vllm;
pub mod voyage;
pub mod weaviate;

use axum::response::Response;
use serde::Serialize;

use self::field::Fields;
use super::error::Failure;
use crate::config::DocumentForm;
use rerankd_core::{Limits, Pair, Priority, Ranking, RerankCommand, RerankError};

/// A wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The server's own.
    Native,
    /// Cohere's first version, which Jina, Xinference and many servers speak too.
    CohereV1,
    /// Cohere's second version.
    CohereV2,
    /// `infinity`, of michaelfeil.
    Infinity,
    /// The server of llama.cpp.
    LlamaCpp,
    /// Mixedbread.
    Mixedbread,
    /// NVIDIA's ranking.
    Nvidia,
    /// The Open Inference Protocol, version 2, of KServe and Triton.
    OpenInference,
    /// Text Embeddings Inference, of Hugging Face.
    Tei,
    /// vLLM.
    Vllm,
    /// Voyage AI.
    Voyage,
    /// The container that Weaviate's `reranker-transformers` module calls.
    Weaviate,
}

impl Dialect {
    /// The name in log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::CohereV1 => "cohere_v1",
            Self::CohereV2 => "cohere_v2",
            Self::Infinity => "infinity",
            Self::LlamaCpp => "llama_cpp",
            Self::Mixedbread => "mixedbread",
            Self::Nvidia => "nvidia",
            Self::OpenInference => "open_inference",
            Self::Tei => "tei",
            Self::Vllm => "vllm",
            Self::Voyage => "voyage",
            Self::Weaviate => "weaviate",
        }
    }

    /// The dialect of clients that ask at `path`, before anything of their body is read.
    pub fn of_path(path: &str) -> Self {
        match path {
            "/v1/rerank" => Self::CohereV1,
            "/v2/rerank" => Self::CohereV2,
            "/reranking" | "/v1/reranking" => Self::LlamaCpp,
            "/" | "/invocations" | "/tokenize" | "/decode" => Self::Tei,
            "/score" | "/v1/score" => Self::Vllm,
            "/ranking" | "/v1/ranking" | "/v1/retrieval/nvidia/reranking" => Self::Nvidia,
            "/v2" => Self::OpenInference,
            _ if path.starts_with("/v2/models/") => Self::OpenInference,
            _ => match path.split('/').nth(1) {
                Some("infinity") => Self::Infinity,
                Some("vllm") => Self::Vllm,
                Some("voyage") => Self::Voyage,
                _ => Self::Native,
            },
        }
    }

    /// What a client of this dialect is told about `failure` of the request `id`.
    pub fn error(self, failure: &Failure, id: &str) -> Response {
        match self {
            Self::Native => native::error(failure),
            Self::CohereV1 | Self::CohereV2 => cohere::error(failure, id, self),
            Self::Infinity => infinity::error(failure),
            Self::LlamaCpp => llamacpp::error(failure),
            Self::Mixedbread => mixedbread::error(failure),
            Self::Nvidia => nvidia::error(failure),
            Self::OpenInference => open_inference::error(failure),
            Self::Tei => tei::error(failure),
            Self::Vllm => vllm::error(failure),
            Self::Voyage => voyage::error(failure),
            Self::Weaviate => weaviate::error(failure),
        }
    }
}

/// How one dialect asks for a reranking and reads the answer.
pub trait RerankDialect: Fields {
    /// What the answer repeats of the request.
    type Kept: Send;

    /// The model that is asked for.
    fn model(&self) -> Option<&str>;

    /// How urgent the request is.
    fn priority(&self) -> Priority {
        Priority::default()
    }

    /// The command this request spells.
    ///
    /// # Errors
    /// When something is missing, contradicts itself or is beyond `limits`.
    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Self::Kept), RerankError>;

    /// The body that tells `answer`.
    fn fill<'a>(answer: &Answer<'a>, kept: &'a Self::Kept) -> impl Serialize + 'a;
}

/// All that an answer to a reranking can tell.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The dialect, where one file serves several.
    pub dialect: Dialect,
    /// Names the request.
    pub id: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// When the answer was made, in seconds since 1970.
    pub created: u64,
    /// Texts in the order of the request.
    pub pairs: &'a [Pair],
    /// Their order and scores.
    pub ranking: &'a Ranking,
    /// How a document is repeated where the dialect leaves it open.
    pub document_form: DocumentForm,
}

/// The refusal of a request that lacks `field`.
fn missing(field: &str) -> RerankError {
    RerankError::invalid(format!("`{field}` is missing; send it"))
}
