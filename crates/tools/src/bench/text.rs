//! Synthetic requests from a seed, so that a measurement needs no data and is reproducible.
//!
//! Every word of the synthetic texts is one token of BERT's English vocabulary, so that token counts are
//! known without a tokenizer. Lengths follow those of real collections: sentence pairs of STS-B, and
//! abstracts with their long tail.

use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Special tokens around a pair.
const SPECIAL_TOKENS: usize = 3;
/// Longest pair of synthetic texts; most models would truncate longer ones.
const MAX_PAIR_TOKENS: usize = 512;
/// Approximate number of words of a sentence.
const SENTENCE_WORDS: usize = 12;
/// Frequent words first, because low indices are drawn more often.
const WORDS: &str = "\
the of and to in a is that for it as was with be by on not he his but at are this have from \
or had an they which one you were all her she there would their we him been has when who \
will no more if out so up said what its about than into them can only other time new some \
could these two may first then do any like my now over such our man me even most made after \
also did many before must through back years where much your way well down should because \
each just those people how too little state good very make world still see own work long \
here get both between life being under never day same another know while last might us great \
old year off come since against go came right used take three small large house water air \
light sound heat cold wind rain snow river sea ocean lake mountain forest tree leaf grass \
field farm animal dog cat horse bird fish cow sheep lion tiger wolf bear mouse snake insect \
flower fruit apple orange bread rice meat milk sugar salt coffee tea wine beer oil gas coal \
iron steel gold silver copper glass paper wood stone sand clay brick wall roof door window \
floor room kitchen bed table chair lamp clock book letter word page story song music dance \
film picture paint color red blue green yellow black white brown dark bright young woman \
child boy girl baby mother father son daughter brother sister friend family king queen \
doctor teacher student soldier driver farmer player singer actor writer artist judge lawyer \
worker city town village street road bridge train bus car truck ship boat plane engine wheel \
machine tool hammer knife gun rope wire chain box bag bottle cup plate spoon fork ball game \
team sport race match goal score win lose run walk jump swim climb fly ride drive stop start \
turn open close push pull carry hold throw catch hit cut break build burn cook eat drink \
sleep wake dream think feel hear speak talk write read learn teach study test measure count \
add divide number line circle square triangle angle surface edge point center left north \
south east west high low deep wide narrow thick thin heavy soft hard smooth rough sharp \
clean dirty wet dry hot warm cool fast slow early late quick quiet loud strong weak rich \
poor happy sad angry afraid tired hungry sick healthy safe dangerous easy difficult simple \
complex important different similar equal common rare public private local national foreign \
modern ancient natural human social political economic legal medical military physical \
chemical pressure velocity flow force energy power speed weight mass volume density \
temperature motion wave current voltage signal pattern model theory method result problem \
question answer reason cause effect change growth loss gain cost price value market trade \
money bank company office factory product service system process program project plan design \
structure function form type class group member part whole piece section level layer range \
limit rate ratio degree amount quality condition position direction distance area region \
space period moment hour minute second week month season summer winter spring autumn morning \
evening night history culture language science art religion law government army war peace \
election party president minister council court police prison school college university \
hospital church museum library hotel restaurant station airport port garden park beach \
island coast valley desert planet star moon sun earth sky cloud storm fire smoke ice";

/// A rerank request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The query.
    pub query: String,
    /// The documents to rerank.
    pub documents: Vec<String>,
    /// Number of tokens of all pairs; 0 if unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: u64,
}

fn is_zero(tokens: &u64) -> bool {
    *tokens == 0
}

/// Kinds of synthetic texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Sentences: about 23 tokens per pair.
    Short,
    /// Abstracts: 224 tokens per pair on average, with a long tail.
    Passage,
    /// Sentences and abstracts, shuffled.
    Mixed,
    /// Pairs of 512 tokens.
    Long,
}

impl Kind {
    /// Every kind and its name.
    pub const ALL: [(&str, Self); 4] = [
        ("short", Self::Short),
        ("passage", Self::Passage),
        ("mixed", Self::Mixed),
        ("long", Self::Long),
    ];

