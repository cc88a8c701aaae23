//! Rerankings in every dialect: which one a body is in, then read, score, answer.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, post};

use super::admin::unix_seconds;
use super::app::AppState;
use super::body::{self, Accepted};
use super::budget::HeldBytes;
use super::dialect::detect::Keys;
use super::dialect::{
    Answer, Dialect, RerankDialect, cohere, infinity, llamacpp, mixedbread, native, nvidia, tei,
    vllm, voyage, weaviate,
};
use super::error::{Failure, json};
use super::infer;
use super::observe::{RequestId, Work};
use rerankd_core::{Claim, RerankError};
use rerankd_engine::service::Reranker;

/// A path that many dialects share; bodies that tell nothing are in `default`.
pub fn detecting(default: Dialect) -> MethodRouter<AppState> {
    post(async move |State(state), id: RequestId, request| {
        let received = body::accept(request, &state).await;
        let exchange = match received {
            Ok(accepted) => Exchange::new(state, id, accepted),
            Err(failure) => return failure.answer(default, id.as_str()),
        };
        exchange.detect(default).await
    })
}

/// A path of one dialect, for clients whose bodies do not tell it.
pub fn only(dialect: Dialect) -> MethodRouter<AppState> {
    post(async move |State(state), id: RequestId, request: Request| {
        match body::accept(request, &state).await {
            Ok(accepted) => Exchange::new(state, id, accepted).answer(dialect).await,
            Err(failure) => failure.answer(dialect, id.as_str()),
        }
    })
}

/// One request on its way to its answer.
pub struct Exchange {
    /// What every request can reach.
    pub state: AppState,
    /// Names the request.
    pub id: RequestId,
    /// The model that answers.
    pub reranker: Arc<Reranker>,
    /// The body.
    pub bytes: Bytes,
    /// Given back when the exchange ends, as the body is.
    _held: HeldBytes,
    /// What its head lets it claim of the machine.
    pub claim: Claim,
}

impl Exchange {
    /// The exchange of a request whose body is there.
    pub fn new(state: AppState, id: RequestId, accepted: Accepted) -> Self {
        Self {
            state,
            id,
            reranker: accepted.reranker,
            bytes: accepted.bytes,
            _held: accepted.held,
            claim: accepted.claim,
        }
    }

    /// The telling keys of the body.
    ///
    /// # Errors
    /// When looking failed.
    pub async fn keys(&self) -> Result<Keys, RerankError> {
        body::on_bytes(&self.bytes, Keys::of).await
    }

    /// The answer in the dialect of the body, which is `default` where it does not tell.
    pub async fn detect(&self, default: Dialect) -> Response {
        let keys = self.keys().await;
        match keys.and_then(|keys| keys.rerank_dialect(default)) {
            Ok(dialect) => self.answer(dialect).await,
            Err(error) => Failure::from(error).answer(default, self.id.as_str()),
        }
    }

    /// The answer in this dialect.
    pub async fn answer(&self, dialect: Dialect) -> Response {
        let answer = match dialect {
            Dialect::Native => self.run::<native::RerankRequest>(dialect).await,
            Dialect::CohereV1 | Dialect::CohereV2 => self.run::<cohere::Request>(dialect).await,
            Dialect::Infinity => self.run::<infinity::Request>(dialect).await,
            Dialect::LlamaCpp => self.run::<llamacpp::Request>(dialect).await,
            Dialect::Mixedbread => self.run::<mixedbread::Request>(dialect).await,
            Dialect::Nvidia => self.run::<nvidia::Request>(dialect).await,
            Dialect::OpenInference => infer::answer(self, None, &[]).await,
            Dialect::Tei => self.run::<tei::RerankRequest>(dialect).await,
            Dialect::Vllm => self.run::<vllm::RerankRequest>(dialect).await,
            Dialect::Voyage => self.run::<voyage::Request>(dialect).await,
            Dialect::Weaviate => self.run::<weaviate::Request>(dialect).await,
        };
        self.told(dialect, answer)
    }

    /// The answer, or what went wrong in the words of `dialect`.
    pub fn told(&self, dialect: Dialect, answer: Result<Response, RerankError>) -> Response {
        match answer {
            Ok(mut response) => {
                response.extensions_mut().insert(dialect);
                response
            }
            Err(error) => Failure::from(error).answer(dialect, self.id.as_str()),
        }
    }

    async fn run<T: RerankDialect>(&self, dialect: Dialect) -> Result<Response, RerankError> {
        let request: T = body::parse(&self.bytes).await?;
        self.state.check_model(&self.reranker, request.model())?;
        let claim = Claim {
            priority: request.priority(),
            ..self.claim
        };
        let (command, kept) = request.into_command(self.state.limits())?;
        let command = command.with_claim(claim);
        let pairs = command.pairs().clone();
        let ranking = self.reranker.rerank(command).await?;
        check_finite(ranking.results.iter().map(|ranked| ranked.score))?;
        let work = Work {
            pairs: pairs.len(),
            tokens: ranking.tokens,
        };
        let answer = Answer {
            dialect,
            id: self.id.as_str(),
            model: &self.reranker.info().id,
            created: now(),
            pairs: &pairs,
            ranking: &ranking,
            document_form: self.state.config().http.rerank_document,
        };
        Ok(work.attach(json(StatusCode::OK, &T::fill(&answer, &kept))))
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// JSON has no NaN: it would reach the client as null, and its ranking would mean nothing.
///
/// # Errors
/// Where the first score is that is no number.
pub fn check_finite(mut scores: impl Iterator<Item = f32>) -> Result<(), RerankError> {
    match scores.position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(at) => Err(RerankError::internal(format!(
            "the model gave a score that is not finite, at {at}"
        ))),
    }
}
