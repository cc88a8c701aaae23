//! The table of methods. The edge's routes, health checks and metrics follow from it.

use rerankd_core::RerankError;
use rerankd_wire::{Asked, Dialect, NATIVE, Problem, Served};

use crate::frame::Messages;
use crate::{inference, tei};

/// Reads all messages of a request.
pub type ReadAll = fn(Messages<'_>, &Served<'_>) -> Result<Asked, RerankError>;

/// Reads one message.
pub type ReadOne = fn(&[u8], &Served<'_>) -> Result<Asked, RerankError>;

/// A method of a service.
pub struct Method {
    /// Such as `/tei.v1.Rerank/Rerank`.
    pub path: &'static str,
    /// Its name in log lines, and whose clients call it.
    pub dialect: &'static Dialect,
    /// What it does.
    pub call: Call,
}

/// What a method does.
pub enum Call {
    /// Asks a model for an answer to the only message.
    Scores(ReadOne),
    /// Asks a model for one answer to all messages.
    ScoresAll(ReadAll),
    /// Asks a model for an answer to each message.
    ScoresEach(ReadOne),
    /// Asks a tokenizer for an answer to the only message.
    Tokenizes(ReadOne),
    /// Asks a tokenizer for an answer to each message.
    TokenizesEach(ReadOne),
    /// Tells about the server or a model, without asking one.
    About(About),
    /// Whether a service is ready, whenever that changes.
    Watch,
    /// The definitions of the services.
    Reflection(Reflection),
}

/// What a method tells about the server or a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The default model, the settings and the limits, for clients of TEI.
    Info,
    /// Whether the process runs.
    Live,
    /// Whether new requests should be sent here.
    Ready,
    /// Whether a model is ready.
    ModelReady,
    /// The server, for the Open Inference Protocol.
    Server,
    /// What a model takes and gives.
    Model,
    /// Whether a service is ready.
    Check,
}

/// The versions of server reflection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reflection {
    /// The stable one.
    V1,
    /// The one before, which most tools still ask.
    V1Alpha,
}

impl Method {
    /// The service that it is of.
    pub fn service(&self) -> &'static str {
        let service = self.path[1..].split('/').next();
        service.unwrap_or_default()
    }

    /// Whether a model is asked.
    pub fn scores(&self) -> bool {
        matches!(
            self.call,
            Call::Scores(_) | Call::ScoresAll(_) | Call::ScoresEach(_)
        )
    }

    /// Whether machines poll it.
    pub fn is_probe(&self) -> bool {
        match self.call {
            Call::About(about) => match about {
                About::Live | About::Ready | About::ModelReady | About::Check => true,
                About::Info | About::Server | About::Model => false,
            },
            Call::Watch => true,
            Call::Scores(_)
            | Call::ScoresAll(_)
            | Call::ScoresEach(_)
            | Call::Tokenizes(_)
            | Call::TokenizesEach(_)
            | Call::Reflection(_) => false,
        }
    }

    /// The largest message, where it is smaller than the server's limit.
    pub fn max_message_bytes(&self) -> Option<usize> {
        match self.call {
            Call::Tokenizes(_) | Call::TokenizesEach(_) => {
                Some(rerankd_wire::tei::MAX_TOKENIZE_BYTES)
            }
            _ => None,
        }
    }
}

/// Clients of Text Embeddings Inference.
pub static TEI_GRPC: Dialect = dialect("tei_grpc");

/// Clients of KServe and Triton.
pub static OPEN_INFERENCE_GRPC: Dialect = dialect("open_inference_grpc");

/// Whoever checks health, or asks for the definitions of services.
pub static GRPC: Dialect = dialect("grpc");

/// A dialect whose operations are methods. Its errors are statuses; those who do not speak gRPC read JSON.
const fn dialect(name: &'static str) -> Dialect {
    Dialect {
        name,
        operations: &[],
        error: |problem: &Problem<'_>| (NATIVE.error)(problem),
    }
}

/// Every method.
pub static METHODS: &[Method] = &[
    of(&TEI_GRPC, "/tei.v1.Info/Info", Call::About(About::Info)),
    of(
        &TEI_GRPC,
        "/tei.v1.Predict/Predict",
        Call::Scores(tei::predict),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Predict/PredictPair",
        Call::Scores(tei::predict_pair),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Predict/PredictStream",
        Call::ScoresEach(tei::predict),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Predict/PredictPairStream",
        Call::ScoresEach(tei::predict_pair),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Rerank/Rerank",
        Call::Scores(tei::rerank),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Rerank/RerankStream",
        Call::ScoresAll(tei::rerank_stream),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Tokenize/Tokenize",
        Call::Tokenizes(tei::tokenize),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Tokenize/TokenizeStream",
        Call::TokenizesEach(tei::tokenize),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Tokenize/Decode",
        Call::Tokenizes(tei::decode),
    ),
    of(
        &TEI_GRPC,
        "/tei.v1.Tokenize/DecodeStream",
        Call::TokenizesEach(tei::decode),
    ),
    of(
        &OPEN_INFERENCE_GRPC,
        "/inference.GRPCInferenceService/ServerLive",
        Call::About(About::Live),
    ),
    of(
        &OPEN_INFERENCE_GRPC,
        "/inference.GRPCInferenceService/ServerReady",
        Call::About(About::Ready),
    ),
    of(
        &OPEN_INFERENCE_GRPC,
        "/inference.GRPCInferenceService/ModelReady",
        Call::About(About::ModelReady),
    ),
    of(
        &OPEN_INFERENCE_GRPC,
        "/inference.GRPCInferenceService/ServerMetadata",
        Call::About(About::Server),
    ),
    of(
        &OPEN_INFERENCE_GRPC,
        "/inference.GRPCInferenceService/ModelMetadata",
        Call::About(About::Model),
    ),
    of(
        &OPEN_INFERENCE_GRPC,
        "/inference.GRPCInferenceService/ModelInfer",
        Call::Scores(inference::infer),
    ),
    of(
        &GRPC,
        "/grpc.health.v1.Health/Check",
        Call::About(About::Check),
    ),
    of(&GRPC, "/grpc.health.v1.Health/Watch", Call::Watch),
    of(
        &GRPC,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Call::Reflection(Reflection::V1),
    ),
    of(
        &GRPC,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Call::Reflection(Reflection::V1Alpha),
    ),
];

const fn of(dialect: &'static Dialect, path: &'static str, call: Call) -> Method {
    Method {
        path,
        dialect,
        call,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths, and whether the client and whether the server sends a stream.
    const DEFINED: &[(&str, bool, bool)] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

    #[test]
    fn the_table_has_the_methods_of_the_definitions() {
        let in_table = METHODS.iter().filter_map(|method| {
            let (client, server) = match method.call {
                Call::ScoresEach(_) | Call::TokenizesEach(_) => (true, true),
                Call::ScoresAll(_) => (true, false),
                Call::Watch => (false, true),
                Call::Reflection(_) => return None,
                Call::Scores(_) | Call::Tokenizes(_) | Call::About(_) => (false, false),
            };
            Some((method.path, client, server))
        });
        let mut in_table: Vec<_> = in_table.collect();
        let mut defined = DEFINED.to_vec();
        in_table.sort_unstable();
        defined.sort_unstable();
        assert_eq!(in_table, defined);
    }
}