    /// Default number of documents per request.
    pub fn documents(self) -> usize {
        match self {
            Self::Short | Self::Passage | Self::Mixed => 32,
            Self::Long => 8,
        }
    }

    /// Minimum and maximum number of tokens of a query.
    fn query_tokens(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Short | Self::Mixed => 6..=14,
            Self::Passage | Self::Long => 12..=30,
        }
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or(())
    }
}

/// Where requests come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Synthetic.
    BuiltIn(Kind),
    /// From a file, in order and repeatedly.
    File(Vec<Request>),
}

/// A reproducible sequence of requests: the same number gives the same request.
#[derive(Debug, Clone)]
pub struct Texts {
    source: Source,
    seed: u64,
    documents: Option<usize>,
    words: Option<usize>,
    different: Option<u64>,
}

impl Texts {
    /// Requests of `source`. Each `seed` gives others.
    pub fn new(source: Source, seed: u64) -> Self {
        Self {
            source,
            seed,
            documents: None,
            words: None,
            different: None,
        }
    }

    /// The same with `documents` per request instead of the default of the source.
    #[must_use]
    pub fn with_documents(mut self, documents: Option<usize>) -> Self {
        self.documents = documents;
        self
    }

    /// The same with synthetic documents of `words` words each instead of the lengths of their kind.
    #[must_use]
    pub fn with_words(mut self, words: Option<usize>) -> Self {
        self.words = words;
        self
    }

    /// The same with only `different` distinct requests, repeatedly.
    #[must_use]
    pub fn with_different(mut self, different: Option<u64>) -> Self {
        self.different = different;
        self
    }

    /// Other requests of the same kind.
    #[must_use]
    pub fn apart(mut self, by: u64) -> Self {
        self.seed = self
            .seed
            .wrapping_add(by.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self
    }

    /// The request of this number.
    pub fn request(&self, number: u64) -> Request {
        let number = self
            .different
            .map_or(number, |different| number % different);
        match &self.source {
            Source::BuiltIn(kind) => {
                let documents = self.documents.unwrap_or(kind.documents());
                built_in(*kind, documents, self.words, self.seed, number)
            }
            Source::File(requests) => from_file(requests, self.documents, self.seed, number),
        }
    }
}

/// Reads a file with one request per line: `{"query": "...", "documents": ["..."]}`.
///
/// # Errors
/// When the file cannot be read, is empty, or a line is not a request; the message names the line.
pub fn read(path: &Path) -> io::Result<Vec<Request>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let requests: Vec<Request> = lines
        .map(|(number, line)| {
            let request: Request = serde_json::from_str(line).map_err(|error| {
                let column = error.column();
                io::Error::other(format!(
                    "line {} is not a request (column {column}); hint: a line is \
                     `{{\"query\": \"...\", \"documents\": [\"...\"]}}`",
                    number + 1
                ))
            })?;
            if request.documents.is_empty() {
                let line = number + 1;
                return Err(io::Error::other(format!("line {line} has no documents")));
            }
            Ok(request)
        })
        .collect::<io::Result<_>>()?;
    if requests.is_empty() {
        return Err(io::Error::other("the file has no requests"));
    }
    Ok(requests)
}

/// A line of the file, or its query with `documents` documents from this line on.
fn from_file(requests: &[Request], documents: Option<usize>, seed: u64, number: u64) -> Request {
    let lines = requests.len() as u64;
    let line = usize::try_from((seed.wrapping_add(number)) % lines).expect("below a length");
    let Some(count) = documents else {
        return requests[line].clone();
    };
    let following = requests.iter().cycle().skip(line);
    Request {
        query: requests[line].query.clone(),
        documents: following
            .flat_map(|request| request.documents.iter().cloned())
            .take(count)
            .collect(),
        tokens: 0,
    }
}

