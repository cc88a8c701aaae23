//! `POST /score`: texts scored against texts, in the order of the request.

use rerankd_core::{
    Instruction, Limits, PredictCommand, Prediction, Priority, RerankError, TruncationSide,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{ContentList, Options, SideName};
use crate::answer::Context;
use crate::dialect::{Asked, Body, Served, Work, with_priority};
use crate::error::{missing, to_json};
use crate::pairs::pairs;
use crate::read::content::Contents;
use crate::read::form::{CountOrMinusOne, CountOrZero, Flag, Urgency};
use crate::read::scalar::{ModelName, Whole};
use crate::read::{self, request};

/// Reads texts to be scored against texts.
pub fn read(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: ScoreRequest = read::parse(&body.json, &served.limits)?;
    drop(body);
    let served = served.select(request.model.as_deref())?;
    let hints = with_priority(request.priority.unwrap_or_default());
    let command = request.into_command(&served.limits)?.with_hints(hints);
    if served.labels().len() != 1 {
        return Err(RerankError::unsupported(format!(
            "this model gives {} scores a pair; use `/predict`",
            served.labels().len()
        )));
    }
    let fill =
        |context: &Context<'_>, prediction: &Prediction| to_json(&fill_scores(context, prediction));
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

request! {
    /// Scores as vLLM is asked for them: one text against one or many, or as many against as many.
    pub struct ScoreRequest as VllmScoreRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// The first texts.
        text_1?: Contents as Option<ContentList>,
        /// The second texts.
        text_2?: Contents as Option<ContentList>,
        /// Another name of `text_1`.
        queries?: Contents as Option<ContentList>,
        /// Another name of `text_2`.
        documents?: Contents as Option<ContentList>,
        /// Another name of `text_2`.
        items?: Contents as Option<ContentList>,
        /// Another name of `text_1`.
        data_1?: Contents as Option<ContentList>,
        /// Another name of `text_2`.
        data_2?: Contents as Option<ContentList>,
        /// Most tokens of a pair; -1 is as many as the model reads.
        truncate_prompt_tokens?: Whole<-1> as Option<CountOrMinusOne>,
        /// Which end is cut.
        truncation_side?: TruncationSide as Option<SideName>,
        /// Most tokens of the first text; 0 is no limit.
        max_tokens_per_query?: Whole<0> as Option<CountOrZero>,
        /// Most tokens of the second text; 0 is no limit.
        max_tokens_per_doc?: Whole<0> as Option<CountOrZero>,
        /// False asks for logits.
        use_activation?: bool as Option<Flag>,
        /// Its older name.
        activation?: bool as Option<Flag>,
        /// Its oldest name.
        softmax?: bool as Option<Flag>,
        /// How urgent it is, from 0, the default, to 999.
        priority?: Priority as Option<Urgency>,
        /// What the texts are judged by; ignored by models that take no instruction.
        instruction?: String as Option<String>,
    }
    refuses { mm_processor_kwargs, chat_template_kwargs }
}

impl ScoreRequest {
    /// The command this request spells.
    ///
    /// # Errors
    /// When one side is missing, the sides do not fit together, or there is too much.
    fn into_command(self, limits: &Limits) -> Result<PredictCommand, RerankError> {
        let first = self.text_1.or(self.queries).or(self.data_1);
        let second = self
            .text_2
            .or(self.documents)
            .or(self.items)
            .or(self.data_2);
        let first = first.ok_or_else(|| missing("text_1"))?;
        let second = second.ok_or_else(|| missing("text_2"))?;
        let first = first.0.texts("text_1", limits)?.items;
        let second = second.0.texts("text_2", limits)?.items;
        let options = Options {
            use_activation: self.use_activation.or(self.softmax).or(self.activation),
            side: self.truncation_side,
            max_tokens: self.truncate_prompt_tokens,
            max_query_tokens: self.max_tokens_per_query,
            max_document_tokens: self.max_tokens_per_doc,
        };
        let pairs = pairs(first, second, |first, second| {
            format!(
                "`text_1` has {first} items and `text_2` has {second}; send one of the first, or as many of each"
            )
        })?;
        let instruction = Instruction::from_fields(self.instruction, None);
        let command = PredictCommand::named("text_2", pairs, options.read(), limits)?;
        Ok(command.with_instruction(instruction))
    }
}

/// Answer of `POST /score`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmScoreResponse)]
pub struct ScoreBody<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Score>,
    usage: ScoreUsage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmScore)]
struct Score {
    index: usize,
    object: &'static str,
    score: f32,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmScoreUsage)]
struct ScoreUsage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    /// Always null.
    prompt_tokens_details: (),
}

/// The body that tells `prediction`, whose model has one label.
fn fill_scores<'a>(context: &Context<'a>, prediction: &Prediction) -> ScoreBody<'a> {
    let score = |(index, &score): (usize, &f32)| Score {
        index,
        object: "score",
        score,
    };
    ScoreBody {
        id: format!("score-{}", context.id),
        object: "list",
        created: context.created,
        model: context.model,
        data: prediction.scores.iter().enumerate().map(score).collect(),
        usage: ScoreUsage {
            prompt_tokens: prediction.tokens,
            total_tokens: prediction.tokens,
            completion_tokens: 0,
            prompt_tokens_details: (),
        },
    }
}
