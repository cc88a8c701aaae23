//! Fusion with the first stage of a search: what a request says of it, and what a result tells.

use rerankd_core::{FirstStage, Fusion, FusionMethod, FusionWeight, Ranked, RerankError};
use serde::Serialize;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess};
use utoipa::ToSchema;

use super::answer::RankingAnswer;
use super::read::{Place, Read, Reader, next_known, request};

request! {
    /// How the scores of a first stage, such as BM25, count beside those of the model.
    pub struct FusionRequest as Fusion {
        /// How both come to a common scale within the request; `zscore` without.
        method?: FusionMethod as Option<MethodName>,
        /// The weight of the first stage, from 0 to 100, where the model has 1; 0.25 without.
        weight?: FusionWeight as Option<f64> { minimum = 0, maximum = 100 },
    }
}

#[derive(ToSchema)]
#[schema(as = FusionMethod, rename_all = "lowercase")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum MethodName {
    ZScore,
    MinMax,
    Rrf,
}

/// What a document has under `score` or `rank`. Documents may have any fields, so that it only has to be a number where a
/// fusion is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum Given {
    #[default]
    Nothing,
    Number(f64),
    Other,
}

impl Read for Given {
    const EXPECTED: &'static str = "a number";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        Ok(number.map_or(Self::Other, Self::Number))
    }

    fn boolean<E: Error>(_: Place<'_>, _: bool) -> Result<Self, E> {
        Ok(Self::Other)
    }

    fn integer<E: Error>(_: Place<'_>, value: i128) -> Result<Self, E> {
        #[allow(clippy::cast_precision_loss, reason = "a score is a float")]
        Ok(Self::Number(value as f64))
    }

    fn float<E: Error>(_: Place<'_>, value: f64) -> Result<Self, E> {
        Ok(Self::Number(value))
    }

    fn list<'de, S: SeqAccess<'de>>(_: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::Other)
    }

    fn object<'de, M: MapAccess<'de>>(_: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::Other)
    }
}

/// What a document says of the first stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    score: Given,
    rank: Given,
}

impl Evidence {
    /// Reads the next value of `map`, which is under `key`: `score` or `rank`.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn read_value<'de, M: MapAccess<'de>>(
        &mut self,
        key: &str,
        at: Place<'_>,
        map: &mut M,
    ) -> Result<(), M::Error> {
        let given: Option<Given> = map.next_value_seed(Reader::at(at))?;
        let field = match key {
            "score" => &mut self.score,
            _ => &mut self.rank,
        };
        *field = given.unwrap_or_default();
        Ok(())
    }
}

impl Read for Evidence {
    const EXPECTED: &'static str = "an object";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut evidence = Self::default();
        while let Some(key) = next_known(&mut map, &["score", "rank"])? {
            evidence.read_value(key, at, &mut map)?;
        }
        Ok(evidence)
    }
}

impl FusionRequest {
    /// The fusion with what the documents of the list `field` say.
    ///
    /// # Errors
    /// When one of them says no number, both a score and a rank are said, or none.
    pub fn with(self, evidence: &[Evidence], field: &str) -> Result<Fusion, RerankError> {
        let mut scores = Vec::with_capacity(evidence.len());
        let mut ranks = Vec::with_capacity(evidence.len());
        for (index, evidence) in evidence.iter().enumerate() {
            scores.push(score(evidence.score).ok_or_else(|| {
                RerankError::invalid(format!(
                    "`{field}[{index}].score` is not a number; send one, or leave it out"
                ))
            })?);
            ranks.push(rank(evidence.rank).ok_or_else(|| {
                RerankError::invalid(format!(
                    "`{field}[{index}].rank` is not a whole number of at least 1; send one, or leave it out"
                ))
            })?);
        }
        let has_scores = scores.iter().any(Option::is_some);
        let has_ranks = ranks.iter().any(Option::is_some);
        let first_stage = match (has_scores, has_ranks) {
            (true, true) => {
                return Err(RerankError::invalid(format!(
                    "some `{field}` have a `score` and some a `rank`; send only one of the two"
                )));
            }
            (_, false) => FirstStage::Scores(scores),
            (false, true) => FirstStage::Ranks(ranks),
        };
        let method = self.method.unwrap_or_default();
        Fusion::new(method, self.weight.unwrap_or_default(), first_stage, field)
    }
}

/// A score; `None` if it is no number.
fn score(given: Given) -> Option<Option<f64>> {
    match given {
        Given::Nothing => Some(None),
        Given::Number(score) => Some(Some(score)),
        Given::Other => None,
    }
}

/// A rank; `None` if it is no whole number from 1.
fn rank(given: Given) -> Option<Option<u32>> {
    match given {
        Given::Nothing => Some(None),
        Given::Number(rank)
            if (1.0..=f64::from(u32::MAX)).contains(&rank) && rank.fract() == 0.0 =>
        {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is whole and in range"
            )]
            Some(Some(rank as u32))
        }
        Given::Number(_) | Given::Other => None,
    }
}

/// What a result tells of a fusion.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = FusedScores)]
pub struct FusedScores {
    /// What results are ordered by.
    #[serde(skip_serializing_if = "Option::is_none")]
    fused_score: Option<f64>,
    /// As the request has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_stage_score: Option<f64>,
    /// As the request has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_stage_rank: Option<u32>,
}

impl FusedScores {
    /// What is told of `ranked`: nothing without a fusion.
    pub fn of(ranked: &Ranked, answer: &RankingAnswer<'_>) -> Self {
        let (score, rank) = match answer.first_stage {
            None => (None, None),
            Some(FirstStage::Scores(scores)) => (scores[ranked.index], None),
            Some(FirstStage::Ranks(ranks)) => (None, ranks[ranked.index]),
        };
        Self {
            fused_score: ranked.fused,
            first_stage_score: score,
            first_stage_rank: rank,
        }
    }
}