fn built_in(
    kind: Kind,
    documents: usize,
    doc_words: Option<usize>,
    seed: u64,
    number: u64,
) -> Request {
    let mut random = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    let words: Vec<&str> = WORDS.split_ascii_whitespace().collect();
    let query_tokens = random.usize(kind.query_tokens());
    let query = text(query_tokens, &words, &mut random);
    if let Some(count) = doc_words {
        let pair = (query_tokens + count + SPECIAL_TOKENS).min(MAX_PAIR_TOKENS);
        return Request {
            tokens: (documents * pair) as u64,
            documents: (0..documents)
                .map(|_| {
                    let drawn: Vec<&str> = (0..count).map(|_| word(&words, &mut random)).collect();
                    drawn.join(" ")
                })
                .collect(),
            query,
        };
    }
    let mut lengths: Vec<usize> = (0..documents)
        .map(|index| {
            let drawn = match kind {
                Kind::Short => sentence(&mut random),
                Kind::Passage => abstracts(&mut random),
                Kind::Mixed if index % 2 == 0 => sentence(&mut random),
                Kind::Mixed => abstracts(&mut random),
                Kind::Long => MAX_PAIR_TOKENS,
            };
            drawn.min(MAX_PAIR_TOKENS - SPECIAL_TOKENS - query_tokens)
        })
        .collect();
    random.shuffle(&mut lengths);
    let tokens = lengths
        .iter()
        .map(|length| length + query_tokens + SPECIAL_TOKENS);
    Request {
        tokens: tokens.sum::<usize>() as u64,
        documents: lengths
            .iter()
            .map(|length| text(*length, &words, &mut random))
            .collect(),
        query,
    }
}

/// Number of tokens of a sentence.
fn sentence(random: &mut fastrand::Rng) -> usize {
    log_normal(2.18, 0.49, random).max(3)
}

/// Number of tokens of an abstract.
fn abstracts(random: &mut fastrand::Rng) -> usize {
    log_normal(5.18, 0.54, random).max(28)
}

/// An integer whose logarithm has this mean and standard deviation.
fn log_normal(mean: f64, deviation: f64, random: &mut fastrand::Rng) -> usize {
    // The Box-Muller transform; the logarithm of zero would be infinite.
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * random.f64()).cos();
    (mean + deviation * normal).exp().round() as usize
}

/// A word; frequent ones are drawn more often.
fn word<'a>(words: &[&'a str], random: &mut fastrand::Rng) -> &'a str {
    let skew = random.f64() * random.f64();
    words[(skew * words.len() as f64) as usize]
}

/// Words and periods, one token each.
fn text(tokens: usize, words: &[&str], random: &mut fastrand::Rng) -> String {
    let mut text = String::with_capacity(tokens * 6);
    let mut since_stop = 0;
    for place in 0..tokens {
        // Never two periods in a row, and none at the start.
        if since_stop > SENTENCE_WORDS / 2
            && (place + 1 == tokens || random.usize(..SENTENCE_WORDS / 2) == 0)
        {
            text.push('.');
            since_stop = 0;
            continue;
        }
        if place > 0 {
            text.push(' ');
        }
        text.push_str(word(words, random));
        since_stop += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair_tokens(kind: Kind, requests: u64) -> Vec<usize> {
        let texts = Texts::new(Source::BuiltIn(kind), 7);
        let tokens = |text: &str| text.split(' ').count() + text.matches('.').count();
        (0..requests)
            .map(|number| texts.request(number))
            .flat_map(|request| {
                let query = tokens(&request.query);
                let pairs: Vec<usize> = request
                    .documents
                    .iter()
                    .map(|document| query + tokens(document) + SPECIAL_TOKENS)
                    .collect();
                assert_eq!(request.tokens, pairs.iter().sum::<usize>() as u64);
                pairs
            })
            .collect()
    }

    #[track_caller]
    fn check_mean(kind: Kind, expected: f64) {
        let pairs = pair_tokens(kind, 200);
        let mean = pairs.iter().sum::<usize>() as f64 / pairs.len() as f64;
        assert!(
            (mean - expected).abs() < expected / 50.0,
            "{kind:?}: {mean}"
        );
        assert!(pairs.iter().all(|pair| *pair <= MAX_PAIR_TOKENS));
    }

    #[test]
    fn lengths_are_those_of_the_kind() {
        check_mean(Kind::Short, 23.0);
        check_mean(Kind::Passage, 224.0);
        check_mean(Kind::Mixed, (23.0 + 211.0) / 2.0);
        check_mean(Kind::Long, 512.0);
        assert_eq!(pair_tokens(Kind::Long, 1), [512; 8]);
        let mut passages = pair_tokens(Kind::Passage, 200);
        passages.sort_unstable();
        assert!(passages[passages.len() / 2] < 215, "a long tail");
        assert!(passages[passages.len() * 99 / 100] > 480, "a long tail");
    }

    #[cfg(feature = "embedded-model")]
    #[test]
    fn token_counts_are_those_of_the_tokenizer() {
        use rerankd_core::{Limits, RerankCommand, ScoreOptions};
        use rerankd_model::Model;
        use rerankd_model::encoder::PairEncoder;

        let encoder = PairEncoder::for_model(&Model::embedded().unwrap()).unwrap();
        for (_, kind) in Kind::ALL {
            let request = Texts::new(Source::BuiltIn(kind), 3).request(5);
            let limits = Limits { max_documents: 32 };
            let options = ScoreOptions::default();
            let command =
                RerankCommand::new(request.query, request.documents, None, options, &limits);
            let go_on = std::sync::atomic::AtomicBool::new(false);
            let pairs = encoder
                .encode(command.unwrap().scoring().pairs(), &go_on)
                .unwrap();
            let tokens: usize = pairs.iter().map(|pair| pair.encoding.len()).sum();
            assert_eq!(request.tokens, tokens as u64, "{kind:?}");
        }
    }

    #[test]
    fn requests_are_reproducible_by_seed() {
        let texts = |seed| Texts::new(Source::BuiltIn(Kind::Mixed), seed);
        assert_eq!(texts(1).request(4), texts(1).request(4));
        assert_ne!(texts(1).request(4), texts(1).request(5));
        assert_ne!(texts(1).request(4), texts(2).request(4));
        assert_ne!(texts(1).request(4), texts(1).apart(1).request(4));
        let few = texts(1).with_different(Some(3));
        assert_eq!(few.request(1), few.request(4));
        assert_ne!(few.request(1), few.request(3));
    }

    #[test]
    fn the_number_of_documents_can_be_given() {
        let texts = Texts::new(Source::BuiltIn(Kind::Short), 1);
        assert_eq!(texts.request(0).documents.len(), 32);
        let texts = texts.with_documents(Some(5));
        assert_eq!(texts.request(0).documents.len(), 5);
    }

    #[test]
    fn the_number_of_words_can_be_given() {
        let texts = Texts::new(Source::BuiltIn(Kind::Passage), 1).with_documents(Some(3));
        let request = texts.clone().with_words(Some(400)).request(0);
        let words = request.documents.iter().map(|text| text.split(' ').count());
        assert_eq!(words.collect::<Vec<_>>(), [400; 3]);
        assert!((3 * 415..=3 * 433).contains(&request.tokens), "{request:?}");
        let long = texts.with_words(Some(900)).request(0);
        assert_eq!(long.tokens, 3 * MAX_PAIR_TOKENS as u64, "truncated");
    }

    #[test]
    fn a_file_gives_its_requests_in_order_and_any_number_of_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.jsonl");
        std::fs::write(
            &path,
            "{\"query\": \"q\", \"documents\": [\"a\", \"b\"]}\n\n{\"query\": \"r\", \"documents\": [\"c\"]}\n",
        )
        .unwrap();
        let texts = Texts::new(Source::File(read(&path).unwrap()), 0);
        assert_eq!(texts.request(0).query, "q");
        assert_eq!(texts.request(1).documents, ["c"]);
        assert_eq!(texts.request(2), texts.request(0));
        let many = texts.with_documents(Some(4));
        assert_eq!(many.request(1).query, "r");
        assert_eq!(many.request(1).documents, ["c", "a", "b", "c"]);
    }

    #[test]
    fn an_error_in_a_file_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.jsonl");
        for (text, expected) in [
            ("", "no requests"),
            (
                "{\"query\": \"q\", \"documents\": []}",
                "line 1 has no documents",
            ),
            (
                "{\"query\": \"q\", \"documents\": [\"d\"]}\nx",
                "line 2 is not a request",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn printed_requests_can_be_read_again() {
        let request = Texts::new(Source::BuiltIn(Kind::Short), 1).request(0);
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }
}
